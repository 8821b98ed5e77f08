"""All that a command has found out, before it is written: for tables, page, card and screen."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip import paths
from microclip.adaptation.training import duration
from microclip.measure.evaluation import CONFIDENCE_SCALE, Evaluation, evaluate
from microclip.model.embeddings import TextClassifiers
from microclip.own_images.inputs import Materials, Texts, Wishes, closest
from microclip.own_images.prediction import Heads
from microclip.own_images.record import OwnSettings
from microclip.own_images.training import Estimate, Outcome

PREDICTION_COLUMNS = (
    *("file", "class", "confidence", "second_class", "margin"),
    *("fg_class", "cls_class", "zero_shot_class"),
)
LABEL_COLUMNS = ("rank", "file", "class", "confidence", "second_class", "margin")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was said of each image; classes are numbers, probabilities at CLIP's temperature.

    Attributes:
        first: likeliest class.
        second: the next one.
        confidence: probability of the first.
        margin: by how much the first is more probable.
        fg: what [FG] alone says; None where there is one head.
        cls: what [CLS] alone says, likewise.
        zero_shot: class before any training.
    """

    first: Int[Tensor, " image"]
    second: Int[Tensor, " image"]
    confidence: Float[Tensor, " image"]
    margin: Float[Tensor, " image"]
    zero_shot: Int[Tensor, " image"]
    fg: Int[Tensor, " image"] | None = None
    cls: Int[Tensor, " image"] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.first)


def predictions(heads: Heads, zero_shot: Int[Tensor, " image"]) -> Predictions:
    """Return the predictions of `heads`; of equally likely classes the first one is taken."""
    likely = (CONFIDENCE_SCALE * heads["fused"].double()).softmax(dim=-1)
    values, classes = likely.sort(dim=-1, descending=True, stable=True)
    return Predictions(
        first=classes[:, 0],
        second=classes[:, 1],
        confidence=values[:, 0].float(),
        margin=(values[:, 0] - values[:, 1]).float(),
        zero_shot=zero_shot,
        fg=heads["local"].argmax(dim=-1) if "local" in heads else None,
        cls=heads["global"].argmax(dim=-1) if "global" in heads else None,
    )


def predictions_csv(found: Predictions, files: Sequence[str], class_names: Sequence[str]) -> str:
    """Return a line for every image."""

    def named(classes: Tensor | None, row: int) -> str:
        return "" if classes is None else class_names[int(classes[row])]

    rows = [
        (
            file,
            named(found.first, row),
            f"{float(found.confidence[row]):.4f}",
            named(found.second, row),
            f"{float(found.margin[row]):.4f}",
            named(found.fg, row),
            named(found.cls, row),
            named(found.zero_shot, row),
        )
        for row, file in enumerate(files)
    ]
    return as_csv(PREDICTION_COLUMNS, rows)


def most_uncertain(found: Predictions, count: int) -> list[int]:
    """Return the images of least margin, spread over the predicted classes.

    Each class gives its most uncertain image, then each its second, and so on; within a turn the
    more uncertain comes first.
    """
    order = torch.argsort(found.margin, stable=True).tolist()
    turn: dict[int, int] = {}
    placed = []
    for place, image in enumerate(order):
        label = int(found.first[image])
        turn[label] = turn.get(label, 0) + 1
        placed.append((turn[label], place, image))
    return [image for _, _, image in sorted(placed)[:count]]


def label_first_csv(
    found: Predictions, files: Sequence[str], class_names: Sequence[str], count: int
) -> str:
    """Return the images that are worth a label, the first of them first."""
    rows = [
        (
            rank,
            files[image],
            class_names[int(found.first[image])],
            f"{float(found.confidence[image]):.4f}",
            class_names[int(found.second[image])],
            f"{float(found.margin[image]):.4f}",
        )
        for rank, image in enumerate(most_uncertain(found, count), start=1)
    ]
    return as_csv(LABEL_COLUMNS, rows)


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as CSV with a head."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    return stream.getvalue()


