"""Zero-shot accuracy of icon-clip on the icon benchmark: [CLS], value path, and both.

`python -m microclip.icons.zero_shot` renders each set at both sizes and prints one Markdown table;
it is how the difficulty of the scenes was chosen, and the last line of `make icon-clip`.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from microclip import paths, runtime, settings
from microclip.icons import scenes
from microclip.icons.catalogue import SETS
from microclip.model.backbone import Backbone, load_backbone, unit_norm
from microclip.settings import IconSource
from microclip.text.classifier import template_classifier


def test_images(source: IconSource, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return normalised test scenes and their labels."""
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
    """Return top-1 in percent of [CLS], of the mean value-path token, and of their average."""
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
    """Return a row per set and size."""
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
            images, labels = test_images(source, backbone)
            found = accuracies(backbone, images, labels, template_classifier(embedded))
            rows.append(
                {"set": name, "size": size, "classes": len(names), "images": len(labels), **found}
            )
    return rows


def main() -> None:
    """Measure, print, and write `resources/icon-clip/zero-shot.json`."""
    rows = measure(load_backbone("icon-clip"))
    lines = [
        "| set | size | classes | images | [CLS] | value path | both |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    target = paths.project_root() / "resources" / "icon-clip" / "zero-shot.json"
    runtime.write_text(target, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
