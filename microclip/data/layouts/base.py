"""What all layouts share: the list they give, and the ways they name classes and miss files."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Protocol, cast

from PIL import Image

from microclip import runtime
from microclip.settings import HubRoute, SettingsError
from microclip.text.class_keys import letters

SHOWN = 3  # names in an error
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"})


@dataclass(frozen=True)
class Item:
    """An image of a dataset as its publisher has it."""

    path: Path  # of a file that Pillow reads
    name: str  # what splits sort by and list: with "/", the same on every machine
    label: int
    key: str  # what the source calls the class: a folder, an id, a breed
    part: str = ""  # the publisher's own split: "train", "val", "test"; "" if there is none


@dataclass(frozen=True)
class Listing:
    """All images of a dataset, in the order of their names, and what was odd about the files."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()  # extra files that were left out, names that were read otherwise


class Layout(Protocol):
    """A module of this package.

    `NEEDS` are paths or glob patterns below the dataset's folder that must be there (each matched
    by at least one path, "a|b" by either); `read` lists the images. A layout whose images are no
    files (parquet, shards, videos) writes them below `folder / "images"` first, whole or not at
    all, and only those that are not there yet.
    """

    NEEDS: tuple[str, ...]

    def read(self, folder: Path, class_names: Sequence[str], route: HubRoute | None, /) -> Listing:
        """Return the images below `folder`; `route` tells how a hub's copy names its columns.

        Raises:
            MissingDataError: a file or an image that a list names is not there.
            SettingsError: files that contradict each other or the class list.
        """
        ...


def load_layout(name: str) -> Layout:
    """Return the module of a layout. Raises SettingsError if there is none."""
    if not (Path(__file__).parent / f"{name}.py").is_file() or name in ("base", "__init__"):
        names = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))
        raise SettingsError(
            f"unknown layout {name!r}; known: {', '.join(n for n in names if n != 'base')}"
        )
    return cast(Layout, importlib.import_module(f"microclip.data.layouts.{name}"))


def lacking(folder: Path, needs: Sequence[str]) -> list[str]:
    """Return the needed paths or patterns that nothing below `folder` matches, in any case."""
    return [
        need
        for need in needs
        if all(next(folder.glob(_in_any_case(one)), None) is None for one in need.split("|"))
    ]


def _in_any_case(pattern: str) -> str:
    """Return a glob pattern that upper and lower letters match; one with brackets stays."""
    if "[" in pattern:
        return pattern
    return re.sub("[A-Za-z]", lambda found: f"[{found[0].lower()}{found[0].upper()}]", pattern)


def lines(path: Path) -> list[str]:
    """Return the stripped, non-empty lines of a list.

    Raises: MissingDataError if it is gone, or is no text.
    """
    if not path.is_file():
        raise runtime.MissingDataError(f"{path} is not there; get the dataset again")
    try:
        text = path.read_text(encoding="utf-8-sig", errors="strict")
    except UnicodeDecodeError as error:
        raise runtime.MissingDataError(
            f"{path} is no text (byte {error.start}); get the dataset again"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def existing(items: Iterable[Item], what: str) -> tuple[Item, ...]:
    """Return the items. Raises MissingDataError, naming some, if their files are not all there."""
    found = tuple(items)
    gone = [item for item in found if not item.path.is_file()]
    if gone:
        shown = ", ".join(str(item.path) for item in gone[:SHOWN])
        more = ", …" if len(gone) > SHOWN else ""
        raise runtime.MissingDataError(
            f"{len(gone)} of {len(found)} images of {what} are not there: {shown}{more}; the "
            "archive was cut or files were removed, get it again"
        )
    return found


def images_below(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted by their names; hidden ones are left out."""
    if not folder.is_dir():
        raise runtime.MissingDataError(f"{folder} is not there; get the dataset again")
    return [
        path
        for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def any_case(folder: Path, name: str) -> Path:
    """Return the entry `name` of a folder, in whatever case it is written; itself if none is."""
    if (folder / name).exists() or not folder.is_dir():
        return folder / name
    same = [path for path in folder.iterdir() if path.name.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else folder / name


def place(folder: Path, name: str) -> Path:
    """Return `folder / name`, each part of `name` (with "/") in whatever case it is written."""
    return reduce(any_case, name.split("/"), folder)


def labels_by_name(
    keys: Iterable[str],
    class_names: Sequence[str],
    what: str,
    *,
    aliases: Mapping[str, str] | None = None,
    spell: Callable[[str], str] = str,
) -> dict[str, int]:
    """Return the label of each key (folder, breed, species) by its name, never by its place.

    A key is looked up as `aliases` say, else as `spell` writes it; case, spaces and signs do not
    count unless two classes differ in nothing else.

    Raises: SettingsError for a key of no class, two keys of one class, or a class without a key.
    """
    labels: dict[str, int] = {}
    unknown = []
    for key in sorted(set(keys)):
        label = _label_of((aliases or {}).get(key, spell(key)), class_names)
        if label is None:
            unknown.append(key)
        else:
            labels[key] = label
    if unknown:
        shown = ", ".join(map(repr, unknown[:SHOWN]))
        raise SettingsError(
            f"{len(unknown)} classes of {what} are not in the class list: {shown}; remove them, or "
            "see that this is the dataset it should be"
        )
    owners: dict[int, str] = {}
    for key, label in labels.items():
        if label in owners:
            raise SettingsError(
                f"{owners[label]!r} and {key!r} of {what} are both {class_names[label]!r}; keep one"
            )
        owners[label] = key
    absent = [name for label, name in enumerate(class_names) if label not in owners]
    if absent:
        shown = ", ".join(map(repr, absent[:SHOWN]))
        raise SettingsError(
            f"{what} has {len(owners)} of {len(class_names)} classes; {len(absent)} are missing: "
            f"{shown}; get the dataset again"
        )
    return labels


def check_order(official: Sequence[str], class_names: Sequence[str], what: str) -> None:
    """Hold the publisher's own list of names, in order of its ids, against ours.

    Raises: SettingsError naming the first that differs by more than case and signs.
    """
    if len(official) != len(class_names):
        raise SettingsError(f"{what} lists {len(official)} classes, ours has {len(class_names)}")
    for label, (theirs, ours) in enumerate(zip(official, class_names, strict=True)):
        if letters(theirs) != letters(ours):
            raise SettingsError(
                f"class {label} is {theirs!r} in {what} and {ours!r} in our list; labels would be "
                "swapped, so this is refused: see that the file is the publisher's"
            )


def _label_of(name: str, class_names: Sequence[str]) -> int | None:
    """Return the one class with this name: as it is written, else by its letters and digits."""
    for fold in (str, lambda text: re.sub("[ _/-]", "-", text), letters):
        same = [label for label, own in enumerate(class_names) if fold(own) == fold(name)]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def save_image(image: Image.Image, path: Path) -> None:
    """Write a decoded image without loss, whole or not at all."""
    with runtime.atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