@dataclass(frozen=True, eq=False)
class Results:
    """What was given, what was made of it, and how long it took.

    Attributes:
        n_cut: sentences that the text tower read in part.
        closest: the two classes whose sentences are most alike, and their cosine.
        seconds: of all processes that worked on the command.
    """

    materials: Materials
    texts: Texts
    settings: OwnSettings
    outcome: Outcome
    n_cut: int
    closest: tuple[str, str, float]
    seconds: float

    @property
    def title(self) -> str:
        """Return the folder's name."""
        return self.materials.folder.resolve().name or "images"

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Return the images' names below their folder."""
        return tuple(map(self.materials.name, self.materials.images))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the classes."""
        return self.outcome.record.class_names

    @cached_property
    def found(self) -> Predictions:
        """Return what was said of each image."""
        return predictions(self.outcome.heads, self.outcome.zero_shot)

    @cached_property
    def unsure(self) -> Sequence[int]:
        """Return the images that are worth a label first."""
        return most_uncertain(self.found, int(self.settings.inputs["n_label_first"]))

    @property
    def changed_pct(self) -> float:
        """Return the share of images that are not what zero-shot says, in percent."""
        return 100 * float((self.found.first != self.found.zero_shot).double().mean())

    def per_class(self) -> list[tuple[str, int]]:
        """Return how many images each class was given, the most frequent first."""
        counts = Counter(self.found.first.tolist())
        return [(self.class_names[label], n) for label, n in counts.most_common()]

    def scores(self) -> dict[str, Any] | None:
        """Return the accuracy on the images that have a label; None if none has."""
        labels = self.materials.labels
        rows = [row for row, path in enumerate(self.materials.images) if path in labels]
        if not rows:
            return None
        truth = torch.tensor([labels[self.materials.images[row]] for row in rows])
        heads = {name: evaluate(part[rows], truth) for name, part in self.outcome.heads.items()}
        zero_shot = 100 * float((self.outcome.zero_shot[rows] == truth).double().mean())
        return {
            "n_labelled": len(rows),
            "top1_pct": _round(heads["fused"].top1_pct),
            "mean_class_pct": _round(heads["fused"].mean_class_pct),
            "top1_zero_shot_pct": _round(zero_shot),
            **{f"top1_{n}_pct": _round(e.top1_pct) for n, e in heads.items() if n != "fused"},
            "per_class_pct": _per_class(heads["fused"], self.class_names),
            "seen_in_training": True,  # the images, never the labels
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        survey = self.materials.survey
        first, second, cosine = self.closest
        return {
            "folder": str(self.materials.folder),
            "images": {
                "n": len(self.files),
                "sha256": self.materials.images_sha256,
                "kinds": dict(survey.modes),
                "bad": len(survey.bad),
                "others": dict(survey.others),
                "duplicates": survey.duplicates,
            },
            "n_classes": len(self.class_names),
            "texts": {
                "from": self.texts.where,
                "n_sentences": self.texts.n_sentences,
                "n_cut": self.n_cut,
                "most_alike": [first, second, round(cosine, 4)],
            },
            "asked_method": self.settings.spec.method,
            "digest": self.settings.digest(),
            **self.outcome.verdict.as_dict(),
            "not_as_zero_shot_pct": _round(self.changed_pct),
            "mean_confidence": _round(float(self.found.confidence.double().mean())),
            "seconds": round(self.seconds, 1),
        }


def _round(value: float) -> float:
    return round(value, 4)


def _per_class(scored: Evaluation, names: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of the classes that have a labelled image."""
    values = zip(names, scored.per_class_pct.tolist(), strict=True)
    return {name: _round(value) for name, value in values if value == value}


def found(materials: Materials, out: Path) -> Iterator[str]:
    """Yield what the folder holds."""
    survey = materials.survey
    labelled = f"{len(materials.labels)} labels, for scoring alone" if materials.labels else ""
    yield (
        f"{len(survey.images)} images of {len(materials.vocabulary)} classes in "
        f"{materials.folder}: {survey.told()}; {labelled or 'no labels (fine)'}"
    )
    if survey.duplicates:
        yield f"  {survey.duplicates} images have the bytes of another one"
    if survey.others:
        others = ", ".join(f"{n} {kind}" for kind, n in survey.others.items())
        yield f"  passed over, no images: {others}"
    if survey.bad:
        yield f"  left out, cannot be used: {len(survey.bad)}, listed in {out / paths.BAD_FILES}"


