"""Caltech-101: one folder of numbered images per class; two of its 102 folders are not used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import Item, Listing, images_below, labels_by_name, place
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

_ROOT = "101_ObjectCategories"
_LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")  # the paper's 100 classes are without them
_CLASSES = {  # folders whose names are not the class names of OpenAI and the paper
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
_WRITTEN = {name.casefold(): name for name in (*_LEFT_OUT, *_CLASSES)}  # all others: lower case
_NUMBERED = re.compile(r"image_(\d{4})\.jpg", re.IGNORECASE)
_PLACES = ("", "caltech-101/", "caltech101/")  # as unpacked here, by hand, by torchvision
NEEDS = ("|".join(f"{where}{_ROOT}" for where in _PLACES),)


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of all classes; the release has no parts.

    Raises:
        MissingDataError: no such folder, or an image is missing (they are numbered from 1).
        SettingsError: classes other than ours, or a folder that appears twice in different case.
    """
    root = _root(folder)
    numbered: dict[str, dict[int, Path]] = {}
    left_out: dict[str, int] = {}
    extra: list[Path] = []
    for path in images_below(root):
        key = _written(path.relative_to(root).parts[0])
        number = _NUMBERED.fullmatch(path.name)
        if key in _LEFT_OUT:
            left_out[key] = left_out.get(key, 0) + 1
        elif number is None or path.parent.parent != root:
            extra.append(path)
        else:
            _add(numbered.setdefault(key, {}), int(number[1]), path)
    labels = labels_by_name(numbered, class_names, str(root), aliases=_CLASSES)
    items = [
        Item(path, f"{key}/image_{number:04}.jpg", labels[key], key)
        for key in numbered
        for number, path in _whole(numbered[key], root / key)
    ]
    notes = [f"{key} is not a class: {count} images left out" for key, count in left_out.items()]
    if extra:
        notes.append(f"{len(extra)} images not in the release were left out: {extra[0]}, …")
    return Listing(tuple(sorted(items, key=lambda item: item.name)), tuple(notes))


def _root(folder: Path) -> Path:
    """The folder that contains the class folders, wherever the copy has it."""
    for where in _PLACES:
        found = place(folder, f"{where}{_ROOT}")
        if found.is_dir():
            return found
    raise runtime.MissingDataError(f"{folder} has no folder {_ROOT}; unpack {_ROOT}.tar.gz there")


def _written(folder: str) -> str:
    """A class folder's name as the release writes it."""
    return _WRITTEN.get(folder.casefold(), folder.casefold())


def _add(images: dict[int, Path], number: int, path: Path) -> None:
    if number in images:
        raise SettingsError(f"{images[number]} and {path} are the same image; keep one")
    images[number] = path


def _whole(images: dict[int, Path], where: Path) -> list[tuple[int, Path]]:
    """Return the images in order. Raises MissingDataError if a number is missing."""
    gone = sorted(set(range(1, max(images) + 1)) - set(images))
    if gone:
        raise runtime.MissingDataError(
            f"{where} ends with image {max(images)} and lacks {len(gone)} before it: "
            f"image_{gone[0]:04}.jpg, …; the archive was cut short or files were removed, get it "
            "again"
        )
    return sorted(images.items())
