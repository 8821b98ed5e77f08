"""One self-training step, put together from the package's public functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microclip.adaptation.losses import (
    RunningMarginal,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)
from microclip.adaptation.multi_view import aggregate_views
from microclip.adaptation.pseudo_labels import (
    aggregate_knowledge,
    fused_similarity,
    mix_knowledge,
)
from microclip.model.token_fusion import FusionOutput, TokenFusion, cosine_similarity


@dataclass
class Step:
    """Everything that the reference recorded of a step."""

    weak: FusionOutput
    strong: FusionOutput
    crops: Tensor
    composite: Tensor
    pseudo_logits: Tensor
    labels: Tensor
    marginal: Tensor
    ce: Tensor
    fair: Tensor

    @property
    def loss(self) -> Tensor:
        return self.ce + self.fair


def run_step(
    fusion: TokenFusion,
    views: Tensor,
    prior_classifier: Tensor,
    marginal: RunningMarginal,
    *,
    gamma: float = 0.5,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
    labels: Tensor | None = None,
    pseudo_mode: Any = "features",
    factor: float = 2.0,
) -> Step:
    """Return one step on views of shape (batch, weak + strong + crops, 3, height, width)."""
    with torch.no_grad():
        weak = fusion(views[:, 0], mask=masks[0])
        crops = fusion.backbone.encode_global(views[:, 2:].flatten(0, 1))
        crops = crops.unflatten(0, (len(views), -1))
        composite = aggregate_views(weak.global_embedding, crops)
        prior = cosine_similarity(composite, prior_classifier)
        own = fused_similarity(
            weak.global_embedding, weak.local_embedding, fusion.classifier, mode=pseudo_mode
        )
        mixed = mix_knowledge(prior, own, gamma)
        found = aggregate_knowledge(prior, own, gamma)
    strong = fusion(views[:, 1], mask=masks[1])
    probabilities = marginal.update(mean_probabilities(strong.logits))
    return Step(
        weak=weak,
        strong=strong,
        crops=crops,
        composite=composite,
        pseudo_logits=mixed,
        labels=found.labels,
        marginal=probabilities,
        ce=self_training_loss(strong.logits, found.labels if labels is None else labels),
        fair=fairness_loss(probabilities, factor),
    )
