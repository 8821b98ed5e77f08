"""A normalised cut step by step: what the solver gives, and what the mask is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microclip.model.saliency import (
    NCutOptions,
    Saliency,
    affinity,
    fiedler_vector,
    normalized_cut,
)


@dataclass(frozen=True, eq=False)
class Cut:
    """A batch of cuts.

    Attributes:
        vector: the Fiedler vector with the solver's sign, unit norm.
        level: its threshold, of this sign.
        mask_before: where the vector exceeds it, before the sign is handled.
        is_flipped: True where the seed, the entry of largest magnitude, is negative.
        saliency: the cut as the method uses it.
    """

    vector: Float[Tensor, "batch patch"]
    level: Float[Tensor, " batch"]
    mask_before: Bool[Tensor, "batch patch"]
    is_flipped: Bool[Tensor, " batch"]
    saliency: Saliency


@torch.no_grad()
def examine(tokens: Float[Tensor, "batch patch width"], options: NCutOptions) -> Cut:
    """Return the cuts of the value-path patch tokens of some images, with all that made them."""
    weights = affinity(tokens, tau=options.tau, eps=options.eps, normalize=options.normalize)
    vector, _ = fiedler_vector(weights.double())
    seed = vector.gather(-1, vector.abs().argmax(dim=-1, keepdim=True))[:, 0]
    level = vector.std(dim=-1) if options.threshold == "std" else vector.mean(dim=-1)
    saliency = normalized_cut(tokens, options)
    return Cut(vector, level, vector > level[:, None], seed < 0, saliency)
