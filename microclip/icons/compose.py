"""Batched compositor of pretraining scenes: drawings on backgrounds, all in tensors.

It is not the benchmark's renderer (`scenes.py`): pretraining never sees a benchmark image, and the
two differ in code, backgrounds and distortions on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

DRAWING_PX = 48  # about the size at which drawings appear, so that sampling needs no filter


@dataclass(frozen=True)
class Scenes:
    """A batch: images in [0, 1] and the share of each pixel that belongs to the main drawing."""

    images: Float[Tensor, "batch 3 side side"]
    foreground: Float[Tensor, "batch 1 side side"]


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Return uniform draws in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def placement(
    scale: Float[Tensor, " n"], generator: torch.Generator, *, flip: Tensor, inside: bool
) -> Float[Tensor, "n 2 3"]:
    """Return affine maps from canvas to drawing: random place, rotation, stretch and flip.

    `scale` is the drawing's side over the canvas side; `inside` keeps nearly all of it in view.
    """
    n = len(scale)
    angle = torch.randn(n, generator=generator) * math.radians(9)
    stretch = torch.exp(torch.randn(n, generator=generator) * 0.08)
    room = (1 - scale).clamp(min=0.05) if inside else torch.full_like(scale, 1.0)
    shift = uniform(generator, (n, 2), -1, 1) * room[:, None]
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack(
        [
            torch.stack([cos / (scale * stretch) * flip, sin / scale * flip], -1),
            torch.stack([-sin / scale, cos / (scale / stretch)], -1),
        ],
        1,
    )
    offset = -(matrix @ shift[:, :, None])
    return torch.cat([matrix, offset], 2)


def paste(
    canvas: Tensor, drawings: Float[Tensor, "n 4 s s"], theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return canvas with drawings (premultiplied RGBA) over it, and their coverage."""
    side = canvas.shape[-1]
    grid = functional.affine_grid(theta, [len(theta), 4, side, side], align_corners=False)
    layer = functional.grid_sample(drawings, grid, align_corners=False)
    alpha = layer[:, 3:].clamp(0, 1)
    return layer[:, :3] + canvas * (1 - alpha), alpha


def backgrounds(n: int, side: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    """Return plain, gradient, cloudy and grainy backgrounds in equal parts."""
    base = torch.rand((n, 3, 1, 1), generator=generator)
    coarse = torch.rand((n, 3, 2, 2), generator=generator)
    cloudy = torch.rand((n, 3, 6, 6), generator=generator)
    gradient = functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    clouds = functional.interpolate(cloudy, (side, side), mode="bicubic", align_corners=True)
    grain = torch.rand((n, 1, side, side), generator=generator) - 0.5
    kind = torch.randint(4, (n, 1, 1, 1), generator=generator)
    strength = uniform(generator, (n, 1, 1, 1), 0.2, 1.0)
    plain = base.expand(-1, -1, side, side)
    image = torch.where(kind == 0, plain, plain + strength * (gradient - plain))
    image = torch.where(kind == 2, plain + strength * (clouds - plain), image)
    image = torch.where(kind == 3, image + 0.4 * strength * grain, image)
    light = torch.rand((n, 1, 1, 1), generator=generator) < 0.35  # many real pictures are bright
    return torch.where(light, 1 - 0.35 * image, image).clamp(0, 1)


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with shifted brightness, contrast, saturation, tint and a soft light field."""
    n = len(images)
    gain = 1 + uniform(generator, (n, 3, 1, 1), -0.1, 0.1)
    shift = uniform(generator, (n, 1, 1, 1), -0.1, 0.1)
    contrast = 1 + uniform(generator, (n, 1, 1, 1), -0.3, 0.3)
    saturation = 1 + uniform(generator, (n, 1, 1, 1), -0.4, 0.3)
    field = torch.rand((n, 1, 3, 3), generator=generator) - 0.5
    light = functional.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    images = (images - 0.5) * contrast + 0.5 + shift
    return (images * gain * (1 + 0.3 * light)).clamp(0, 1)


def premultiplied(bank: UInt8[Tensor, "n s s 4"], side: int) -> UInt8[Tensor, "n 4 side side"]:
    """Return drawings at another size with colour times opacity, so that they can be blended."""
    parts = []
    for part in torch.split(bank, 1024):
        rgba = part.permute(0, 3, 1, 2).float()
        rgba = torch.cat([rgba[:, :3] * rgba[:, 3:] / 255, rgba[:, 3:]], 1)
        small = functional.interpolate(rgba, (side, side), mode="bilinear", antialias=True)
        parts.append(small.round().to(torch.uint8))
    return torch.cat(parts)


class Compositor:
    """Draws seeded scenes from a bank of RGBA drawings [n, s, s, 4] uint8.

    `tint` marks single-colour drawings: they get a random colour; `mirror` marks those that stay
    themselves when flipped (all but flags).
    """

    def __init__(
        self,
        bank: UInt8[Tensor, "n s s 4"],
        *,
        tint: Tensor,
        mirror: Tensor,
        side: int,
    ) -> None:
        self.tint, self.mirror, self.side = tint, mirror, side
        self.bank = premultiplied(bank, DRAWING_PX)

    def drawings(
        self, index: Int[Tensor, " n"], generator: torch.Generator
    ) -> Float[Tensor, "n 4 s s"]:
        """Return drawings as premultiplied RGBA in [0, 1], single-colour ones tinted."""
        rgba = self.bank[index].float().div_(255)
        colour = torch.rand((len(index), 3, 1, 1), generator=generator)
        tinted = self.tint[index][:, None, None, None]
        rgb = torch.where(tinted, colour * rgba[:, 3:], rgba[:, :3])
        return torch.cat([rgb, rgba[:, 3:]], 1)

    def _clutter(self, canvas: Tensor, generator: torch.Generator, amount: float) -> Tensor:
        """Return the canvas with up to two other drawings, mostly cut by the edge."""
        n = len(canvas)
        for _ in range(2):
            index = torch.randint(len(self.bank), (n,), generator=generator)
            scale = uniform(generator, (n,), 0.25, 0.6)
            hidden = torch.rand(n, generator=generator) > amount
            scale = torch.where(hidden, torch.full_like(scale, 1e-3), scale)
            theta = placement(scale, generator, flip=torch.ones(n), inside=False)
            canvas, _ = paste(canvas, self.drawings(index, generator), theta)
        return canvas

    def __call__(
        self, index: Int[Tensor, " batch"], generator: torch.Generator, difficulty: float
    ) -> Scenes:
        """Return scenes of the given drawings; difficulty in [0, 1] adds clutter and shrinks."""
        n = len(index)
        canvas = backgrounds(n, self.side, generator)
        if difficulty > 0:
            canvas = self._clutter(canvas, generator, 0.7 * difficulty)
        scale = uniform(generator, (n,), 0.85 - 0.35 * difficulty, 1.0)
        flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        flip = torch.where(self.mirror[index], flip, torch.ones(n))
        theta = placement(scale, generator, flip=flip, inside=True)
        drawings = self.drawings(index, generator)
        canvas, alpha = paste(canvas, drawings, theta)
        return Scenes(recolour(canvas, generator), alpha)
