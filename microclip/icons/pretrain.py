"""Pretrain icon-clip's image tower: what things look like, from [CLS] and from the patches.

The first of two stages of `make icon-clip`, before `align`. A step shows each drawing in two
scenes; a scene may be cropped down to 30 % of its area and changed by RandAugment, as the strong
views of self-training are. Four losses, on [CLS] and with equal weight on the value path (the mean
token over the drawing's patches):

1. words: those of its keywords, parent, parts and description sentences, not a benchmark name;
2. concepts: which emoji it is, for emoji that are no class of the benchmark;
3. instances: its two scenes are each other's nearest among all of the batch, whichever of [CLS] and
   value path they are read from; other drawings of the same emoji count neither way;
4. places: a patch token agrees with the other scene's [CLS] where it shows the drawing, and only
   there.

So the tower tells things apart by their looks, and the texts, aligned later, name them loosely.
Every random draw derives from `Recipe.seed`; `catalogue.PACKAGES` pins the data. It runs on a GPU
if there is one; the draws of a GPU are not those of a CPU, so the weights differ.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from microclip import paths, runtime
from microclip.icons.captions import load_captions
from microclip.icons.catalogue import PACKAGES, Bank, Catalogue, load_bank
from microclip.icons.compositor import Compositor, Crops, rand_augment
from microclip.model.backbone import Backbone, from_open_clip, unit_norm

log = logging.getLogger(__name__)

CHECKPOINT = "image-tower.pt"
NAMES = ("words", "value_words", "concepts", "value_concepts", "instances", "places")
IGNORED = -1
_COVERED = 0.5  # share of a patch that the drawing covers, for the patch to show it
_SEEN = 0.02  # share of the picture that the drawing must cover for its losses to count


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, besides the drawings and captions."""

    steps: int = 5600
    batch: int = 1536  # drawings, each in two scenes
    peak_lr: float = 3e-3
    head_lr: float = 1e-2  # of the vectors of words and concepts
    weight_decay: float = 0.05
    warmup: int = 300
    cropped: float = 0.6  # share of scenes that are cropped
    augmented: float = 0.5  # share of scenes changed by RandAugment
    concept_weight: float = 0.5
    instance_weight: float = 1.0
    place_weight: float = 0.5
    dropped_until: float = 0.75  # share of training during which half of the patches are dropped
    seed: int = 2


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


