"""Figure 4: the cut's mask on the patch grid, and the same refined for the eye by a dense CRF.

Source: Fig. 4, arXiv:2510.02270v1. The classifier uses the raw mask alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from microclip.data.decoding import Pixels
from microclip.measure import pictures
from microclip.measure.attention_maps import enlarge_mask
from microclip.measure.cuts import examine
from microclip.measure.drawing import Drawn, house_style
from microclip.measure.masks import inference_name, refine
from microclip.measure.trained_runs import FusedRun, selected
from microclip.runs import FigureSelection
from microclip.settings import SettingsError
from microclip.settings.reports import MasksPlot

_VECTOR_COLOURS = "PuOr"  # diverging, readable to colour-blind people
_LINE = 21  # characters of the text beside a row


@dataclass(frozen=True, eq=False)
class _Row:
    """One image of the figure, and its cut."""

    dataset: str
    file: str
    class_name: str
    picture: Pixels
    rule: str
    vector: Float[Tensor, "row column"]  # with the solver's sign
    level: float
    mask_before: Bool[Tensor, "row column"]
    is_flipped: bool
    shown: Float[Tensor, "row column"]  # with the sign that the method gives it
    mask: Bool[Tensor, "row column"]
    gap: float
    is_degenerate: bool


@house_style()
def draw_masks(plot: MasksPlot, selection: FigureSelection) -> Drawn:
    """Return the masks of some test images of each dataset, a row an image.

    Raises:
        MissingDataError: a run is not complete.  SettingsError: it cuts no graph.
    """
    rows = [row for run in selected(plot, selection) for row in _rows(run, plot)]
    return Drawn(_picture(rows), _numbers(rows))


@torch.no_grad()
def _rows(run: FusedRun, plot: MasksPlot) -> list[_Row]:
    """Return the cuts of the images that are shown of one run, as its trained network makes them.

    Raises: SettingsError if its query needs no cut.
    """
    tested, fusion = run.tested, run.after.fusion
    if fusion.options.query != "ncut":
        raise SettingsError(
            f"run {tested.settings.spec.name} has query {fusion.options.query!r} and cuts no "
            "graph; choose a variant with query: ncut"
        )
    indices = tested.choose(plot.images)
    cut = examine(fusion.backbone.encode_image(run.views(indices)).patches, fusion.options.ncut)
    saliency, grid = cut.saliency, fusion.backbone.patch_grid
    assert saliency.gap is not None
    assert saliency.degenerate is not None
    return [
        _Row(
            dataset=tested.settings.spec.dataset,
            file=tested.test.files[index],
            class_name=tested.class_of("label", index),
            picture=picture,
            rule="deviation" if fusion.options.ncut.threshold == "std" else "mean",
            vector=cut.vector[place].reshape(grid),
            level=float(cut.level[place]),
            mask_before=cut.mask_before[place].reshape(grid),
            is_flipped=bool(cut.is_flipped[place]),
            shown=saliency.fiedler[place].reshape(grid),
            mask=saliency.mask[place].reshape(grid),
            gap=float(saliency.gap[place]),
            is_degenerate=bool(saliency.degenerate[place]),
        )
        for place, (index, picture) in enumerate(zip(indices, run.pictures(indices), strict=True))
    ]


def _picture(rows: Sequence[_Row]) -> Figure:
    """Return all rows under each other."""
    names_dataset = len({row.dataset for row in rows}) > 1
    board = pictures.board(len(rows), 4, text=1.75, head=0.2, foot=0.32)
    for place, row in enumerate(rows):
        axes = [board.picture(place, column) for column in range(4)]
        mask = enlarge_mask(row.mask[None], len(row.picture))[0]
        largest = float(row.shown.abs().max()) or 1.0
        pictures.show(axes[0], row.picture)
        pictures.show(axes[1], row.shown, cmap=_VECTOR_COLOURS, vmin=-largest, vmax=largest)
        pictures.show_mask(axes[2], row.picture, mask)
        pictures.show_mask(axes[3], row.picture, refine(row.picture, mask))
        if place == 0:
            titles = ("Image", "Fiedler vector", "Mask", "Mask, refined")
            for own, title in zip(axes, titles, strict=True):
                own.set_title(title, pad=3)
        _describe(board.text(place, 4), row, names_dataset=names_dataset)
    step = board.side + board.gap
    pictures.scale_bar(
        board.place(step, board.height - 0.29, board.side, 0.08),
        _VECTOR_COLOURS,
        ("-max", "0", "max"),
    )
    board.figure.text(
        2 * step / board.width,
        0.2 / board.height,
        f"refined by a dense CRF: {inference_name()}",
        fontsize=6.5,
        va="center",
    )
    return board.figure


def _describe(axes: Axes, row: _Row, *, names_dataset: bool) -> None:
    """Write what the mask was made of beside a row."""
    level = -row.level if row.rule == "mean" and row.is_flipped else row.level
    lines = [
        *([row.dataset] if names_dataset else []),
        f"{int(row.mask.sum())} of {row.mask.numel()} patches",
        "no defined cut" if row.is_degenerate else f"above the {row.rule}, {level:.3f}",
        f"eigenvalue gap {row.gap:.3f}",
        f"solver's seed {'negative' if row.is_flipped else 'positive'}",
    ]
    pictures.write_lines(axes, row.class_name, lines, width=_LINE)


def _numbers(rows: Sequence[_Row]) -> pd.DataFrame:
    """Return each patch of each image; what belongs to an image stands in each of its rows."""
    return pd.DataFrame(
        [
            {
                "dataset": row.dataset,
                "image": row.file,
                "patch_row": y,
                "patch_column": x,
                "z": float(row.vector[y, x]),
                "theta": row.level,
                "mask_before_sign": bool(row.mask_before[y, x]),
                "is_flipped": row.is_flipped,
                "mask": bool(row.mask[y, x]),
                "gap": row.gap,
                "is_degenerate": row.is_degenerate,
            }
            for row in rows
            for y in range(row.mask.shape[0])
            for x in range(row.mask.shape[1])
        ]
    )
