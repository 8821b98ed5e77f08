"""Refine icon-clip's image tower on views as hard as a method's strong ones.

The second of three stages of `make icon-clip`: after `pretrain`, before `align`. A step shows each
drawing in two scenes; a scene may be cropped down to 30 % of its area and changed by RandAugment,
as the strong views of self-training are. Four losses, on [CLS] and with equal weight on the value
path (the mean token over the drawing's patches):

1. words: those of its keywords, parent, parts and description sentences, not a benchmark name;
2. concepts: which emoji it is, for emoji that are no class of the benchmark;
3. instances: its two scenes are each other's nearest among all of the batch, whichever of [CLS] and
   value path they are read from; other drawings of the same emoji count neither way;
4. places: a patch token agrees with the other scene's [CLS] where it shows the drawing, and only
   there.

So the tower tells things apart by their looks, and the texts, aligned later, name them loosely.
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

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from microclip import paths, runtime
from microclip.data.augmentation import StrongTransform
from microclip.icons.captions import load_captions
from microclip.icons.catalogue import PACKAGES, Bank, Catalogue, load_bank
from microclip.icons.pretrain import (
    IMAGE_TOWER,
    Compositor,
    Crops,
    Recipe,
    build_model,
    rate,
    tower_tokens,
)
from microclip.model.backbone import Backbone, from_open_clip, unit_norm

log = logging.getLogger(__name__)

IGNORED = -1
_COVERED = 0.5  # share of a patch that the drawing covers, for the patch to show it
_SEEN = 0.02  # share of the picture that the drawing must cover for its losses to count


@dataclass(frozen=True)
class RefineRecipe:
    """Everything that determines the weights, besides the drawings, captions and first weights."""

    steps: int = 2000  # of the schedule
    stop: int = 1800  # last step run: after it the rate is below 3 % of its peak
    batch: int = 128  # drawings, each in two scenes
    peak_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    cropped: float = 0.6  # share of scenes that are cropped
    augmented: float = 0.5  # share of scenes changed by RandAugment
    concept_weight: float = 0.5
    instance_weight: float = 1.0
    place_weight: float = 0.5
    dropped_until: float = 0.75
    seed: int = 1


class Refining(nn.Module):
    """The image tower with the heads and losses of this stage."""

    def __init__(self, backbone: Backbone, n_concepts: int, n_words: int) -> None:
        super().__init__()
        self.backbone = backbone
        e = backbone.embedding_dim
        # Of norm 11, which at these rates hardly moves: docs/icons.md says what that cost.
        self.concepts = nn.Parameter(torch.randn(n_concepts, e))
        self.words = nn.Parameter(torch.randn(n_words, e))
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
        tokens = tower_tokens(self.backbone, images, kept)
        embedded = self.backbone.project(tokens)
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
        own = torch.arange(half)
        loss = torch.zeros(())
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
        loss = torch.zeros(())
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
    """Seeded batches; a step always gives the same one."""

    def __init__(self, bank: Bank, recipe: RefineRecipe, backbone: Backbone) -> None:
        self.bank, self.recipe = bank, recipe
        self.side = backbone.image_size
        self.patch = backbone.image_size // backbone.patch_grid[0]
        self.n_patches = math.prod(backbone.patch_grid)
        self.mean = torch.tensor(backbone.mean).view(3, 1, 1)
        self.std = torch.tensor(backbone.std).view(3, 1, 1)
        self.compositor = Compositor(
            bank.rasters, tint=bank.tint, mirror=bank.mirror, side=self.side
        )
        strong = StrongTransform(self.side)
        self.randaugment = next(step for step in strong.steps if hasattr(step, "ops"))

    def __call__(
        self, step: int
    ) -> tuple[Tensor, Float[Tensor, "views patch"], Tensor | None, Targets]:
        """Normalised images, coverage of patches, kept patches, and targets of a step."""
        recipe = self.recipe
        seed = recipe.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(
            self.bank.sampling, recipe.batch, replacement=False, generator=generator
        )
        twice = torch.cat([index, index])
        crops = Crops.draw(len(twice), generator, share=recipe.cropped)
        difficulty = float(torch.rand((), generator=generator))
        scenes = self.compositor(twice, generator, difficulty, crops)
        images = self._augmented(scenes.images, generator, seed)
        coverage = functional.avg_pool2d(scenes.foreground, self.patch).flatten(1)
        kept = None
        if step < recipe.dropped_until * recipe.steps:
            noise = torch.rand((len(twice), self.n_patches), generator=generator)
            kept = noise.topk(self.n_patches // 2 + 1, dim=1).indices
        subject = self.bank.subject[index]
        same = (subject[:, None] == subject[None]) & ~torch.eye(len(index), dtype=torch.bool)
        targets = Targets(
            self.bank.word_targets(twice),
            self.bank.concept[twice],
            same,
            (scenes.foreground.mean((1, 2, 3)) > _SEEN).float(),
        )
        return (images - self.mean) / self.std, coverage, kept, targets

    def _augmented(self, images: Tensor, generator: torch.Generator, seed: int) -> Tensor:
        """Images, some of them changed by two of RandAugment's operations.

        Geometric operations move the drawing by less than a patch or two; coverage stays as it was.
        """
        chosen = torch.rand(len(images), generator=generator) < self.recipe.augmented
        which = chosen.nonzero()[:, 0]
        pixels = (images[which] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        with runtime.seeded_globals(seed):
            changed = np.stack(
                [np.asarray(self.randaugment(Image.fromarray(each))) for each in pixels]
            )
        images = images.clone()
        images[which] = torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255
        return images


def _start(config: Path, weights: Path) -> Backbone:
    """The network with the image tower of the first stage."""
    backbone = from_open_clip(build_model(config)).train()
    state = {name: value.float() for name, value in load_file(weights).items()}
    found = backbone.model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    return backbone


def _save(folder: Path, refining: Refining, opt: torch.optim.Optimizer, step: int) -> None:
    with runtime.atomic_path(folder / "refined.pt") as path:
        torch.save({"step": step, "model": refining.state_dict(), "opt": opt.state_dict()}, path)


def _resume(folder: Path, refining: Refining, opt: torch.optim.Optimizer) -> int:
    if not (folder / "refined.pt").is_file():
        return 0
    state = torch.load(folder / "refined.pt", weights_only=True)  # noqa: TID251  only tensors
    refining.load_state_dict(state["model"])
    opt.load_state_dict(state["opt"])
    return int(state["step"])


NAMES = ("words", "value_words", "concepts", "value_concepts", "instances", "places")


def refine(
    backbone: Backbone, folder: Path, bank: Bank, recipe: RefineRecipe, *, save_every: int = 100
) -> Refining:
    """Train; log every 50 steps, resume from the last checkpoint in `folder`."""
    torch.manual_seed(recipe.seed)
    refining = Refining(backbone, int(bank.concept.max()) + 1, len(bank.vocabulary))
    text = {id(p) for n, p in backbone.model.named_parameters() if "visual." not in n}
    trained = [p for p in refining.parameters() if id(p) not in text]
    opt = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.peak_lr,
        betas=(0.9, 0.98),
    )
    first = _resume(folder, refining, opt)
    batches = HardScenes(bank, recipe, backbone)
    schedule = Recipe(steps=recipe.steps, peak_lr=recipe.peak_lr, warmup=recipe.warmup)
    weights = torch.tensor(
        [1.0, 1.0, *[recipe.concept_weight] * 2, recipe.instance_weight, recipe.place_weight]
    )
    started, running = time.monotonic(), torch.zeros(len(NAMES))
    for step in range(first, recipe.stop):
        for group in opt.param_groups:
            group["lr"] = rate(step, schedule)
        losses = refining(*batches(step))
        (losses @ weights).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        running += losses.detach()
        if (step + 1) % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            means = [round(float(x) / 50, 4) for x in running]
            row = {"step": step + 1, **dict(zip(NAMES, means, strict=True))}
            log.info("%s", json.dumps(row | {"minutes": round(minutes, 2)}))
            running.zero_()
        if (step + 1) % save_every == 0 or step + 1 == recipe.stop:
            _save(folder, refining, opt, step + 1)
    return refining


def main() -> None:
    """Refine the image tower into `build/icon-clip/refined.pt`."""
    root = paths.project_root()
    folder, home = root / "build" / "icon-clip", root / "resources" / "icon-clip"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().addHandler(logging.FileHandler(folder / "refine.log"))
    known: Mapping[str, Any] = load_captions(home / "captions.json")
    bank = load_bank(folder, Catalogue(root / "build" / "npm"), known=known)
    recipe = RefineRecipe()
    log.info("%s", json.dumps({"packages": PACKAGES, "drawings": len(bank.captions)}))
    log.info("%s", json.dumps(asdict(recipe)))
    refine(_start(home / "icon-clip.json", home / IMAGE_TOWER), folder, bank, recipe)


if __name__ == "__main__":
    main()
