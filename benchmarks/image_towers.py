"""Compare image towers without text: what their features hold, on plain scenes and on strong views.

    python benchmarks/image_towers.py DATASET... [--backbones icon-clip icon-clip-2]

DATASET is an icon set of `config/datasets`. A test image gets the class whose mean embedding over
the training scenes is nearest. One Markdown row a set and backbone: accuracy in percent of [CLS]
and of the mean value-path token, on the test scenes and on one strong view of each.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from microclip import settings
from microclip.data.augmentation import StrongTransform, strong_view
from microclip.icons import scenes
from microclip.model.backbone import Backbone, load_backbone, unit_norm
from microclip.settings import IconSource

Split = tuple[list[UInt8[np.ndarray, "side side 3"]], Tensor]


def read(name: str) -> dict[str, Split]:
    """Draw an icon set; return the pictures and labels of its splits."""
    source = settings.load_dataset(name).source
    if not isinstance(source, IconSource):
        sys.exit(f"{name} is no icon set; name one of config/datasets with kind: icons")
    with tempfile.TemporaryDirectory() as folder:
        scenes.write_dataset(source, Path(folder))
        with (Path(folder) / "manifest.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        found = {}
        for split in ("train", "test"):
            own = [row for row in rows if row["split"] == split]
            pictures = [np.asarray(Image.open(Path(folder) / row["file"])) for row in own]
            found[split] = (pictures, torch.tensor([int(row["label"]) for row in own]))
    return found


@torch.no_grad()
def embed(
    backbone: Backbone,
    pictures: Sequence[UInt8[np.ndarray, "side side 3"]],
    view: Callable[[UInt8[np.ndarray, "side side 3"], int], UInt8[Tensor, "3 size size"]],
) -> Float[Tensor, "2 image embedding"]:
    """Return unit embeddings of [CLS] and of the mean value-path token of one view a picture."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    parts = []
    for start in range(0, len(pictures), 200):
        some = enumerate(pictures[start : start + 200], start)
        views = torch.stack([view(picture, number) for number, picture in some])
        tokens = backbone.encode_image((views / 255 - mean) / std)
        value = unit_norm(backbone.project(tokens.patches.mean(1)))
        parts.append(torch.stack([tokens.embedding, value]))
    return torch.cat(parts, dim=1)


def row(name: str, backbone: Backbone, splits: dict[str, Split]) -> list[float]:
    """Return accuracies: [CLS] plain and strong, value path plain and strong."""
    size = backbone.image_size
    strong = StrongTransform(size)

    def plain_of(picture: UInt8[np.ndarray, "side side 3"], _: int) -> UInt8[Tensor, "3 _ _"]:
        resized = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def strong_of(picture: UInt8[np.ndarray, "side side 3"], number: int) -> UInt8[Tensor, "3 _ _"]:
        return strong_view(picture, strong, seed=scenes.seed_of(name, number) % 2**32)

    (pictures, labels), (tests, truth) = splits["train"], splits["test"]
    seen = embed(backbone, pictures, plain_of)
    asked = [embed(backbone, tests, view) for view in (plain_of, strong_of)]
    found = []
    for head in (0, 1):
        means = unit_norm(torch.stack([seen[head][labels == c].mean(0) for c in labels.unique()]))
        for each in asked:
            is_right = (each[head] @ means.T).argmax(1) == truth
            found.append(100 * float(is_right.float().mean()))
    return found


def main() -> None:
    """Print a row for each set and backbone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--backbones", nargs="+", default=["icon-clip", "icon-clip-2"])
    options = parser.parse_args()
    sys.stdout.write(
        "| set | tower | [CLS], plain | [CLS], strong | value path, plain | value path, strong |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
    )
    for name in options.datasets:
        splits = read(name)
        for backbone in options.backbones:
            numbers = row(name, load_backbone(backbone), splits)
            cells = " | ".join(f"{number:.1f}" for number in numbers)
            sys.stdout.write(f"| {name} | {backbone} | {cells} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
