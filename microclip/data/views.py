"""Views of an image: the weak view, the strong view, square crops and the test view.

Every draw depends only on (seed, epoch, image index), not on the order of the images or on the
process that computes it. Values are in [0, 1]; `normalise` applies the backbone's mean and std.

A `Window` says: resize this region of the image to that size, and keep a square of the result. Both
a crop and the usual resize-then-crop are windows. They are computed in two ways: on the CPU one by
one, on bytes, by `torch.nn.functional.interpolate`; on another device many at a time, by kernels of
our own where Triton is installed (`resize_kernels`), else by two matrix products a tile, from only
the pixels that it reads, in pieces that bound memory. All are bicubic and antialiased, and within
two grey levels of Pillow (the cubic with a = -0.5, its support widened by the scale and cut at the
region's edge).
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)

_SUPPORT = 2.0  # of the cubic, in output pixels
PIECE_BYTES = 512 * 2**20  # for the intermediate results of windows that are resized together
_CACHED_FLOATS = 2**17  # normalised together, while a CPU's cache still has them
_STEP = 32  # px; boxes are padded to a multiple, so that a batch has few shapes
_TILE = 56  # px; a view is computed in squares of this side, if they fill it


class Window(NamedTuple):
    """A region of an image, the size to resize it to, and where the square to keep begins."""

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
    """Compute each image's windows, with side `size` and values in [0, 1], on `device`.

    Every image must have the same number of windows, at least one.
    """
    return prepare(images, windows, size, device=device).views()


def prepare(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    windows: Sequence[Sequence[Window]],
    size: int,
    *,
    device: torch.device | str,
) -> OnHost | Packed:
    """Do the host's part of `resize_windows`, which may be done ahead in another thread."""
    device = torch.device(device)
    if device.type == "cpu":
        return OnHost(images, windows, size)
    return pack(images, windows, size, device=device, by_kernels=has_kernels(device))


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether the kernels of `resize_kernels` run on this device."""
    if device.type != "cuda":
        return False
    try:
        from microclip.data import resize_kernels

        return resize_kernels.works(device)
    except Exception as error:  # noqa: BLE001  no Triton, no compiler for it, or a card it lacks
        reason = str(error).strip().partition("\n")[0]
        logger.warning(
            "views are resized by matrix products, which takes longer: no Triton kernel runs on %s "
            "(%s: %s); install triton and a C compiler",
            *(device, type(error).__name__, reason),
        )
        return False


@dataclass(frozen=True, eq=False)
class OnHost:
    """Images to be resized on the CPU; nothing is prepared."""

    images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    windows: Sequence[Sequence[Window]]
    size: int

    def views(self) -> Float[Tensor, "batch view 3 size size"]:
        """Resize them."""
        return one_by_one(self.images, self.windows, self.size)

    def normalised(
        self, mean: Sequence[float], std: Sequence[float], memory: Memory
    ) -> tuple[Float[Tensor, "batch 3 size size"], Float[Tensor, "batch rest 3 size size"]]:
        """Resize and normalise them: each image's first view, and its other views."""
        square = (3, self.size, self.size)
        first = memory.empty(len(self.images), *square)
        others = memory.empty(len(self.images), len(self.windows[0]) - 1, *square)
        at_once = max(1, _CACHED_FLOATS // math.prod(square))
        for row, (image, own) in enumerate(zip(self.images, self.windows, strict=True)):
            planes = _planes(image)
            for views, part in ((first[row : row + 1], own[:1]), (others[row], own[1:])):
                for start in range(0, len(part), at_once):
                    some = views[start : start + at_once]
                    for target, window in zip(some, part[start : start + at_once], strict=True):
                        _resize_into(target, planes, window)
                    normalise_(some.div_(255), mean, std)
        return first, others


class Memory:
    """Memory for one batch after another: a block is lent again once no tensor reads it.

    Fresh memory for large views costs a CPU as much time as what is computed on them.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._free: list[Tensor] = []

    def empty(self, *shape: int) -> Float[Tensor, "*shape"]:
        """Return a tensor with unspecified values; it stays valid as long as it is referred to."""
        size = math.prod(shape)
        fitting = [place for place, block in enumerate(self._free) if block.numel() >= size]
        smallest = min(fitting, key=lambda place: self._free[place].numel(), default=None)
        block = torch.empty(size) if smallest is None else self._free.pop(smallest)
        lent = block[:size].numpy()
        # Every view of the tensor keeps `lent` alive; after the last one the block is free again.
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).reshape(shape)


def one_by_one(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], windows: Sequence[Sequence[Window]], size: int
) -> Float[Tensor, "batch view 3 size size"]:
    """Like `resize_windows`, but window by window and on bytes."""
    out = torch.empty((len(images), len(windows[0]), 3, size, size))
    for views, image, own in zip(out, images, windows, strict=True):
        planes = _planes(image)
        for target, window in zip(views, own, strict=True):
            _resize_into(target, planes, window)
    return out.div_(255)


def _planes(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "1 3 height width"]:
    """A copy, because stored images are read-only, which torch's tensors cannot be."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _resize_into(
    target: Float[Tensor, "3 size size"], planes: UInt8[Tensor, "1 3 height width"], w: Window
) -> None:
    """Write a window's grey levels, 0 to 255."""
    region = planes[:, :, w.top : w.top + w.height, w.left : w.left + w.width]
    resized = functional.interpolate(
        region, (w.to_height, w.to_width), mode="bicubic", antialias=True
    )
    size = target.shape[-1]
    target.copy_(resized[0, :, w.y : w.y + size, w.x : w.x + size])


