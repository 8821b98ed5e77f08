"""Oxford-IIIT Pets as its two archives unpack, with their well-known odd files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.layouts import pictures

CLASSES = ("Abyssinian", "american bulldog", "Bengal", "wheaten terrier")  # in order of ids
SPLITS = {"paper": (16, 12), "official": (16, 12)}  # images of train and test, by split
_SPECIES = (1, 2, 1, 2)  # cat, dog
_XML = (
    "<annotation><filename>{}.jpg</filename><object><name>cat</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>\n"
)


def build(folder: Path) -> None:
    """Write the copy below `folder`: per breed, four training and three test images."""
    root = folder / "oxford-iiit-pet"
    rows: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(name.replace(" ", "_") for name in CLASSES):
        for number in range(1, 8):
            image = f"{breed}_{number}"
            pictures.write(root / "images" / f"{image}.jpg")
            rows["trainval" if number <= 4 else "test"].append(
                f"{image} {label + 1} {_SPECIES[label]} {label // 2 + 1}"
            )
    pictures.picture("not a jpeg").save(root / "images/Bengal_7.jpg", format="PNG")
    savemat(root / "images/Abyssinian_1.mat", {"x": np.zeros(2)})
    (root / "images/._Abyssinian_1.jpg").write_bytes(b"a Mac's shadow of a file")
    lists = root / "annotations"
    (lists / "xmls").mkdir(parents=True)
    (lists / "xmls/Abyssinian_1.xml").write_text(_XML.format("Abyssinian_1"))
    (lists / "trimaps").mkdir()
    (lists / "trimaps/._Abyssinian_1.png").write_bytes(b"another")
    (lists / "README").write_text("not read\n")
    for name, own in rows.items():
        (lists / f"{name}.txt").write_text("\n".join(own) + "\n")
    head = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
    (lists / "list.txt").write_text(head + "\n".join(rows["trainval"] + rows["test"]) + "\n")
