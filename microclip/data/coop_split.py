"""CoOp's `split_zhou_*.json`: which images train and which are tested, by the tails of their names.

The file is a mapping of `train`, `val` and `test` to lists of [path, label, class name]. Its labels
are numbered in another order than ours for some datasets and its names are worded otherwise, so
that only its paths are used; that its classes are ours, one to one, is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from microclip import runtime
from microclip.data.layouts.base import Item
from microclip.settings import SettingsError

_PARTS = ("train", "val", "test")
_SHOWN = 3

Entries = list[tuple[str, str, Any]]  # part, path, label


def read_coop_split(
    path: Path, items: Sequence[Item]
) -> tuple[list[Item], list[Item], tuple[str, ...]]:
    """Return the images of `train` and of `test`, and notes; `val` is left unused.

    Raises:
        MissingDataError: images that the file lists are not there.
        SettingsError: the file is damaged, lists an image twice, or has other classes.
    """
    entries = _entries(path)
    find = _Finder(items)
    found: dict[str, tuple[str, Any, Item]] = {}  # by our name: part, their label
    gone = []
    for part, listed, label in entries:
        item = find(listed)
        if item is None:
            gone.append(listed)
        elif item.name in found:
            raise SettingsError(
                f"{path} lists {listed!r} in {part!r} and in {found[item.name][0]!r}; "
                "get the file again"
            )
        else:
            found[item.name] = (part, label, item)
    if gone:
        shown = ", ".join(gone[:_SHOWN]) + (", …" if len(gone) > _SHOWN else "")
        raise runtime.MissingDataError(
            f"{len(gone)} of {len(entries)} images that {path} lists are not there: {shown}; "
            "get the images again, or see that the file is this dataset's"
        )
    _check_classes(path, found)
    split = {part: [item for own, _, item in found.values() if own == part] for part in _PARTS}
    for part in ("train", "test"):
        if not split[part]:
            raise SettingsError(f"{path} lists no image in {part!r}; get the file again")
    notes = [f"{path.name} of CoOp; {len(split['val'])} images of its val are unused"]
    if len(found) < len(items):
        notes.append(f"{len(items) - len(found)} images that {path.name} does not list are unused")
    return split["train"], split["test"], tuple(notes)


def _entries(path: Path) -> Entries:
    """Return all lines of the file. Raises SettingsError if it is not CoOp's kind of JSON."""
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
        return [
            (part, str(listed).replace("\\", "/"), label)
            for part in _PARTS
            for listed, label, *_ in said[part]
        ]
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} is not one of CoOp's files, or was cut ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); expected train, val and test, lists of "
            "[path, label, class name]; get it again"
        ) from error


class _Finder:
    """Finds an image by the tail of its name: as written, else by its file name alone."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Know the images; a tail that several share finds none of them."""
        self._names = {item.name: item for item in items}
        self._tails: dict[str, Item | None] = {}
        self._stems: dict[str, Item | None] = {}
        for item in items:
            for tail in _tails(item.name):
                self._tails[tail] = None if tail in self._tails else item
            stem = PurePosixPath(item.name).stem.casefold()
            self._stems[stem] = None if stem in self._stems else item

    def __call__(self, listed: str) -> Item | None:
        """Return the one image that a listed path can mean, or None.

        The file's name alone serves where copies keep their folders or file types otherwise
        (frames of videos); that classes then agree is checked by the caller.
        """
        whole = next((self._names[tail] for tail in _tails(listed) if tail in self._names), None)
        if whole is not None:
            return whole
        known = self._tails.get(listed)
        return known or self._stems.get(PurePosixPath(listed).stem.casefold())


def _tails(name: str) -> Iterator[str]:
    """Yield "a/b/c", "b/c", "c"."""
    parts = name.split("/")
    yield from ("/".join(parts[start:]) for start in range(len(parts)))


def _check_classes(path: Path, found: dict[str, tuple[str, Any, Item]]) -> None:
    """Refuse a file that puts one of our classes into two of its own, or two into one."""
    theirs: dict[int, tuple[Any, str]] = {}
    ours: dict[Any, tuple[int, str]] = {}
    for name, (_, label, item) in found.items():
        first, other = theirs.setdefault(item.label, (label, name))
        own, same = ours.setdefault(label, (item.label, name))
        if first != label or own != item.label:
            raise SettingsError(
                f"{path} has {name} in class {label}, and {other if first != label else same} in "
                f"class {first}: its classes are not ours ({item.key!r}); get the file again"
            )