def texts(given: Texts, vectors: TextClassifiers, names: tuple[str, ...]) -> Iterator[str]:
    """Yield what the sentences are."""
    a_class = given.n_sentences / len(names)
    yield (
        f"texts: {len(names)} classes x {a_class:.3g} sentences from {given.where}; "
        f"{vectors.n_truncated} longer than the text tower reads"
    )
    pair, twins = closest(names, vectors)
    yield f"  most alike: {pair.first!r} and {pair.second!r} read {100 * pair.cosine:.0f} % alike"
    if twins:
        yield f"  warning: {len(twins)} pairs of classes cannot be told apart by their texts"
    yield from (f"  {note}" for note in given.notes)


def warnings(materials: Materials, settings: object) -> Iterator[str]:
    """Yield what is unusual about the number of images."""
    n_images, n_classes = len(materials.images), len(materials.vocabulary)
    batch = getattr(settings, "batch_size", 0)
    has_fairness = getattr(settings, "fairness", "off") != "off"
    if n_images < batch:
        yield f"  fewer images than a batch of {batch}: each step sees all {n_images}"
    if has_fairness and (n_images < n_classes or n_images < batch):
        yield (
            f"  warning: the fairness term wants all {n_classes} classes equally often, which "
            f"{n_images} images may not be; `--set fairness=off` leaves it out"
        )


def plan(wishes: Wishes, estimate: Estimate | None, device: str) -> Iterator[str]:
    """Yield what will be done, and how long it takes."""
    told = f"plan: {wishes.method} on {wishes.backbone}, seed {wishes.seed}, {device}"
    if estimate is None:
        yield f"{told}; going on where it was interrupted"
    else:
        seconds = duration(max(1.0, estimate.seconds))
        yield (
            f"{told}; about {seconds} (measured on {estimate.n_measured} "
            f"images), {estimate.peak_memory_mib / 1024:.1f} GiB memory, "
            f"{estimate.store_mib:.0f} MiB disk meanwhile, 0 USD"
        )
    if wishes.backbone == "icon-clip":
        yield (
            "  icon-clip was made for icons and drawings, and is offline; photographs want "
            "`--backbone vit-b-32`, fetched once"
        )


def done(results: Results, out: Path) -> Iterator[str]:
    """Yield how it went; the last line says what to do next."""
    verdict = results.outcome.verdict
    kept = {
        "healthy": "the adapted model is kept; only labels can tell whether it is better",
        "no evidence": "nothing says that the adapted model is better than zero-shot; it is kept",
        "collapsed": "the adapted model is put aside, ZERO-SHOT IS KEPT",
        "untrained": "nothing was trained",
    }[verdict.kind]
    took = duration(results.seconds)
    yield f"done in {took}; {verdict.kind}: {'; '.join(verdict.reasons)} -> {kept}"
    if verdict.numbers:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in verdict.numbers.items())
        yield f"  signs: {shown}"
    n_seen = len(results.per_class())
    yield (
        f"  {n_seen} of {len(results.class_names)} classes predicted; {results.changed_pct:.1f} % "
        "of the images are not what zero-shot says"
    )
    if (scores := results.scores()) is not None:
        yield (
            f"  {scores['top1_pct']:.2f} % of {scores['n_labelled']} labelled images are right, "
            f"zero-shot {scores['top1_zero_shot_pct']:.2f} %"
        )
    yield f"wrote {out}/: README.md predictions.csv gallery.html label_these_first.csv and more"
    yield (
        f"next: open {out}/gallery.html, then `microclip predict {out} IMAGES`; to measure, label "
        f"{out}/label_these_first.csv and give it with --labels"
    )
