"""The house style of figures, and how they are saved: PNG, PDF and the plotted numbers.

Figures are drawn at the size at which they are printed, so that 7 points are 7 points on paper.
Lines differ by colour, marker and dash, so that grey prints and colour-blind readers lose nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from microclip import runtime

COLUMN_IN = 3.25  # width of a column of the paper
TEXT_IN = 6.75  # width of its text
PNG_DPI = 200
FORMATS = ("png", "pdf", "csv")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "figure.dpi": 100,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.borderaxespad": 0.3,
    "image.interpolation": "nearest",
    "pdf.fonttype": 42,  # TrueType: text that can be searched, accepted by publishers
    "svg.hashsalt": "microclip",  # matplotlib's ids are random otherwise
    "savefig.dpi": PNG_DPI,
}


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure, and the plotted numbers as a tidy table."""

    figure: Figure
    numbers: pd.DataFrame


@dataclass(frozen=True)
class Ink:
    """How a line looks; lines differ in all three."""

    colour: str
    marker: str
    dash: Literal["solid", "dashed"] | tuple[float, tuple[float, ...]]


# Okabe and Ito 2008, "Color Universal Design", without the yellow: too pale for a thin line.
INKS = (
    Ink("#0072B2", "o", "solid"),
    Ink("#D55E00", "s", (0, (5, 1.5))),
    Ink("#009E73", "^", (0, (1.2, 1.2))),
    Ink("#CC79A7", "D", (0, (6, 1.5, 1.2, 1.5))),
    Ink("#E69F00", "v", (0, (3, 1, 1, 1, 1, 1))),
    Ink("#56B4E9", "P", (0, (8, 2))),
    Ink("#000000", "X", (0, (2, 2))),
)


def ink(index: int) -> Ink:
    """The look of the line with this index; from the eighth on, colours get other markers."""
    n = len(INKS)
    other = INKS[(index + index // n) % n]
    return Ink(INKS[index % n].colour, other.marker, other.dash)


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style and restore the caller's afterwards; also works as a decorator."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure of this size, laid out so that no text is cut off.

    Call it inside `house_style`. It is not a pyplot figure: pyplot would keep it in memory, and may
    want a display.
    """
    return Figure(figsize=(width_in, height_in), layout="constrained")


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend above all axes, in as many columns as fit.

    The figure grows by the legend's height: it never covers a line, and the axes keep their size.
    """
    width, height = (float(side) for side in figure.get_size_inches())
    for n_rows in range(math.ceil(len(handles) / 4), len(handles) + 1):
        n_columns = math.ceil(len(handles) / n_rows)
        legend = figure.legend(
            handles=list(handles), loc="outside upper center", ncols=n_columns, columnspacing=1.4
        )
        box = legend.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        if box.width <= width or n_columns == 1:
            figure.set_size_inches(width, height + box.height)
            return
        legend.remove()


def save(drawn: Drawn, stem: Path) -> None:
    """Write `stem.png`, `stem.pdf` and `stem.csv`; the same drawing gives the same bytes."""
    # Dates and versions in the metadata would change the bytes.
    metadata_of = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    with house_style():
        for kind, metadata in metadata_of.items():
            with runtime.atomic_path(_file(stem, kind)) as path:
                drawn.figure.savefig(path, format=kind, dpi=PNG_DPI, metadata=metadata)
    with runtime.atomic_path(_file(stem, "csv")) as path:
        drawn.numbers.to_csv(path, index=False, lineterminator="\n", float_format="%.8g")


def _file(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}")
