"""Food-101: one folder of images per class, and each part as a text list and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import (
    ImageFiles,
    Item,
    Listing,
    check_order,
    check_same,
    labels_by_name,
    lines,
    listing,
    part_of_each,
    place,
)
from microclip.settings.base import loads
from microclip.settings.datasets import HubRoute

_ROOT = "food-101"
_PARTS = ("train", "test")
NEEDS = (
    f"{_ROOT}/images",
    f"{_ROOT}/meta/classes.txt",
    *(f"{_ROOT}/meta/{part}.*" for part in _PARTS),
)


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of `meta/{train,test}`, as text, JSON or both; a class is a folder.

    Raises:
        MissingDataError: a list or a listed image is missing, or a list was cut short.
        SettingsError: classes other than ours or in another order, or an image in two parts.
    """
    root = place(folder, _ROOT)
    meta = place(root, "meta")
    classes = place(meta, "classes.txt")
    check_order(lines(classes), class_names, str(classes))
    parts = part_of_each({part: _images(meta, part) for part in _PARTS}, meta)
    labels = labels_by_name((name.split("/")[0] for name in parts), class_names, str(meta))
    images = ImageFiles.below(place(root, "images"))
    return listing(
        (
            Item(images.path(f"{name}.jpg"), f"{name}.jpg", labels[key], key, part)
            for name, part in parts.items()
            for key in [name.split("/")[0]]
        ),
        [images],
        "food101",
    )


def _images(meta: Path, part: str) -> list[str]:
    """Names of a part's images, such as "apple_pie/1005649"; its two lists must agree."""
    as_text, as_json = place(meta, f"{part}.txt"), place(meta, f"{part}.json")
    if not as_json.is_file():
        return lines(as_text)
    names = _of_json(as_json)
    if as_text.is_file():
        check_same(names, lines(as_text), of=str(as_json), other=as_text)
    return names


def _of_json(path: Path) -> list[str]:
    try:
        classes = loads(path.read_bytes())
        return [name for names in classes.values() for name in map(_text, names)]
    except (ValueError, AttributeError, TypeError) as error:
        raise runtime.MissingDataError(
            f"{path} is damaged ({' '.join(str(error).split())}); get the dataset again"
        ) from None


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"expected image names, got {name!r}")
    return name
