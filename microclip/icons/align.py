"""Align icon-clip's text tower to its frozen image tower, write the checkpoint, and measure it.

The second of two stages of `make icon-clip`. Three losses on seeded captions of the pretraining
drawings (`captions`): (1) a symmetric contrastive loss against embeddings of scenes that show the
drawing, [CLS] and value path; (2) naming the emoji among the vectors fitted to the
image tower, for emoji that are no class of the benchmark; (3) naming the words of a drawing's
descriptions, likewise.

The zero-shot accuracy on every icon set is written beside the checkpoint.
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
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from microclip import paths, runtime, settings
from microclip.icons import scenes
from microclip.icons.captions import NAMED, load_captions
from microclip.icons.catalogue import PACKAGES, SETS, Bank, Catalogue, load_bank
from microclip.icons.compositor import Compositor
from microclip.icons.pretrain import (
    CHECKPOINT,
    Tower,
    build_model,
    chosen_device,
    rate,
    write_half,
)
from microclip.model.backbone import Backbone, from_open_clip, load_backbone, unit_norm
from microclip.settings.datasets import IconSource
from microclip.text.classifier import template_classifier

log = logging.getLogger(__name__)

NAME = "icon-clip-2"  # of the checkpoint; icon-clip is the version before it
VIEWS = 2  # scenes per drawing to embed
CENTRED, PART = 2048, 256  # scenes whose patches are averaged, and how many at a time
MAX_TOKENS = 48  # per training caption, for speed; the tower itself takes 77


@dataclass(frozen=True)
class AlignRecipe:
    """Everything that determines the text tower, besides drawings and image tower."""

    steps: int = 2000
    batch: int = 256
    peak_lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 100
    head_steps: int = 400
    head_lr: float = 2e-2
    named: float = NAMED  # share of captions of a benchmark class that say its name
    seed: int = 0


def load_tower(config: Path, folder: Path, bank: Bank) -> Tower:
    """The image tower that `pretrain` wrote, with its heads."""
    backbone = from_open_clip(build_model(config))
    tower = Tower(backbone, len(bank.concepts), len(bank.vocabulary))
    state = torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu")  # noqa: TID251  only tensors
    tower.load_state_dict(state["model"])
    return tower.eval()


@torch.no_grad()
def embed_bank(backbone: Backbone, bank: Bank, seed: int) -> Float[Tensor, "n views 2 embedding"]:
    """[CLS] and mean value-path embeddings of every drawing in `VIEWS` seeded scenes."""
    device = backbone.device
    mean = torch.tensor(backbone.mean, device=device).view(3, 1, 1)
    std = torch.tensor(backbone.std, device=device).view(3, 1, 1)
    compositor = Compositor(
        bank.rasters, tint=bank.tint, mirror=bank.mirror, side=backbone.image_size, device=device
    )
    generator = torch.Generator(device).manual_seed(seed)
    views = []
    for _ in range(VIEWS):
        parts = []
        for index in torch.split(torch.arange(len(bank.captions), device=device), 512):
            scenes = compositor(index, generator, 0.7)
            tokens = backbone.encode_image((scenes.images - mean) / std)
            value = unit_norm(backbone.project(tokens.patches.mean(1)))
            parts.append(torch.stack([tokens.embedding, value], 1))
        views.append(torch.cat(parts))
    return torch.stack(views, 1)


def encode_short(model: Any, tokens: Int[Tensor, "text length"]) -> Tensor:
    """Unit text embeddings of sequences shorter than the tower's context."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    hidden = model.ln_final(hidden)
    last: Tensor = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]
    return unit_norm(last @ model.text_projection)


