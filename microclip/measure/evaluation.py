"""Accuracy of a classifier: overall, by class, image by image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microclip.methods.base import Classifier, Views

CONFIDENCE_SCALE = 100.0  # CLIP's temperature: cosines to probabilities


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well some images were classified.

    Attributes:
        predicted: class of each image.
        confidence: probability of that class, in [0, 1].
        is_correct: whether it is the image's class.
        per_class_pct: accuracy by class; NaN for a class without images.
    """

    predicted: Int[Tensor, " image"]
    confidence: Float[Tensor, " image"]
    is_correct: Bool[Tensor, " image"]
    per_class_pct: Float[Tensor, " classes"]

    @property
    def top1_pct(self) -> float:
        """Return the share of images that are right."""
        return 100 * float(self.is_correct.double().mean())

    @property
    def mean_class_pct(self) -> float:
        """Return the mean of the class accuracies, over classes that have images."""
        return float(self.per_class_pct.double().nanmean())


def evaluate(logits: Float[Tensor, "image classes"], labels: Int[Tensor, " image"]) -> Evaluation:
    """Return the evaluation of cosine similarities; of equal ones the first class is taken.

    Raises:
        ValueError: no image, a label without class, or similarities that are not finite.
    """
    n_images, n_classes = logits.shape
    if n_images == 0 or n_images != len(labels) or int(labels.max()) >= n_classes:
        raise ValueError(
            f"expected as many labels below {n_classes} as images, at least one; got "
            f"{len(labels)} labels for {n_images} images; check the manifest"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("expected finite similarities, got NaN or infinity; check the weights")
    confidence, predicted = (CONFIDENCE_SCALE * logits.double()).softmax(dim=-1).max(dim=-1)
    is_correct = predicted == labels
    total = torch.bincount(labels, minlength=n_classes)
    right = torch.bincount(labels[is_correct], minlength=n_classes)
    return Evaluation(
        predicted=predicted,
        confidence=confidence.float(),
        is_correct=is_correct,
        per_class_pct=(100 * right.double() / total).float(),
    )


@torch.no_grad()
def collect_heads(
    classifier: Classifier, batches: Iterable[Views]
) -> dict[str, Float[Tensor, "image classes"]]:
    """Return all predictions of a classifier over batches, on the CPU, by head; "fused" is its own.

    Raises:
        ValueError: no batch.
    """
    parts: dict[str, list[Tensor]] = {}
    for views in batches:
        for name, logits in classifier.heads(views).items():
            parts.setdefault(name, []).append(logits.float().cpu())
    if not parts:
        raise ValueError("expected at least one batch to predict, got none; give it images")
    return {name: torch.cat(found) for name, found in parts.items()}
