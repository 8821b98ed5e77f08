"""Masks refined for the eye by a fully connected conditional random field (dense CRF).

Source: Kraehenbuehl and Koltun, NIPS 2011: two labels, Potts compatibility, a bilateral and a
spatial Gaussian kernel, each normalised as D^-1/2 K D^-1/2, parallel mean-field updates. No
classifier sees a refined mask. Where `pydensecrf` (extra `crf`) is installed, its lattice does the
filtering; elsewhere both kernels are computed exactly, on at most 112 px a side.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from microclip.data.decoding import Pixels

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
