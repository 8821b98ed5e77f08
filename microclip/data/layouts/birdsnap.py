"""Birdsnap as its downloader writes it: photographs by species, three tab-separated lists.

`species.txt` (columns id, common, scientific, dir) names the folders below `images/`; `images.txt`
and `test_images.txt` name photographs in a column `path`. Most of the addresses are dead, so
missing photographs are counted, not refused.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import (
    SHOWN,
    Item,
    Listing,
    images_below,
    labels_by_name,
    lines,
    place,
)
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

ROOT = "birdsnap"
NEEDS = tuple(f"{ROOT}/{name}" for name in ("images", "species.txt", "images.txt"))


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the photographs of `images.txt` that exist; the class is the bird's common name.

    Those in `test_images.txt`, if that list exists, are part "test", all others "train".

    Raises:
        MissingDataError: a list is missing, or all of its photographs are.
        SettingsError: a list without its columns, or species other than ours.
    """
    root = place(folder, ROOT)
    species = list(_rows(place(root, "species.txt"), ("common", "dir")))
    labels = labels_by_name(
        (row["common"] for row in species), class_names, str(root / "species.txt")
    )
    bird_of = {row["dir"].casefold(): row["common"] for row in species}
    listed = {row["path"] for row in _rows(place(root, "images.txt"), ("path",))}
    tests = place(root, "test_images.txt")
    tested = {row["path"] for row in _rows(tests, ("path",))} if tests.is_file() else set()
    names = {
        path.relative_to(place(root, "images")).as_posix(): path
        for path in images_below(place(root, "images"))
    }
    items = []
    for name in sorted(listed & set(names)):
        bird = bird_of.get(name.split("/")[0].casefold())
        if bird is None:
            raise SettingsError(
                f"{name} of images.txt is in a folder that species.txt does not name; get the "
                "lists again"
            )
        part = "test" if name in tested else "train"
        items.append(Item(names[name], name, labels[bird], bird, part))
    if not items:
        raise runtime.MissingDataError(
            f"{root / 'images'} has none of the {len(listed)} photographs of images.txt; get them "
            "with the authors' downloader, or use the hub's copy"
        )
    return Listing(tuple(items), tuple(_notes(items, listed, names, class_names)))


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a list with a header; the last column may contain spaces."""
    text = lines(path)
    reader = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    lacking = [column for column in columns if column not in (reader.fieldnames or ())]
    if lacking:
        raise SettingsError(
            f"{path} has no column {lacking[0]!r}, only {reader.fieldnames}; it is not one of "
            "Birdsnap's lists, get it again"
        )
    for number, row in enumerate(reader, start=2):
        if any(not row[column] for column in columns):
            raise SettingsError(f"line {number} of {path} was cut short; get the list again")
        yield row


def _notes(
    items: Sequence[Item], listed: set[str], names: dict[str, Path], class_names: Sequence[str]
) -> Iterator[str]:
    yield f"{len(items)} of the {len(listed)} photographs of images.txt were found"
    others = len(set(names) - listed)
    if others:
        yield f"{others} images that images.txt does not list were left out"
    for part in ("train", "test"):
        counts = Counter(item.label for item in items if item.part == part)
        empty = [name for label, name in enumerate(class_names) if not counts[label]]
        if counts and empty:
            yield (
                f"{len(empty)} species have no photograph in the official {part} part: "
                f"{', '.join(empty[:SHOWN])}"
            )
