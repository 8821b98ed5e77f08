"""SUN397 as its archive unpacks: `SUN397/a/abbey/sun_*.jpg`, classes in `ClassName.txt`.

A class is a folder that `ClassName.txt` names, such as `/j/jail/indoor`, which our list calls "jail
(indoor)". Classes are matched by name, because published lists disagree about the order of that one
and "jail cell".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import (
    SUFFIXES,
    Item,
    Listing,
    labels_by_name,
    lines,
    not_there,
    place,
)
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

NEEDS = ("SUN397/ClassName.txt",)
_PARTITIONS = {"train": "Training_01.txt", "test": "Testing_01.txt"}  # the official ones, optional


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images `sun_*` of the classes in `ClassName.txt`.

    The parts are those of the first of ten partitions, if its two lists are in `SUN397` or
    `Partitions`; most images are in neither list.

    Raises:
        MissingDataError: a class has no folder or no image, or a listed image is missing.
        SettingsError: a class of `ClassName.txt` is not in our list, or the other way round.
    """
    root = place(folder, "SUN397")
    keys = lines(place(root, "ClassName.txt"))
    labels = labels_by_name(keys, class_names, str(root / "ClassName.txt"), spell=class_name)
    found = {
        f"{key}/{path.name}".lstrip("/"): (path, key)
        for key in keys
        for path in _images(place(root, key.strip("/")))
    }
    part_of = _partition(folder)
    gone = sorted(set(part_of) - set(found))
    if gone:
        raise runtime.MissingDataError(
            f"{len(gone)} images of SUN397's partition 1 are missing, the first is {gone[0]}; get "
            "the dataset again"
        )
    return Listing(
        tuple(
            Item(path, name, labels[key], key, part_of.get(name, ""))
            for name, (path, key) in sorted(found.items())
        ),
        _others(root, keys),
    )


def class_name(key: str) -> str:
    """A class folder's name as our list writes it: /j/jail/indoor is "jail (indoor)"."""
    parts = [part.replace("_", " ") for part in key.strip("/").split("/")]
    if len(parts) > 1 and len(parts[0]) == 1:
        parts = parts[1:]
    return " ".join([parts[0], *(f"({part})" for part in parts[1:])])


def _images(folder: Path) -> list[Path]:
    """Images directly in a class's folder; a folder below it is a separate class."""
    if not folder.is_dir():
        raise not_there(folder)
    images = [
        path
        for path in sorted(folder.iterdir())
        if path.name.casefold().startswith("sun_") and path.suffix.lower() in SUFFIXES
    ]
    if not images:
        raise runtime.MissingDataError(f"{folder} has no image sun_*.jpg; get the dataset again")
    return images


def _partition(folder: Path) -> dict[str, str]:
    """The part of each image in the official lists, `{}` if these are missing."""
    part_of: dict[str, str] = {}
    for part, name in _PARTITIONS.items():
        roots = (place(folder, "SUN397"), place(folder, "Partitions"))
        path = next((p for root in roots if (p := place(root, name)).is_file()), None)
        for line in lines(path) if path else ():
            image = line.lstrip("/")
            if part_of.setdefault(image, part) != part:
                raise SettingsError(f"{line} is in both of SUN397's lists; get them again")
    return part_of


def _others(root: Path, keys: Sequence[str]) -> tuple[str, ...]:
    """A note on folders of images that are not a class."""
    known = {key.strip("/").casefold() for key in keys}
    others = sorted(
        path.parent.relative_to(root).as_posix()
        for path in [*root.glob("?/*/sun_*"), *root.glob("?/*/*/sun_*")]
        if path.parent.relative_to(root).as_posix().casefold() not in known
    )
    names = sorted(set(others))
    if not names:
        return ()
    return (
        f"{len(others)} images in {len(names)} folders that ClassName.txt does not name were left "
        f"out: {', '.join(names[:3])}",
    )
