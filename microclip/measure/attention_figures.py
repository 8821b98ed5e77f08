"""Figures 1 and 9: where [CLS] and [FG] look, before and after adaptation.

Source: Fig. 1 and 9, arXiv:2510.02270v1. Departs: maps are those of the features that the
classifier itself uses; the released pictures cut other ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from microclip.data.store import Pixels
from microclip.measure import pictures
from microclip.measure.attention_maps import enlarge, min_max, token_maps
from microclip.measure.drawing import TEXT_IN, Drawn, house_style, new_figure
from microclip.measure.trained_runs import FusedRun, selected
from microclip.reports import FigureSettings

_MAPS = ("[CLS] before", "[FG] before", "[CLS] after", "[FG] after")
_TEXT_SHARE = 1.3  # width of the text beside a row, in pictures
_LINE = 24  # characters of it


@dataclass(frozen=True, eq=False)
class _Row:
    """One image of the figure."""

    dataset: str
    file: str
    picture: Pixels
    maps: dict[str, Float[Tensor, "row column"]]
    truth: str
    before: str
    after: str


@house_style()
def draw(figure: FigureSettings, selection: Mapping[str, Any]) -> Drawn:
    """Return the maps of some test images of each dataset, a row an image.

    Raises:
        MissingDataError: a run is not complete.  SettingsError: it has no [FG] token.
    """
    rows = [row for run in selected(figure.plot, selection) for row in _rows(run, figure.plot)]
    return Drawn(_picture(rows), _numbers(rows))


def _rows(run: FusedRun, plot: Any) -> list[_Row]:
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
            _Row(
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


def _picture(rows: Sequence[_Row]) -> Figure:
    """Return all rows under each other, and one colour bar."""
    n_columns = 1 + len(_MAPS)
    side = TEXT_IN / (n_columns + _TEXT_SHARE)
    figure = new_figure(TEXT_IN, side * len(rows) + 0.55)
    grid = figure.subplots(
        len(rows),
        n_columns + 1,
        squeeze=False,
        width_ratios=[*[1.0] * n_columns, _TEXT_SHARE],
    )
    for axes, title in zip(grid[0], ("Image", *_MAPS), strict=False):
        axes.set_title(title)
    for row, line in zip(rows, grid, strict=True):
        pictures.show(line[0], row.picture)
        for axes, values in zip(line[1:], row.maps.values(), strict=False):
            scaled = enlarge(min_max(values[None]), len(row.picture))[0]
            pictures.show(axes, pictures.heat_over(row.picture, scaled))
        _describe(line[-1], row)
    bar = figure.colorbar(
        pictures.heat_scale(),
        ax=list(grid[:, 1:-1].flat),
        location="bottom",
        fraction=0.02,
        aspect=60,
        pad=0.01,
    )
    bar.set_ticks([0, 1], labels=["least of the map", "greatest"])
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    return figure


def _describe(axes: Any, row: _Row) -> None:
    """Write an image's class and both predictions beside its row."""
    pictures.leave_empty(axes)
    parts = [pictures.wrapped(row.truth, _LINE)]
    for when, guess in (("before", row.before), ("after", row.after)):
        is_right = guess == row.truth
        said = "" if is_right else f" {guess}"
        parts.append(pictures.wrapped(f"{when}: {pictures.mark(is_right=is_right)}{said}", _LINE))
    axes.text(0, 0.97, parts[0], va="top", fontsize=8, fontweight="bold")
    depth = 0.97 - 0.17 * (1 + parts[0].count("\n"))
    axes.text(0, depth, "\n".join(parts[1:]), va="top", fontsize=7, linespacing=1.35)


def _numbers(rows: Sequence[_Row]) -> pd.DataFrame:
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
