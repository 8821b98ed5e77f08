"""DTD as `dtd-r1.0.1.tar.gz` unpacks: images by texture, and the first of its ten partitions."""

from __future__ import annotations

from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("banded", "polka-dotted", "zigzagged")
SPLITS = {"paper": (18, 9), "official": (9, 9)}  # images of train and test, by split


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in CLASSES:
        for number in range(9):
            file = f"{name}/{name}_{number:04}.jpg"
            pictures.write(folder / "dtd" / "images" / file)
            lists[("train", "val", "test")[number % 3]].append(file)
    (folder / "dtd" / "labels").mkdir()
    for part, files in lists.items():
        (folder / "dtd" / "labels" / f"{part}1.txt").write_text("\n".join(files) + "\n")
    (folder / "dtd" / "labels" / "labels_joint_anno.txt").write_text("not read\n")
