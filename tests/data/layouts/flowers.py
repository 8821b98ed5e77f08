"""Flowers102 as torchvision lays it out: numbered images, `imagelabels.mat` and `setid.mat`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.layouts import pictures

CLASSES = ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")
PER_CLASS = 10
SPLITS = {  # images of train and test, by split; paper: CoOp's arithmetic, drawn without its file
    "paper": (15, 9),
    "official": (6, 18),
    "vissl": (12, 18),
}


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write `imagelabels.mat`: 1 x n ids from 1, in the order of the images."""
    savemat(path, {"labels": labels[None].astype(np.uint8)})


def labels() -> np.ndarray:
    """The ids: each class's images are consecutive, classes out of order as in the real dataset."""
    return np.repeat(np.array([3, 1, 2]), PER_CLASS)


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    root = folder / "flowers-102"
    ids = labels()
    for number in range(1, len(ids) + 1):
        pictures.write(root / "jpg" / f"image_{number:05}.jpg")
    write_labels(root / "imagelabels.mat", ids)
    place = np.arange(len(ids)) % PER_CLASS  # of an image in its class
    numbers = np.arange(1, len(ids) + 1, dtype=np.uint16)
    savemat(
        root / "setid.mat",
        {
            "trnid": numbers[place < 2][None],
            "valid": numbers[(place >= 2) & (place < 4)][None],
            "tstid": numbers[place >= 4][None, ::-1],
        },
    )
