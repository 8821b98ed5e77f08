"""Resizing many windows of images of any size, bicubic and antialiased.

One window says: resize this region of the image to that size, and keep a square of the result.
A crop and the usual resize-then-crop are both windows. Two ways compute them. On the CPU, each
window by `torch.nn.functional.interpolate` on bytes (as Pillow: the cubic with a = -0.5, its
support widened by the scale, cut at the region's edge). On another device, all windows of a batch
by two matrix products. Both lie within two grey levels of Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

_SUPPORT = 2.0  # of the cubic, in output pixels


class Window(NamedTuple):
    """A region of an image, the size that it is resized to, and where the kept square begins."""

    top: int
    left: int
    height: int
    width: int
    to_height: int
    to_width: int
    y: int = 0
    x: int = 0


def resize_windows(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    windows: Sequence[Sequence[Window]],
    size: int,
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "batch view 3 size size"]:
    """Return each image's windows, side `size`, values in [0, 1], on `device`.

    Every image has the same number of windows, at least one.
    """
    if torch.device(device).type == "cpu":
        return one_by_one(images, windows, size)
    return by_matrices(images, windows, size, device=device)


def one_by_one(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], windows: Sequence[Sequence[Window]], size: int
) -> Float[Tensor, "batch view 3 size size"]:
    """Return what `resize_windows` returns, computed window by window on bytes."""
    out = torch.empty((len(images), len(windows[0]), 3, size, size), dtype=torch.uint8)
    for row, (image, own) in enumerate(zip(images, windows, strict=True)):
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        for view, w in enumerate(own):
            region = planes[:, :, w.top : w.top + w.height, w.left : w.left + w.width]
            resized = functional.interpolate(
                region, (w.to_height, w.to_width), mode="bicubic", antialias=True
            )
            out[row, view] = resized[0, :, w.y : w.y + size, w.x : w.x + size]
    return out.float() / 255


def by_matrices(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    windows: Sequence[Sequence[Window]],
    size: int,
    *,
    device: torch.device | str,
) -> Float[Tensor, "batch view 3 size size"]:
    """Return what `resize_windows` returns, as rows @ (image @ columns) for a batch."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    padded = torch.zeros((len(images), height, width, 3), dtype=torch.uint8)
    for row, image in enumerate(images):
        padded[row, : image.shape[0], : image.shape[1]] = torch.from_numpy(np.array(image))
    planes = padded.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    table = torch.tensor(windows, dtype=torch.float32).to(device)  # batch, view, 8
    with torch.autocast(device_type=torch.device(device).type, enabled=False):
        rows = axis_weights(table[..., [0, 2, 4, 6]], n_in=height, n_out=size)
        columns = axis_weights(table[..., [1, 3, 5, 7]], n_in=width, n_out=size)
        across = torch.einsum("b c h w, b v p w -> b v c h p", planes, columns)
        views = torch.einsum("b v o h, b v c h p -> b v c o p", rows, across.clamp(0, 1))
    return views.clamp(0, 1)  # twice, as Pillow holds both steps in bytes


def axis_weights(
    windows: Float[Tensor, "*lead 4"], *, n_in: int, n_out: int
) -> Float[Tensor, "*lead out in"]:
    """Return the resampling weights along one axis; each row sums to one.

    `windows` holds first pixel, length and resized length of the region, and the first output kept.
    Source: Pillow's `ImagingResample`, whose filter is cut at the region's edge.
    """
    first, length, resized, kept = (part[..., None, None] for part in windows.unbind(-1))
    scale = length / resized
    stretch = scale.clamp_min(1.0)
    outputs = torch.arange(n_out, device=windows.device)[:, None] + kept
    inputs = torch.arange(n_in, device=windows.device) - first
    centre = (outputs + 0.5) * scale
    reach = _SUPPORT * stretch
    is_inside = (inputs >= 0) & (inputs < length)
    is_near = (inputs >= (centre - reach + 0.5).floor()) & (inputs < (centre + reach + 0.5).floor())
    weights = _cubic((inputs + 0.5 - centre) / stretch) * (is_inside & is_near)
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return Keys' cubic kernel with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < _SUPPORT, far, 0.0))
