"""Strong views of training images: RandAugment as microCLIP has it, and SimSiam's as LaFTer has it.

The libraries behind them draw from the global generators, which `strong_view` seeds and restores.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from microclip import runtime
from microclip.data.decoding import Pixels

Strong = Literal["randaugment", "simsiam"]

# Source: sathiiii/microCLIP:utils/build_dataset.py with its arguments.
STRONG_SCALE = (0.3, 1.0)  # area of the random resized crop
STRONG_POLICY = "rand-m9-mstd0.5-inc1"


def strong_transform(kind: Strong, size: int) -> Callable[[Image.Image], UInt8[Tensor, "3 _ _"]]:
    """Return what makes strong views with side `size` of RGB images.

    Raises:
        ValueError: unknown `kind`.
    """
    match kind:
        case "randaugment":
            return StrongTransform(size)
        case "simsiam":
            return SimSiamTransform(size)
        case _:
            raise ValueError(f"kind must be 'randaugment' or 'simsiam', got {kind!r}")


class StrongTransform:
    """timm's training transform, with the arguments of the released code.

    A random resized crop (area 0.3 to 1, ratio 3/4 to 4/3, bicubic), a flip, then two of
    RandAugment's 15 operations at magnitude N(9, 0.5), each with probability 0.5; geometric ones
    fill with black, because the transform's own normalisation is off. It draws from the global
    generators.
    """

    def __init__(self, size: int) -> None:
        """Make views with side `size`."""
        from timm.data.transforms_factory import create_transform

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


class SimSiamTransform:
    """LaFTer's strong view, SimSiam's with a blur that is always applied.

    A random resized crop (area 0.2 to 1, ratio 3/4 to 4/3, bilinear), a flip, brightness, contrast,
    saturation by up to 0.4 and hue by up to 0.1 with probability 0.8, grey with probability 0.2,
    and a Gaussian blur with a radius of 0.1 to 2 px. It draws from the global generators.
    """

    def __init__(self, size: int) -> None:
        """Make views with side `size`."""
        from torchvision.transforms import v2

        self.steps = [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
        ]

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 side side"]:
        """Return a view of an RGB image."""
        for step in self.steps:
            image = step(image)
        image = image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))  # noqa: S311
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def strong_view(
    pixels: Pixels, transform: Callable[[Image.Image], UInt8[Tensor, "3 side side"]], *, seed: int
) -> UInt8[Tensor, "3 side side"]:
    """The strong view for `seed`; the global generators' states are restored."""
    with runtime.seeded_globals(seed):
        return transform(Image.fromarray(pixels))


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the leading bits. RandAugment may ask for 0 bits, which Pillow 13 refuses: black."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _acts_on_images(step: object) -> bool:
    """Does a step of timm's transform work on images, not on tensors?"""
    return type(step).__name__ not in {"MaybeToTensor", "ToTensor", "PILToTensor", "Normalize"}
