"""Views of an image: the weak view, the strong view, square crops and the test view.

Every draw depends only on (seed, epoch, image index), not on the order of the images or on the
process that computes it. Values are in [0, 1]; `normalise` applies the backbone's mean and std.

A `Window` says: resize this region of the image to that size, and keep a square of the result. Both
a crop and the usual resize-then-crop are windows. They are computed in two ways: on the CPU one by
one, on bytes, by `torch.nn.functional.interpolate`; on another device for the whole batch, by two
matrix products. Both are bicubic and antialiased, and within two grey levels of Pillow (the cubic
with a = -0.5, its support widened by the scale and cut at the region's edge).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.nn import functional

from microclip import runtime
from microclip.data.decoding import Pixels

_SUPPORT = 2.0  # of the cubic, in output pixels


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
    if torch.device(device).type == "cpu":
        return one_by_one(images, windows, size)
    return by_matrices(images, windows, size, device=device)


def one_by_one(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], windows: Sequence[Sequence[Window]], size: int
) -> Float[Tensor, "batch view 3 size size"]:
    """Like `resize_windows`, but window by window and on bytes."""
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
    """Like `resize_windows`, but as rows @ (image @ columns) for the whole batch."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    padded = torch.zeros((len(images), height, width, 3), dtype=torch.uint8)
    for row, image in enumerate(images):
        padded[row, : image.shape[0], : image.shape[1]] = torch.from_numpy(np.array(image))
    planes = padded.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    table = torch.tensor(windows, dtype=torch.float32).to(device)  # batch, view, 8
    # Float32 even under autocast: half precision is too coarse for resampling weights.
    with torch.autocast(device_type=torch.device(device).type, enabled=False):
        rows = axis_weights(table[..., [0, 2, 4, 6]], n_in=height, n_out=size)
        columns = axis_weights(table[..., [1, 3, 5, 7]], n_in=width, n_out=size)
        across = torch.einsum("b c h w, b v p w -> b v c h p", planes, columns)
        views = torch.einsum("b v o h, b v c h p -> b v c o p", rows, across.clamp(0, 1))
    return views.clamp(0, 1)  # after each step, because Pillow stores both in bytes


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


Crop = Literal["center", "random"]

# Source: sathiiii/microCLIP:utils/build_dataset.py with its arguments.
STRONG_SCALE = (0.3, 1.0)  # area of the random resized crop
STRONG_POLICY = "rand-m9-mstd0.5-inc1"


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """The shape with shorter side `size`; the longer side is rounded down, as CLIP does."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def whole_window(
    shape: tuple[int, int], size: int, crop: Crop, rng: np.random.Generator | None = None
) -> Window:
    """The window that resizes the shorter side to `size` and keeps a center or random square.

    Source: CLIP's own transform. Departs: fidelity.md#views (which square is used where).

    Raises:
        ValueError: crop "random" without `rng`, or an unknown `crop`.
    """
    height, width = shape
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
            raise ValueError(f"crop must be 'center' or 'random', got {crop!r}")
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


class StrongTransform:
    """timm's training transform, with the arguments of the released code.

    A random resized crop (area 0.3 to 1, ratio 3/4 to 4/3, bicubic), a flip, then two of
    RandAugment's 15 operations at magnitude N(9, 0.5), each with probability 0.5; geometric ones
    fill with black, because the transform's own normalisation is off. It draws from the global
    generators.
    """

    def __init__(self, size: int) -> None:
        """Make views with side `size`."""
        composed: Any = create_transform(
            size,
            is_training=True,
            scale=STRONG_SCALE,
            color_jitter=0.0,  # off: RandAugment replaces it
            auto_augment=STRONG_POLICY,
            interpolation="bicubic",
            re_prob=0.0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.steps = [step for step in composed.transforms if _acts_on_images(step)]
        for step in self.steps:
            for operation in getattr(step, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 side side"]:
        """Return a view of an RGB image."""
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def strong_view(
    pixels: Pixels, transform: StrongTransform, *, seed: int
) -> UInt8[Tensor, "3 side side"]:
    """The strong view for `seed`; the global generators' states are restored."""
    with runtime.seeded_globals(seed):
        return transform(Image.fromarray(pixels))


def normalise(
    images: Float[Tensor, "*lead 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*lead 3 height width"]:
    """(images - mean) / std, per channel."""
    shift = torch.tensor(mean, device=images.device)[:, None, None]
    return (images - shift) / torch.tensor(std, device=images.device)[:, None, None]


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the leading bits. RandAugment may ask for 0 bits, which Pillow 13 refuses: black."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _acts_on_images(step: object) -> bool:
    """Does a step of timm's transform work on images, not on tensors?"""
    return type(step).__name__ not in {"MaybeToTensor", "ToTensor", "PILToTensor", "Normalize"}
