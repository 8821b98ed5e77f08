"""Stanford Cars as torchvision reads it: flat folders, labels and names in MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.layouts import pictures

CLASSES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012")
SPLITS = {"paper": (12, 9), "official": (12, 9)}  # images of train and test, by split
N_TRAIN, N_TEST = SPLITS["official"]
_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def annotations(n: int, *, is_labelled: bool = True) -> np.ndarray:
    """A 1 x n struct array as in the devkit: classes in turn, ids from 1."""
    fields = (*_BOX, *(("class",) if is_labelled else ()), "fname")
    rows = np.zeros((1, n), dtype=[(field, object) for field in fields])
    for number in range(n):
        rows[0, number]["fname"] = f"{number + 1:05}.jpg"
        for field in _BOX:
            rows[0, number][field] = np.uint8(8)
        if is_labelled:
            rows[0, number]["class"] = np.uint8(number % len(CLASSES) + 1)
    return rows


def write_names(path: Path, names: tuple[str, ...] = CLASSES) -> None:
    """Write `cars_meta.mat`: a 1 x n cell array of names."""
    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    savemat(path, {"class_names": cells})


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    root = folder / "stanford_cars"
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        for number in range(1, n + 1):
            pictures.write(root / f"cars_{part}" / f"{number:05}.jpg")
    devkit = root / "devkit"
    devkit.mkdir()
    write_names(devkit / "cars_meta.mat")
    savemat(devkit / "cars_train_annos.mat", {"annotations": annotations(N_TRAIN)})
    savemat(devkit / "cars_test_annos.mat", {"annotations": annotations(N_TEST, is_labelled=False)})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": annotations(N_TEST)})
    (devkit / "train_perfect_preds.txt").write_text("1\n2\n3\n")
    (devkit / "README.txt").write_text("not read\n")
