"""The results of an `adapt` command: predictions, tables and scores, and the lines on screen.

Nothing here writes a file: `report` does, from a `Results`. The functions at the end yield what the
command prints, in the order of printing: what was found, the texts, warnings, the plan, the end.
"""

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

from microclip import paths, runtime
from microclip.data.decoding import darkness
from microclip.measure.evaluation import CONFIDENCE_SCALE, Evaluation, evaluate
from microclip.methods.base import REPEAT, declaration_of
from microclip.model.embeddings import TextClassifiers
from microclip.own_images.inputs import Materials, Request, Texts, closest_classes
from microclip.own_images.prediction import Heads
from microclip.own_images.record import OwnSettings
from microclip.own_images.training import Estimate, Outcome
from microclip.settings.declarations import Supervision

PREDICTION_COLUMNS = (
    *("file", "class", "confidence", "second_class", "margin"),
    *("fg_class", "cls_class", "zero_shot_class"),
)
_SHOWN = 5  # folders named in a line
LABEL_COLUMNS = ("rank", "file", "class", "confidence", "second_class", "margin")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for all images; classes are label numbers, probabilities at CLIP's temperature.

    Attributes:
        first: most probable class.
        second: the runner-up.
        confidence: probability of the first.
        margin: probability of the first minus that of the second.
        zero_shot: class before training.
        fg: prediction of [FG] alone; None for methods with one head.
        cls: prediction of [CLS] alone; None for methods with one head.
    """

    first: Int[Tensor, " image"]
    second: Int[Tensor, " image"]
    confidence: Float[Tensor, " image"]
    margin: Float[Tensor, " image"]
    zero_shot: Int[Tensor, " image"]
    fg: Int[Tensor, " image"] | None = None
    cls: Int[Tensor, " image"] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.first)


def predictions(heads: Heads, zero_shot: Int[Tensor, " image"]) -> Predictions:
    """Predictions from the similarities in `heads`; ties go to the first class."""
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
    """CSV with one row per image."""

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
    """The images with the smallest margins, spread over the predicted classes.

    First the most uncertain image of each class, then the second of each, and so on; within a
    round, the more uncertain comes first.
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
    """CSV of the `count` images most worth labelling, the most useful first."""
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
    """Rows as CSV with a header."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    return stream.getvalue()


@dataclass(frozen=True, eq=False)
class Results:
    """Inputs and outcome of a finished command.

    Attributes:
        n_cut: sentences truncated to fit the text tower.
        closest: the two classes with the most similar sentences, and their cosine.
        seconds: total of all processes that worked on the command.
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
        """Name of the image folder."""
        return self.materials.folder.resolve().name or "images"

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Image paths relative to their folder."""
        return tuple(map(self.materials.name, self.materials.images))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.outcome.record.class_names

    @cached_property
    def found(self) -> Predictions:
        """Predictions for all images."""
        return predictions(self.outcome.heads, self.outcome.zero_shot)

    @cached_property
    def unsure(self) -> Sequence[int]:
        """Rows of the images to label first."""
        return most_uncertain(self.found, int(self.settings.inputs["n_label_first"]))

    @property
    def changed_pct(self) -> float:
        """Images whose class differs from zero-shot's, in percent."""
        return 100 * float((self.found.first != self.found.zero_shot).double().mean())

    def per_class(self) -> list[tuple[str, int]]:
        """Number of images per predicted class, most frequent first."""
        counts = Counter(self.found.first.tolist())
        return [(self.class_names[label], n) for label, n in counts.most_common()]

    def scores(self) -> dict[str, Any] | None:
        """Accuracy on the labelled images, but for those learned from; None if there are none."""
        labels, learned = self.materials.labels, set(self.outcome.learned)
        rows = [
            row
            for row, path in enumerate(self.materials.images)
            if path in labels and row not in learned
        ]
        if not rows:
            return None
        truth = torch.tensor([labels[self.materials.images[row]] for row in rows])
        drawn_once = {n: p for n, p in self.outcome.heads.items() if not n.startswith(REPEAT)}
        heads = {name: evaluate(part[rows], truth) for name, part in drawn_once.items()}
        zero_shot = 100 * float((self.outcome.zero_shot[rows] == truth).double().mean())
        return {
            "n_labelled": len(rows),
            "top1_pct": _round(heads["fused"].top1_pct),
            "mean_class_pct": _round(heads["fused"].mean_class_pct),
            "top1_zero_shot_pct": _round(zero_shot),
            **{f"top1_{n}_pct": _round(e.top1_pct) for n, e in heads.items() if n != "fused"},
            "per_class_pct": _per_class(heads["fused"], self.class_names),
            # The images, never the labels; a classifier of texts alone saw no image, and a
            # few-shot method only those that are left out here.
            "seen_in_training": declaration_of(self.outcome.record.method).supervision
            not in (Supervision.NONE, Supervision.FEW_SHOT),
        }

    def as_dict(self) -> dict[str, Any]:
        """The results as plain values for JSON."""
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
    """Accuracy of the classes with at least one labelled image."""
    values = zip(names, scored.per_class_pct.tolist(), strict=True)
    return {name: _round(value) for name, value in values if value == value}  # NaN: no image


