"""Compose pretraining's scenes as batches of tensors, on a GPU where there is one.

Not the benchmark's renderer in `scenes`: pretraining never sees a benchmark image, and the two
differ in code, backgrounds and distortions on purpose. Scenes may be cropped, and `rand_augment`
changes them as RandAugment changes a method's strong views. Draws come from a generator, on its
device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

POINTWISE = (
    "auto_contrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
LEVEL, LEVEL_DEVIATION = 9.0, 0.5  # of ten, as in the strong views of self-training
DRAWING_PX = 48  # about the size at which drawings appear: sampling then needs no low-pass filter


@dataclass(frozen=True)
class Scenes:
    """A batch: images in [0, 1], and how much of each pixel the main drawing covers."""

    images: Float[Tensor, "batch 3 side side"]
    foreground: Float[Tensor, "batch 1 side side"]


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Uniform draws in [low, high)."""
    return low + (high - low) * _rand(shape, generator)


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def placement(
    scale: Float[Tensor, " n"], generator: torch.Generator, *, flip: Tensor, inside: bool
) -> Float[Tensor, "n 2 3"]:
    """Affine maps from canvas to drawing: random position, rotation, stretch and flip.

    `scale` is the drawing's side over the canvas side; `inside` keeps nearly all of it in view.
    """
    n = len(scale)
    angle = torch.randn(n, generator=generator, device=generator.device) * math.radians(9)
    stretch = torch.exp(torch.randn(n, generator=generator, device=generator.device) * 0.08)
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
    """The canvas with drawings (premultiplied RGBA) over it, and their coverage."""
    side = canvas.shape[-1]
    grid = functional.affine_grid(theta, [len(theta), 4, side, side], align_corners=False)
    layer = functional.grid_sample(drawings, grid, align_corners=False)
    alpha = layer[:, 3:].clamp(0, 1)
    return layer[:, :3] + canvas * (1 - alpha), alpha


