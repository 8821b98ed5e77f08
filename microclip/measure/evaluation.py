"""Measuring accuracy: from the images a classifier asks for to its score, epoch by epoch.

`ViewReader` reads the images in the form that a classifier wants, `collect_heads` collects its
predictions and `evaluate` scores them. `LabelMonitor` does so while a method trains: it holds the
labels and never passes them to the method.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microclip.data.crops import CropDraw, crop_embeddings
from microclip.data.loading import (
    ENCODED_TOGETHER,
    UnlabelledImages,
    ViewRecipe,
    evaluation_views,
    image_embeddings,
)
from microclip.measure.frozen import FrozenEmbeddings
from microclip.methods.base import REPEAT, Classifier, ViewPlan, Views
from microclip.model.backbone import Backbone

CONFIDENCE_SCALE = 100.0  # CLIP's logit scale: from cosines to probabilities
_BATCH = 128
_KEPT_BYTES = 256 * 2**20  # image views up to this size are kept in memory
TestBatches = Callable[[ViewPlan], Iterable[Views]]


@dataclass(frozen=True, eq=False)
class ViewReader:
    """Reads images as a ViewPlan asks for them, in batches and in order.

    Attributes:
        seed: decides where random crops are.
        tower: backbone that normalises images; needed for plans of images.
        embeddings: frozen [CLS] of all images, if already encoded; otherwise `tower` encodes them.
        is_reread: keep image views in memory for the next call, if they are small enough.
        frozen: where embeddings come from that an earlier run has computed.
    """

    images: UnlabelledImages
    seed: int
    tower: Backbone | None = None
    embeddings: Float[Tensor, "image embedding"] | None = None
    device: str | torch.device = "cpu"
    is_reread: bool = False
    frozen: FrozenEmbeddings = field(default_factory=FrozenEmbeddings)
    _kept: dict[ViewPlan, list[Views]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, plan: ViewPlan) -> Iterable[Views]:
        """All images in batches of 128.

        Raises:
            ValueError: the plan needs a backbone and the reader has none.
        """
        if plan not in self._kept:
            views = self._read(plan)
            if not self.is_reread or self._n_bytes(plan) > _KEPT_BYTES:
                return views
            self._kept[plan] = list(views)
        return self._kept[plan]

    def _read(self, plan: ViewPlan) -> Iterator[Views]:
        if plan.kind == "image":
            return self._images(plan)
        return self._embeddings() if plan.squares is None else self._squares(plan.squares)

    def _n_bytes(self, plan: ViewPlan) -> int:
        if self.tower is None or (plan.kind == "embedding" and plan.squares is None):
            return 0
        if plan.squares is not None:
            return len(self.images) * plan.squares.n * 4 * self.tower.embedding_dim
        return len(self.images) * 3 * 4 * self.tower.image_size**2

    def _embeddings(self) -> Iterator[Views]:
        encoded = self.embeddings
        if encoded is None:
            tower = self._backbone()
            encoded = self.frozen.get(
                ENCODED_TOGETHER, lambda: image_embeddings(tower, self.images)
            )
        for batch in torch.split(encoded.to(self.device), _BATCH):
            yield Views(embeddings=batch)

    def frozen_embeddings(self) -> Float[Tensor, "image embedding"]:
        """Frozen [CLS] of all images by `tower`, in batches of test views, on its device."""
        tower = self._backbone()

        def compute() -> Tensor:
            batches = [views.images for views in self(ViewPlan("image"))]
            return torch.cat([tower.encode_global(own) for own in batches if own is not None])

        return self.frozen.get(_BATCH, compute)

    def _squares(self, draw: CropDraw) -> Iterator[Views]:
        for start in range(0, len(self.images), _BATCH):
            part = range(start, min(start + _BATCH, len(self.images)))
            whole, squares = crop_embeddings(
                self._backbone(), self.images.part(part), draw, seed=self.seed, first=start
            )
            yield Views(embeddings=whole.to(self.device), squares=squares.to(self.device))

    def _images(self, plan: ViewPlan) -> Iterator[Views]:
        tower = self._backbone()
        recipe = ViewRecipe(self.seed, tower.image_size, tower.mean, tower.std)
        for batch in evaluation_views(
            self.images, recipe, crop=plan.crop, batch_size=_BATCH, device=self.device
        ):
            yield Views(images=batch)

    def _backbone(self) -> Backbone:
        if self.tower is None:
            raise ValueError("these views need a backbone, got none; pass the reader a tower")
        return self.tower


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well some images were classified.

    Attributes:
        predicted: predicted class of each image.
        confidence: probability of the predicted class, in [0, 1].
        is_correct: whether the prediction is right.
        per_class_pct: accuracy by class; NaN for a class without images.
    """

    predicted: Int[Tensor, " image"]
    confidence: Float[Tensor, " image"]
    is_correct: Bool[Tensor, " image"]
    per_class_pct: Float[Tensor, " classes"]

    @property
    def top1_pct(self) -> float:
        """Share of images that are classified correctly."""
        return 100 * float(self.is_correct.double().mean())

    @property
    def mean_class_pct(self) -> float:
        """Mean of the class accuracies, over classes that have images."""
        return float(self.per_class_pct.double().nanmean())


