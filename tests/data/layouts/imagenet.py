"""Three classes of ImageNet-1K, as its archives unpack and as in Kaggle's copy."""

from __future__ import annotations

from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("tench", "goldfish", "toilet paper")
WNIDS = ("n01440764", "n01443537", "n15075141")
SPLITS = {"paper": (18, 9), "label-free": (18, 9), "official": (18, 9)}


def build(folder: Path) -> None:
    """Write the copy with folders named by id below `folder`."""
    for label, wnid in enumerate(WNIDS):
        for number in range(6):
            pictures.write(folder / f"train/{wnid}/{wnid}_{number * 7}.JPEG")
        for number in range(3):
            pictures.write(folder / f"val/{wnid}/ILSVRC2012_val_{3 * number + label:08}.JPEG")


def build_kaggle(folder: Path) -> None:
    """Write Kaggle's copy: `val` is flat, and a list has the ids."""
    root = folder / "ILSVRC/Data/CLS-LOC"
    rows = ["ImageId,PredictionString"]
    for label, wnid in enumerate(WNIDS):
        for number in range(6):
            pictures.write(root / f"train/{wnid}/{wnid}_{number * 7}.JPEG")
        for number in range(3):
            name = f"ILSVRC2012_val_{3 * number + label:08}"
            pictures.write(root / f"val/{name}.JPEG")
            rows.append(f"{name},{wnid} 111 108 230 368 {wnid} 1 2 3 4 ")
    (folder / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