def rate(step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class Tower(nn.Module):
    """The image tower with its heads and losses."""

    def __init__(self, backbone: Backbone, n_concepts: int, n_words: int) -> None:
        super().__init__()
        self.backbone = backbone
        e = backbone.embedding_dim
        # Of norm 1: longer vectors, which the losses normalise, hardly turn at these rates.
        self.concepts = nn.Parameter(unit_norm(torch.randn(n_concepts, e)))
        self.words = nn.Parameter(unit_norm(torch.randn(n_words, e)))
        self.word_bias = nn.Parameter(torch.zeros(n_words))
        # Of concepts, words, instances and places.
        self.log_scale = nn.Parameter(torch.tensor([16.0, 16.0, 10.0, 8.0]).log())
        self.place_bias = nn.Parameter(torch.tensor(-2.0))

    def forward(
        self,
        images: Float[Tensor, "views 3 side side"],
        coverage: Float[Tensor, "views patch"],
        kept: Int[Tensor, "views k"] | None,
        targets: Targets,
    ) -> Float[Tensor, " 6"]:
        """Losses: words of [CLS] and value path, concepts of both, instances, places."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            embedded = self.backbone.project(tower_tokens(self.backbone, images, kept)).float()
        if kept is not None:
            coverage = coverage.gather(1, kept)
        share = (coverage + 0.02) / (coverage + 0.02).sum(1, keepdim=True)
        cls = unit_norm(embedded[:, 0])
        value = unit_norm((embedded[:, 1:] * share[..., None]).sum(1))
        patches = unit_norm(embedded[:, 1:])
        seen = targets.seen
        return torch.stack(
            [
                self._words(cls, targets.words, seen),
                self._words(value, targets.words, seen),
                self._concepts(cls, targets.concept, seen),
                self._concepts(value, targets.concept, seen),
                self._instances(torch.stack([cls, value], 1), targets.same, seen),
                self._places(patches, cls.detach(), coverage, seen),
            ]
        )

    def _scale(self, which: int) -> Tensor:
        return self.log_scale[which].exp().clamp(max=60.0)

    def _words(self, embedding: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        by_word = self._scale(1) * embedding @ unit_norm(self.words).T + self.word_bias
        loss = -(words * functional.log_softmax(by_word, -1)).sum(1)
        return (loss * seen).sum() / seen.sum()

    def _concepts(self, embedding: Tensor, concept: Tensor, seen: Tensor) -> Tensor:
        by_concept = self._scale(0) * embedding @ unit_norm(self.concepts).T
        target = torch.where(seen > 0, concept, IGNORED)
        loss = functional.cross_entropy(by_concept, target, ignore_index=IGNORED, reduction="sum")
        return loss / seen.sum()

    def _instances(
        self, both: Float[Tensor, "views 2 e"], same: Bool[Tensor, "half half"], seen: Tensor
    ) -> Tensor:
        """Each view's [CLS] and value token find the other scene's, [CLS] and value token."""
        half = len(both) // 2
        first, second = both[:half], both[half:]
        counted = seen[:half] * seen[half:]
        own = torch.arange(half, device=both.device)
        loss = torch.zeros((), device=both.device)
        for i in (0, 1):
            for j in (0, 1):
                logits = self._scale(2) * first[:, i] @ second[:, j].T
                logits = logits.masked_fill(same, -1e4)
                for rows in (logits, logits.T):
                    each = functional.cross_entropy(rows, own, reduction="none")
                    loss = loss + (each * counted).sum() / counted.sum() / 8
        return loss

    def _places(self, patches: Tensor, cls: Tensor, coverage: Tensor, seen: Tensor) -> Tensor:
        """Balanced: half of the weight is on patches that show the drawing."""
        other = cls.roll(len(cls) // 2, 0)
        logits = self._scale(3) * (patches @ other[:, :, None])[..., 0] + self.place_bias
        shows = coverage > _COVERED
        empty = coverage < 0.05
        each = functional.binary_cross_entropy_with_logits(logits, shows.float(), reduction="none")
        loss = torch.zeros((), device=cls.device)
        for mask in (shows, empty):
            weight = mask * seen[:, None]
            loss = loss + 0.5 * (each * weight).sum() / weight.sum().clamp(min=1)
        return loss


@dataclass(frozen=True)
class Targets:
    """What a batch must predict; the first half are first scenes, the second half second ones.

    Attributes:
        seen: 1 where the drawing is in view, else 0.
        same: pairs of different drawings of one emoji, which are no negatives.
    """

    words: Float[Tensor, "views words"]
    concept: Int[Tensor, " views"]
    same: Bool[Tensor, "half half"]
    seen: Float[Tensor, " views"]


class HardScenes:
    """Seeded batches on a device; a step always gives the same one there."""

    def __init__(
        self, bank: Bank, recipe: Recipe, backbone: Backbone, device: torch.device | str = "cpu"
    ) -> None:
        self.bank, self.recipe, self.device = bank.to(device), recipe, device
        self.patch = backbone.image_size // backbone.patch_grid[0]
        self.n_patches = math.prod(backbone.patch_grid)
        self.mean = torch.tensor(backbone.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(backbone.std, device=device).view(3, 1, 1)
        self.compositor = Compositor(
            bank.rasters,
            tint=bank.tint,
            mirror=bank.mirror,
            side=backbone.image_size,
            device=device,
        )

    def __call__(
        self, step: int
    ) -> tuple[Tensor, Float[Tensor, "views patch"], Tensor | None, Targets]:
        """Normalised images, coverage of patches, kept patches, and targets of a step."""
        recipe, bank = self.recipe, self.bank
        # A large prime keeps the seeds of different runs' steps apart.
        seed = recipe.seed * 1_000_003 + step
        generator = torch.Generator(self.device).manual_seed(seed)
        on_cpu = torch.Generator().manual_seed(seed)
        index = torch.multinomial(
            bank.sampling, recipe.batch, replacement=False, generator=generator
        )
        twice = torch.cat([index, index])
        crops = Crops.draw(len(twice), generator, share=recipe.cropped)
        difficulty = float(torch.rand((), generator=on_cpu))
        scenes = self.compositor(twice, generator, difficulty, crops)
        images, foreground = rand_augment(
            scenes.images, scenes.foreground, on_cpu, share=recipe.augmented
        )
        coverage = functional.avg_pool2d(foreground, self.patch).flatten(1)
        kept = None
        if step < recipe.dropped_until * recipe.steps:
            shape = (len(twice), self.n_patches)
            noise = torch.rand(shape, generator=generator, device=self.device)
            kept = noise.topk(self.n_patches // 2 + 1, dim=1).indices
        subject = bank.subject[index]
        other = ~torch.eye(len(index), dtype=torch.bool, device=self.device)
        targets = Targets(
            bank.word_targets(twice),
            bank.concept[twice],
            (subject[:, None] == subject[None]) & other,
            (foreground.mean((1, 2, 3)) > _SEEN).float(),
        )
        return (images - self.mean) / self.std, coverage, kept, targets


def optimisers(tower: Tower, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; the heads have a rate of their own.

    Each group's `peak` is its highest rate.
    """
    matrices = [p for p in tower.backbone.visual.transformer.parameters() if p.ndim == 2]
    heads = [tower.concepts, tower.words, tower.word_bias]
    inside = {id(p) for p in (*matrices, *heads)}
    text = {id(p) for n, p in tower.backbone.model.named_parameters() if "visual." not in n}
    others = [p for p in tower.parameters() if id(p) not in inside | text]
    decay, peak = recipe.weight_decay, recipe.peak_lr
    return [
        torch.optim.Muon(
            [{"params": matrices, "peak": peak}],
            lr=peak,
            weight_decay=decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": decay, "peak": peak},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "peak": peak},
                {"params": heads, "weight_decay": decay, "peak": recipe.head_lr},
            ],
            lr=peak,
            betas=(0.9, 0.98),
        ),
    ]


