"""Pictures of images for figures: maps and masks over greyed ones, laid out in rows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from microclip.data.decoding import Pixels
from microclip.measure.drawing import TEXT_IN, new_figure

HEAT = "viridis"  # perceptually even, and readable to colour-blind people
HEAT_SHARE = 0.62  # of the map's colour over the greyed image
MASK_COLOUR = "#D55E00"  # Okabe and Ito's vermilion
MASK_SHARE = 0.5
_RIGHT, _WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
_MARGIN = 0.01  # at both edges, in
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


@dataclass(frozen=True, eq=False)
class Board:
    """A figure of square pictures in rows, laid out by hand so that all of them are as large.

    Attributes:
        side: of a picture, in.
        gap: between pictures, in.
        head: above the first row, in.
    """

    figure: Figure
    width: float
    height: float
    side: float
    gap: float
    head: float

    def picture(self, row: int, column: int) -> Axes:
        """Return the axes of one picture."""
        step = self.side + self.gap
        return self.place(column * step, self.head + row * step, self.side, self.side)

    def text(self, row: int, column: int) -> Axes:
        """Return empty axes from a column on to the right edge, for `write_lines`."""
        step = self.side + self.gap
        left, top = column * step, self.head + row * step
        return self.words(left, top, self.width - left)

    def words(self, left: float, top: float, width: float) -> Axes:
        """Return empty axes as high as a picture; one unit is one inch, y down."""
        axes = self.place(left, top, width, self.side)
        axes.set(xlim=(0, width), ylim=(self.side, 0))
        axes.set_axis_off()
        return axes

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes at a place in inches from the upper left corner, frames not cut off."""
        share = (
            (left + _MARGIN) / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        return self.figure.add_axes(share)


def board(n_rows: int, n_columns: int, *, text: float, head: float, foot: float) -> Board:
    """Return an empty board as wide as the paper's text.

    `text` is the width beside the last picture, `head` and `foot` the heights above and below, in.
    """
    gap = 0.06
    side = (TEXT_IN - text - 2 * _MARGIN) / n_columns - gap
    height = head + n_rows * (side + gap) + foot
    figure = new_figure(TEXT_IN, height)
    figure.set_layout_engine("none")
    return Board(figure, TEXT_IN, height, side, gap, head)


def greyed(picture: Pixels) -> Pixels:
    """Return a picture without colour, still in three channels."""
    luma = (picture.astype(np.float32) @ np.array(_GREY_WEIGHTS, np.float32))[..., None]
    return np.repeat(luma.round().astype(np.uint8), 3, axis=-1)


def heat_over(picture: Pixels, values: Float[Tensor, "height width"]) -> Pixels:
    """Return the greyed picture under the colours of a map with values in [0, 1]."""
    colours = matplotlib.colormaps[HEAT](values.numpy())[..., :3]
    return _blend(greyed(picture), 255 * colours, HEAT_SHARE)


def show_mask(axes: Axes, picture: Pixels, mask: Bool[Tensor, "height width"]) -> None:
    """Show a mask over the greyed picture, its edge drawn: told without colour too."""
    share = MASK_SHARE * mask.numpy().astype(np.float32)[..., None]
    show(axes, _blend(greyed(picture), 255 * np.array(to_rgb(MASK_COLOUR)), share))
    if bool(mask.any()) and not bool(mask.all()):
        axes.contour(mask.numpy(), [0.5], colors="white", linewidths=0.7)


def show(axes: Axes, picture: Any, **options: Any) -> None:
    """Show a picture without ticks, with a thin frame; its text stays as it is."""
    axes.imshow(picture, **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.4, color="0.6")


def write_lines(axes: Axes, title: str, lines: Sequence[str], *, width: int) -> None:
    """Write a bold title of at most `width` characters a line, and smaller lines below it."""
    head = wrapped(title, width)
    axes.text(0.04, 0.02, head, va="top", fontsize=8, fontweight="bold")
    depth = 0.05 + 0.135 * (1 + head.count("\n"))
    body = "\n".join(wrapped(line, int(1.3 * width)) for line in lines)
    axes.text(0.04, depth, body, va="top", fontsize=6.5, linespacing=1.3)


def scale_bar(axes: Axes, colours: str, words: Sequence[str]) -> None:
    """Fill axes with a colour map from left to right, and write words below it, end to end."""
    show(axes, np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto")
    for place, word in enumerate(words):
        share = place / (len(words) - 1)
        side = "left" if share == 0 else "right" if share == 1 else "center"
        options: dict[str, Any] = {"ha": side, "va": "top", "transform": axes.transAxes}
        axes.text(share, -0.35, word, fontsize=6.5, **options)


def mark(*, is_right: bool) -> str:
    """Return a tick or a cross: told apart without colour."""
    return _RIGHT if is_right else _WRONG


def wrapped(text: str, width: int) -> str:
    """Return a text in lines of at most `width` characters; `$` is a plain sign."""
    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")


def _blend(under: Any, over: Any, share: Any) -> Pixels:
    mixed: Pixels = ((1 - share) * under + share * over).round().astype(np.uint8)
    return mixed
