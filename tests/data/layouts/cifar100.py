"""CIFAR-100 as `cifar-100-binary.tar.gz` unpacks: labels and planes of colour, record by record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.layouts import pictures

CLASSES = ("apple", "aquarium fish", "willow tree")
SPLITS = {"paper": (18, 9), "official": (18, 9)}
_OF_CLASS = {"train": 6, "test": 3}


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    root = folder / "cifar-100-binary"
    root.mkdir(parents=True)
    names = [name.replace(" ", "_") for name in CLASSES]
    (root / "fine_label_names.txt").write_text("\n".join(names) + "\n\n")
    (root / "coarse_label_names.txt").write_text("fish\nfruit_and_vegetables\ntrees\n")
    for part, number in _OF_CLASS.items():
        records = b""
        for index in range(number * len(CLASSES)):
            label = index % len(CLASSES)
            records += bytes([(1, 0, 2)[label], label]) + planes(f"{part}/{index}").tobytes()
        (root / f"{part}.bin").write_bytes(records)


def planes(name: str) -> np.ndarray:
    """An image of 32 x 32 pixels as red, green and blue planes, uint8 (3, 32, 32)."""
    pixels: np.ndarray = np.asarray(pictures.picture(name, (32, 32)))
    return pixels.transpose(2, 0, 1)
