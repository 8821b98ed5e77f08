"""Figures 1 and 9: where [CLS] and [FG] look, before and after adaptation.

Source: Fig. 1 and 9, arXiv:2510.02270v1. Departs: maps are those of the features that the
classifier itself uses; the released pictures cut other ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from microclip.data.decoding import Pixels
from microclip.measure import pictures
from microclip.measure.attention_maps import enlarge, min_max, token_maps
from microclip.measure.drawing import Drawn, house_style
from microclip.measure.trained_runs import FusedRun, selected
from microclip.runs import FigureSelection
from microclip.settings.reports import MapsPlot

_MAPS = ("[CLS] before", "[FG] before", "[CLS] after", "[FG] after")
_MAPS_LINE = 17  # characters of the text beside a row


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
    """Return the maps of some test images of each dataset, a row an image.

    Raises:
        MissingDataError: a run is not complete.  SettingsError: it has no [FG] token.
    """
    rows = [row for run in selected(plot, selection) for row in _maps_rows(run, plot)]
    return Drawn(_maps_picture(rows), _maps_numbers(rows))


def _maps_rows(run: FusedRun, plot: MapsPlot) -> list[_MapsRow]:
    """Return the images that are shown of one run."""
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
    """Return all rows under each other, and one colour bar."""
    n_columns = 1 + len(_MAPS)
    names_dataset = len({row.dataset for row in rows}) > 1
    board = pictures.board(len(rows), n_columns, text=1.3, head=0.2, foot=0.32)
    for place, row in enumerate(rows):
        axes = [board.picture(place, column) for column in range(n_columns)]
        pictures.show(axes[0], row.picture)
        for own, values in zip(axes[1:], row.maps.values(), strict=True):
            scaled = enlarge(min_max(values[None]), len(row.picture))[0]
            pictures.show(own, pictures.heat_over(row.picture, scaled))
        if place == 0:
            for own, title in zip(axes, ("Image", *_MAPS), strict=True):
                own.set_title(title, pad=3)
        _describe(board.text(place, n_columns), row, names_dataset=names_dataset)
    step = board.side + board.gap
    scale = board.place(step, board.height - 0.3, 4 * step - board.gap, 0.09)
    pictures.scale_bar(scale, pictures.HEAT, ("least of the map", "greatest"))
    return board.figure


def _describe(axes: Axes, row: _MapsRow, *, names_dataset: bool) -> None:
    """Write an image's class and both predictions beside its row."""
    lines = [row.dataset] if names_dataset else []
    for when, guess in (("before", row.before), ("after", row.after)):
        lines.append(f"{when}: {pictures.mark(is_right=guess == row.truth)} {guess}")
    pictures.write_lines(axes, row.truth, lines, width=_MAPS_LINE)


def _maps_numbers(rows: Sequence[_MapsRow]) -> pd.DataFrame:
    """Return each map's values as they are: cosines and attention weights."""
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