def evaluate(logits: Float[Tensor, "image classes"], labels: Int[Tensor, " image"]) -> Evaluation:
    """Score cosine similarities; among equal ones the first class counts as predicted.

    Raises:
        ValueError: no images, a label without a class, or similarities that are not finite.
    """
    n_images, n_classes = logits.shape
    if n_images == 0 or n_images != len(labels) or int(labels.max()) >= n_classes:
        raise ValueError(
            f"expected as many labels below {n_classes} as images, at least one; got "
            f"{len(labels)} labels for {n_images} images; check the manifest"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("expected finite similarities, got NaN or infinity; check the weights")
    # Float64: in float32 two close cosines can round to one probability and swap the prediction.
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


@dataclass(frozen=True)
class Repeats:
    """Accuracies of one classifier under several random draws of what it sees, in percent."""

    accuracies: tuple[float, ...]

    @classmethod
    def of(cls, found: Mapping[str, Evaluation]) -> Repeats | None:
        """Those of a classifier's heads; None if it was tested once."""
        drawn = [own.top1_pct for name, own in found.items() if name.startswith(REPEAT)]
        return cls((found["fused"].top1_pct, *drawn)) if drawn else None

    @property
    def mean_pct(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def std_pct(self) -> float:
        """Population deviation, as WCA reports it."""
        return statistics.pstdev(self.accuracies)


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the best accuracy on the test images: their labels select it."""

    epoch: int
    top1_pct: float

    @classmethod
    def of(cls, history: Iterable[Mapping[str, float]]) -> BestEpoch | None:
        """The first of the best tested epochs of a history; None if no training was tested.

        Epoch 0, the state before training, is not among them.
        """
        tested = [
            cls(int(row["epoch"]), row["test_fused_pct"])
            for row in history
            if row["epoch"] > 0 and "test_fused_pct" in row
        ]
        return max(tested, key=lambda one: one.top1_pct, default=None)


@torch.no_grad()
def collect_heads(
    classifier: Classifier, batches: Iterable[Views]
) -> dict[str, Float[Tensor, "image classes"]]:
    """Similarities over all batches, on the CPU, by head; "fused" is the classifier's prediction.

    Raises:
        ValueError: there is no batch.
    """
    parts: dict[str, list[Tensor]] = {}
    for views in batches:
        for name, logits in classifier.heads(views).items():
            parts.setdefault(name, []).append(logits.float().cpu())
    if not parts:
        raise ValueError("expected at least one batch to predict, got none; pass some images")
    return {name: torch.cat(found) for name, found in parts.items()}


def is_measured(epoch: int, *, every: int, n_epochs: int | None) -> bool:
    """Is the classifier tested after this epoch? The first state and the last one always are."""
    return n_epochs is None or epoch == n_epochs or epoch % every == 0


@dataclass(frozen=True, eq=False)
class _Tested:
    """A classifier's similarities on the test images, and the state that it had."""

    classifier: Classifier
    state: dict[str, Tensor]
    heads: dict[str, Float[Tensor, "image classes"]]

    def is_of(self, classifier: Classifier) -> bool:
        """Would a test of `classifier` now give these similarities?"""
        state = classifier.trained_state()
        return classifier is self.classifier and all(
            torch.equal(value, state[name]) for name, value in self.state.items()
        )


class LabelMonitor:
    """Measures the accuracy of pseudo-labels on training images, and the accuracy on test images.

    A training label of -1 is unknown. Such images do not count; if no label is known, the accuracy
    of pseudo-labels is not reported.
    """

    shown: ClassVar[Mapping[str, str]] = {
        "loss": "loss {:.3f}",
        "pseudo_mix_pct": "pseudo-labels {:.1f} %",
        "test_fused_pct": "test {:.1f} %",
        "test_global_pct": "global {:.1f}",
        "test_local_pct": "local {:.1f}",
        "images_per_s": "{:.0f} images/s",
    }

    def __init__(
        self,
        train_labels: Int[Tensor, " train_image"],
        test_labels: Int[Tensor, " test_image"],
        test_batches: TestBatches,
        *,
        is_measured: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Keep the labels; `test_batches` reads the views that a plan asks for.

        `is_measured` says after which epochs the classifier is tested.
        """
        self._train_labels = train_labels
        self._test_labels = test_labels
        self._test_batches = test_batches
        self._is_measured = is_measured
        self._tested: _Tested | None = None
        self._guesses: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._measured: dict[str, float] = {}

    def pseudo_labels(
        self, indices: Int[Tensor, " batch"], guesses: Mapping[str, Int[Tensor, " batch"]]
    ) -> None:
        """Keep a batch's guesses until the epoch ends."""
        # Not compared yet: on a GPU that would wait for each batch.
        self._guesses.append((indices, dict(guesses)))

    def evaluate(self, classifier: Classifier, epoch: int = 0) -> None:
        """Measure the classifier on the test images, if this epoch is to be measured."""
        if not self._is_measured(epoch):
            return
        heads = collect_heads(classifier, self._test_batches(classifier.views))
        self._tested = _Tested(classifier, classifier.trained_state(), heads)
        for name, logits in heads.items():
            column = f"test_{name}_pct"
            self._measured[column] = evaluate(logits, self._test_labels).top1_pct

    def heads(self, classifier: Classifier) -> dict[str, Float[Tensor, "image classes"]]:
        """Similarities on the test images; not computed again if nothing changed since a test."""
        if self._tested is None or not self._tested.is_of(classifier):
            return collect_heads(classifier, self._test_batches(classifier.views))
        return self._tested.heads

    def take(self, epoch: int) -> dict[str, float]:
        """Measurements since the last call, by column of the history."""
        del epoch
        right: dict[str, int] = {}
        total: dict[str, int] = {}
        for indices, guesses in self._guesses:
            truth = self._train_labels[indices]
            is_known = truth >= 0
            for name, labels in guesses.items():
                right[name] = right.get(name, 0) + int((labels.cpu() == truth)[is_known].sum())
                total[name] = total.get(name, 0) + int(is_known.sum())
        rates = {
            f"pseudo_{name}_pct": 100 * right[name] / total[name] for name in right if total[name]
        }
        measured = {**rates, **self._measured}
        self._guesses, self._measured = [], {}
        return measured
