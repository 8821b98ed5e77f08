"""Pretrain icon-clip's image tower to name what a scene shows, from [CLS] and from the patches.

The first of three stages of `make icon-clip`, before `refine` and `align`. Targets come only from
the drawings' names: (1) which emoji it is, a softmax over all emoji of the pretraining artists;
(2) which words its name and keywords contain, a softmax over the vocabulary with multi-hot targets.
Both are predicted from the [CLS] embedding and, with half the weight, from the mean value-path
token over the drawing's patches. Every random draw derives from `Recipe.seed`;
`catalogue.PACKAGES` pins the data.

Scenes are composed in batches of tensors (`Compositor`), not by the benchmark's renderer in
`scenes`: pretraining never sees a benchmark image, and the two differ in code, backgrounds and
distortions on purpose.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from microclip import paths, runtime
from microclip.icons.catalogue import PACKAGES, Bank, Catalogue, load_bank
from microclip.model.backbone import Backbone, from_open_clip, unit_norm

log = logging.getLogger(__name__)

IMAGE_TOWER = "image-tower.safetensors"  # of this stage; the next begins with it
DRAWING_PX = 48  # about the size at which drawings appear: sampling then needs no low-pass filter


@dataclass(frozen=True)
class Scenes:
    """A batch: images in [0, 1], and how much of each pixel the main drawing covers."""

    images: Float[Tensor, "batch 3 side side"]
    foreground: Float[Tensor, "batch 1 side side"]


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Uniform draws in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def placement(
    scale: Float[Tensor, " n"], generator: torch.Generator, *, flip: Tensor, inside: bool
) -> Float[Tensor, "n 2 3"]:
    """Affine maps from canvas to drawing: random position, rotation, stretch and flip.

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
    """The canvas with drawings (premultiplied RGBA) over it, and their coverage."""
    side = canvas.shape[-1]
    grid = functional.affine_grid(theta, [len(theta), 4, side, side], align_corners=False)
    layer = functional.grid_sample(drawings, grid, align_corners=False)
    alpha = layer[:, 3:].clamp(0, 1)
    return layer[:, :3] + canvas * (1 - alpha), alpha


def backgrounds(n: int, side: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    """Plain, gradient, cloudy and grainy backgrounds in equal parts."""
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
    """Images with random brightness, contrast, saturation, tint and a soft light field."""
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
        whole = torch.rand((n, 1), generator=generator) >= share
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
    ) -> None:
        self.tint, self.mirror, self.side = tint, mirror, side
        self.bank = premultiplied(bank, DRAWING_PX)

    def drawings(
        self, index: Int[Tensor, " n"], generator: torch.Generator
    ) -> Float[Tensor, "n 4 s s"]:
        """Drawings as premultiplied RGBA in [0, 1], single-colour ones tinted."""
        rgba = self.bank[index].float().div_(255)
        colour = torch.rand((len(index), 3, 1, 1), generator=generator)
        tinted = self.tint[index][:, None, None, None]
        rgb = torch.where(tinted, colour * rgba[:, 3:], rgba[:, :3])
        return torch.cat([rgb, rgba[:, 3:]], 1)

    def _clutter(
        self, canvas: Tensor, generator: torch.Generator, amount: float, crops: Crops | None
    ) -> Tensor:
        """The canvas with up to two other drawings, mostly cut off by the edge."""
        n = len(canvas)
        for _ in range(2):
            index = torch.randint(len(self.bank), (n,), generator=generator)
            scale = uniform(generator, (n,), 0.25, 0.6)
            hidden = torch.rand(n, generator=generator) > amount
            # Hidden ones shrink to nothing: the whole batch is drawn at once.
            scale = torch.where(hidden, torch.full_like(scale, 1e-3), scale)
            theta = placement(scale, generator, flip=torch.ones(n), inside=False)
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
        flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        flip = torch.where(self.mirror[index], flip, torch.ones(n))
        theta = placement(scale, generator, flip=flip, inside=True)
        theta = theta if crops is None else crops.of(theta)
        drawings = self.drawings(index, generator)
        canvas, alpha = paste(canvas, drawings, theta)
        return Scenes(recolour(canvas, generator), alpha)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, besides the drawings."""

    steps: int = 6000  # of the schedule
    stop: int = 5200  # last step run: after it the rate is below 5 % of its peak
    batch: int = 256
    peak_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 300
    value_path_weight: float = 0.5
    dropped_until: float = 0.65  # share of training during which half of the patches are dropped
    hardest_from: float = 0.5  # share of training after which clutter is at its maximum
    seed: int = 0


def build_model(config: Path) -> nn.Module:
    """An untrained open_clip CLIP with icon-clip's architecture."""
    open_clip.add_model_config(config)
    model: nn.Module = open_clip.create_model(config.stem, pretrained=None)
    return model


