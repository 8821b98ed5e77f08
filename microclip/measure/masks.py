"""Figure 4: the normalised cut's mask, and the same mask refined for the eye.

One subject in three steps: the cut with everything that made it (`examine`), a fully connected
conditional random field that pulls a mask to the edges of its picture (`refine`), and the figure
(`draw_masks`). No classifier sees a refined mask.

Source: Fig. 4, arXiv:2510.02270v1. The field: Kraehenbuehl and Koltun, NIPS 2011: two labels, Potts
compatibility, a bilateral and a spatial Gaussian kernel, each normalised as D^-1/2 K D^-1/2,
parallel mean-field updates. Both kernels are summed exactly over all pairs of pixels, at most 112
px a side. The lattice of `pydensecrf` approximates them a hundred times faster, but a figure must
not depend on what is installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from microclip.data.decoding import Pixels
from microclip.measure import pictures
from microclip.measure.drawing import Drawn, house_style
from microclip.measure.trained_runs import FusedRun, enlarge_mask, selected
from microclip.model.saliency import Saliency, affinity, cut_vector, normalized_cut
from microclip.settings.base import SettingsError
from microclip.settings.fusion import NCutOptions
from microclip.settings.reports import MasksPlot
from microclip.study import FigureSelection

EXACT_MAX_PX = 112  # the kernels grow with the fourth power of the side: 1 s for 96 px
_BLOCK_ENTRIES = 1 << 22  # entries of the bilateral kernel computed at a time, 16 MiB
_LEAST_EXPONENT = -80.0  # exp(-80) = 1e-35 adds nothing, and denormal floats are slow
_REFERENCE_PX = 224  # image side that the kernels' widths refer to
_VECTOR_COLOURS = "PuOr"  # diverging, and readable to colour-blind people
_TITLES = ("Image", "Fiedler vector", "Mask", "Mask, refined")
_LINE = 21  # characters per line of the text beside a row


@dataclass(frozen=True, eq=False)
class Cut:
    """A batch of cuts.

    Attributes:
        vector: the Fiedler vector with the solver's sign, unit norm.
        level: the threshold for a vector of that sign.
        mask_before: where the vector exceeds the threshold, before the sign rule.
        is_flipped: True where the seed, the entry of largest magnitude, is negative.
        saliency: the cut as the method uses it.
    """

    vector: Float[Tensor, "batch patch"]
    level: Float[Tensor, " batch"]
    mask_before: Bool[Tensor, "batch patch"]
    is_flipped: Bool[Tensor, " batch"]
    saliency: Saliency


@torch.no_grad()
def examine(tokens: Float[Tensor, "batch patch width"], options: NCutOptions) -> Cut:
    """Cuts of the images' value-path patch tokens, with every step that led to them."""
    weights = affinity(tokens, tau=options.tau, eps=options.eps, normalize=options.normalize)
    vector, _ = cut_vector(weights, options.sign)
    seed = vector.gather(-1, vector.abs().argmax(dim=-1, keepdim=True))[:, 0]
    level = vector.std(dim=-1) if options.threshold == "std" else vector.mean(dim=-1)
    saliency = normalized_cut(tokens, options)
    return Cut(vector, level, vector > level[:, None], seed < 0, saliency)


@dataclass(frozen=True)
class CrfOptions:
    """The field's parameters; the defaults are those of the released figures.

    Attributes:
        bilateral_weight: w1.
        bilateral_px: alpha, spatial width of the bilateral kernel, px of an image of side 224.
        bilateral_levels: beta, its width in colour, grey levels of 255.
        smooth_weight: w2.
        smooth_px: gamma, width of the spatial kernel, px of an image of side 224.
        steps: mean-field updates.
        certainty: probability that the mask labels a pixel correctly, in (0.5, 1); 0.7 as in the
            examples of the library pydensecrf.
    """

    bilateral_weight: float = 10.0
    bilateral_px: float = 40.0
    bilateral_levels: float = 13.0
    smooth_weight: float = 3.0
    smooth_px: float = 3.0
    steps: int = 5
    certainty: float = 0.7

    def __post_init__(self) -> None:
        """Reject a certainty that makes the mask useless (0.5) or final (1)."""
        if not 0.5 < self.certainty < 1:
            raise ValueError(f"certainty must be in (0.5, 1), got {self.certainty}")


def refine(
    picture: Pixels, mask: Bool[Tensor, "height width"], options: CrfOptions | None = None
) -> Bool[Tensor, "height width"]:
    """The mask with its edges moved to those of the picture."""
    options = options or CrfOptions()
    height, width = mask.shape
    share = min(1.0, EXACT_MAX_PX / max(height, width))
    size = (max(1, round(share * height)), max(1, round(share * width)))
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    small = functional.interpolate(planes, size, mode="area")[0].permute(1, 2, 0)
    coarse = functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
    refined = exact_mean_field(small, coarse, options)
    grown = functional.interpolate(
        refined[None, None], (height, width), mode="bilinear", align_corners=False
    )
    return grown[0, 0] > 0.5