def _save(folder: Path, tower: Tower, opts: list[torch.optim.Optimizer], step: int) -> None:
    state = {"step": step, "model": tower.state_dict()}
    with runtime.atomic_path(folder / CHECKPOINT) as path:
        torch.save(state | {f"opt{i}": opt.state_dict() for i, opt in enumerate(opts)}, path)


def _resume(folder: Path, tower: Tower, opts: list[torch.optim.Optimizer]) -> int:
    """Load the checkpoint and return the step to go on with; 0 without a checkpoint."""
    if not (folder / CHECKPOINT).is_file():
        return 0
    state = torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu")  # noqa: TID251  only tensors
    tower.load_state_dict(state["model"])
    for i, opt in enumerate(opts):
        opt.load_state_dict(state[f"opt{i}"])
    return int(state["step"])


def pretrain(  # noqa: PLR0913  all that the weights depend on, and two of how
    config: Path,
    folder: Path,
    bank: Bank,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    save_every: int = 500,
) -> Tower:
    """Train; log every 100 steps, resume from the checkpoint in `folder`."""
    torch.manual_seed(recipe.seed)
    backbone = from_open_clip(build_model(config)).train()
    tower = Tower(backbone, int(bank.concept.max()) + 1, len(bank.vocabulary)).to(device)
    opts = optimisers(tower, recipe)
    first = _resume(folder, tower, opts)
    batches = HardScenes(bank, recipe, backbone, device)
    weights = torch.tensor(
        [1.0, 1.0, *[recipe.concept_weight] * 2, recipe.instance_weight, recipe.place_weight],
        device=device,
    )
    started, running = time.monotonic(), torch.zeros(len(NAMES), device=device)
    for step in range(first, recipe.steps):
        share = rate(step, steps=recipe.steps, warmup=recipe.warmup)
        for group in (group for opt in opts for group in opt.param_groups):
            group["lr"] = share * group["peak"]
        losses = tower(*batches(step))
        torch.autograd.backward(losses @ weights)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        running += losses.detach()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            means = [round(x / 100, 4) for x in running.tolist()]
            row = {"step": step + 1, **dict(zip(NAMES, means, strict=True))}
            speed = round((step + 1 - first) * 2 * recipe.batch / seconds)
            log.info("%s", json.dumps(row | {"scenes_per_s": speed, "s": round(seconds, 1)}))
            running.zero_()
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            _save(folder, tower, opts, step + 1)
    return tower


def write_half(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in half precision."""
    with runtime.atomic_path(path) as temporary:
        save_file({k: v.detach().half().contiguous() for k, v in state.items()}, temporary)


def chosen_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Train the image tower into `build/icon-clip/image-tower.pt`."""
    root = paths.project_root()
    folder, home = root / "build" / "icon-clip", root / "resources" / "icon-clip"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().addHandler(logging.FileHandler(folder / "image-tower.log"))
    known: Mapping[str, Any] = load_captions(home / "captions.json")
    bank = load_bank(folder, Catalogue(root / "build" / "npm"), known=known)
    recipe = Recipe()
    log.info("%s", json.dumps({"packages": PACKAGES, "drawings": len(bank.captions)}))
    log.info("%s", json.dumps(asdict(recipe)))
    pretrain(home / "icon-clip.json", folder, bank, recipe, device=chosen_device())


if __name__ == "__main__":
    main()
