"""Measuring accuracy: from the images a classifier asks for to its score, by epoch and by gate.

`ViewReader` reads the images in the form that a classifier wants, `collect_heads` collects its
predictions and `evaluate` scores them. `LabelMonitor` does so while a method trains: it holds the
labels, and the method gets none of them back. `check` is the zero-shot gate: CLIP's own accuracy on
a public dataset against the paper's. A swapped class order, a wrong split or other prompts cost
points silently, and CLIP shows them before anything is trained.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from microclip import paths, runtime
from microclip.data import loading, passport
from microclip.data.loading import UnlabelledImages, ViewRecipe, evaluation_views, image_embeddings
from microclip.data.vocabulary import load_vocabulary
from microclip.measure.published import Figure, figure
from microclip.methods.base import Classifier, ViewPlan, Views
from microclip.model import embeddings as features
from microclip.model.backbone import Backbone, encode_classes, load_backbone
from microclip.model.token_fusion import cosine_similarity
from microclip.settings.base import SettingsError
from microclip.settings.datasets import DatasetSettings
from microclip.settings.study import BackboneSettings
from microclip.text.classifier import template_classifier
from microclip.text.prompts import fill

logger = logging.getLogger(__name__)

CONFIDENCE_SCALE = 100.0  # CLIP's logit scale: from cosines to probabilities
TOLERANCE_POINTS = 2.0  # re-encoded images and other decoders move CLIP by some tenths
PERMUTED_POINTS = 10.0  # gained by renaming classes: labels are permuted, not just a few swapped
SOFTENED_BY = "MICROCLIP_ZERO_SHOT_GATE"  # "warn": logged and recorded, but nothing is stopped
_BATCH = 128
_KEPT_BYTES = 256 * 2**20  # image views up to this size are kept in memory
_SHOWN = 5  # swapped classes in a message


@dataclass(frozen=True, eq=False)
class ViewReader:
    """Reads images as a ViewPlan asks for them, in batches and in order.

    Attributes:
        seed: decides where random crops are.
        tower: backbone that normalises images; needed for plans of images.
        embeddings: frozen [CLS] of all images, if already encoded; otherwise `tower` encodes them.
        is_reread: keep image views in memory for the next call, if they are small enough.
    """

    images: UnlabelledImages
    seed: int
    tower: Backbone | None = None
    embeddings: Float[Tensor, "image embedding"] | None = None
    device: str | torch.device = "cpu"
    is_reread: bool = False
    _kept: dict[ViewPlan, list[Views]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, plan: ViewPlan) -> Iterable[Views]:
        """All images in batches of 128.

        Raises:
            ValueError: the plan needs a backbone and the reader has none.
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
            encoded = image_embeddings(self._backbone(), self.images)
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


TestBatches = Callable[[ViewPlan], Iterable[Views]]


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
    ) -> None:
        """Keep the labels; `test_batches` reads the views that a plan asks for."""
        self._train_labels = train_labels
        self._test_labels = test_labels
        self._test_batches = test_batches
        self._guesses: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._measured: dict[str, float] = {}

    def pseudo_labels(
        self, indices: Int[Tensor, " batch"], guesses: Mapping[str, Int[Tensor, " batch"]]
    ) -> None:
        """Keep a batch's guesses until the epoch ends."""
        # Not compared yet: on a GPU that would wait for each batch.
        self._guesses.append((indices, dict(guesses)))

    def evaluate(self, classifier: Classifier) -> None:
        """Measure the classifier on the test images."""
        heads = collect_heads(classifier, self._test_batches(classifier.views))
        for name, logits in heads.items():
            column = f"test_{name}_pct"
            self._measured[column] = evaluate(logits, self._test_labels).top1_pct

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


@dataclass(frozen=True)
class Renaming:
    """The one-to-one renaming of classes that makes most predictions right.

    Attributes:
        top1_pct: accuracy after renaming; never below the accuracy itself.
        seen_as: pairs of (labelled class, class that its images are predicted as), for renamed
            classes whose own name is predicted less than half as often.
    """

    top1_pct: float
    seen_as: tuple[tuple[str, str], ...]


@torch.no_grad()
def logits(
    dataset: DatasetSettings, backbone: BackboneSettings, device: str
) -> tuple[Float[Tensor, "image classes"], Int[Tensor, " image"]]:
    """CLIP's cosines of the test images with the filled templates, and the images' labels.

    Raises:
        MissingDataError: images, their embeddings or weights are missing.
        SettingsError: they are stale, or do not match the passport.
    """
    labels = loading.load(dataset)["test"].labels
    embeddings = features.load_features(dataset, backbone).test
    names = load_vocabulary(dataset).class_names
    prompts, _ = encode_classes(load_backbone(backbone, device), fill(dataset.templates, names))
    return cosine_similarity(embeddings, template_classifier(prompts).cpu()), labels


