"""Align icon-clip's text tower to its frozen image tower, write the checkpoint, and measure it.

Three losses on seeded captions of the pretraining drawings: (1) a symmetric contrastive loss
against embeddings of scenes that show the drawing, [CLS] and value path; (2) naming the emoji
among the image tower's own emoji vectors; (3) naming the caption's words among its word vectors.

The zero-shot accuracy on every icon set, at both sizes, decided how difficult the scenes are; it is
written beside the checkpoint. `make icon-clip` runs this module after `pretrain`.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from microclip import paths, runtime, settings
from microclip.icons import scenes
from microclip.icons.catalogue import PACKAGES, SETS, Bank, Catalogue, caption, load_bank
from microclip.icons.pretrain import Compositor, Naming, Recipe, build_model, rate
from microclip.model.backbone import Backbone, from_open_clip, load_backbone, unit_norm
from microclip.settings.datasets import IconSource
from microclip.text.classifier import template_classifier

log = logging.getLogger(__name__)

VIEWS = 2  # scenes per drawing to embed
MAX_TOKENS = 36  # per training caption, for speed; the tower itself takes 77


@dataclass(frozen=True)
class AlignRecipe:
    """Everything that determines the text tower, besides drawings and image tower."""

    steps: int = 1000
    batch: int = 320
    peak_lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 100
    seed: int = 0


def load_naming(config: Path, folder: Path, bank: Bank) -> Naming:
    """The image tower that `pretrain` wrote."""
    naming = Naming(from_open_clip(build_model(config)), len(bank.concepts), len(bank.vocabulary))
    state = torch.load(folder / "image-tower.pt", weights_only=True)  # noqa: TID251  only tensors
    naming.load_state_dict(state["naming"])
    return naming.eval()


@torch.no_grad()
def embed_bank(naming: Naming, bank: Bank, seed: int) -> Float[Tensor, "n views 2 embedding"]:
    """[CLS] and mean value-path embeddings of every drawing in `VIEWS` seeded scenes."""
    backbone = naming.backbone
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    std = torch.tensor(backbone.std).view(3, 1, 1)
    compositor = Compositor(
        bank.rasters, tint=bank.tint, mirror=bank.mirror, side=backbone.image_size
    )
    generator = torch.Generator().manual_seed(seed)
    views = []
    for _ in range(VIEWS):
        parts = []
        for index in torch.split(torch.arange(len(bank.names)), 512):
            scenes = compositor(index, generator, 0.7)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tokens = backbone.encode_image((scenes.images - mean) / std)
                value = unit_norm(backbone.project(tokens.patches.mean(1)))
            parts.append(torch.stack([tokens.embedding.float(), value.float()], 1))
        views.append(torch.cat(parts))
    return torch.stack(views, 1)


def encode_short(model: Any, tokens: Int[Tensor, "text length"]) -> Tensor:
    """Unit text embeddings of sequences shorter than the tower's context."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    hidden = model.ln_final(hidden)
    last: Tensor = hidden[torch.arange(len(tokens)), tokens.argmax(-1)]
    return unit_norm(last @ model.text_projection)


class Captions:
    """Seeded batches of captions; no name appears twice in a batch."""

    def __init__(self, bank: Bank, recipe: AlignRecipe) -> None:
        self.bank, self.recipe = bank, recipe
        self.tokenizer = SimpleTokenizer(context_length=MAX_TOKENS)
        tokens = (t[:-4] for t in self.tokenizer.encoder if t.endswith("</w>"))
        unknown = sorted(t for t in tokens if t.isascii() and t.isalpha() and len(t) > 2)
        self.noise = (unknown, bank.vocabulary)  # meaningless words, and words of other names

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices of the drawings of a step, and token ids of their captions."""
        # A large prime keeps the seeds of different runs' steps apart.
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        rng = random.Random(self.recipe.seed * 1_000_003 + step)
        drawn = torch.multinomial(
            self.bank.sampling,
            2 * self.recipe.batch,
            replacement=True,
            generator=generator,
        ).tolist()
        # Twice as many as needed are drawn, then one per name: the contrastive loss would treat a
        # second drawing of the same name as a wrong answer.
        chosen = list({self.bank.names[i]: i for i in drawn}.values())[: self.recipe.batch]
        texts = [
            caption(self.bank.names[i], self.bank.keywords[i], self.noise, rng) for i in chosen
        ]
        return torch.tensor(chosen), self.tokenizer(texts)


class Alignment(nn.Module):
    """The three losses of a batch of captions."""

    def __init__(self, naming: Naming) -> None:
        super().__init__()
        self.concepts: Tensor
        self.words: Tensor
        self.scales: Tensor
        self.word_bias: Tensor
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.register_buffer("concepts", functional.normalize(naming.concepts.detach(), dim=-1))
        self.register_buffer("words", functional.normalize(naming.words.detach(), dim=-1))
        self.register_buffer("scales", naming.log_scale.detach().exp().clamp(max=60.0))
        self.register_buffer("word_bias", naming.word_bias.detach())

    def forward(
        self, texts: Tensor, images: Float[Tensor, "batch 2 e"], concept: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrastive, emoji and word loss."""
        scale = self.log_scale.exp().clamp(max=60.0)
        own = torch.arange(len(texts))
        contrast = torch.zeros(())
        for view, weight in ((0, 0.6), (1, 0.4)):
            similarity = scale * texts @ images[:, view].T
            both = functional.cross_entropy(similarity, own) + functional.cross_entropy(
                similarity.T, own
            )
            contrast = contrast + weight * 0.5 * both
        by_concept = self.scales[0] * texts @ self.concepts.T
        emoji = functional.cross_entropy(by_concept, concept, ignore_index=-1)
        by_word = self.scales[1] * texts @ self.words.T + self.word_bias
        naming = -(words * functional.log_softmax(by_word, -1)).sum(1).mean()
        return contrast, emoji, naming


