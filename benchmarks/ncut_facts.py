"""Print what the normalised cut finds on the icon sets, before any training, as Markdown tables.

Run it where the sets are fetched and stored in `results/data/`, for example after `make run`:

    python benchmarks/ncut_facts.py [DATASET ...]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microclip import runtime, settings
from microclip.data import loading
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.measure.masks import Cut, examine
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.saliency import NCutOptions

DATASETS = (
    "icons-animals",
    "icons-food",
    "icons-objects",
    "icons-travel",
    "icons-flags",
    "icons-faces",
)
BACKBONE = "icon-clip"
SOLVERS_SIGN = "std, solver's sign"
RULES = {
    "std": NCutOptions(threshold="std"),
    SOLVERS_SIGN: NCutOptions(threshold="std", sign="as-computed"),
    "mean": NCutOptions(threshold="mean"),
    "L2, mean": NCutOptions(threshold="mean", normalize=True),
}


@dataclass(frozen=True, eq=False)
class Found:
    """The cuts of a dataset's images by one rule, joined over batches."""

    density: Float[Tensor, " image"]
    gap: Float[Tensor, " image"]
    is_degenerate: Bool[Tensor, " image"]
    mask: Bool[Tensor, "image patch"]

    @property
    def mean_size(self) -> float:
        """Return the mean mask of images that have a cut, in patches."""
        return float(self.mask[~self.is_degenerate].sum(dim=-1).float().mean())


@torch.no_grad()
def patch_tokens(tower: Backbone, dataset: str) -> Float[Tensor, "image patch width"]:
    """Return the value-path patch tokens of all images of a dataset, by the test view."""
    recipe = ViewRecipe(0, tower.image_size, tower.mean, tower.std)
    parts = [
        tower.encode_image(views).patches
        for split in loading.load(settings.load_dataset(dataset)).values()
        for views in evaluation_views(split.images, recipe, crop="center", batch_size=128)
    ]
    return torch.cat(parts)


def cut_all(tokens: Float[Tensor, "image patch width"], options: NCutOptions) -> Found:
    """Return the cuts of all images."""
    cuts: list[Cut] = [examine(part, options) for part in torch.split(tokens, 128)]
    parts = [cut.saliency for cut in cuts]
    return Found(
        density=torch.cat([part.density for part in parts if part.density is not None]),
        gap=torch.cat([part.gap for part in parts if part.gap is not None]),
        is_degenerate=torch.cat([part.degenerate for part in parts if part.degenerate is not None]),
        mask=torch.cat([part.mask for part in parts]),
    )


def percent(values: Bool[Tensor, " image"]) -> str:
    """Return the share of true values."""
    return f"{100 * float(values.double().mean()):.1f}"


def raw_row(name: str, found: dict[str, Found]) -> list[str]:
    """Return the facts of the raw-token graph."""
    own = found["std"]
    is_cut = ~own.is_degenerate
    decides = (own.mask != found[SOLVERS_SIGN].mask).any(dim=-1)
    return [
        name,
        str(len(own.mask)),
        f"{float(own.density.mean()):.3f}",
        f"{float(own.gap.median()):.4f}",
        percent(own.is_degenerate),
        f"{own.mean_size:.1f}",
        f"{found[SOLVERS_SIGN].mean_size:.1f}",
        f"{found['mean'].mean_size:.1f}",
        percent(decides[is_cut]),
    ]


def normalised_row(name: str, found: Found) -> list[str]:
    """Return the facts of the cosine graph."""
    return [
        name,
        str(len(found.mask)),
        f"{float(found.density.mean()):.3f}",
        f"{float(found.gap.median()):.4f}",
        percent(found.is_degenerate),
        f"{found.mean_size:.1f}",
    ]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])


def main(names: list[str]) -> None:
    """Print both tables."""
    runtime.use_all_cpus()
    tower = load_backbone(BACKBONE)
    raw, normalised = [], []
    for name in names or DATASETS:
        tokens = patch_tokens(tower, name)
        found = {rule: cut_all(tokens, options) for rule, options in RULES.items()}
        raw.append(raw_row(name, found))
        normalised.append(normalised_row(name, found["L2, mean"]))
    n_patches = tokens.shape[1]
    common = ["Set", "Images", "Edge density", "Median gap", "No defined cut (%)"]
    size = f"patches of {n_patches}"
    raw_heads = [
        *common,
        f"Mask, std ({size})",
        f"Mask, std, solver's sign ({size})",
        f"Mask, mean ({size})",
        "Sign decides (%)",
    ]
    print("Raw tokens, dot product above 0.2:\n")
    print(table(raw_heads, raw))
    print("\nL2-normalised tokens, cosine above 0.2:\n")
    print(table([*common, f"Mask, mean ({size})"], normalised))


if __name__ == "__main__":
    main(sys.argv[1:])