def by_matrices(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    windows: Sequence[Sequence[Window]],
    size: int,
    *,
    device: torch.device | str,
    piece_bytes: int = PIECE_BYTES,
) -> Float[Tensor, "batch view 3 size size"]:
    """Like `resize_windows`, but as rows @ (pixels @ columns), many windows at a time."""
    return pack(images, windows, size, device=torch.device(device)).views(piece_bytes)


@dataclass(frozen=True, eq=False)
class Packed:
    """The pixels that a batch's windows read, in one buffer that a device can fetch by itself.

    Attributes:
        pixels: of all images, one after another; pinned if the device is a GPU.
        table: by tile, sorted by `shapes`: its place in the result; the first pixel of the box
            that it reads, and the pixels to the next row; and for rows and columns the window's
            first pixel in that box, length, resized length, and the tile's first output.
        shapes: of the boxes, in `_STEP`s of pixels.
        n_views: windows of an image.
        size: side of a view.
        reads: by tile, the rows that it reads and the inputs that an output needs at most, in
            groups of equal powers of two, for the kernels; then a tile is a view, and `table` has
            two more columns: rows read before, and rows. None: by matrices.

    A tile is a square part of a window's result. Each output pixel needs few input pixels, and a
    product of dense matrices has a weight for all of a box: small boxes have fewer zeros.
    """

    pixels: UInt8[Tensor, "pixel 3"]
    table: Int[Tensor, "window 11"]
    shapes: Int[np.ndarray, "window 2"]
    n_views: int
    size: int
    device: torch.device
    reads: Int[np.ndarray, "window 2"] | None = None

    def views(self, piece_bytes: int = PIECE_BYTES) -> Float[Tensor, "batch view 3 size size"]:
        """Compute the windows, in pieces whose intermediate results fit in `piece_bytes`.

        Boxes of a piece have one shape, which depends on their own windows only, so that a view
        does not change with the batch that it is in, nor with the size of the pieces.
        """
        pixels = self.pixels.to(self.device, non_blocking=True)
        table = self.table.to(self.device, non_blocking=True)
        if self.reads is not None:
            return self._by_kernels(pixels, table, piece_bytes)
        tile = tile_side(self.size)
        out = torch.empty((len(table), 3, tile, tile), device=self.device)
        # Float32 even under autocast: half precision is too coarse for resampling weights.
        with torch.autocast(device_type=self.device.type, enabled=False):
            for begin, end, height, width in self._pieces(piece_bytes):
                own = table[begin:end]
                out[own[:, 0]] = _resized(pixels, own, (height, width), tile)
        n = self.size // tile
        return rearrange(
            out, "(b v i j) c y x -> b v c (i y) (j x)", v=self.n_views, i=n, j=n
        ).contiguous()

    def _by_kernels(
        self, pixels: Tensor, table: Tensor, piece_bytes: int
    ) -> Float[Tensor, "batch view 3 size size"]:
        """Compute the windows by Triton, in pieces whose resized rows fit in `piece_bytes`."""
        from microclip.data import resize_kernels

        assert self.reads is not None
        heights, taps = self.reads.T
        ends = heights.cumsum()
        most = max(int(heights.max()), piece_bytes // (4 * 3 * self.size))
        out = torch.empty((len(table), 3, self.size, self.size), device=self.device)
        changes = np.flatnonzero(np.diff(taps)) + 1
        for group, stop in pairwise((0, *changes.tolist(), len(table))):
            begin = group
            while begin < stop:
                base = int(ends[begin] - heights[begin])
                end = min(stop, int(np.searchsorted(ends, base + most, side="right")))
                half = torch.empty((int(ends[end - 1]) - base, 3, self.size), device=self.device)
                tallest = int(heights[begin:end].max())
                piece = (begin, end, base, tallest, int(taps[begin]))
                resize_kernels.resize(pixels, table, out, half, piece)
                begin = end
        return rearrange(out, "(b v) c y x -> b v c y x", v=self.n_views)

    def normalised(
        self, mean: Sequence[float], std: Sequence[float], memory: Memory
    ) -> tuple[Float[Tensor, "batch 3 size size"], Float[Tensor, "batch rest 3 size size"]]:
        """Compute and normalise them: each image's first view, and its other views."""
        del memory  # a GPU's allocator keeps its own
        views = normalise_(self.views(), mean, std)
        return views[:, 0], views[:, 1:]

    def _pieces(self, piece_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of windows with boxes of one shape: begin, end, height, width."""
        changes = np.flatnonzero((np.diff(self.shapes, axis=0) != 0).any(axis=1)) + 1
        for begin, end in pairwise((0, *changes.tolist(), len(self.shapes))):
            height, width = (_STEP * int(n) for n in self.shapes[begin])
            at_once = max(1, piece_bytes // _bytes_a_tile(height, width, tile_side(self.size)))
            for first in range(begin, end, at_once):
                yield first, min(end, first + at_once), height, width


def tile_side(size: int) -> int:
    """Side of the squares in which a view of side `size` is computed."""
    return _TILE if size % _TILE == 0 else size


def _bytes_a_tile(height: int, width: int, size: int) -> int:
    """Memory that `_resized` needs for a tile, rounded up: indices, planes, products, weights."""
    read = height * width * (8 + 3 + 3 * 4)
    products = 4 * 3 * size * (height + 2 * size)
    return read + products + 4 * size * 8 * max(height, width)


def pack(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    windows: Sequence[Sequence[Window]],
    size: int,
    *,
    device: torch.device,
    by_kernels: bool = False,
) -> Packed:
    """Copy the pixels that the windows read into one buffer for `device`."""
    n_views, tile = len(windows[0]), size if by_kernels else tile_side(size)
    drawn = _tiles(np.array(windows, dtype=np.int64), size, tile)  # batch, tile of a view, 8
    boxes = np.stack([_read(drawn[..., axis::2], tile) for axis in (0, 1)], axis=-1)
    begins, ends = boxes[..., 0, :], boxes[..., 1, :]  # batch, view, (row, column)
    corners, spans = begins.min(axis=1), ends.max(axis=1) - begins.min(axis=1)  # of an image
    areas = spans.prod(axis=1)
    firsts = np.concatenate([[0], areas.cumsum()])
    is_pinned = device.type == "cuda"
    pixels = torch.empty((int(firsts[-1]), 3), dtype=torch.uint8, pin_memory=is_pinned)
    buffer = pixels.numpy()
    for image, (top, left), (height, width), first in zip(
        images, corners, spans, firsts[:-1], strict=True
    ):
        target = buffer[first : first + height * width].reshape(height, width, 3)
        np.copyto(target, image[top : top + height, left : left + width])
    inside = begins - corners[:, None]
    starts = firsts[:-1, None] + inside[..., 0] * spans[:, None, 1] + inside[..., 1]
    strides = np.broadcast_to(spans[:, None, 1], starts.shape)
    drawn[..., :2] -= begins
    heights = (ends - begins)[..., 0].reshape(-1)
    shapes = (-(-(ends - begins) // _STEP)).reshape(-1, 2)
    taps = _taps(drawn.reshape(-1, 8)) if by_kernels else np.zeros(len(shapes), np.int64)
    order = np.lexsort((*shapes.T, taps))
    table = np.concatenate(
        [np.stack([starts, strides], axis=-1), drawn[..., 0::2], drawn[..., 1::2]], axis=-1
    ).reshape(len(shapes), -1)[order]
    own = [order[:, None], table]
    if by_kernels:
        rows = heights[order]
        own += [(rows.cumsum() - rows)[:, None], rows[:, None]]
    host = torch.from_numpy(np.concatenate(own, axis=1))
    return Packed(
        pixels,
        host.pin_memory() if is_pinned else host,
        shapes[order],
        n_views=n_views,
        size=size,
        device=device,
        reads=np.stack([heights, taps], axis=1)[order] if by_kernels else None,
    )


def _taps(windows: Int[np.ndarray, "window 8"]) -> Int[np.ndarray, " window"]:
    """Inputs that an output needs at most, rounded up to a power of two, so that there are few."""
    scale = (windows[:, 2:4] / windows[:, 4:6]).max(axis=1)
    needed = np.ceil(2 * _SUPPORT * np.maximum(scale, 1.0)) + 1
    powers: Int[np.ndarray, " window"] = (2 ** np.ceil(np.log2(needed))).astype(np.int64)
    return powers


def _tiles(
    windows: Int[np.ndarray, "batch view 8"], size: int, tile: int
) -> Int[np.ndarray, "batch tile 8"]:
    """The tiles of all windows, view by view and row by row, as windows with a side of `tile`."""
    begins = np.arange(0, size, tile)
    n = len(begins)
    tiles = np.repeat(windows[:, :, None], n * n, axis=2)
    tiles[..., 6] += np.repeat(begins, n)
    tiles[..., 7] += np.tile(begins, n)
    return tiles.reshape(len(windows), -1, tiles.shape[-1])


def _read(windows: Int[np.ndarray, "batch view 4"], size: int) -> Int[np.ndarray, "batch view 2"]:
    """First pixel that windows read along an axis, and the one after the last."""
    first, length, resized, kept = np.moveaxis(windows, -1, 0)
    scale = length / resized
    reach = _SUPPORT * np.maximum(scale, 1.0) + 1.0  # one more, for what float32 rounds elsewhere
    begin = np.floor((kept + 0.5) * scale - reach).astype(np.int64)
    end = np.ceil((kept + size - 0.5) * scale + reach).astype(np.int64)
    return np.stack([first + np.maximum(begin, 0), first + np.minimum(end, length)], axis=-1)


def _resized(
    pixels: UInt8[Tensor, "pixel 3"],
    table: Int[Tensor, "window 11"],
    shape: tuple[int, int],
    size: int,
) -> Float[Tensor, "window 3 size size"]:
    """The views of windows whose boxes fit in `shape`."""
    height, width = shape
    starts, strides = table[:, 1, None, None], table[:, 2, None, None]
    down = torch.arange(height, device=pixels.device)[:, None]
    across = torch.arange(width, device=pixels.device)
    # Outside its box a window reads some other pixel, whose weight is zero.
    places = (starts + down * strides + across).clamp_(max=len(pixels) - 1)
    planes = pixels[places].permute(0, 3, 1, 2).to(torch.float32).div_(255)
    del places
    numbers = table.to(torch.float32)
    columns = axis_weights(numbers[:, 7:], n_in=width, n_out=size)
    half = torch.einsum("b c h w, b p w -> b c h p", planes, columns).clamp_(0, 1)
    del planes, columns
    rows = axis_weights(numbers[:, 3:7], n_in=height, n_out=size)
    views = torch.einsum("b o h, b c h p -> b c o p", rows, half)
    return views.clamp_(0, 1)  # after each step, because Pillow stores both in bytes


def axis_weights(
    windows: Float[Tensor, "*lead 4"], *, n_in: int, n_out: int
) -> Float[Tensor, "*lead out in"]:
    """Resampling weights along one axis; each row sums to one.

    `windows` has the region's first pixel, length and resized length, and the first output to keep.
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
    """Keys' cubic kernel with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < _SUPPORT, far, 0.0))


Crop = Literal["center", "random", "squash"]
# "augmented" is a random resized crop, flipped or not; "squash-augmented" is one of the squashed
# image.
Weak = Literal["center", "random", "squash", "augmented", "squash-augmented"]

# Source: Dassl's random resized crop and flip, as CoOp, UPL and MaPLe use them.
RESIZED_SCALE = (0.08, 1.0)  # area
RESIZED_RATIO = (3 / 4, 4 / 3)  # width over height
_ATTEMPTS = 10  # torchvision's, before it takes the largest crop in the middle


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """The shape with shorter side `size`; the longer side is rounded down, as CLIP does."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def whole_window(
    shape: tuple[int, int], size: int, crop: Crop, rng: np.random.Generator | None = None
) -> Window:
    """The window that resizes the shorter side to `size` and keeps a center or random square.

    "squash" resizes both sides to `size` instead, as Dassl did before October 2021 (UPL).
    Source: CLIP's own transform. Departs: fidelity.md#views (which square is used where).

    Raises:
        ValueError: crop "random" without `rng`, or an unknown `crop`.
    """
    height, width = shape
    if crop == "squash":
        return Window(0, 0, height, width, size, size)
    to_height, to_width = resized_shape(height, width, size)
    spare_y, spare_x = to_height - size, to_width - size
    match crop:
        case "center":
            y, x = round(spare_y / 2), round(spare_x / 2)
        case "random":
            if rng is None:
                raise ValueError("crop 'random' needs a generator; pass `rng`")
            y, x = int(rng.integers(spare_y + 1)), int(rng.integers(spare_x + 1))
        case _:
            raise ValueError(f"crop must be 'center', 'random' or 'squash', got {crop!r}")
    return Window(0, 0, height, width, to_height, to_width, y, x)


def square_windows(
    shape: tuple[int, int],
    size: int,
    n_crops: int,
    *,
    scale: Sequence[float],
    rng: np.random.Generator,
) -> list[Window]:
    """Draw `n_crops` squares at uniformly random positions, each resized to `size`.

    Source: Eq. 9 and A.2, arXiv:2510.02270v1: the side is floor(lambda * shorter side) with lambda
    uniform in `scale`.
    """
    height, width = shape
    windows = []
    for share in rng.uniform(scale[0], scale[1], size=n_crops):
        side = max(1, int(share * min(height, width)))
        top = int(rng.integers(height - side + 1))
        left = int(rng.integers(width - side + 1))
        windows.append(Window(top, left, side, side, size, size))
    return windows


def resized_window(
    shape: tuple[int, int], size: int, rng: np.random.Generator, *, is_squashed: bool = False
) -> Window:
    """Draw a random resized crop: area 0.08 to 1, ratio 3/4 to 4/3 evenly in its logarithm.

    Source: torchvision's RandomResizedCrop, with the arguments of CoOp, UPL and MaPLe. The crop is
    drawn on the image, or with `is_squashed` on its square of side `size`.

    Departs: a crop of the squashed image is resized once, from the original.
    """
    height, width = shape
    if is_squashed:
        down, across = height / size, width / size
        drawn = resized_window((size, size), size, rng)
        top, left = int(drawn.top * down), int(drawn.left * across)
        tall = min(max(1, round(drawn.height * down)), height - top)
        wide = min(max(1, round(drawn.width * across)), width - left)
        return Window(top, left, tall, wide, size, size)
    low, high = (math.log(ratio) for ratio in RESIZED_RATIO)
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*RESIZED_SCALE)
        ratio = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(rng.integers(height - tall + 1))
            left = int(rng.integers(width - wide + 1))
            return Window(top, left, tall, wide, size, size)
    ratio = min(max(width / height, RESIZED_RATIO[0]), RESIZED_RATIO[1])
    wide, tall = min(width, round(height * ratio)), min(height, round(width / ratio))
    return Window((height - tall) // 2, (width - wide) // 2, tall, wide, size, size)


def normalise(
    images: Float[Tensor, "*lead 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*lead 3 height width"]:
    """(images - mean) / std, per channel."""
    return normalise_(images.clone(), mean, std)


def normalise_(
    images: Float[Tensor, "*lead 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*lead 3 height width"]:
    """Like `normalise`, but in place."""
    shift, scale = (_by_channel(tuple(values), images.device) for values in (mean, std))
    return images.sub_(shift).div_(scale)


def normalised_bytes(
    images: UInt8[Tensor, "batch 3 size size"],
    mean: Sequence[float],
    std: Sequence[float],
    memory: Memory,
) -> Float[Tensor, "batch 3 size size"]:
    """Grey levels as `normalise` would return them for values in [0, 1]."""
    if images.device.type != "cpu":
        return normalise_(images.float().div_(255), mean, std)
    out = memory.empty(*images.shape)
    at_once = max(1, _CACHED_FLOATS // math.prod(images.shape[1:]))
    for part, source in zip(torch.split(out, at_once), torch.split(images, at_once), strict=True):
        normalise_(part.copy_(source).div_(255), mean, std)
    return out


@cache  # a new copy for each batch would make the host wait for the GPU
def _by_channel(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "channel 1 1"]:
    return torch.tensor(values, device=device)[:, None, None]
