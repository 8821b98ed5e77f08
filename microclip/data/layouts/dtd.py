"""Describable Textures, release 1.0.1: partition 1 of ten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import (
    ImageFiles,
    Item,
    Listing,
    inside,
    labels_by_name,
    lines,
    listing,
    part_of_each,
)
from microclip.settings.datasets import HubRoute

_PARTS = ("train", "val", "test")
NEEDS = ("dtd/images", *(f"dtd/labels/{part}1.txt" for part in _PARTS))


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """Return the images that `labels/{train,val,test}1.txt` name; a class is a folder.

    Raises:
        MissingDataError: a list or a listed image is not there.
        SettingsError: an image that two parts list, or classes other than ours.
    """
    root = inside(folder, "dtd")
    lists = inside(root, "labels")
    parts = part_of_each({part: lines(inside(lists, f"{part}1.txt")) for part in _PARTS}, lists)
    labels = labels_by_name((name.split("/")[0] for name in parts), class_names, str(lists))
    images = ImageFiles.below(inside(root, "images"))
    return listing(
        (
            Item(images.path(name), name, labels[key], key, part)
            for name, part in parts.items()
            for key in [name.split("/")[0]]
        ),
        [images],
        "dtd",
    )
