"""Print what choices between the paper and its code change before any training.

Each choice is compared with the default on the test images of icon sets: how many masks are the
same, how large they are, how many first predictions of [FG] and of TokenFusion are other ones, and
how accurate they are. The result is a Markdown table. Run it where the sets are fetched and stored,
for example after `make run`:

    python benchmarks/before_training.py [DATASET ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microclip import runtime, settings
from microclip.data import loading
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.data.views import Crop
from microclip.model.backbone import Backbone, ImageTokens, load_backbone
from microclip.model.embeddings import classifiers
from microclip.model.saliency import NCutOptions, normalized_cut
from microclip.model.token_fusion import FusionOptions, TokenFusion
from microclip.text import descriptions

DATASETS = ("icons-food", "icons-flags")
BACKBONE, AUTHOR = "icon-clip", "shipped"
BATCH = 64

Encode = Callable[[Backbone, Tensor], ImageTokens]


def as_coded(tower: Backbone, images: Float[Tensor, "batch 3 rows columns"]) -> ImageTokens:
    """Return the released code's tokens, which are ours."""
    return tower.encode_image(images)


def as_printed(tower: Backbone, images: Float[Tensor, "batch 3 rows columns"]) -> ImageTokens:
    """Return patch tokens by Eq. 1 and 2 as printed: x + x W_V, then + MLP, and nothing else."""
    block = tower.visual.transformer.resblocks[-1]
    patches = tower._hidden(images)[:, 1:]
    value = block.attn.in_proj_weight[2 * tower.width :]
    first = patches + patches @ value.mT
    return replace(tower.encode_image(images), patches=first + block.mlp(first))


def in_bf16(tower: Backbone, images: Float[Tensor, "batch 3 rows columns"]) -> ImageTokens:
    """Return the tokens of an encoder under autocast, as `precision: bf16` trains."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        return tower.encode_image(images)


@dataclass(frozen=True)
class Choice:
    """One way to get from an image to its mask."""

    name: str
    cut: NCutOptions = NCutOptions()
    encode: Encode = as_coded
    crop: Crop = "center"


AS_COMPUTED = NCutOptions(sign="as-computed", min_gap=0)
CHOICES = (
    Choice("default"),
    Choice("released rule (`ncut-as-computed`)", AS_COMPUTED),
    Choice("no gap rule", NCutOptions(min_gap=0)),
    Choice("threshold: mean", NCutOptions(threshold="mean")),
    Choice("cosine graph", NCutOptions(normalize=True)),
    Choice("patch tokens by Eq. 1 and 2 as printed", encode=as_printed),
    Choice("encoder in bf16", encode=in_bf16),
    Choice("random test crop", crop="random"),
)


@dataclass(frozen=True, eq=False)
class Found:
    """Masks and first predictions of the test images."""

    mask: Bool[Tensor, "image patch"]
    local: Int[Tensor, " image"]
    fused: Int[Tensor, " image"]


@torch.no_grad()
def measure(fusion: TokenFusion, images: loading.UnlabelledImages, choice: Choice) -> Found:
    """Return what the untrained network finds on the images."""
    tower = fusion.backbone
    recipe = ViewRecipe(0, tower.image_size, tower.mean, tower.std)
    masks, local, fused = [], [], []
    for views in evaluation_views(images, recipe, crop=choice.crop, batch_size=BATCH):
        tokens = choice.encode(tower, views)
        cut = normalized_cut(tokens.patches, choice.cut)
        seen = fusion.read(tokens, cut)
        masks.append(cut.mask)
        local.append(seen.local_logits.argmax(dim=-1))
        fused.append(seen.logits.argmax(dim=-1))
    return Found(torch.cat(masks), torch.cat(local), torch.cat(fused))


def percent(values: Bool[Tensor, " image"]) -> str:
    """Return the share of true values."""
    return f"{100 * float(values.double().mean()):.1f}"


def rows(name: str, tower: Backbone) -> Iterator[list[str]]:
    """Yield the table's rows of one dataset."""
    dataset = settings.load_dataset(name)
    sentences = descriptions.load(dataset, settings.load_descriptions(AUTHOR))
    vectors = classifiers(tower, sentences, dataset.templates).uniform
    fusion = TokenFusion(tower, vectors, FusionOptions()).eval()
    test = loading.load(dataset)["test"]
    default = measure(fusion, test.images, CHOICES[0])
    for choice in CHOICES:
        found = measure(fusion, test.images, choice)
        yield [
            name,
            choice.name,
            percent((found.mask == default.mask).all(dim=-1)),
            f"{float(found.mask.sum(dim=-1).float().mean()):.1f}",
            percent(found.local != default.local),
            percent(found.local == test.labels),
            percent(found.fused != default.fused),
            percent(found.fused == test.labels),
        ]


def main(names: list[str]) -> None:
    """Print the table."""
    runtime.use_all_cpus()
    tower = load_backbone(BACKBONE)
    heads = ["Set", "Choice", "Same mask (%)", "Mask (patches of 49)", "[FG] differs (%)"]
    heads += ["[FG] right (%)", "Fused differs (%)", "Fused right (%)"]
    print("| " + " | ".join(heads) + " |")
    print("| " + " | ".join(["---", "---", *["---:"] * (len(heads) - 2)]) + " |")
    for name in names or DATASETS:
        for row in rows(name, tower):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
