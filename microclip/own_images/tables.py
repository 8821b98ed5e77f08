"""The tables of a command: what each image is, and which ones are worth a label first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.own_images.prediction import Heads

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