class Captions(Dataset[tuple[Tensor, Tensor]]):
    """Seeded batches of captions by step; no subject appears twice in a batch."""

    def __init__(self, bank: Bank, recipe: AlignRecipe) -> None:
        self.bank, self.recipe = bank, recipe
        self.tokenizer = SimpleTokenizer(context_length=MAX_TOKENS)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices of the drawings of a step, and token ids of their captions."""
        # A large prime keeps the seeds of different runs' steps apart.
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        rng = random.Random(self.recipe.seed * 1_000_003 + step)
        drawn = torch.multinomial(
            self.bank.sampling,
            2 * self.recipe.batch,
            replacement=True,
            generator=generator,
        )
        # Twice as many as needed are drawn, then one per subject: the contrastive loss would treat
        # a second drawing of the same thing as a wrong answer.
        subjects = self.bank.subject[drawn].tolist()
        chosen = list(dict(zip(subjects, drawn.tolist(), strict=True)).values())
        chosen = chosen[: self.recipe.batch]
        named = self.recipe.named
        texts = [self.bank.captions[i].draw(rng, self.bank.vocabulary, named=named) for i in chosen]
        return torch.tensor(chosen), self.tokenizer(texts)


class Heads(nn.Module):
    """Vectors of words and of named emoji, to which embeddings of images and captions are held."""

    def __init__(self, n_concepts: int, n_words: int, width: int) -> None:
        super().__init__()
        self.concepts = nn.Parameter(functional.normalize(torch.randn(n_concepts, width), dim=-1))
        self.words = nn.Parameter(functional.normalize(torch.randn(n_words, width), dim=-1))
        self.word_bias = nn.Parameter(torch.zeros(n_words))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(16.0)))

    def forward(
        self, embedding: Float[Tensor, "batch e"], concept: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of naming the emoji, where it may be named, and the words."""
        scale = self.log_scale.exp().clamp(max=60.0)
        by_concept = scale[0] * embedding @ functional.normalize(self.concepts, dim=-1).T
        # A sum over the batch, so that a batch with few named emoji weighs them no more.
        emoji = functional.cross_entropy(by_concept, concept, ignore_index=-1, reduction="sum")
        by_word = scale[1] * embedding @ functional.normalize(self.words, dim=-1).T + self.word_bias
        naming = -(words * functional.log_softmax(by_word, -1)).sum(1).mean()
        return emoji / len(embedding), naming


def fit_heads(images: Float[Tensor, "n views 2 e"], bank: Bank, recipe: AlignRecipe) -> Heads:
    """Heads fitted to the finished image tower, on its device; `bank` is there too."""
    torch.manual_seed(recipe.seed)
    device = images.device
    heads = Heads(int(bank.concept.max()) + 1, len(bank.vocabulary), images.shape[-1]).to(device)
    opt = torch.optim.Adam(heads.parameters(), lr=recipe.head_lr)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    for step in range(recipe.head_steps):
        share = rate(step, steps=recipe.head_steps, warmup=20)
        opt.param_groups[0]["lr"] = recipe.head_lr * share
        index = torch.multinomial(bank.sampling, 512, replacement=True, generator=generator)
        view = torch.randint(VIEWS, (len(index),), generator=generator, device=device)
        targets = bank.concept[index], bank.word_targets(index)
        losses = torch.stack([p for k in (0, 1) for p in heads(images[index, view, k], *targets)])
        torch.autograd.backward(losses.sum())
        opt.step()
        opt.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            said = [round(x, 4) for x in losses.tolist()]
            log.info("%s", json.dumps({"head_step": step + 1, "losses": said}))
    return heads.requires_grad_(requires_grad=False)


def contrast(
    texts: Float[Tensor, "batch e"], images: Float[Tensor, "batch 2 e"], scale: Tensor
) -> Tensor:
    """Symmetric contrastive loss of captions against [CLS] and value path."""
    own = torch.arange(len(texts), device=texts.device)
    loss = torch.zeros((), device=texts.device)
    for head, weight in ((0, 0.6), (1, 0.4)):
        similarity = scale * texts @ images[:, head].T
        rows, columns = (functional.cross_entropy(each, own) for each in (similarity, similarity.T))
        loss = loss + weight * 0.5 * (rows + columns)
    return loss


