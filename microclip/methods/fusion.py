"""What the methods that train TokenFusion share: the network, its classifier and how it moves.

No method itself. Source: section 3.2 and A.2, arXiv:2510.02270v1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from microclip import runtime
from microclip.adaptation.schedules import OptimizerRecipe, cosine
from microclip.methods.base import Task, ViewPlan, Views
from microclip.model.token_fusion import TokenFusion
from microclip.settings.fusion import FusionSettings


class FusionClassifier:
    """A TokenFusion in evaluation mode."""

    def __init__(self, fusion: TokenFusion, settings: FusionSettings, seed: int) -> None:
        """Classify by `fusion`; `seed` serves query "random" alone."""
        self.views = ViewPlan("image", settings.test_view)
        self._fusion = fusion
        self._seed = seed

    @property
    def fusion(self) -> TokenFusion:
        """The network, for figures that look at its tokens."""
        return self._fusion

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the trained head's cosine similarities."""
        return self.heads(views)["fused"]

    @torch.no_grad()
    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the fused, global and local similarities."""
        images = views.needed_images()
        self._fusion.eval()
        if self._fusion.options.train_head == "cls":
            return {"fused": self._fusion.global_similarity(images)}
        seen = self._fusion(images, generator=runtime.generator(self._seed, "test-query"))
        return {"fused": seen.logits, "global": seen.global_logits, "local": seen.local_logits}

    def trained_state(self) -> dict[str, Tensor]:
        """Return LayerNorms, class vectors and pooling maps."""
        return self._fusion.trained_state()


def untrained(task: Task, settings: FusionSettings) -> TokenFusion:
    """Return the network before training. It changes the task's backbone in place.

    Raises:
        ValueError: the task has no backbone.
    """
    if task.backbone is None:
        raise ValueError("TokenFusion trains the backbone, got none; give one to the task")
    is_described = settings.initial_classifier == "descriptions"
    start = task.texts.uniform if is_described else task.texts.anchors
    return TokenFusion(task.backbone, start, settings.fusion_options())


def restored(task: Task, settings: FusionSettings, state: Mapping[str, Tensor]) -> FusionClassifier:
    """Return TokenFusion with trained tensors put back."""
    fusion = untrained(task, settings)
    fusion.load_trained_state(dict(state))
    return FusionClassifier(fusion, settings, task.seed)


def trained_similarity(
    fusion: TokenFusion, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[Tensor, "batch classes"]:
    """Return the cosines that are trained: the fused ones, or those of [CLS] alone (Table 2)."""
    if fusion.options.train_head == "cls":
        return fusion.global_similarity(images)
    logits: Tensor = fusion(images, generator=generator).logits
    return logits


def optimizer_recipe(settings: FusionSettings) -> OptimizerRecipe:
    """Return how the trained tensors move."""
    floor = 2 * settings.min_learning_rate  # the released code doubles it
    return OptimizerRecipe(
        schedule=cosine(settings.learning_rate, floor),
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        gradient_clip=settings.gradient_clip,
    )
