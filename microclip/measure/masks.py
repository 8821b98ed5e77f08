"""Masks refined for the eye by a fully connected conditional random field (dense CRF).

Source: Kraehenbuehl and Koltun, NIPS 2011: two labels, Potts compatibility, a bilateral and a
spatial Gaussian kernel, each normalised as D^-1/2 K D^-1/2, parallel mean-field updates. No
classifier sees a refined mask. Where `pydensecrf` (extra `crf`) is installed, its lattice does the
filtering; elsewhere both kernels are computed exactly, on at most 112 px a side.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from microclip.model.saliency import NCutOptions, Saliency, affinity, fiedler_vector, normalized_cut
from microclip.settings import SettingsError
from microclip.settings.reports import MasksPlot
from microclip.study import FigureSelection


@dataclass(frozen=True, eq=False)
class Cut:
    """A batch of cuts.

    Attributes:
        vector: the Fiedler vector with the solver's sign, unit norm.
        level: its threshold, of this sign.
        mask_before: where the vector exceeds it, before the sign is handled.
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
    """Return the cuts of the value-path patch tokens of some images, with all that made them."""
    weights = affinity(tokens, tau=options.tau, eps=options.eps, normalize=options.normalize)
    vector, _ = fiedler_vector(weights.double())
    seed = vector.gather(-1, vector.abs().argmax(dim=-1, keepdim=True))[:, 0]
    level = vector.std(dim=-1) if options.threshold == "std" else vector.mean(dim=-1)
    saliency = normalized_cut(tokens, options)
    return Cut(vector, level, vector > level[:, None], seed < 0, saliency)


EXACT_MAX_PX = 112
_BLOCK_ENTRIES = 1 << 22  # of the bilateral kernel at a time, 16 MiB
_LEAST_EXPONENT = -80.0  # a kernel of 1e-35 is nothing, and smaller floats are slow
_REFERENCE_PX = 224  # the side of the images that the widths are given for


@dataclass(frozen=True)
class CrfOptions:
    """The field's parameters; the defaults are those of the released figures.

    Attributes:
        bilateral_weight: w1.
        bilateral_px: alpha, spatial width of the bilateral kernel, px of an image of side 224.
        bilateral_levels: beta, its width in colour, grey levels of 255.
        smooth_weight: w2.
        smooth_px: gamma, width of the spatial kernel, px likewise.
        steps: mean-field updates.
        certainty: probability that a pixel has the label that the mask gives it, in (0.5, 1); the
            0.7 of pydensecrf's own examples.
    """

    bilateral_weight: float = 10.0
    bilateral_px: float = 40.0
    bilateral_levels: float = 13.0
    smooth_weight: float = 3.0
    smooth_px: float = 3.0
    steps: int = 5
    certainty: float = 0.7

    def __post_init__(self) -> None:
        """Refuse a certainty that says nothing, or all."""
        if not 0.5 < self.certainty < 1:
            raise ValueError(f"certainty must lie in (0.5, 1), got {self.certainty}")


def has_lattice() -> bool:
    """Return whether `pydensecrf` is installed."""
    return importlib.util.find_spec("pydensecrf") is not None


def inference_name() -> str:
    """Return which inference `refine` uses here, in words for a caption."""
    if has_lattice():
        return "pydensecrf"
    return f"exact mean field, at most {EXACT_MAX_PX} px"


def refine(
    picture: Pixels, mask: Bool[Tensor, "height width"], options: CrfOptions | None = None
) -> Bool[Tensor, "height width"]:
    """Return a mask whose edges follow those of the picture."""
    options = options or CrfOptions()
    if has_lattice():
        return lattice_mean_field(picture, mask, options) > 0.5
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
    """Return the probability of the mask's label, both kernels summed over all pairs of pixels.

    `picture` has levels in [0, 255]. As in the authors' own code, a pixel is among its neighbours.
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
        turned = values.mT.contiguous()  # few rows times many: 7 x as fast as the other way round
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


def lattice_mean_field(
    picture: Pixels, mask: Bool[Tensor, "height width"], options: CrfOptions
) -> Float[Tensor, "height width"]:
    """Return what `exact_mean_field` returns as `pydensecrf` approximates it, at any size."""
    from pydensecrf import densecrf  # an optional extra

    height, width = mask.shape
    scale = min(height, width) / _REFERENCE_PX
    field: Any = densecrf.DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(np.ascontiguousarray(_unary(mask, options).flatten(1).numpy()))
    field.addPairwiseGaussian(sxy=options.smooth_px * scale, compat=options.smooth_weight)
    field.addPairwiseBilateral(
        sxy=options.bilateral_px * scale,
        srgb=options.bilateral_levels,
        rgbim=np.array(picture),  # the library wants bytes that it may write
        compat=options.bilateral_weight,
    )
    inferred = np.array(field.inference(options.steps))
    return torch.from_numpy(inferred)[1].reshape(height, width)


def _unary(
    mask: Bool[Tensor, "height width"], options: CrfOptions
) -> Float[Tensor, "2 height width"]:
    """Return minus the log-probabilities of background and mask, before any neighbour speaks."""
    likely, unlikely = -math.log(options.certainty), -math.log(1 - options.certainty)
    inside = torch.where(mask, likely, unlikely)
    outside = torch.where(mask, unlikely, likely)
    return torch.stack([outside, inside]).float()


def _bilateral_points(
    picture: Float[Tensor, "height width 3"], options: CrfOptions, scale: float
) -> Float[Tensor, "pixel 5"]:
    """Return each pixel's place and colour in units of the kernel's widths."""
    height, width, _ = picture.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([y, x], dim=-1).float() / (options.bilateral_px * scale)
    colour = picture.float() / options.bilateral_levels
    return torch.cat([place, colour], dim=-1).flatten(0, 1)


def _bilateral_blocks(
    points: Float[Tensor, "pixel feature"],
) -> Iterator[Float[Tensor, "block pixel"]]:
    """Yield the rows of exp(-|a - b|^2 / 2) some at a time: all of them may not fit in memory."""
    half = points.square().sum(dim=-1, keepdim=True) / 2
    ones = torch.ones_like(half)
    left = torch.cat([points, -half, ones], dim=-1)  # left @ right: the exponent at one go
    right = torch.cat([points, ones, -half], dim=-1).mT.contiguous()
    for rows in torch.split(left, max(1, _BLOCK_ENTRIES // len(points))):
        yield (rows @ right).clamp_(min=_LEAST_EXPONENT).exp_()


def _spatial_kernel(length: int, deviation: float) -> Float[Tensor, "length length"]:
    """Return one axis of the spatial kernel, which is a product over the axes."""
    place = torch.arange(length).float() / deviation
    return (-(place[:, None] - place[None]).square() / 2).exp()


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
    board = pictures.pictures_board(len(rows), 4, text=1.75, head=0.2, foot=0.32)
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
