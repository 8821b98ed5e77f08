"""Figures of single images: Figures 1 and 9 (attention maps) and 11 (failures of the fusion).

First what they share with `masks.py`: a board of equal squares, maps and masks drawn over greyed
pictures, and lines of text beside them. Then Figures 1 and 9, where [CLS] and [FG] look before and
after adaptation, and Figure 11, test images that a token classifies correctly and the fusion does
not.

Source: Fig. 1, 9 and 11, arXiv:2510.02270v1. Departs: the maps are those of the features that the
classifier itself uses; the released figures cut other ones.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from microclip.data.decoding import Pixels
from microclip.measure.drawing import TEXT_IN, Drawn, house_style, new_figure
from microclip.measure.evaluation import Evaluation, evaluate
from microclip.measure.trained_runs import FusedRun, enlarge, min_max, selected, token_maps
from microclip.settings.reports import FailuresPlot, MapsPlot
from microclip.settings.study import load_dataset
from microclip.study import FigureSelection

HEAT = "viridis"  # perceptually uniform, and readable to colour-blind people
HEAT_SHARE = 0.62  # opacity of the map over the greyed image
MASK_COLOUR = "#D55E00"  # Okabe and Ito's vermilion
MASK_SHARE = 0.5
_RIGHT, _WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
_MARGIN = 0.01  # left and right, inches
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
_MAPS = ("[CLS] before", "[FG] before", "[CLS] after", "[FG] after")
_MAPS_LINE = 17  # characters per line of the text beside a row of maps
_HEADS = {"fused": "fusion", "global": "[CLS]", "local": "[FG]"}
_COLUMNS = ("dataset", "image", "class", "rank", "head", "prediction", "confidence", "is_correct")
_BLOCKS = 2  # failures side by side
_FAILURE_LINE = 29  # characters per line of the text beside a failure


@dataclass(frozen=True, eq=False)
class Board:
    """A figure of square pictures in rows, placed by hand so that all have the same size.

    Attributes:
        side: side of a picture, inches.
        gap: space between pictures, inches.
        head: space above the first row, inches.
    """

    figure: Figure
    width: float
    height: float
    side: float
    gap: float
    head: float

    def picture(self, row: int, column: int) -> Axes:
        """Axes for one picture."""
        step = self.side + self.gap
        return self.place(column * step, self.head + row * step, self.side, self.side)

    def pictures(self, row: int, titles: Sequence[str]) -> list[Axes]:
        """Axes for a row of pictures; the first row has the titles above it."""
        axes = [self.picture(row, column) for column in range(len(titles))]
        if row == 0:
            for own, title in zip(axes, titles, strict=True):
                own.set_title(title, pad=3)
        return axes

    def text(self, row: int, column: int) -> Axes:
        """Empty axes from a column to the right edge, for `write_lines`."""
        step = self.side + self.gap
        left, top = column * step, self.head + row * step
        return self.words(left, top, self.width - left)

    def words(self, left: float, top: float, width: float) -> Axes:
        """Empty axes as high as a picture; one unit is one inch, y points down."""
        axes = self.place(left, top, width, self.side)
        axes.set(xlim=(0, width), ylim=(self.side, 0))
        axes.set_axis_off()
        return axes

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a position in inches from the upper left corner."""
        # The margin keeps the frames of the outer pictures from being cut off.
        share = (
            (left + _MARGIN) / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        return self.figure.add_axes(share)


def empty_board(n_rows: int, n_columns: int, *, text: float, head: float, foot: float) -> Board:
    """An empty board as wide as the paper's text.

    `text` is the width to the right of the pictures, `head` and `foot` the heights above and below
    them, all in inches.
    """
    gap = 0.06
    side = (TEXT_IN - text - 2 * _MARGIN) / n_columns - gap
    height = head + n_rows * (side + gap) + foot
    figure = new_figure(TEXT_IN, height)
    figure.set_layout_engine("none")
    return Board(figure, TEXT_IN, height, side, gap, head)


def greyed(picture: Pixels) -> Pixels:
    """The picture in grey, still with three channels."""
    luma = (picture.astype(np.float32) @ np.array(_GREY_WEIGHTS, np.float32))[..., None]
    return np.repeat(luma.round().astype(np.uint8), 3, axis=-1)


def heat_over(picture: Pixels, values: Float[Tensor, "height width"]) -> Pixels:
    """The greyed picture under the colours of a map with values in [0, 1]."""
    colours = matplotlib.colormaps[HEAT](values.numpy())[..., :3]
    return _blend(greyed(picture), 255 * colours, HEAT_SHARE)


def show_mask(axes: Axes, picture: Pixels, mask: Bool[Tensor, "height width"]) -> None:
    """Show a mask over the greyed picture, with its edge drawn so that it reads without colour."""
    share = MASK_SHARE * mask.numpy().astype(np.float32)[..., None]
    show(axes, _blend(greyed(picture), 255 * np.array(to_rgb(MASK_COLOUR)), share))
    if bool(mask.any()) and not bool(mask.all()):
        axes.contour(mask.numpy(), [0.5], colors="white", linewidths=0.7)


def show(axes: Axes, picture: Any, **options: Any) -> None:
    """Show a picture with a thin frame and no ticks; title and labels are kept."""
    axes.imshow(picture, **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.4, color="0.6")


def write_lines(axes: Axes, title: str, lines: Sequence[str], *, width: int) -> None:
    """Write a bold title, wrapped at `width` characters, and smaller lines below it."""
    head = wrapped(title, width)
    axes.text(0.04, 0.02, head, va="top", fontsize=8, fontweight="bold")
    depth = 0.05 + 0.135 * (1 + head.count("\n"))
    body = "\n".join(wrapped(line, int(1.3 * width)) for line in lines)
    axes.text(0.04, depth, body, va="top", fontsize=6.5, linespacing=1.3)


def scale_bar(axes: Axes, colours: str, words: Sequence[str]) -> None:
    """Fill axes with a colour map from left to right, and spread words evenly below it."""
    show(axes, np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto")
    for place, word in enumerate(words):
        share = place / (len(words) - 1)
        side = "left" if share == 0 else "right" if share == 1 else "center"
        options: dict[str, Any] = {"ha": side, "va": "top", "transform": axes.transAxes}
        axes.text(share, -0.35, word, fontsize=6.5, **options)


def mark(*, is_right: bool) -> str:
    """A tick or a cross, so that right and wrong differ without colour."""
    return _RIGHT if is_right else _WRONG


def wrapped(text: str, width: int) -> str:
    """The text wrapped at `width` characters, with `$` escaped: matplotlib would start maths."""
    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")


def _blend(under: Any, over: Any, share: Any) -> Pixels:
    mixed: Pixels = ((1 - share) * under + share * over).round().astype(np.uint8)
    return mixed


@dataclass(frozen=True, eq=False)
class _MapsRow:
    """One image of the figure."""

    dataset: str
    file: str
    picture: Pixels
    maps: dict[str, Float[Tensor, "row column"]]
    truth: str
    before: str
    after: str


@house_style()
def draw_maps(plot: MapsPlot, selection: FigureSelection) -> Drawn:
    """Draw token maps of a few test images of each dataset, one row per image.

    Raises:
        MissingDataError: a run is not complete.
        SettingsError: a run has no [FG] token.
    """
    rows = [row for run in selected(plot, selection) for row in _maps_rows(run, plot)]
    return Drawn(_maps_picture(rows), _maps_numbers(rows))


def _maps_rows(run: FusedRun, plot: MapsPlot) -> list[_MapsRow]:
    """The rows of one run."""
    tested = run.tested
    indices = tested.choose(plot.images)
    views = run.views(indices)
    seen = [
        token_maps(classifier.fusion, views, run.generator())
        for classifier in (run.before, run.after)
    ]
    guesses = seen[0].output.logits.argmax(dim=-1).tolist()
    rows = []
    for place, (index, picture) in enumerate(zip(indices, run.pictures(indices), strict=True)):
        maps = [part[place] for s in seen for part in (s.global_map, s.local_map)]
        rows.append(
            _MapsRow(
                dataset=tested.settings.spec.dataset,
                file=tested.test.files[index],
                picture=picture,
                maps=dict(zip(_MAPS, maps, strict=True)),
                truth=tested.class_of("label", index),
                before=tested.class_names[guesses[place]],
                after=tested.class_of("prediction", index),
            )
        )
    return rows


def _maps_picture(rows: Sequence[_MapsRow]) -> Figure:
    """All rows, one below the other, and one colour bar."""
    titles = ("Image", *_MAPS)
    names_dataset = len({row.dataset for row in rows}) > 1
    board = empty_board(len(rows), len(titles), text=1.3, head=0.2, foot=0.32)
    for place, row in enumerate(rows):
        axes = board.pictures(place, titles)
        show(axes[0], row.picture)
        for own, values in zip(axes[1:], row.maps.values(), strict=True):
            scaled = enlarge(min_max(values[None]), len(row.picture))[0]
            show(own, heat_over(row.picture, scaled))
        _write_classes(board.text(place, len(titles)), row, names_dataset=names_dataset)
    step = board.side + board.gap
    scale = board.place(step, board.height - 0.3, 4 * step - board.gap, 0.09)
    scale_bar(scale, HEAT, ("least of the map", "greatest"))
    return board.figure


def _write_classes(axes: Axes, row: _MapsRow, *, names_dataset: bool) -> None:
    """Write an image's class and both predictions beside its row."""
    lines = [row.dataset] if names_dataset else []
    for when, guess in (("before", row.before), ("after", row.after)):
        lines.append(f"{when}: {mark(is_right=guess == row.truth)} {guess}")
    write_lines(axes, row.truth, lines, width=_MAPS_LINE)


def _maps_numbers(rows: Sequence[_MapsRow]) -> pd.DataFrame:
    """The maps' raw values: cosines and attention weights."""
    return pd.DataFrame(
        [
            (row.dataset, row.file, name, y, x, value)
            for row in rows
            for name, values in row.maps.items()
            for y, line in enumerate(values.tolist())
            for x, value in enumerate(line)
        ],
        columns=["dataset", "image", "map", "patch_row", "patch_column", "value"],
    )


@dataclass(frozen=True)
class Guess:
    """One head's prediction for an image; `confidence` is a probability."""

    head: str
    class_name: str
    confidence: float
    is_correct: bool


@dataclass(frozen=True, eq=False)
class _Failure:
    """One image of the figure; `rank` counts from 1 within its dataset."""

    dataset: str
    file: str
    class_name: str
    rank: int
    picture: Pixels
    guesses: tuple[Guess, ...]


@house_style()
def draw_failures(plot: FailuresPlot, selection: FigureSelection) -> Drawn:
    """Draw each dataset's failures that the fusion is most confident of.

    Raises:
        MissingDataError: a run is not complete.
        SettingsError: a run has no [FG] token.
    """
    found: list[_Failure] = []
    lines: list[str] = []
    for run in selected(plot, selection):
        heads = {name: evaluate(part, run.tested.test.labels) for name, part in run.heads().items()}
        ranked = rank(heads)
        title = load_dataset(run.tested.settings.spec.dataset).title
        lines.append(_summary(title, len(ranked), len(run.tested.test)))
        found += _failures(run, heads, ranked[: plot.images])
    return Drawn(_failures_picture(found, lines), _failures_numbers(found))


def rank(heads: Mapping[str, Evaluation]) -> list[int]:
    """Images that a token gets right and the fusion wrong, most confident wrong answer first."""
    fused = heads["fused"]
    has_one_right = heads["global"].is_correct | heads["local"].is_correct
    candidates = (has_one_right & ~fused.is_correct).nonzero().flatten().tolist()
    return sorted(candidates, key=lambda index: -float(fused.confidence[index]))


def _failures(
    run: FusedRun, heads: Mapping[str, Evaluation], indices: Sequence[int]
) -> list[_Failure]:
    if not indices:
        return []
    tested = run.tested
    return [
        _Failure(
            dataset=tested.settings.spec.dataset,
            file=tested.test.files[index],
            class_name=tested.class_of("label", index),
            rank=place,
            picture=picture,
            guesses=tuple(
                Guess(
                    head=shown,
                    class_name=tested.class_names[int(heads[name].predicted[index])],
                    confidence=float(heads[name].confidence[index]),
                    is_correct=bool(heads[name].is_correct[index]),
                )
                for name, shown in _HEADS.items()
            ),
        )
        for place, (index, picture) in enumerate(
            zip(indices, run.pictures(indices), strict=True), start=1
        )
    ]


def _summary(title: str, n_failures: int, n_test: int) -> str:
    """How many failures a dataset has, in words."""
    if n_failures == 0:
        return f"{title}: no image of {n_test} that a token has right and the fusion wrong"
    share = 100 * n_failures / n_test
    return (
        f"{title}: {n_failures} of {n_test} test images ({share:.1f} %) that a token has right and "
        "the fusion wrong"
    )


def _failures_picture(failures: Sequence[_Failure], lines: Sequence[str]) -> Figure:
    """The failures in side-by-side blocks, below the lines with their numbers."""
    n_rows = -(-len(failures) // _BLOCKS)
    head = 0.06 + 0.16 * len(lines)
    board = empty_board(n_rows, 2 * _BLOCKS + 2, text=0.0, head=head, foot=0.02)
    width = board.width / _BLOCKS
    top = board.place(0, 0, board.width, head)
    top.set_axis_off()
    top.text(0.003, 0.95, "\n".join(lines).replace("$", r"\$"), va="top", linespacing=1.25)
    for place, failure in enumerate(failures):
        row, block = divmod(place, _BLOCKS)
        down = head + row * (board.side + board.gap)
        show(board.place(block * width, down, board.side, board.side), failure.picture)
        left = block * width + board.side
        axes = board.words(left, down, width - board.side)
        said = [
            f"{mark(is_right=guess.is_correct)} {guess.head}: {guess.class_name}, "
            f"{100 * guess.confidence:.0f}\N{NO-BREAK SPACE}%"
            for guess in failure.guesses
        ]
        if len(lines) > 1:
            said.insert(0, failure.dataset)
        write_lines(axes, failure.class_name, said, width=_FAILURE_LINE)
    return board.figure


def _failures_numbers(failures: Sequence[_Failure]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (
                failure.dataset,
                failure.file,
                failure.class_name,
                failure.rank,
                guess.head,
                guess.class_name,
                guess.confidence,
                guess.is_correct,
            )
            for failure in failures
            for guess in failure.guesses
        ],
        columns=list(_COLUMNS),
    )
