"""How a folder of one's own images is laid out, and which class a folder's name stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from microclip.settings import FolderSource

Layout = Literal["parts", "classes", "labels"]
PARTS = ("train", "test")


def source_folder(source: FolderSource) -> Path:
    """Return a source's folder; a relative one is of the working directory, ~ is the home."""
    return source.folder.expanduser()


def beside(source: FolderSource, path: Path) -> Path:
    """Return a file that a source names: as it stands, or else below the source's folder."""
    named = path.expanduser()
    below = source_folder(source) / named
    return named if named.exists() or not below.exists() else below


def layout_of(source: FolderSource) -> Layout:
    """Return how a folder is read: a list of labels, `train/` and `test/`, or classes' folders."""
    if source.labels is not None:
        return "labels"
    there = {path.name for path in subfolders(source_folder(source))}
    # A class may be called "train", beside boats and planes.
    return "parts" if set(PARTS) <= there or (there and there < set(PARTS)) else "classes"


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def label_of_folder(folder_name: str, class_names: Sequence[str]) -> int | None:
    """Return the label of the class that a folder stands for, or None if there is none.

    It is named as its class is written, or with any of space, underscore, hyphen and slash for
    another, since no folder's name holds a slash and some copies have no spaces: `F-A-18` is
    "F/A-18", `pink_primrose` is "pink primrose". Of classes that differ in these signs alone, only
    the one that is written so is meant.
    """
    if folder_name in class_names:
        return class_names.index(folder_name)
    wanted = _one_separator(folder_name)
    same = [label for label, name in enumerate(class_names) if _one_separator(name) == wanted]
    return same[0] if len(same) == 1 else None


def _one_separator(name: str) -> str:
    return re.sub("[ _/-]", "-", name)
