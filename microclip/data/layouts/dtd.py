"""Describable Textures, release 1.0.1: partition 1 of ten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import Item, Listing, existing, labels_by_name, lines
from microclip.settings import HubRoute, SettingsError

_PARTS = ("train", "val", "test")
NEEDS = ("dtd/images", *(f"dtd/labels/{part}1.txt" for part in _PARTS))


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """Return the images that `labels/{train,val,test}1.txt` name; a class is a folder.

    Raises:
        MissingDataError: a list or a listed image is not there.
        SettingsError: an image that two parts list, or classes other than ours.
    """
    root = folder / "dtd"
    part_of: dict[str, str] = {}
    for part in _PARTS:
        path = root / "labels" / f"{part}1.txt"
        for name in lines(path):
            if name in part_of:
                raise SettingsError(
                    f"{name} is in {part_of[name]}1.txt and in {path}; get the dataset again"
                )
            part_of[name] = part
    labels = labels_by_name(
        (name.split("/")[0] for name in part_of), class_names, str(root / "labels")
    )
    return Listing(
        existing(
            (
                Item(root / "images" / name, name, labels[key], key, part)
                for name, part in sorted(part_of.items())
                for key in [name.split("/")[0]]
            ),
            "dtd",
        )
    )
