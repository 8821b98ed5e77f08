"""Images read as a classifier asks for them, what it predicts, and how accurate that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microclip.data import features
from microclip.data.datasets import UnlabelledImages
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.methods.base import Classifier, ViewPlan, Views
from microclip.model.backbone import Backbone

CONFIDENCE_SCALE = 100.0  # CLIP's temperature: cosines to probabilities
_BATCH = 128
_KEPT_BYTES = 256 * 2**20  # image views up to this size are drawn once


@dataclass(frozen=True, eq=False)
class ViewReader:
    """Reads images as a ViewPlan asks for them, in batches and in order.

    Attributes:
        seed: places random crops.
        tower: normalises images; needed for plans of images.
        embeddings: frozen [CLS] of all images, if already encoded; otherwise `tower` encodes them.
        is_reread: keep image views that take little memory, for the next call.
    """

    images: UnlabelledImages
    seed: int
    tower: Backbone | None = None
    embeddings: Float[Tensor, "image embedding"] | None = None
    device: str | torch.device = "cpu"
    is_reread: bool = False
    _kept: dict[ViewPlan, list[Views]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, plan: ViewPlan) -> Iterable[Views]:
        """Return all images in batches of 128.

        Raises:
            ValueError: the plan needs a backbone, and there is none.
        """
        if plan not in self._kept:
            views = self._embeddings() if plan.kind == "embedding" else self._images(plan)
            if not self.is_reread or self._n_bytes(plan) > _KEPT_BYTES:
                return views
            self._kept[plan] = list(views)
        return self._kept[plan]

    def _n_bytes(self, plan: ViewPlan) -> int:
        if plan.kind == "embedding" or self.tower is None:
            return 0
        return len(self.images) * 3 * 4 * self.tower.image_size**2

    def _embeddings(self) -> Iterator[Views]:
        encoded = self.embeddings
        if encoded is None:
            encoded = features.embeddings(self._backbone(), self.images)
        for batch in torch.split(encoded.to(self.device), _BATCH):
            yield Views(embeddings=batch)

    def _images(self, plan: ViewPlan) -> Iterator[Views]:
        tower = self._backbone()
        recipe = ViewRecipe(self.seed, tower.image_size, tower.mean, tower.std)
        for batch in evaluation_views(
            self.images, recipe, crop=plan.crop, batch_size=_BATCH, device=self.device
        ):
            yield Views(images=batch)

    def _backbone(self) -> Backbone:
        if self.tower is None:
            raise ValueError("these views need a backbone, got none; give the reader a tower")
        return self.tower


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
