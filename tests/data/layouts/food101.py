"""Food-101 as `food-101.tar.gz` unpacks: each part as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("apple pie", "baby back ribs", "hot dog")
SPLITS = {"paper": (18, 6), "official": (18, 6)}  # images of train and test, by split


def build(folder: Path) -> None:
    """Write the copy below `folder`: per class, six training and two test images."""
    root = folder / "food-101"
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    keys = [name.replace(" ", "_") for name in CLASSES]
    for place, key in enumerate(keys):
        for number in range(8):
            image = f"{key}/{1_005_649 + 7919 * (8 * place + number) % 3001}"
            pictures.write(root / "images" / f"{image}.jpg")
            parts["train" if number < 6 else "test"].setdefault(key, []).append(image)
    meta = root / "meta"
    meta.mkdir()
    (meta / "classes.txt").write_text("\n".join(keys) + "\n")
    (meta / "labels.txt").write_text("\n".join(name.capitalize() for name in CLASSES) + "\n")
    for part, own in parts.items():
        (meta / f"{part}.json").write_text(json.dumps(own))
        (meta / f"{part}.txt").write_text("\n".join(sum(own.values(), [])) + "\n")
    (root / "license_agreement.txt").write_text("not read\n")
    (root / "README.txt").write_text("not read\n")
