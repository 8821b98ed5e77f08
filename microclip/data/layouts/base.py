"""What all layouts share: the list they give, and the ways they name classes and miss files."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from microclip import runtime
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute
from microclip.text.prompts import letters

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


def inside(folder: Path, *names: str) -> Path:
    """Return a path below a folder, each of its names in whatever case it is written."""
    for name in names:
        folder = any_case(folder, name)
    return folder


def part_of_each(lists: Mapping[str, Sequence[str]], where: Path) -> dict[str, str]:
    """Return the part of each image, in order of names, from the images of each part.

    Raises: SettingsError for an image that stands twice.
    """
    parts: dict[str, str] = {}
    for part, names in lists.items():
        for name in names:
            if name in parts:
                raise SettingsError(
                    f"{name} is listed twice below {where}: in {parts[name]} and in {part}; "
                    "get the dataset again"
                )
            parts[name] = part
    return dict(sorted(parts.items()))


def check_same(names: Iterable[str], others: Iterable[str], *, of: str, other: Path) -> None:
    """Hold what was read against another list of the same images: one that was cut is found.

    Raises: MissingDataError with how many differ, and some of them.
    """
    differ = sorted(set(names) ^ set(others))
    if differ:
        raise runtime.MissingDataError(
            f"{of} and {other} differ in {_some(differ)}; one was cut or changed, "
            "get the dataset again"
        )


def labels_of_ids(ids: Iterable[int], class_names: Sequence[str], where: Path) -> list[int]:
    """Return labels from 0 for the publisher's ids from 1.

    Raises: SettingsError for an id of no class, or a class that no id is of.
    """
    given = [int(one) for one in ids]
    wrong = sorted(set(given) - set(range(1, len(class_names) + 1)))
    absent = sorted(set(range(1, len(class_names) + 1)) - set(given))
    if wrong or absent:
        raise SettingsError(
            f"{where} has {len(set(given))} class ids, expected 1 to {len(class_names)}: "
            + (f"{_some(wrong)} not in the class list" if wrong else f"{_some(absent)} missing")
            + "; see that the file is the publisher's"
        )
    return [one - 1 for one in given]


@dataclass(frozen=True)
class ImageFiles:
    """The image files below a folder, to be found by name in whatever case they are written."""

    folder: Path
    by_name: Mapping[str, Path]  # name below the folder, casefolded -> file

    @classmethod
    def below(cls, folder: Path) -> ImageFiles:
        """List a folder. Raises MissingDataError if it is not there."""
        return cls(
            folder,
            {path.relative_to(folder).as_posix().casefold(): path for path in images_below(folder)},
        )

    def path(self, name: str) -> Path:
        """Return the file of a name, or where it should be."""
        exact = self.folder / name
        return exact if exact.is_file() else self.by_name.get(name.casefold(), exact)


def listing(items: Iterable[Item], files: Sequence[ImageFiles], what: str) -> Listing:
    """Return the listed images in order of names; a note tells of those that no list names.

    Raises: MissingDataError, naming some, if files are not there.
    """
    found = existing(sorted(items, key=lambda item: item.name), what)
    used = {item.path for item in found}
    extra = [path for each in files for path in each.by_name.values() if path not in used]
    if not extra:
        return Listing(found)
    return Listing(found, (f"images that no list names were left out: {_some(extra)}",))


def _some(values: Sequence[object]) -> str:
    """Return how many there are, and the first of them."""
    shown = ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")
    return f"{len(values)} ({shown})"


IMAGES = "images"  # below the dataset's folder
_STARTS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)
_NO_IMAGE = ".bin"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def image_suffix(content: bytes) -> str:
    """Return the suffix of an image file by its first bytes, ".bin" if they are of none.

    What is no image is written all the same, under its own name, so that whoever decodes it can
    name it.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _STARTS if content.startswith(start)), _NO_IMAGE)


def images_written(folder: Path) -> dict[str, Path]:
    """Return the images that are in a folder already, by their names without suffix."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            Path(entry.name).stem: folder / entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.stat().st_size
        }


def write_image(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all; its folder must be there.

    Raises: ResourceError if the disk or the quota is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise runtime.ResourceError(
            f"no room for {path} ({error.strerror}, {shutil.disk_usage(path.parent).free} bytes "
            "free); free some and run it again, the images written so far are kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG file's bytes: nothing is lost, little time is spent on size."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def image_name(index: int) -> str:
    """Return the file name, without suffix, of the n-th image of a file."""
    return f"{index:07}"


def parts_note(ignored: Iterable[str], parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line on the parts of a hub's copy that the card does not use, if there are any."""
    names = sorted(set(ignored))
    if not names:
        return ()
    return (f"parts of the copy left out: {', '.join(names)}; used: {', '.join(parts)}",)


def matlab_variable(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Return a variable as an array of one dimension; a struct's fields are its dtype's names.

    Raises: MissingDataError if the file is gone or cut, or has no such variable.
    """
    from scipy.io import loadmat  # a second of imports

    if not path.is_file():
        raise runtime.MissingDataError(f"{path} is not there; get the dataset again")
    try:
        found = loadmat(path, squeeze_me=True, variable_names=[name])
    except Exception as error:  # scipy raises whatever the damage leads it to
        raise runtime.MissingDataError(
            f"{path} is damaged or no MATLAB file ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); get the dataset again"
        ) from error
    if name not in found:
        raise runtime.MissingDataError(
            f"{path} holds no {name!r}, so it is damaged or another file; get the dataset again"
        )
    return np.atleast_1d(found[name]).ravel()