def align(naming: Naming, bank: Bank, recipe: AlignRecipe) -> None:
    """Train the text tower of `naming.backbone` in place."""
    torch.manual_seed(recipe.seed)
    model: Any = naming.backbone.model
    images = embed_bank(naming, bank, recipe.seed)
    log.info("embedded %d drawings, %d scenes each", len(bank.names), VIEWS)
    captions, losses = Captions(bank, recipe), Alignment(naming)
    trained = [p for n, p in model.named_parameters() if "visual." not in n and n != "logit_scale"]
    opt = torch.optim.AdamW(
        [*trained, losses.log_scale], lr=recipe.peak_lr, weight_decay=recipe.weight_decay
    )
    schedule = Recipe(steps=recipe.steps, peak_lr=recipe.peak_lr, warmup=recipe.warmup)
    encode = torch.compile(encode_short)
    started, running = time.monotonic(), torch.zeros(3)
    for step in range(recipe.steps):
        opt.param_groups[0]["lr"] = rate(step, schedule)
        index, tokens = captions(step)
        view = torch.randint(VIEWS, (len(index),), generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            texts = encode(model, tokens)
        parts = losses(
            texts.float(), images[index, view], bank.concept[index], bank.word_targets(index)
        )
        sum(parts, torch.zeros(())).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        running += torch.stack(parts).detach()
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            means = [round(float(x) / 100, 4) for x in running]
            names = ("contrast", "emoji", "words")
            row = {"step": step + 1, **dict(zip(names, means, strict=True))}
            log.info("%s", json.dumps(row | {"minutes": round(minutes, 2)}))
            running.zero_()


def write_checkpoint(backbone: Backbone, path: Path) -> None:
    """Write the network in half precision under open_clip's parameter names; temperature 1/100."""
    with torch.no_grad():
        model: Any = backbone.model
        model.logit_scale.fill_(math.log(100.0))
    state = {name: value.detach().half() for name, value in backbone.model.state_dict().items()}
    with runtime.atomic_path(path) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()}, temporary)


def scenes_to_test(source: IconSource, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Normalised test scenes and their labels."""
    with tempfile.TemporaryDirectory() as folder:
        scenes.write_dataset(source, Path(folder))
        with (Path(folder) / "manifest.csv").open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
        size = (backbone.image_size, backbone.image_size)
        pixels = np.stack(
            [
                np.asarray(
                    Image.open(Path(folder) / row["file"]).resize(size, Image.Resampling.BICUBIC)
                )
                for row in rows
            ]
        )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    std = torch.tensor(backbone.std).view(3, 1, 1)
    return (images - mean) / std, torch.tensor([int(row["label"]) for row in rows])


@torch.no_grad()
def accuracies(
    backbone: Backbone, images: Tensor, labels: Tensor, classifier: Float[Tensor, "c e"]
) -> dict[str, float]:
    """Top-1 accuracy in percent of [CLS], of the mean value-path token, and of their average."""
    hits = {"cls": 0, "value_path": 0, "both": 0}
    batches = zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
    for part, truth in batches:
        tokens = backbone.encode_image(part)
        cls = tokens.embedding @ classifier.T
        value = unit_norm(backbone.project(tokens.patches.mean(1))) @ classifier.T
        for name, logits in (("cls", cls), ("value_path", value), ("both", cls + value)):
            hits[name] += int((logits.argmax(1) == truth).sum())
    return {f"{name}_pct": round(100 * n / len(labels), 2) for name, n in hits.items()}


def measure(backbone: Backbone) -> list[dict[str, object]]:
    """Zero-shot accuracy, one row per icon set and size."""
    rows: list[dict[str, object]] = []
    for name in SETS:
        for size, suffix in (("default", ""), ("full", "-full")):
            dataset = settings.load_dataset(f"icons-{name}{suffix}")
            assert isinstance(dataset.source, IconSource)
            source = dataset.source
            names = scenes.class_names(name, source.classes, source.seed)
            embedded = [
                backbone.encode_text([t.format(n) for t in dataset.templates]) for n in names
            ]
            images, labels = scenes_to_test(source, backbone)
            found = accuracies(backbone, images, labels, template_classifier(embedded))
            rows.append(
                {"set": name, "size": size, "classes": len(names), "images": len(labels), **found}
            )
    return rows


def report_accuracies() -> None:
    """Measure zero-shot accuracy, print it, and write `resources/icon-clip/zero-shot.json`."""
    rows = measure(load_backbone("icon-clip"))
    lines = [
        "| set | size | classes | images | [CLS] | value path | both |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    target = paths.project_root() / "resources" / "icon-clip" / "zero-shot.json"
    runtime.write_text(target, json.dumps(rows, indent=1) + "\n")


def main() -> None:
    """Align the text tower, write `resources/icon-clip/icon-clip.safetensors`, and measure it."""
    root = paths.project_root()
    folder, home = root / "build" / "icon-clip", root / "resources" / "icon-clip"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().addHandler(logging.FileHandler(folder / "text-tower.log", mode="w"))
    bank = load_bank(folder, Catalogue(root / "build" / "npm"))
    naming = load_naming(home / "icon-clip.json", folder, bank)
    recipe = AlignRecipe()
    log.info("%s", json.dumps({"packages": PACKAGES, **asdict(recipe)}))
    align(naming, bank, recipe)
    write_checkpoint(naming.backbone, home / "icon-clip.safetensors")
    report_accuracies()


if __name__ == "__main__":
    main()