def align(backbone: Backbone, bank: Bank, recipe: AlignRecipe) -> None:
    """Train the text tower in place, on the backbone's device."""
    torch.manual_seed(recipe.seed)
    model: Any = backbone.model
    device = backbone.device
    # On a GPU a step is faster than writing its captions.
    captions = DataLoader(
        Captions(bank, recipe),
        batch_size=None,
        sampler=range(recipe.steps),
        num_workers=4 if device.type == "cuda" else 0,
    )
    bank = bank.to(device)
    images = embed_bank(backbone, bank, recipe.seed)
    log.info("embedded %d drawings, %d scenes each", len(bank.captions), VIEWS)
    heads = fit_heads(images, bank, recipe)
    log_scale = nn.Parameter(torch.tensor(math.log(20.0), device=device))
    trained = [p for n, p in model.named_parameters() if "visual." not in n and n != "logit_scale"]
    opt = torch.optim.AdamW(
        [*trained, log_scale], lr=recipe.peak_lr, weight_decay=recipe.weight_decay
    )
    started, running = time.monotonic(), torch.zeros(3, device=device)
    for step, drawn in enumerate(captions):
        share = rate(step, steps=recipe.steps, warmup=recipe.warmup)
        opt.param_groups[0]["lr"] = recipe.peak_lr * share
        index, tokens = (values.to(device) for values in drawn)
        view = torch.randint(VIEWS, (len(index),), generator=torch.Generator().manual_seed(step))
        texts = encode_short(model, tokens)
        own = images[index, view.to(device)]
        parts = torch.stack(
            [
                contrast(texts, own, log_scale.exp().clamp(max=60.0)),
                *heads(texts, bank.concept[index], bank.word_targets(index)),
            ]
        )
        torch.autograd.backward(parts.sum())
        opt.step()
        opt.zero_grad(set_to_none=True)
        running += parts.detach()
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            means = [round(x / 100, 4) for x in running.tolist()]
            names = ("contrast", "emoji", "words")
            row = {"step": step + 1, **dict(zip(names, means, strict=True))}
            log.info("%s", json.dumps(row | {"minutes": round(minutes, 2)}))
            running.zero_()


@torch.no_grad()
def centre(backbone: Backbone, bank: Bank, seed: int) -> None:
    """Take what all patches share out of the last LayerNorm's bias, on the CPU.

    The longer the training, the more the tokens share: a vector that the projection hardly passes
    on, so the losses leave it alone. But NCut compares tokens before the projection, by
    dot products, and would find all patches alike. Embeddings stay nearly as they are.
    """
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    std = torch.tensor(backbone.std).view(3, 1, 1)
    compositor = Compositor(
        bank.rasters, tint=bank.tint, mirror=bank.mirror, side=backbone.image_size
    )
    generator = torch.Generator().manual_seed(seed)
    shared = []
    for _ in range(CENTRED // PART):
        index = torch.multinomial(bank.sampling, PART, replacement=False, generator=generator)
        images = compositor(index, generator, 0.7).images
        shared.append(backbone.encode_image((images - mean) / std).patches.mean((0, 1)))
    backbone.visual.ln_post.bias -= torch.stack(shared).mean(0)


def write_checkpoint(backbone: Backbone, path: Path) -> None:
    """Write the network in half precision under open_clip's parameter names; temperature 1/100."""
    with torch.no_grad():
        model: Any = backbone.model
        model.logit_scale.fill_(math.log(100.0))
    write_half(backbone.model.state_dict(), path)


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
    """Measure zero-shot accuracy, print it, and write them beside the checkpoint."""
    rows = measure(load_backbone(NAME))
    lines = [
        "| set | size | classes | images | [CLS] | value path | both |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    target = paths.project_root() / "resources" / "icon-clip" / f"{NAME}-zero-shot.json"
    runtime.write_text(target, json.dumps(rows, indent=1) + "\n")


def main() -> None:
    """Align the text tower, write the checkpoint, and measure it."""
    root = paths.project_root()
    folder, home = root / "build" / "icon-clip", root / "resources" / "icon-clip"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().addHandler(logging.FileHandler(folder / "text-tower.log", mode="w"))
    known = load_captions(home / "captions.json")
    bank = load_bank(folder, Catalogue(root / "build" / "npm"), known=known)
    backbone = load_tower(home / "icon-clip.json", folder, bank).backbone.to(chosen_device())
    recipe = AlignRecipe()
    log.info("%s", json.dumps({"packages": PACKAGES, **asdict(recipe)}))
    align(backbone, bank, recipe)
    centre(backbone.cpu(), bank, recipe.seed)
    write_checkpoint(backbone, home / f"{NAME}.safetensors")
    report_accuracies()


if __name__ == "__main__":
    main()
