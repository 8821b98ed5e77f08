"""Print how zero-shot accuracy moves if the same images are read in another way.

`python benchmarks/zero_shot_flips.py` draws scenes of 256 px from three icon sets, reads each in
several ways and classifies it with icon-clip and the sets' templates. *Flips* are images whose
prediction turns from right to wrong or back, *net* is the change of the accuracy. The numbers do
not depend on the machine.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from microclip import settings
from microclip.icons import scenes
from microclip.model.backbone import load_backbone
from microclip.model.sentences import encode_classes
from microclip.model.token_fusion import cosine_similarity
from microclip.settings import IconSource
from microclip.text.classifier import template_classifier
from microclip.text.prompts import fill

SETS = ("food", "objects", "animals")
SIDE_PX, N_CLASSES, SEED = 256, 48, 3
SHIFTED_PX = 9  # of 256: 3.5 %, two pixels of icon-clip's 56
Way = Callable[[Image.Image], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Save the image as JPEG and read it back."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def ways(side: int) -> dict[str, Way]:
    """Each way to read a scene as a square of `side` pixels."""

    def read(image: Image.Image, kernel: int = Image.Resampling.BICUBIC) -> Image.Image:
        return image.resize((side, side), Image.Resampling(kernel))

    small = (SIDE_PX * 3 // 8, SIDE_PX * 3 // 8)
    window = (SHIFTED_PX, 0, SIDE_PX, SIDE_PX - SHIFTED_PX)
    return {
        "bicubic": read,
        "JPEG, quality 90": lambda image: read(jpeg(image, 90)),
        "JPEG, quality 75": lambda image: read(jpeg(image, 75)),
        "copy of 96 px, quality 90": lambda image: read(jpeg(image.resize(small), 90)),
        "bilinear": lambda image: read(image, Image.Resampling.BILINEAR),
        "crop shifted by 3.5 %": lambda image: read(image.crop(window)),
    }


@torch.no_grad()
def main() -> None:
    """Print one line for each set and way."""
    tower = load_backbone(settings.load_backbone_settings("icon-clip"), "cpu")
    templates = settings.load_dataset("icons-food").templates
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.mean, tower.std))
    for drawings in SETS:
        with tempfile.TemporaryDirectory() as name:
            source = IconSource(
                drawings=drawings,
                classes=N_CLASSES,
                train_scenes=1,
                test_scenes=8,
                size_px=SIDE_PX,
                seed=SEED,
            )
            scenes.write_dataset(source, Path(name))
            with (Path(name) / "manifest.csv").open(encoding="utf-8", newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
            images = [Image.open(Path(name) / row["file"]).convert("RGB") for row in rows]
        labels = torch.tensor([int(row["label"]) for row in rows])
        names = scenes.class_names(drawings, N_CLASSES, SEED)
        prompts, _ = encode_classes(tower, fill(templates, names))
        classifier = template_classifier(prompts)
        first: torch.Tensor | None = None
        for way, read in ways(tower.image_size).items():
            pixels = np.stack([np.asarray(read(image)) for image in images])
            batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
            embeddings = torch.cat([tower.encode_global(part) for part in batch.split(64)])
            is_right = cosine_similarity(embeddings, classifier).argmax(1) == labels
            first = is_right if first is None else first
            flips = 100 * float((is_right != first).float().mean())
            top1 = 100 * float(is_right.float().mean())
            net = top1 - 100 * float(first.float().mean())
            print(f"{drawings:8} {way:26} {top1:6.2f} %  flips {flips:5.2f} %  net {net:+.2f}")


if __name__ == "__main__":
    main()