def check(dataset: DatasetSettings, backbone: BackboneSettings, device: str = "cpu") -> Path:
    """Compare CLIP's accuracy with the paper's, write the outcome, and return the file.

    If the paper prints no accuracy, ours alone is written. A refusal gets another file name, so
    that the workflow does not take it for a pass.

    Raises:
        VerificationError: more than 2 points off, with the likely causes.
        MissingDataError, SettingsError: as in `logits`; the variable has an unknown value.
    """
    is_softened = _is_softened()
    target = Path(paths.ZERO_SHOT.format(dataset=dataset.name, backbone=backbone.name))
    refusal = target.with_suffix(".refused.json")
    for path in (target, refusal):
        path.unlink(missing_ok=True)
    similarity, labels = logits(dataset, backbone, device)
    scored = evaluate(similarity, labels)
    renaming = best_renaming(scored.predicted, labels, load_vocabulary(dataset).class_names)
    printed = figure(dataset, backbone.name)
    off = None if printed is None else round(scored.top1_pct - printed.top1_pct, 4)
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "backbone": backbone.name,
        "top1_pct": round(scored.top1_pct, 4),
        "n_test": len(labels),
        "printed": None if printed is None else asdict(printed),
        "difference_points": off,
        "tolerance_points": TOLERANCE_POINTS,
        "renamed": asdict(renaming),
        "passport_sha256": passport.file_sha256(dataset.name),
    }
    if printed is None or off is None or abs(off) <= TOLERANCE_POINTS:
        runtime.write_json(target, {"verdict": "no figure" if off is None else "agrees", **facts})
        return target
    complaint = explain(dataset, backbone.name, (scored.top1_pct, printed), renaming)
    if is_softened:
        runtime.write_json(target, {"verdict": "warned", "complaint": complaint, **facts})
        logger.warning("%s", complaint)
        return target
    runtime.write_json(refusal, {"verdict": "refused", "complaint": complaint, **facts})
    raise runtime.VerificationError(
        f"{complaint}; to go on anyway set {SOFTENED_BY}=warn, see {refusal}"
    )


def best_renaming(
    predicted: Int[Tensor, " image"], labels: Int[Tensor, " image"], names: tuple[str, ...]
) -> Renaming:
    """The renaming of classes that agrees best with the predictions, by the Hungarian method."""
    n = len(names)
    counts = torch.bincount(labels * n + predicted, minlength=n * n).reshape(n, n).numpy()
    rows, columns = linear_sum_assignment(counts, maximize=True)
    moved = sorted(
        (
            (int(counts[row, column]), int(row), int(column))
            for row, column in zip(rows, columns, strict=True)
            if row != column and counts[row, column] > 2 * counts[row, row]
        ),
        key=lambda found: (-found[0], found[1]),
    )
    return Renaming(
        top1_pct=round(100 * float(counts[rows, columns].sum()) / len(labels), 4),
        seen_as=tuple((names[row], names[column]) for _, row, column in moved),
    )


def explain(
    dataset: DatasetSettings, backbone: str, compared: tuple[float, Figure], renaming: Renaming
) -> str:
    """Both numbers and the likely causes, likeliest first, in one line."""
    measured, printed = compared
    causes = []
    shown = ", ".join(f"{own!r} as {other!r}" for own, other in renaming.seen_as[:_SHOWN])
    if renaming.top1_pct - measured > PERMUTED_POINTS:
        causes.append(
            "the labels look permuted (class order): with the classes renamed one to one it would "
            f"be {renaming.top1_pct:.2f} %; CLIP sees images of {shown}"
        )
    elif shown:
        causes.append(f"some class names may be swapped: CLIP sees images of {shown}")
    if found := passport.differences(dataset.name):
        causes.append(f"the split: {'; '.join(found)}")
    causes += ["class names or templates other than the paper's", "preprocessing or other weights"]
    if measured > printed.top1_pct:
        causes.append("an easier split")
    return (
        f"CLIP ({backbone}) reaches {measured:.2f} % on {dataset.name}, the paper prints "
        f"{printed.top1_pct:.2f} % ({printed.where}): {measured - printed.top1_pct:+.2f} points, "
        f"at most {TOLERANCE_POINTS:g} are expected. Likely causes: {'. '.join(causes)}"
    )


def _is_softened() -> bool:
    choice = os.environ.get(SOFTENED_BY, "stop") or "stop"
    if choice not in ("stop", "warn"):
        raise SettingsError(f"{SOFTENED_BY} is {choice!r}; expected stop or warn")
    return choice == "warn"
