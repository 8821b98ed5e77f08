"""Oxford-IIIT Pets: a flat folder of images, breeds and their ids in two lists.

Cat breeds are capitalised and dog breeds are not, so folders sorted by name are in another order
than the ids: ids are checked against our list by the breed in each image's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import (
    ImageFiles,
    Item,
    Listing,
    check_order,
    check_same,
    lines,
    listed_twice,
    listing,
    part_of_each,
    place,
    unexpected_line,
)
from microclip.settings.base import SettingsError, cut
from microclip.settings.datasets import HubRoute

_ROOT = "oxford-iiit-pet"
_ID = re.compile("[0-9]{1,6}")
_LISTS = {"train": "trainval.txt", "test": "test.txt"}
NEEDS = (f"{_ROOT}/images", *(f"{_ROOT}/annotations/{name}" for name in _LISTS.values()))


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of `trainval.txt` and `test.txt`; a class is a breed with an id from 1.

    Raises:
        MissingDataError: a list or a listed image is missing, or a list was cut short.
        SettingsError: an image in two parts, a breed with two ids, or ids in another order than
            our names.
    """
    root = place(folder, _ROOT)
    annotations = place(root, "annotations")
    rows = {part: _rows(place(annotations, name)) for part, name in _LISTS.items()}
    parts = part_of_each({part: list(ids) for part, ids in rows.items()}, annotations)
    ids = rows["train"] | rows["test"]
    whole = place(annotations, "list.txt")
    if whole.is_file():
        check_same(parts, _rows(whole), of="trainval.txt with test.txt", other=whole)
    labels = _labels(ids, class_names, annotations)
    images = ImageFiles.below(place(root, "images"))
    return listing(
        (
            Item(images.path(f"{image}.jpg"), f"{image}.jpg", labels[key], key, part)
            for image, part in parts.items()
            for key in [_breed(image)]
        ),
        [images],
        "pets",
    )


def _rows(path: Path) -> dict[str, int]:
    """Read each image's class id from lines such as "Abyssinian_100 1 1 1"; "#" is a comment."""
    ids: dict[str, int] = {}
    for row in lines(path):
        if row.startswith("#"):
            continue
        fields = row.split()
        if len(fields) != 4 or not _ID.fullmatch(fields[1]):
            raise unexpected_line(path, row, "an image and three numbers")
        if fields[0] in ids:
            raise listed_twice(path, fields[0])
        ids[fields[0]] = int(fields[1])
    return ids


def _breed(image: str) -> str:
    return image.rpartition("_")[0]


def _labels(ids: dict[str, int], class_names: Sequence[str], where: Path) -> dict[str, int]:
    """Each breed's label, after checking that the ids are in the order of our list."""
    id_of: dict[str, int] = {}
    for image, number in ids.items():
        if id_of.setdefault(_breed(image), number) != number:
            raise SettingsError(
                f"{cut(image)} has class id {number} in {where}, but other images of "
                f"{cut(_breed(image))} have {id_of[_breed(image)]}; get the dataset again"
            )
    if sorted(id_of.values()) != list(range(1, len(id_of) + 1)):
        raise SettingsError(
            f"{where} has {len(id_of)} breeds with ids {sorted(id_of.values())[:4]}…, expected 1 "
            f"to {len(id_of)}, one each; get the dataset again"
        )
    check_order(sorted(id_of, key=id_of.__getitem__), class_names, str(where))
    return {breed: number - 1 for breed, number in id_of.items()}
