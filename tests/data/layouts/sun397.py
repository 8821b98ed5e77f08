"""SUN397 as `SUN397.tar.gz` unpacks, with the two classes that lists order differently."""

from __future__ import annotations

from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("abbey", "jail (indoor)", "jail cell", "theater (indoor procenium)")
KEYS = ("/a/abbey", "/j/jail_cell", "/j/jail/indoor", "/t/theater/indoor_procenium")
SPLITS = {"paper": (28, 8)}  # of ten a class: seven, one unused, two
PER_CLASS = 10


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    root = folder / "SUN397"
    for key in KEYS:
        for number in range(PER_CLASS):
            pictures.write(root / key.strip("/") / f"sun_a{number:03}{key[-3:]}.jpg")
    (root / "ClassName.txt").write_text("\n".join(KEYS) + "\n")
    (root / "README.txt").write_text("not read\n")


def write_partition(folder: Path) -> None:
    """Write the lists of partition 1: four images per class in each part."""
    lists: dict[str, list[str]] = {"Training_01.txt": [], "Testing_01.txt": []}
    for key in KEYS:
        for number in range(8):
            name = ("Training_01.txt", "Testing_01.txt")[number % 2]
            lists[name].append(f"{key}/sun_a{number:03}{key[-3:]}.jpg")
    (folder / "Partitions").mkdir()
    for name, images in lists.items():
        (folder / "Partitions" / name).write_text("\n".join(images) + "\n")
