"""Unsupervised adaptation of CLIP to fine-grained classes with coarse and fine image tokens.

Source: microCLIP, arXiv:2510.02270v1. For your own images, `microclip.adapt(images, class_names)`
and `microclip.load(folder)` are all you need. To read the code, follow the data:

    settings/       what `config/` may say: one model per kind of YAML file
    paths, runtime  every file name; device, seeds, atomic files, provenance
    processes       signals, locks, jobs left behind
    warm            one process that imports torch, and forks a workflow's jobs
    text/           class names -> prompts -> descriptions -> class vectors
    data/           published archives or your folder -> decoded store -> views
    model/          backbone -> saliency -> attention pooling -> TokenFusion
    adaptation/     teacher, pseudo-labels, losses, and one trainer for all methods
    methods/        one file per method, composed of these parts; declared in settings/methods/
    study           from a study's YAML to the list of its runs
    measure/        accuracy, scores, tables, figures, and each number beside the paper's
    tracking/       a run's journal and history, and MLflow as their mirror
    runner          one run: these parts put together
    icons/          how the icon benchmark and the shipped icon-clip were made
    own_images/     a run on a folder without labels, with a verdict instead of accuracy
    api             the two functions above
    export/         an adapted classifier as ONNX or as an MLflow model
    cli/            the command line, one module per group of verbs

The method itself is short: `model/token_fusion.py`, `adaptation/losses.py` and
`methods/microclip.py`. A module imports only from those above it in this list;
`tests/test_layering.py` checks this and names the few modules that belong to another layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microclip.api import Adapted, adapt, load
    from microclip.own_images.prediction import Prediction

__version__ = "0.1.0"
__all__ = ["Adapted", "Prediction", "__version__", "adapt", "load"]


def __getattr__(name: str) -> Any:
    """Import `microclip.api` on first use, so that `import microclip` does not load torch."""
    if name not in __all__:
        raise AttributeError(f"module 'microclip' has no attribute {name!r}")
    from microclip import api

    return getattr(api, name)
