"""The oracle: microCLIP's own training with the true labels in place of pseudo-labels.

Not a method of the paper: an upper bound for microCLIP. It has microCLIP's network, trained
parameters, strong views, optimiser and epochs, and takes its settings, a dataset's own included.
What it cannot learn on a dataset, no pseudo-label can teach there. Supervision: labels. There is no
fairness term: it keeps guessed labels from collapsing into a few classes, and true labels do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from microclip.adaptation.losses import Losses, self_training_loss
from microclip.adaptation.teacher import FixedLabels, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewBatch, ViewRecipe
from microclip.methods.base import DeclaredMethod, Task, Tracker, Watching
from microclip.methods.fusion import (
    FusionClassifier,
    optimizer_recipe,
    restored,
    trained_similarity,
    untrained,
)
from microclip.model.token_fusion import TokenFusion
from microclip.settings.base import digest
from microclip.settings.methods.oracle import DECLARATION, OracleSettings


class LabelLosses(Losses[ViewBatch]):
    """Cross-entropy of one view of each image against its label, Eq. 14 of the paper."""

    def __init__(self, fusion: TokenFusion, settings: OracleSettings) -> None:
        """Train `fusion`."""
        self._fusion = fusion
        self._settings = settings

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the term "ce" of a batch."""
        assert teaching.labels is not None
        logits = trained_similarity(self._fusion, self._views(batch), generator)
        return {"ce": self_training_loss(logits, teaching.labels, self._settings.temperature)}

    def _views(self, batch: ViewBatch) -> Float[Tensor, "batch 3 size size"]:
        match self._settings.trained_view:
            case "strong":
                assert batch.strong is not None
                return batch.strong
            case "mild":
                return batch.crops[:, 0]
            case "none":
                return batch.weak


class Oracle(DeclaredMethod[OracleSettings]):
    """microCLIP with true labels."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: OracleSettings, tracker: Tracker) -> FusionClassifier:
        """Return TokenFusion, trained on the task's labelled images."""
        examples = task.examples
        if examples is None or examples.images is None:
            raise ValueError("the oracle trains on labelled images, got none; give it examples")
        fusion = untrained(task, settings)
        trainer = Trainer(
            fusion,
            FixedLabels(examples.labels.to(task.device)),
            LabelLosses(fusion, settings),
            optimizer_recipe(settings),
            _views(task, examples.images, fusion, settings),
            # With the labels, so that a checkpoint of other ones is not resumed.
            settings={
                **settings.model_dump(mode="json"),
                "labels": digest(examples.labels.tolist()),
            },
            precision=task.precision,
        )
        classifier = FusionClassifier(fusion, settings, task.seed)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: OracleSettings, state: Mapping[str, Tensor]
    ) -> FusionClassifier:
        """Return TokenFusion with trained tensors put back."""
        return restored(task, settings, state)


METHOD = Oracle()


def _views(
    task: Task, images: UnlabelledImages, fusion: TokenFusion, settings: OracleSettings
) -> TrainingViews:
    """Return the batches: microCLIP's strong views and order by the same seed, no teacher's views.

    A mild view is the only crop of its image; without any augmentation the weak view is learned,
    then the center square.
    """
    recipe = replace(
        ViewRecipe.of(fusion.backbone, task.seed),
        weak="center",
        n_crops=int(settings.trained_view == "mild"),
        crop_scale=settings.mild_scale,
    )
    return TrainingViews(images, recipe, batch_size=settings.batch_size, device=task.device)
