"""Dynamic knowledge aggregation: CLIP's prior and the network's own view make one label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip.model.backbone import unit_norm
from microclip.model.token_fusion import cosine_similarity


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Hard labels of a batch.

    Attributes:
        labels: class indices.
        confidence: the winning mixed similarity, a cosine-like number, not a probability.
    """

    labels: Int[Tensor, " batch"]
    confidence: Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Images that were chosen to be learned from, class by class, the surest first.

    Attributes:
        indices: of the images.
        labels: their pseudo-labels.
        confidence: the largest probability of each.
    """

    indices: Int[Tensor, " chosen"]
    labels: Int[Tensor, " chosen"]
    confidence: Float[Tensor, " chosen"]


def most_confident(
    probabilities: Float[Tensor, "image classes"], per_class: int | None
) -> Selection:
    """Return the `per_class` surest images of each predicted class; None: all of them.

    An image belongs to the class of its largest probability. There is no threshold; a class that is
    never predicted stays empty, and one with fewer images has them all. Among equal confidences the
    first image counts as surer, which the official code leaves open.

    Source: tonyhuang2022/UPL.

    Raises:
        ValueError: `per_class` is below one.
    """
    if per_class is not None and per_class < 1:
        raise ValueError(f"expected at least 1 image per class, got {per_class}; raise 'per_class'")
    confidence, labels = probabilities.max(dim=-1)
    surest = confidence.argsort(descending=True, stable=True)
    order = surest[labels[surest].argsort(stable=True)]
    counts = torch.bincount(labels, minlength=probabilities.shape[1])
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - first[labels[order]]
    chosen = order if per_class is None else order[rank < per_class]
    return Selection(chosen, labels[chosen], confidence[chosen])


def mix_knowledge(
    prior_logits: Float[Tensor, "batch classes"],
    fusion_logits: Float[Tensor, "batch classes"],
    gamma: float | int,
) -> Float[Tensor, "batch classes"]:
    """Return gamma times the prior plus (1 - gamma) times the fusion; no temperature.

    Source: Eq. 13, arXiv:2510.02270v1.

    Raises:
        ValueError: `gamma` outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma, the share of the prior, must lie in [0, 1], got {gamma}")
    return gamma * prior_logits + (1 - gamma) * fusion_logits


def aggregate_knowledge(
    prior_logits: Float[Tensor, "batch classes"],
    fusion_logits: Float[Tensor, "batch classes"],
    gamma: float | int,
) -> PseudoLabels:
    """Return the arg max of the mixed similarities, without threshold and without gradient.

    Source: Eq. 13, arXiv:2510.02270v1. With gamma 1 only the prior counts, with 0 only the fusion.

    Raises:
        ValueError: `gamma` outside [0, 1].
    """
    mixed = mix_knowledge(prior_logits.detach(), fusion_logits.detach(), gamma)
    confidence, labels = mixed.max(dim=-1)
    return PseudoLabels(labels=labels, confidence=confidence)


def fused_similarity(
    global_embedding: Float[Tensor, "batch embedding"],
    local_embedding: Float[Tensor, "batch embedding"],
    classifier: Float[Tensor, "classes embedding"],
    *,
    mode: Literal["features", "logits"] = "features",
    global_weight: float | int = 0.5,
) -> Float[Tensor, "batch classes"]:
    """Return the similarities that a pseudo-label takes from the network itself.

    "features" (released code) normalises the mean of the two embeddings, which multiplies the mean
    of their cosines by 1 / ||mean|| >= 1; "logits" (Eq. 9, arXiv:2510.02270v1) is that mean.
    `global_weight` stays 0.5 here, whatever share the trained prediction uses.

    Raises:
        ValueError: unknown `mode`.

    Departs: fidelity.md#pseudo-label-fusion.
    """
    mean = global_weight * global_embedding + (1 - global_weight) * local_embedding
    match mode:
        case "features":
            return cosine_similarity(unit_norm(mean), classifier)
        case "logits":
            return cosine_similarity(mean, classifier)
        case _:
            raise ValueError(f"mode must be 'features' or 'logits', got {mode!r}")
