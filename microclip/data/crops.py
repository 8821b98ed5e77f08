"""Square crops of test images, encoded: what WCA compares with sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microclip import runtime
from microclip.data.loading import UnlabelledImages
from microclip.data.views import Memory, Window, prepare, whole_window

if TYPE_CHECKING:
    from microclip.model.backbone import Backbone

_ENCODED_TOGETHER = 256  # views


@dataclass(frozen=True)
class CropDraw:
    """How many square crops of an image, with sides of which share of its shorter side."""

    n: int
    scale: tuple[float, float]


class OfficialDraws(NamedTuple):
    """The two generators that WCA's code draws crops from, each in the order of the crops."""

    shares: np.random.RandomState
    corners: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> OfficialDraws:
        """Seed both; `seed` below 2^32."""
        return cls(np.random.RandomState(seed), torch.Generator().manual_seed(seed))


def official_squares(
    shape: tuple[int, int],
    size: int,
    n_crops: int,
    *,
    scale: Sequence[float],
    draws: OfficialDraws,
) -> list[Window]:
    """Draw squares as `square_windows`, but the very ones that WCA's code draws from a seed.

    Source: tmlr-group/WCA: the side is floor(lambda * shorter side) with lambda from NumPy's
    generator, uniform in `scale`; then the top and the left from torch's.
    """
    height, width = shape
    windows = []
    for _ in range(n_crops):
        side = max(1, int(draws.shares.uniform(scale[0], scale[1]) * min(height, width)))
        top, left = (
            int(torch.randint(length - side + 1, (1,), generator=draws.corners))
            for length in (height, width)
        )
        windows.append(Window(top, left, side, side, size, size))
    return windows


@torch.no_grad()
def crop_embeddings(
    backbone: Backbone, images: UnlabelledImages, draw: CropDraw, *, seed: int, first: int = 0
) -> tuple[Float[Tensor, "image embedding"], Float[Tensor, "image crop embedding"]]:
    """Return the unit [CLS] embeddings of center views and of square crops, on the CPU.

    An image's crops depend on `seed` and its number alone; the first image has the number `first`.
    """
    memory, wholes, crops = Memory(), [], []
    at_once = max(1, _ENCODED_TOGETHER // (draw.n + 1))
    for start in range(0, len(images), at_once):
        pixels = [images.pixels(i) for i in range(start, min(start + at_once, len(images)))]
        windows = [
            _windows(image.shape[:2], backbone.image_size, draw, (seed, first + start + place))
            for place, image in enumerate(pixels)
        ]
        prepared = prepare(pixels, windows, backbone.image_size, device=backbone.device)
        whole, squares = prepared.normalised(backbone.mean, backbone.std, memory)
        wholes.append(backbone.encode_global(whole).cpu())
        encoded = backbone.encode_global(squares.flatten(0, 1)).cpu()
        crops.append(encoded.reshape(*squares.shape[:2], -1))
    return torch.cat(wholes), torch.cat(crops)


def _windows(
    shape: tuple[int, int], size: int, draw: CropDraw, key: tuple[int, int]
) -> list[Window]:
    """The windows of the whole image and of its squares; `key` is a seed and a number."""
    # 32 bits: NumPy's old generator, which the official code draws from, takes no more.
    draws = OfficialDraws.seeded(runtime.derive_seed(key[0], "squares", key[1]) % 2**32)
    whole = whole_window(shape, size, "center")
    return [whole, *official_squares(shape, size, draw.n, scale=draw.scale, draws=draws)]