def survey_lines(materials: Materials, out: Path, *, learns_labels: bool) -> Iterator[str]:
    """Yield what was found in the folder; `learns_labels`: the method is a few-shot one."""
    survey = materials.survey
    use = "a few to learn from, the others for scoring" if learns_labels else "only for scoring"
    labelled = f"{len(materials.labels)} labels, {use}" if materials.labels else ""
    yield (
        f"{len(survey.images)} images of {len(materials.vocabulary)} classes in "
        f"{materials.folder}: {survey.described()}; {labelled or 'no labels (fine)'}"
    )
    if said := darkness(survey.modes):
        yield f"  warning: {said}"
    if survey.duplicates:
        yield f"  {survey.duplicates} images are exact copies of another one"
    if survey.others:
        others = ", ".join(f"{n} {kind}" for kind, n in survey.others.items())
        yield f"  ignored, not images: {others}"
    if empty := materials.without_images:
        shown = ", ".join(map(repr, empty[:_SHOWN])) + (", …" if len(empty) > _SHOWN else "")
        yield f"  {len(empty)} folders without an image are no classes: {shown}"
    if survey.bad:
        yield f"  skipped, cannot be used: {len(survey.bad)}, listed in {out / paths.BAD_FILES}"


def text_lines(given: Texts, vectors: TextClassifiers, names: tuple[str, ...]) -> Iterator[str]:
    """Yield what the texts are."""
    per_class = given.n_sentences / len(names)
    yield (
        f"texts: {len(names)} classes x {per_class:.3g} sentences from {given.where}; "
        f"{vectors.n_truncated} longer than the text tower reads"
    )
    pair, twins = closest_classes(names, vectors)
    yield f"  most similar: {pair.first!r} and {pair.second!r} (cosine {pair.cosine:.2f})"
    if twins:
        yield f"  warning: {len(twins)} pairs of classes have indistinguishable texts"
    yield from (f"  {note}" for note in given.notes)


def warning_lines(materials: Materials, settings: object, n_drawn: int = 0) -> Iterator[str]:
    """Yield warnings about small numbers of images.

    `n_drawn` are the labelled images that a few-shot method learns from; 0: it learns from all.
    """
    n_images, n_classes = n_drawn or len(materials.images), len(materials.vocabulary)
    batch = getattr(settings, "batch_size", 0)
    has_fairness = getattr(settings, "fairness", "off") != "off"
    if n_images < batch:
        labelled = "labelled " if n_drawn else ""
        yield f"  fewer {labelled}images than a batch of {batch}: each step sees all {n_images}"
    if has_fairness and (n_images < n_classes or n_images < batch):
        yield (
            f"  warning: the fairness term assumes that all {n_classes} classes are equally "
            f"frequent, which {n_images} images may not be; `--set fairness=off` turns it off"
        )


def plan_lines(request: Request, estimate: Estimate | None, device: str) -> Iterator[str]:
    """Yield what will be done and how long it takes."""
    task = f"plan: {request.method} on {request.backbone}, seed {request.seed}, {device}"
    if estimate is None:
        yield f"{task}; continuing where it was interrupted"
    else:
        seconds = runtime.duration(max(1.0, estimate.seconds))
        yield (
            f"{task}; about {seconds} (measured on {estimate.n_measured} "
            f"images), {estimate.peak_memory_mib / 1024:.1f} GiB memory, "
            f"{estimate.store_mib:.0f} MiB temporary disk, 0 USD"
        )
    if slow := runtime.slow_precision(str(request.settings.get("precision", "")), device):
        yield f"  warning: {slow}"
    if request.backbone.startswith("icon-clip"):
        yield (
            f"  {request.backbone} works offline and was trained on icons and drawings; for "
            "photographs, use `--backbone vit-b-32`, which is downloaded once"
        )


def done_lines(results: Results, out: Path) -> Iterator[str]:
    """Yield how it went; the last line says what to do next."""
    verdict = results.outcome.verdict
    kept = {
        "healthy": "the adapted model is kept; only labels can show whether it is better",
        "no evidence": "no sign that the adapted model is better than zero-shot; it is kept",
        "collapsed": "the adapted model is discarded, ZERO-SHOT IS KEPT",
        "untrained": "nothing was trained",
    }[verdict.kind]
    took = runtime.duration(results.seconds)
    yield f"done in {took}; {verdict.kind}: {'; '.join(verdict.reasons)} -> {kept}"
    if verdict.numbers:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in verdict.numbers.items())
        yield f"  signs: {shown}"
    n_seen = len(results.per_class())
    yield (
        f"  {n_seen} of {len(results.class_names)} classes predicted; {results.changed_pct:.1f} % "
        "of the images differ from zero-shot"
    )
    if (scores := results.scores()) is not None:
        yield (
            f"  {scores['top1_pct']:.2f} % of {scores['n_labelled']} labelled images are right, "
            f"zero-shot {scores['top1_zero_shot_pct']:.2f} %"
        )
    yield f"wrote {out}/: README.md predictions.csv gallery.html label_these_first.csv and more"
    yield (
        f"next: open {paths.quoted(out / 'gallery.html')}, then `microclip predict "
        f"{paths.quoted(out)} IMAGES`; to measure, label "
        f"{paths.quoted(out / 'label_these_first.csv')} and give it with --labels"
    )