def exact_mean_field(
    picture: Float[Tensor, "height width 3"],
    mask: Bool[Tensor, "height width"],
    options: CrfOptions,
) -> Float[Tensor, "height width"]:
    """Probability that a pixel is in the mask, both kernels summed over all pairs of pixels.

    `picture` has levels in [0, 255]. As in the authors' code, a pixel is its own neighbour too.
    """
    height, width = mask.shape
    unary = _unary(mask, options).flatten(1).mT  # pixel, label
    scale = min(height, width) / _REFERENCE_PX
    points = _bilateral_points(picture, options, scale)
    rows = _spatial_kernel(height, options.smooth_px * scale)
    columns = _spatial_kernel(width, options.smooth_px * scale)

    def near(values: Float[Tensor, "pixel label"]) -> Float[Tensor, "pixel label"]:
        grid = values.mT.reshape(-1, height, width)
        mixed: Tensor = rows @ grid @ columns
        return mixed.flatten(1).mT

    def alike(values: Float[Tensor, "pixel label"]) -> Float[Tensor, "pixel label"]:
        # Two rows times a wide matrix: 7 times as fast as a tall matrix times two columns.
        turned = values.mT.contiguous()
        return torch.cat([(turned @ block.mT).mT for block in _bilateral_blocks(points)])

    ones = torch.ones(height * width, 1)
    kernels = [
        (options.smooth_weight, near, near(ones).rsqrt()),
        (options.bilateral_weight, alike, alike(ones).rsqrt()),
    ]
    probability = (-unary).softmax(dim=-1)
    for _ in range(options.steps):
        energy = -unary
        for weight, gather, norm in kernels:
            energy = energy + weight * norm * gather(norm * probability)
        probability = energy.softmax(dim=-1)
    return probability[:, 1].reshape(height, width)


def _unary(
    mask: Bool[Tensor, "height width"], options: CrfOptions
) -> Float[Tensor, "2 height width"]:
    """Negative log-probabilities of background and mask, before any neighbour counts."""
    likely, unlikely = -math.log(options.certainty), -math.log(1 - options.certainty)
    inside = torch.where(mask, likely, unlikely)
    outside = torch.where(mask, unlikely, likely)
    return torch.stack([outside, inside]).float()


def _bilateral_points(
    picture: Float[Tensor, "height width 3"], options: CrfOptions, scale: float
) -> Float[Tensor, "pixel 5"]:
    """Position and colour of each pixel, in units of the kernel's widths."""
    height, width, _ = picture.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([y, x], dim=-1).float() / (options.bilateral_px * scale)
    colour = picture.float() / options.bilateral_levels
    return torch.cat([place, colour], dim=-1).flatten(0, 1)


def _bilateral_blocks(
    points: Float[Tensor, "pixel feature"],
) -> Iterator[Float[Tensor, "block pixel"]]:
    """Yield exp(-|a - b|^2 / 2) in blocks of rows; the whole matrix may not fit in memory."""
    half = points.square().sum(dim=-1, keepdim=True) / 2
    ones = torch.ones_like(half)
    # -|a - b|^2 / 2 = a.b - |a|^2 / 2 - |b|^2 / 2, so that one product gives the exponent.
    left = torch.cat([points, -half, ones], dim=-1)
    right = torch.cat([points, ones, -half], dim=-1).mT.contiguous()
    for rows in torch.split(left, max(1, _BLOCK_ENTRIES // len(points))):
        yield (rows @ right).clamp_(min=_LEAST_EXPONENT).exp_()


def _spatial_kernel(length: int, deviation: float) -> Float[Tensor, "length length"]:
    """One axis of the spatial kernel, which is separable."""
    place = torch.arange(length).float() / deviation
    return (-(place[:, None] - place[None]).square() / 2).exp()


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
    shown: Float[Tensor, "row column"]  # with the sign that the method chooses
    mask: Bool[Tensor, "row column"]
    gap: float
    is_degenerate: bool


@house_style()
def draw_masks(plot: MasksPlot, selection: FigureSelection) -> Drawn:
    """Draw masks of a few test images of each dataset, one row per image.

    Raises:
        MissingDataError: a run is not complete.
        SettingsError: a run's query needs no cut.
    """
    rows = [row for run in selected(plot, selection) for row in _rows(run, plot)]
    return Drawn(_picture(rows), _numbers(rows))


@torch.no_grad()
def _rows(run: FusedRun, plot: MasksPlot) -> list[_Row]:
    """The cuts that a run's trained network makes of the images shown.

    Raises:
        SettingsError: the run's query needs no cut.
    """
    tested, fusion = run.tested, run.after.fusion
    if fusion.options.query != "ncut":
        raise SettingsError(
            f"run {tested.settings.spec.name} has query {fusion.options.query!r}, which needs no "
            "normalised cut; choose a variant with query: ncut"
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
    """All rows, one below the other."""
    names_dataset = len({row.dataset for row in rows}) > 1
    board = pictures.empty_board(len(rows), len(_TITLES), text=1.75, head=0.2, foot=0.32)
    for place, row in enumerate(rows):
        axes = board.pictures(place, _TITLES)
        mask = enlarge_mask(row.mask[None], len(row.picture))[0]
        largest = float(row.shown.abs().max()) or 1.0
        pictures.show(axes[0], row.picture)
        pictures.show(axes[1], row.shown, cmap=_VECTOR_COLOURS, vmin=-largest, vmax=largest)
        pictures.show_mask(axes[2], row.picture, mask)
        pictures.show_mask(axes[3], row.picture, refine(row.picture, mask))
        _describe(board.text(place, len(_TITLES)), row, names_dataset=names_dataset)
    step = board.side + board.gap
    pictures.scale_bar(
        board.place(step, board.height - 0.29, board.side, 0.08),
        _VECTOR_COLOURS,
        ("-max", "0", "max"),
    )
    board.figure.text(
        2 * step / board.width,
        0.2 / board.height,
        f"refined by a dense CRF: exact mean field, at most {EXACT_MAX_PX} px",
        fontsize=6.5,
        va="center",
    )
    return board.figure


def _describe(axes: Axes, row: _Row, *, names_dataset: bool) -> None:
    """Write beside a row how its mask was made."""
    # Flipping the vector flips its mean; a standard deviation has no sign.
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
    """One row per patch; facts about the whole image are repeated in each."""
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
