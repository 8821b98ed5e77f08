"""What the methods that learn from a few labelled images share. No method itself."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from microclip.adaptation.losses import CrossEntropy
from microclip.adaptation.schedules import recipe_of
from microclip.adaptation.teacher import FixedLabels
from microclip.adaptation.training import Trainable, Trainer
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewBatch, augmented
from microclip.methods.base import Task, Tracker
from microclip.model.prompts import ClassPrompts
from microclip.settings.training import TrainingSettings


class PromptedNetwork(Trainable, Protocol):
    """A network that classifies images by learned prompts."""

    prompts: ClassPrompts

    def similarity(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the cosines of normalised images with the class vectors."""


def labelled(
    task: Task, shots: int, tracker: Tracker
) -> tuple[UnlabelledImages, Int[Tensor, " example"]]:
    """Return a few-shot task's images, and labels on its device; say which classes have too few.

    A class with fewer images than `shots` gives all it has, once, as in the official code.

    Raises:
        ValueError: the task has no labelled images.
    """
    examples = task.examples
    if examples is None or examples.images is None:
        raise ValueError("this method learns from labelled images, got none; give it examples")
    counts = [0] * len(task.class_names)
    for label in examples.labels.tolist():
        counts[label] += 1
    few = [name for name, count in zip(task.class_names, counts, strict=True) if count < shots]
    if few:
        n_empty = counts.count(0)
        empty = f", {n_empty} of them none" if n_empty else ""
        tracker.message(
            f"{len(few)} of {len(counts)} classes have fewer than {shots} labelled images{empty} "
            f"({few[0]!r} and so on); they give all they have"
        )
    return examples.images, examples.labels.to(task.device)


def prompt_trainer(
    task: Task,
    settings: TrainingSettings,
    network: PromptedNetwork,
    examples: tuple[UnlabelledImages, Int[Tensor, " example"]],
) -> Trainer[ViewBatch]:
    """Return a training of prompts by cross-entropy, one augmented view an image and epoch."""
    images, labels = examples
    backbone = network.prompts.backbone
    return Trainer(
        network,
        FixedLabels(labels),
        CrossEntropy(network.similarity, backbone.logit_scale),
        recipe_of(settings),
        TrainingViews(
            images,
            augmented(task.seed, backbone),
            batch_size=settings.batch_size,
            device=task.device,
            drop_last=settings.drop_last,
            is_strong=False,
        ),
        settings=settings.model_dump(mode="json"),
        precision=task.precision,
    )
