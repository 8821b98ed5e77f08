"""microCLIP: coarse and fine tokens of an image, self-trained on mixed pseudo-labels.

Paper: Ali et al., WACV 2026, arXiv:2510.02270v1. Upstream read: sathiiii/microCLIP@977ad31.
Supervision: unlabelled training images. Departs: fidelity.md; every difference between paper and
released code is a field of `adaptation.options.SelfTrainingSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip import runtime
from microclip.adaptation.options import SelfTrainingSettings
from microclip.adaptation.teacher import Teacher, encode_prior
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewRecipe
from microclip.methods.base import Supervision, Task, Tracker, ViewPlan, Views
from microclip.model.token_fusion import TokenFusion

_PRIOR_BATCH = 64


class FusionClassifier:
    """A TokenFusion in evaluation mode."""

    def __init__(self, fusion: TokenFusion, settings: SelfTrainingSettings, seed: int) -> None:
        """Classify by `fusion`; `seed` serves query "random" alone."""
        self.views = ViewPlan("image", settings.test_view)
        self._fusion = fusion
        self._seed = seed

    @property
    def fusion(self) -> TokenFusion:
        """Return the network, for those who look at its tokens."""
        return self._fusion

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the trained head's cosine similarities."""
        return self.heads(views)["fused"]

    @torch.no_grad()
    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the fused, global and local similarities."""
        if views.images is None:
            raise ValueError("this classifier reads images, got embeddings; follow its ViewPlan")
        self._fusion.eval()
        if self._fusion.options.train_head == "cls":
            return {"fused": self._fusion.global_similarity(views.images)}
        seen = self._fusion(views.images, generator=runtime.generator(self._seed, "test-query"))
        return {"fused": seen.logits, "global": seen.global_logits, "local": seen.local_logits}

    def trained_state(self) -> dict[str, Tensor]:
        """Return LayerNorms, class vectors and pooling maps."""
        return self._fusion.trained_state()


class _Reporter:
    """Passes the trainer's news on to tracker and monitor."""

    def __init__(self, task: Task, tracker: Tracker, classifier: FusionClassifier) -> None:
        self._monitor = task.monitor
        self._tracker = tracker
        self._classifier = classifier

    def pseudo_labels(self, indices: Int[Tensor, " batch"], guesses: dict[str, Tensor]) -> None:
        if self._monitor is not None:
            self._monitor.pseudo_labels(indices, guesses)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        if self._monitor is not None:
            self._monitor.evaluate(self._classifier)
        self._tracker.epoch(epoch, row)

    def message(self, text: str) -> None:
        self._tracker.message(text)


class MicroClip:
    """microCLIP."""

    supervision: ClassVar[Supervision] = Supervision.UNLABELLED
    reads: ClassVar[Literal["embeddings", "images"]] = "images"
    Settings: ClassVar[type[SelfTrainingSettings]] = SelfTrainingSettings
    RECIPE: ClassVar[int] = 1
    EVALUATION_FIELDS: ClassVar[frozenset[str]] = frozenset({"legacy_swap", "test_view"})

    def adapt(
        self, task: Task, settings: SelfTrainingSettings, tracker: Tracker
    ) -> FusionClassifier:
        """Return TokenFusion, trained on the task's unlabelled images."""
        if task.images is None:
            raise ValueError("microclip trains on images, got none; give the training images")
        fusion = _fusion(task, settings)
        knowledge = _knowledge(task, settings)
        recipe = ViewRecipe(
            seed=task.seed,
            size=fusion.backbone.image_size,
            mean=fusion.backbone.mean,
            std=fusion.backbone.std,
            weak=settings.weak_view,
            n_crops=0 if settings.pseudo_label == "single" else settings.n_crops,
            crop_scale=settings.crop_scale,
        )
        cached_prior = None
        if settings.prior == "frozen":
            tracker.message(f"encoding the frozen prior of {len(task.images)} images")
            cached_prior = _frozen_prior(task, fusion, recipe, knowledge)
            recipe = replace(recipe, n_crops=0)
        trainer = Trainer(
            fusion,
            Teacher(fusion, knowledge, settings, cached_prior),
            TrainingViews(task.images, recipe, batch_size=settings.batch_size, device=task.device),
            settings,
            precision=task.precision,
        )
        classifier = FusionClassifier(fusion, settings, task.seed)
        trainer.train(_Reporter(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: SelfTrainingSettings, state: Mapping[str, Tensor]
    ) -> FusionClassifier:
        """Return TokenFusion with trained tensors put back."""
        fusion = _fusion(task, settings)
        fusion.load_trained_state(dict(state))
        return FusionClassifier(fusion, settings, task.seed)


METHOD = MicroClip()


def _fusion(task: Task, settings: SelfTrainingSettings) -> TokenFusion:
    """Return the network before training. It changes the task's backbone in place."""
    if task.backbone is None:
        raise ValueError("microclip trains the backbone, got none; give one to the task")
    is_described = settings.initial_classifier == "descriptions"
    start = task.texts.uniform if is_described else task.texts.anchors
    return TokenFusion(task.backbone, start, **settings.fusion_options())


def _knowledge(task: Task, settings: SelfTrainingSettings) -> Float[Tensor, "classes embedding"]:
    """Return the prior's fixed class vectors, W_LLM."""
    texts = task.texts
    choices = {
        "similarity": texts.similarity,
        "uniform": texts.uniform,
        "templates": texts.anchors,
    }
    return choices[settings.text_weighting].to(task.device)


def _frozen_prior(
    task: Task,
    fusion: TokenFusion,
    recipe: ViewRecipe,
    knowledge: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "image classes"]:
    """Return the untrained encoder's prior of all training images, from one draw of crops."""
    assert task.images is not None
    views = TrainingViews(
        task.images,
        replace(recipe, weak="center"),
        batch_size=_PRIOR_BATCH,
        device=task.device,
        n_workers=0,
    )
    indices = list(range(len(task.images)))
    chunks = [indices[i : i + _PRIOR_BATCH] for i in range(0, len(indices), _PRIOR_BATCH)]
    batches = (views.weak_and_crops(0, chunk) for chunk in chunks)
    return encode_prior(fusion.backbone, batches, knowledge)