def backgrounds(n: int, side: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    """Plain, gradient, cloudy and grainy backgrounds in equal parts."""
    base = _rand((n, 3, 1, 1), generator)
    coarse = _rand((n, 3, 2, 2), generator)
    cloudy = _rand((n, 3, 6, 6), generator)
    gradient = functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    clouds = functional.interpolate(cloudy, (side, side), mode="bicubic", align_corners=True)
    grain = _rand((n, 1, side, side), generator) - 0.5
    kind = torch.randint(4, (n, 1, 1, 1), generator=generator, device=generator.device)
    strength = uniform(generator, (n, 1, 1, 1), 0.2, 1.0)
    plain = base.expand(-1, -1, side, side)
    image = torch.where(kind == 0, plain, plain + strength * (gradient - plain))
    image = torch.where(kind == 2, plain + strength * (clouds - plain), image)
    image = torch.where(kind == 3, image + 0.4 * strength * grain, image)
    light = _rand((n, 1, 1, 1), generator) < 0.35  # many real pictures are bright
    return torch.where(light, 1 - 0.35 * image, image).clamp(0, 1)


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with random brightness, contrast, saturation, tint and a soft light field."""
    n = len(images)
    gain = 1 + uniform(generator, (n, 3, 1, 1), -0.1, 0.1)
    shift = uniform(generator, (n, 1, 1, 1), -0.1, 0.1)
    contrast = 1 + uniform(generator, (n, 1, 1, 1), -0.3, 0.3)
    saturation = 1 + uniform(generator, (n, 1, 1, 1), -0.4, 0.3)
    field = _rand((n, 1, 3, 3), generator) - 0.5
    light = functional.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    images = (images - 0.5) * contrast + 0.5 + shift
    return (images * gain * (1 + 0.3 * light)).clamp(0, 1)


def premultiplied(bank: UInt8[Tensor, "n s s 4"], side: int) -> UInt8[Tensor, "n 4 side side"]:
    """Drawings resized, with colour multiplied by opacity, so that they can be blended."""
    parts = []
    for part in torch.split(bank, 1024):
        rgba = part.permute(0, 3, 1, 2).float()
        rgba = torch.cat([rgba[:, :3] * rgba[:, 3:] / 255, rgba[:, 3:]], 1)
        small = functional.interpolate(rgba, (side, side), mode="bilinear", antialias=True)
        parts.append(small.round().to(torch.uint8))
    return torch.cat(parts)


@dataclass(frozen=True)
class Crops:
    """Windows of canvases, in their coordinates [-1, 1]: half sides and centres (x, y)."""

    half: Float[Tensor, "n 2"]
    centre: Float[Tensor, "n 2"]

    @classmethod
    def draw(cls, n: int, generator: torch.Generator, *, share: float) -> Crops:
        """Windows of 30 to 100 % of the area, ratio 3/4 to 4/3, for a share of the canvases."""
        area = uniform(generator, (n,), 0.3, 1.0)
        ratio = torch.exp(uniform(generator, (n,), math.log(3 / 4), math.log(4 / 3)))
        half = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1.0)
        whole = _rand((n, 1), generator) >= share
        half = torch.where(whole, torch.ones_like(half), half)
        return cls(half, uniform(generator, (n, 2), -1, 1) * (1 - half))

    def of(self, theta: Float[Tensor, "n 2 3"]) -> Float[Tensor, "n 2 3"]:
        """Maps from the window to the drawing, given those from the canvas."""
        turn, shift = theta[:, :, :2], theta[:, :, 2:]
        moved = turn @ self.centre[:, :, None] + shift
        return torch.cat([turn * self.half[:, None], moved], 2)


class Compositor:
    """Composes random scenes from a bank of RGBA drawings [n, s, s, 4] uint8.

    `tint` marks single-colour drawings, which get a random colour; `mirror` marks drawings that
    keep their meaning when flipped (all but flags).
    """

    def __init__(
        self,
        bank: UInt8[Tensor, "n s s 4"],
        *,
        tint: Tensor,
        mirror: Tensor,
        side: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tint, self.mirror, self.side = tint.to(device), mirror.to(device), side
        self.bank = premultiplied(bank, DRAWING_PX).to(device)

    def drawings(
        self, index: Int[Tensor, " n"], generator: torch.Generator
    ) -> Float[Tensor, "n 4 s s"]:
        """Drawings as premultiplied RGBA in [0, 1], single-colour ones tinted."""
        rgba = self.bank[index].float().div_(255)
        colour = _rand((len(index), 3, 1, 1), generator)
        tinted = self.tint[index][:, None, None, None]
        rgb = torch.where(tinted, colour * rgba[:, 3:], rgba[:, :3])
        return torch.cat([rgb, rgba[:, 3:]], 1)

    def _clutter(
        self, canvas: Tensor, generator: torch.Generator, amount: float, crops: Crops | None
    ) -> Tensor:
        """The canvas with up to two other drawings, mostly cut off by the edge."""
        n = len(canvas)
        for _ in range(2):
            index = torch.randint(
                len(self.bank), (n,), generator=generator, device=generator.device
            )
            scale = uniform(generator, (n,), 0.25, 0.6)
            hidden = _rand((n,), generator) > amount
            # Hidden ones shrink to nothing: the whole batch is drawn at once.
            scale = torch.where(hidden, torch.full_like(scale, 1e-3), scale)
            theta = placement(scale, generator, flip=torch.ones_like(scale), inside=False)
            theta = theta if crops is None else crops.of(theta)
            canvas, _ = paste(canvas, self.drawings(index, generator), theta)
        return canvas

    def __call__(
        self,
        index: Int[Tensor, " batch"],
        generator: torch.Generator,
        difficulty: float,
        crops: Crops | None = None,
    ) -> Scenes:
        """Scenes of the given drawings; difficulty in [0, 1] adds clutter and shrinks drawings.

        With `crops`, a window of each scene, enlarged to the whole.
        """
        n = len(index)
        canvas = backgrounds(n, self.side, generator)
        if difficulty > 0:
            canvas = self._clutter(canvas, generator, 0.7 * difficulty, crops)
        scale = uniform(generator, (n,), 0.85 - 0.35 * difficulty, 1.0)
        flipped = self.mirror[index] & (_rand((n,), generator) < 0.5)
        flip = torch.where(flipped, -1.0, 1.0)
        theta = placement(scale, generator, flip=flip, inside=True)
        theta = theta if crops is None else crops.of(theta)
        drawings = self.drawings(index, generator)
        canvas, alpha = paste(canvas, drawings, theta)
        return Scenes(recolour(canvas, generator), alpha)


def rand_augment(
    images: Float[Tensor, "n 3 side side"],
    coverage: Float[Tensor, "n 1 side side"],
    generator: torch.Generator,
    *,
    share: float,
) -> tuple[Float[Tensor, "n 3 side side"], Float[Tensor, "n 1 side side"]]:
    """Change a share of images by two of RandAugment's operations, each with probability 0.5.

    timm's `rand-m9-mstd0.5-inc1` on a batch. `generator` is a CPU's: how many images get what is
    then known without waiting for the device. A geometric operation moves the coverage too.
    """
    both = torch.cat([images, coverage], 1)
    n, device = len(images), images.device
    names = (*POINTWISE, *GEOMETRIC)
    chosen = torch.rand(n, generator=generator) < share
    for _ in range(2):
        operation = torch.randint(len(names), (n,), generator=generator)
        operation[(torch.rand(n, generator=generator) < 0.5) | ~chosen] = len(names)
        level = (LEVEL + LEVEL_DEVIATION * torch.randn(n, generator=generator)).clamp(0, 10)
        sign = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        order = operation.argsort(stable=True)
        counts = operation.bincount(minlength=len(names) + 1).tolist()
        # One copy to the device for all operations.
        drawn = torch.stack([order.double(), level[order].double(), sign[order].double()])
        parts = torch.split(drawn.to(device), counts, dim=1)
        for name, (index, own, signed) in zip(names, parts[:-1], strict=True):
            if not len(index):
                continue
            which, own, signed = index.long(), own.float(), signed.float()
            if name in GEOMETRIC:
                both[which] = moved(both[which], name, signed * own / 10)
            else:
                both[which, :3] = recoloured(both[which, :3], name, own, signed)
    return both[:, :3], both[:, 3:]


def moved(
    images: Float[Tensor, "k c side side"], name: str, amount: Float[Tensor, " k"]
) -> Float[Tensor, "k c side side"]:
    """Images turned, sheared or shifted by `amount` in [-1, 1] of the most, filled with zeros."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    shear, shift = 0.3 * amount, 2 * 0.45 * amount
    match name:
        case "rotate":
            angle = torch.deg2rad(30 * amount)
            rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
        case "shear_x":
            rows = [one, shear, shear, zero, one, zero]  # about the corner, as Pillow's
        case "shear_y":
            rows = [one, zero, zero, shear, one, shear]
        case "translate_x":
            rows = [one, zero, shift, zero, one, zero]
        case "translate_y":
            rows = [one, zero, zero, zero, one, shift]
        case _:
            raise ValueError(f"name must be one of {GEOMETRIC}, got {name!r}")
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def recoloured(  # noqa: C901  one short case an operation
    images: Float[Tensor, "k 3 side side"],
    name: str,
    level: Float[Tensor, " k"],
    sign: Float[Tensor, " k"],
) -> Float[Tensor, "k 3 side side"]:
    """Images in [0, 1] changed by one of `POINTWISE` at levels of 0 to 10."""
    from torchvision.transforms.v2 import functional as v2

    level, sign = (values[:, None, None, None] for values in (level, sign))
    factor = (1 + sign * 0.9 * level / 10).clamp(min=0.1)
    match name:
        case "auto_contrast":
            stretched: Tensor = v2.autocontrast(images)
            return stretched
        case "equalize":
            flat: Tensor = v2.equalize((images * 255).round().to(torch.uint8))
            return flat.float() / 255
        case "invert":
            return 1 - images
        case "posterize":
            kept = 2.0 ** (4 - (level / 10 * 4).floor())
            return (images * 255 * kept / 256 + 1e-3).floor() * (256 / kept) / 255
        case "solarize":
            threshold = (256 - (level / 10 * 256).floor()) / 255
            return torch.where(images < threshold, images, 1 - images)
        case "solarize_add":
            added = (level / 10 * 110).floor() / 255
            return torch.where(images < 128 / 255, (images + added).clamp(max=1), images)
        case "color":
            return torch.lerp(_grey(images), images, factor).clamp(0, 1)
        case "contrast":
            return torch.lerp(_grey(images).mean((2, 3), keepdim=True), images, factor).clamp(0, 1)
        case "brightness":
            return (images * factor).clamp(0, 1)
        case "sharpness":
            return torch.lerp(_smoothed(images), images, factor).clamp(0, 1)
        case _:
            raise ValueError(f"name must be one of {POINTWISE}, got {name!r}")


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _smoothed(images: Tensor) -> Tensor:
    """Pillow's SMOOTH: a kernel of ones with 5 in the middle; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=3)
    return smooth
