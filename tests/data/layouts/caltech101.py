"""Caltech-101 as its archives unpack: one folder per class, two of which are not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.layouts import pictures

CLASSES = ("airplane", "car side", "face", "leopard", "motorbike")
SPLITS = {"paper": (150, 15)}  # images of train and test, by split: 30 a class, and the rest
COUNTS = {  # images of each folder
    "BACKGROUND_Google": 2,
    "Faces": 35,
    "Faces_easy": 2,
    "Leopards": 31,
    "Motorbikes": 34,
    "airplanes": 32,
    "car_side": 33,
}


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    root = folder / "101_ObjectCategories"
    for name, n in COUNTS.items():
        for number in range(1, n + 1):
            pictures.write(root / name / f"image_{number:04}.jpg", (16, 12))
    (root / "BACKGROUND_Google/tmp").write_bytes(b"in the release, and no image")
    outlines = folder / "Annotations" / "Faces_2"
    outlines.mkdir(parents=True)
    savemat(outlines / "annotation_0001.mat", {"obj_contour": np.ones((2, 4))})
