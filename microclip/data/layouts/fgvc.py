"""FGVC-Aircraft 2013b: a flat folder of images, variants in lists; some names contain a slash.

The official order is that of `variants.txt`. Sorting folders by name, as the paper's code does,
puts `BAE-125` before `BAE 146-200` and so rotates three labels.
"""

from __future__ import annotations

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
from microclip.settings.datasets import HubRoute

_DATA = "fgvc-aircraft-2013b/data"
_PARTS = ("train", "val", "test")
NEEDS = (
    f"{_DATA}/images",
    f"{_DATA}/variants.txt",
    *(f"{_DATA}/images_variant_{part}.txt" for part in _PARTS),
)


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of the three parts; a class is a variant, such as `F-16A/B`.

    Raises:
        MissingDataError: a list or a listed image is missing, or a list was cut short.
        SettingsError: variants in another order than ours, or an image in two parts.
    """
    data = place(folder, _DATA)
    variants = place(data, "variants.txt")
    official = lines(variants)
    check_order(official, class_names, str(variants))
    labels = {name: label for label, name in enumerate(official)}
    rows = {part: _rows(place(data, f"images_variant_{part}.txt"), labels) for part in _PARTS}
    parts = part_of_each({part: list(keys) for part, keys in rows.items()}, data)
    joined = place(data, "images_variant_trainval.txt")
    if joined.is_file():
        check_same(
            rows["train"] | rows["val"],
            _rows(joined, labels),
            of="the train and val lists",
            other=joined,
        )
    images = ImageFiles.below(place(data, "images"))
    return listing(
        (
            Item(images.path(f"{image}.jpg"), f"{image}.jpg", labels[key], key, part)
            for image, part in parts.items()
            for key in [rows[part][image]]
        ),
        [images],
        "fgvc",
    )


def _rows(path: Path, labels: dict[str, int]) -> dict[str, str]:
    """Read the variant of each image from a list with lines such as "1025794 707-320"."""
    variants: dict[str, str] = {}
    for row in lines(path):
        image, _, variant = row.partition(" ")
        if variant not in labels:
            raise unexpected_line(path, row, "an image and a name of variants.txt")
        if image in variants:
            raise listed_twice(path, image)
        variants[image] = variant
    return variants