def tower_tokens(backbone: Backbone, images: Tensor, kept: Tensor | None) -> Tensor:
    """[CLS] and value-path tokens [B, 1+k, d]; `kept` [B, k] lists the patches not dropped.

    Dropping patches halves the cost of a step, as in FLIP (arXiv:2212.00794).
    """
    visual = backbone.visual
    position = visual.positional_embedding
    patches = visual.conv1(images).flatten(2).mT + position[1:]
    if kept is not None:
        patches = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[-1]))
    cls = (visual.class_embedding + position[0]).expand(len(images), 1, -1)
    hidden = visual.ln_pre(torch.cat([cls, patches], 1))
    for block in visual.transformer.resblocks[:-1]:
        hidden = block(hidden)
    return backbone._last_block(hidden, with_patches=True)


class Naming(nn.Module):
    """The image tower with its two sets of targets: emoji and words."""

    def __init__(self, backbone: Backbone, n_concepts: int, n_words: int) -> None:
        super().__init__()
        self.backbone = backbone
        e = backbone.embedding_dim
        self.concepts = nn.Parameter(torch.randn(n_concepts, e))
        self.words = nn.Parameter(torch.randn(n_words, e))
        self.word_bias = nn.Parameter(torch.zeros(n_words))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(16.0)))

    def embed(
        self, images: Tensor, coverage: Float[Tensor, "batch patch"], kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Unit embeddings of [CLS] and of the drawing's mean value-path token."""
        tokens = tower_tokens(self.backbone, images, kept)
        cls, patches = tokens[:, 0], tokens[:, 1:]
        if kept is not None:
            coverage = coverage.gather(1, kept)
        share = (coverage + 0.02) / (coverage + 0.02).sum(1, keepdim=True)
        mean = (patches * share[..., None]).sum(1)
        return unit_norm(self.backbone.project(cls)), unit_norm(self.backbone.project(mean))

    def loss(self, embedding: Tensor, concept: Int[Tensor, " batch"], words: Tensor) -> Tensor:
        """Naming loss of unit embeddings; a concept of -1 counts only the words."""
        scale = self.log_scale.exp().clamp(max=60.0)
        by_concept = scale[0] * embedding @ functional.normalize(self.concepts, dim=-1).T
        by_word = scale[1] * embedding @ functional.normalize(self.words, dim=-1).T + self.word_bias
        concept_loss = functional.cross_entropy(
            by_concept, concept, ignore_index=-1, reduction="sum"
        )
        word_loss = -(words * functional.log_softmax(by_word, -1)).sum()
        return (concept_loss + word_loss) / len(embedding)

    def forward(
        self,
        images: Tensor,
        coverage: Tensor,
        kept: Tensor | None,
        targets: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Losses of [CLS] and of the value path."""
        cls, value = self.embed(images, coverage, kept)
        return self.loss(cls, *targets), self.loss(value, *targets)


def optimisers(naming: Naming, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest of the image tower."""
    blocks = naming.backbone.visual.transformer
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    text = {id(p) for n, p in naming.backbone.model.named_parameters() if "visual." not in n}
    others = [p for p in naming.parameters() if id(p) not in inside | text]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.peak_lr,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=recipe.peak_lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        ),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate: linear warm-up, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.peak_lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.peak_lr * 0.5 * (1 + math.cos(math.pi * done))


class Batches:
    """Seeded scenes with their targets; a step always gives the same batch."""

    def __init__(self, bank: Bank, recipe: Recipe, backbone: Backbone) -> None:
        self.bank, self.recipe = bank, recipe
        self.patch = backbone.image_size // backbone.patch_grid[0]
        self.n_patches = math.prod(backbone.patch_grid)
        self.mean = torch.tensor(backbone.mean).view(3, 1, 1)
        self.std = torch.tensor(backbone.std).view(3, 1, 1)
        self.compositor = Compositor(
            bank.rasters, tint=bank.tint, mirror=bank.mirror, side=backbone.image_size
        )

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """Normalised images, patch coverage, kept patches and targets of a step."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        done = step / recipe.steps
        index = torch.multinomial(
            self.bank.sampling, recipe.batch, replacement=True, generator=generator
        )
        scenes = self.compositor(index, generator, min(1.0, done / recipe.hardest_from))
        coverage = functional.avg_pool2d(scenes.foreground, self.patch).flatten(1)
        kept = None
        if done < recipe.dropped_until:
            noise = torch.rand((recipe.batch, self.n_patches), generator=generator)
            kept = noise.topk(self.n_patches // 2 + 1, dim=1).indices
        targets = self.bank.concept[index], self.bank.word_targets(index)
        return (scenes.images - self.mean) / self.std, coverage, kept, targets


def save(folder: Path, naming: Naming, opts: list[torch.optim.Optimizer], step: int) -> None:
    """Write a resumable checkpoint."""
    with runtime.atomic_path(folder / "image-tower.pt") as path:
        state = {"step": step, "naming": naming.state_dict()}
        torch.save(state | {f"opt{i}": o.state_dict() for i, o in enumerate(opts)}, path)


def resume(folder: Path, naming: Naming, opts: list[torch.optim.Optimizer]) -> int:
    """Load the checkpoint and return the step to continue with; 0 without a checkpoint."""
    if not (folder / "image-tower.pt").is_file():
        return 0
    state = torch.load(folder / "image-tower.pt", weights_only=True)  # noqa: TID251  only tensors
    naming.load_state_dict(state["naming"])
    for i, opt in enumerate(opts):
        opt.load_state_dict(state[f"opt{i}"])
    return int(state["step"])


def pretrain(config: Path, folder: Path, bank: Bank, recipe: Recipe) -> Naming:
    """Train the image tower; log every 50 steps, write a checkpoint every 400."""
    torch.manual_seed(recipe.seed)
    backbone = from_open_clip(build_model(config)).train()
    naming = Naming(backbone, len(bank.concepts), len(bank.vocabulary))
    opts = optimisers(naming, recipe)
    first = resume(folder, naming, opts)
    batches = Batches(bank, recipe, backbone)
    compiled = torch.compile(naming)
    started, running = time.monotonic(), torch.zeros(2)
    for step in range(first, recipe.stop):
        for opt in opts:
            opt.param_groups[0]["lr"] = rate(step, recipe)
        images, coverage, kept, targets = batches(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cls_loss, value_loss = compiled(images, coverage, kept, targets)
        (cls_loss + recipe.value_path_weight * value_loss).backward()
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        running += torch.stack([cls_loss.detach(), value_loss.detach()]).float()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            speed = (step + 1 - first) * recipe.batch / seconds
            row = {
                "step": step + 1,
                "cls_loss": round(float(running[0]) / 50, 4),
                "value_loss": round(float(running[1]) / 50, 4),
                "images_per_s": round(speed, 1),
                "minutes": round(seconds / 60, 2),
            }
            log.info("%s", json.dumps(row))
            running.zero_()
        if (step + 1) % 400 == 0 or step + 1 == recipe.stop:
            save(folder, naming, opts, step + 1)
    return naming


def write_half(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in half precision."""
    with runtime.atomic_path(path) as temporary:
        save_file({k: v.detach().half().contiguous() for k, v in state.items()}, temporary)


def main() -> None:
    """Train the image tower and write `resources/icon-clip/image-tower.safetensors`."""
    root = paths.project_root()
    folder, home = root / "build" / "icon-clip", root / "resources" / "icon-clip"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().addHandler(logging.FileHandler(folder / "image-tower.log"))
    bank = load_bank(folder, Catalogue(root / "build" / "npm"))
    recipe = Recipe()
    log.info("%s", json.dumps({"packages": PACKAGES, "drawings": len(bank.captions)}))
    log.info("%s", json.dumps(asdict(recipe)))
    naming = pretrain(home / "icon-clip.json", folder, bank, recipe)
    state = naming.backbone.model.state_dict()
    visual = {name: value for name, value in state.items() if name.startswith("visual.")}
    write_half(visual, home / IMAGE_TOWER)


if __name__ == "__main__":
    main()
