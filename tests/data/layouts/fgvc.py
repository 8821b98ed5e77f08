"""FGVC-Aircraft as `fgvc-aircraft-2013b.tar.gz` unpacks: variants, one of them with a slash."""

from __future__ import annotations

from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("BAE 146-200", "BAE 146-300", "BAE-125", "F-16A/B")  # in order of variants.txt
SPLITS = {  # images of train and test, by split
    "paper": (12, 12),
    "official": (12, 12),
    "coop": (12, 12),
    "vissl": (24, 12),
}


def build(folder: Path) -> None:
    """Write the copy below `folder`: three images per variant in each part."""
    data = folder / "fgvc-aircraft-2013b" / "data"
    rows: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(CLASSES):
        for number in range(9):
            image = f"{1_000_000 - 97 * (9 * label + number):07}"
            pictures.write(data / "images" / f"{image}.jpg")
            rows[("train", "val", "test")[number % 3]].append(f"{image} {name}")
    rows["trainval"] = sorted(rows["train"] + rows["val"])
    for part, own in rows.items():
        (data / f"images_variant_{part}.txt").write_text("\n".join(own) + "\n")
        makers = [f"{row.split()[0]} Maker" for row in own]
        (data / f"images_manufacturer_{part}.txt").write_text("\n".join(makers) + "\n")
    (data / "variants.txt").write_text("\n".join(CLASSES) + "\n")
    (data / "manufacturers.txt").write_text("Maker\n")
    (data / "images_box.txt").write_text("1000000 3 5 20 30\n")
