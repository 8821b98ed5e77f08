"""Describable Textures (DTD), release 1.0.1: the first of its ten partitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import (
    ImageFiles,
    Item,
    Listing,
    labels_by_name,
    lines,
    listing,
    part_of_each,
    place,
)
from microclip.settings.datasets import HubRoute

_PARTS = ("train", "val", "test")
NEEDS = ("dtd/images", *(f"dtd/labels/{part}1.txt" for part in _PARTS))


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of `labels/{train,val,test}1.txt`; a class is a folder.

    Raises:
        MissingDataError: a list or a listed image is missing.
        SettingsError: an image is in two parts, or the classes are not ours.
    """
    root = place(folder, "dtd")
    lists = place(root, "labels")
    parts = part_of_each({part: lines(place(lists, f"{part}1.txt")) for part in _PARTS}, lists)
    labels = labels_by_name((name.split("/")[0] for name in parts), class_names, str(lists))
    images = ImageFiles.below(place(root, "images"))
    return listing(
        (
            Item(images.path(name), name, labels[key], key, part)
            for name, part in parts.items()
            for key in [name.split("/")[0]]
        ),
        [images],
        "dtd",
    )
