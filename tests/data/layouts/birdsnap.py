"""Birdsnap as its downloader writes it, with some photographs missing."""

from __future__ import annotations

from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("Allens Hummingbird", "American Three toed Woodpecker", "Zone tailed Hawk")
SPECIES = (  # id, common, scientific, dir: not in the order of our list
    ("1", "Zone-tailed Hawk", "Buteo albonotatus", "Zone_tailed_Hawk"),
    ("2", "Allen's Hummingbird", "Selasphorus sasin", "Allens_Hummingbird"),
    ("3", "American Three-toed Woodpecker", "Picoides dorsalis", "American_Three_toed_Woodpecker"),
)
SPLITS = {"paper": (24, 6), "official": (24, 6)}
LISTED = 12  # photographs of a species; the last two of each are dead addresses
THERE = 10


def name(row: tuple[str, ...], number: int) -> str:
    """A photograph's path as the lists write it."""
    return f"{row[3]}/{number:06}.jpg"


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    root = folder / "birdsnap"
    for row in SPECIES:
        for number in range(THERE):
            pictures.write(root / "images" / name(row, number))
    species = "".join("\t".join(row) + "\n" for row in SPECIES)
    (root / "species.txt").write_text("id\tcommon\tscientific\tdir\n" + species)
    images = [
        f"http://dead.example/{number}.jpg\t{'0' * 32}\t{name(row, number)}\t{row[0]}\n"
        for row in SPECIES
        for number in range(LISTED)
    ]
    (root / "images.txt").write_text("url\tmd5\tpath\tspecies_id\n" + "".join(images))
    tests = [f"{name(row, number)}\n" for row in SPECIES for number in (0, 1, 11)]
    (root / "test_images.txt").write_text("path\n" + "".join(tests))
