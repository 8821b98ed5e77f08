"""Unsupervised adaptation of CLIP to fine-grained classes by coarse and fine image tokens.

Source: microCLIP, arXiv:2510.02270v1. Read in the order of the data:

    settings, study, paths     what to run, as a list of runs, and every file name
    text/                      class names -> prompts -> descriptions -> class vectors
    data/                      images -> decoded store -> views
    model/                     backbone -> saliency -> attention pooling -> TokenFusion
    adaptation/                pseudo-labels, losses, the self-training loop
    methods/                   one file a method
    measure/                   accuracy, scores, tables
    runner, api, cli           one run; the same for your own images; the verbs of both

For your own images: `microclip.adapt(images, class_names)` and `microclip.load(folder)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microclip.api import Adapted, adapt, load
    from microclip.own_images.prediction import Prediction

__version__ = "0.1.0"
__all__ = ["Adapted", "Prediction", "__version__", "adapt", "load"]


def __getattr__(name: str) -> Any:
    """Return what `microclip.api` exports, imported when first asked for: torch is slow to load."""
    if name not in __all__:
        raise AttributeError(f"module 'microclip' has no attribute {name!r}")
    from microclip import api

    return getattr(api, name)
