"""What all layouts share: the list of images, labels by class name, and files that may be missing.

Some datasets have their images inside other files (parquet, shards, binaries, videos). Their
layouts write the images out as files with `write_image`. A file gets its name only once it is
whole, so a killed process leaves no half-written image; it is not forced to disk one by one, which
would take minutes for 60,000 small images. An empty file, as a power cut may leave, counts as
missing.
"""

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
from typing import TYPE_CHECKING, Any, Protocol, cast

from microclip import runtime
from microclip.data.vocabulary import one_separator
from microclip.settings.base import SettingsError, cut
from microclip.settings.datasets import HubRoute
from microclip.text.prompts import letters

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 3  # names in an error
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"})


@dataclass(frozen=True)
class Item:
    """One image as its publisher has it."""

    path: Path  # a file that Pillow can read
    name: str  # splits sort and list by it; with "/", the same on every machine
    label: int
    key: str  # what the source calls the class: a folder, an id, a breed
    part: str = ""  # of the publisher's own split: "train", "val", "test"; "" if there is none


@dataclass(frozen=True)
class Listing:
    """All images of a dataset, sorted by name, and what is unusual about the files."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()  # extra files that were left out, names that were corrected


class Layout(Protocol):
    """A module of this package that reads one publisher's layout.

    `NEEDS` are paths or glob patterns below the dataset's folder that must exist (each must match
    at least one path; "a|b" means either); `read` lists the images. A layout whose images are not
    files (parquet, shards, videos) first writes the missing ones below `folder / "images"`.
    """

    NEEDS: tuple[str, ...]

    def read(self, folder: Path, class_names: Sequence[str], route: HubRoute | None, /) -> Listing:
        """List the images below `folder`; `route` says how a hub's copy names its columns.

        Raises:
            MissingDataError: a needed file, or an image that a list names, is missing.
            SettingsError: files contradict each other or the class list.
        """
        ...


def load_layout(name: str) -> Layout:
    """Import the module of a layout. Raises SettingsError if there is none."""
    if not (Path(__file__).parent / f"{name}.py").is_file() or name in ("base", "__init__"):
        names = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))
        raise SettingsError(
            f"unknown layout {name!r}; known: {', '.join(n for n in names if n != 'base')}"
        )
    return cast(Layout, importlib.import_module(f"microclip.data.layouts.{name}"))


def lacking(folder: Path, needs: Sequence[str]) -> list[str]:
    """The needed paths or patterns that nothing below `folder` matches, ignoring case."""
    return [
        need
        for need in needs
        if all(next(folder.glob(_in_any_case(one)), None) is None for one in need.split("|"))
    ]


def _in_any_case(pattern: str) -> str:
    """Make a glob pattern match upper and lower case; one with brackets stays as it is."""
    if "[" in pattern:
        return pattern
    return re.sub("[A-Za-z]", lambda found: f"[{found[0].lower()}{found[0].upper()}]", pattern)


def lines(path: Path) -> list[str]:
    """Return the stripped, non-empty lines of a list.

    Raises: MissingDataError if the file is missing or not text.
    """
    if not path.is_file():
        raise not_there(path)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="strict")
    except UnicodeDecodeError as error:
        raise runtime.MissingDataError(
            f"{path} is not UTF-8 text (byte {error.start}); get the dataset again"
        ) from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def is_there(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is not an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def existing(items: Iterable[Item], what: str) -> tuple[Item, ...]:
    """Return the items. Raises MissingDataError, which names some, if files are missing."""
    found = tuple(items)
    gone = [item for item in found if not is_there(item.path)]
    if gone:
        shown = ", ".join(str(item.path) for item in gone[:SHOWN])
        more = ", …" if len(gone) > SHOWN else ""
        raise runtime.MissingDataError(
            f"{len(gone)} of {len(found)} images of {what} are missing: {shown}{more}; the "
            "archive was cut short or files were removed, get it again"
        )
    return found


def not_there(path: Path) -> runtime.MissingDataError:
    """The error of a file or a folder that every copy of a dataset has."""
    return runtime.MissingDataError(f"{path} is missing; get the dataset again")


def unexpected_line(path: Path, line: str, expected: str) -> runtime.MissingDataError:
    """The error of a publisher's list with a line that it cannot have."""
    return runtime.MissingDataError(
        f"{path} has a line {cut(line)!r}, expected {expected}; it was cut short or changed, get "
        "the dataset again"
    )


def listed_twice(path: Path, name: str) -> SettingsError:
    """The error of a list that has an image in two lines."""
    return SettingsError(f"{path} lists {cut(name)} twice; get the dataset again")


def images_below(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by name, without hidden ones."""
    if not folder.is_dir():
        raise not_there(folder)
    return [
        path
        for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def any_case(folder: Path, name: str) -> Path:
    """Path of a folder's entry `name`, ignoring case; `folder / name` if there is none."""
    try:
        if (folder / name).exists() or not folder.is_dir():
            return folder / name
    except OSError:  # a name that is too long for a file
        return folder / name
    same = [path for path in folder.iterdir() if path.name.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else folder / name


def place(folder: Path, name: str) -> Path:
    """Path of `name`, which may contain "/", below `folder`, ignoring the case of each part."""
    return reduce(any_case, name.split("/"), folder)


def labels_by_name(
    keys: Iterable[str],
    class_names: Sequence[str],
    what: str,
    *,
    aliases: Mapping[str, str] | None = None,
    spell: Callable[[str], str] = str,
) -> dict[str, int]:
    """Return the label of each key (folder, breed, species) by its name, never by its position.

    A key is looked up under its alias, else as `spell` writes it; case, spaces and punctuation are
    ignored unless two classes differ in nothing else.

    Raises: SettingsError for a key that is not a class, two keys of one class, or a class without
        a key.
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
            "check that this is the right dataset"
        )
    _check_one_key_per_class(labels, class_names, what)
    return labels


def _check_one_key_per_class(
    labels: Mapping[str, int], class_names: Sequence[str], what: str
) -> None:
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


def check_order(official: Sequence[str], class_names: Sequence[str], what: str) -> None:
    """Check that the publisher's list of names, in the order of its ids, is ours.

    Raises: SettingsError for the first name that differs by more than case and punctuation.
    """
    if len(official) != len(class_names):
        raise SettingsError(f"{what} lists {len(official)} classes, ours {len(class_names)}")
    for label, (theirs, ours) in enumerate(zip(official, class_names, strict=True)):
        if letters(theirs) != letters(ours):
            raise SettingsError(
                f"class {label} is {theirs!r} in {what} but {ours!r} in our list; labels would be "
                "swapped, so this is refused: check that the file is the publisher's"
            )


def _label_of(name: str, class_names: Sequence[str]) -> int | None:
    """Label of the one class with this name: as written, by any separator, or by letters alone."""
    for fold in (str, one_separator, letters):
        wanted = fold(name)
        same = [label for label, own in enumerate(class_names) if fold(own) == wanted]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def part_of_each(lists: Mapping[str, Sequence[str]], where: Path) -> dict[str, str]:
    """Map each image to its part, sorted by name.

    Raises: SettingsError for an image that is listed twice.
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
    """Compare a list with another list of the same images, to find one that was cut short.

    Raises: MissingDataError, with the number of differences and the first few.
    """
    differ = sorted(set(names) ^ set(others))
    if differ:
        raise runtime.MissingDataError(
            f"{of} and {other} differ in {_some(differ)}; one was cut short or changed, "
            "get the dataset again"
        )


def whole_numbers(values: Iterable[Any], where: Path) -> list[int]:
    """Integers that some files hold as floats or texts. Raises MissingDataError for others."""
    try:
        return [int(one) for one in values]
    except ValueError as error:
        raise runtime.MissingDataError(
            f"{where} is damaged: {str(error):.80}; get the dataset again"
        ) from error


def labels_of_ids(ids: Iterable[Any], class_names: Sequence[str], where: Path) -> list[int]:
    """Turn the publisher's ids, from 1, into labels, from 0.

    Raises:
        MissingDataError: an id is no number.
        SettingsError: an id has no class, or a class has no id.
    """
    given = whole_numbers(ids, where)
    wrong = sorted(set(given) - set(range(1, len(class_names) + 1)))
    absent = sorted(set(range(1, len(class_names) + 1)) - set(given))
    if wrong or absent:
        raise SettingsError(
            f"{where} has {len(set(given))} class ids, expected 1 to {len(class_names)}: "
            + (f"{_some(wrong)} not in the class list" if wrong else f"{_some(absent)} missing")
            + "; check that the file is the publisher's"
        )
    return [one - 1 for one in given]


@dataclass(frozen=True)
class ImageFiles:
    """The image files below a folder, found by name ignoring case."""

    folder: Path
    by_name: Mapping[str, Path]  # name below the folder, casefolded -> file

    @classmethod
    def below(cls, folder: Path) -> ImageFiles:
        """List a folder. Raises MissingDataError if it is missing."""
        return cls(
            folder,
            {path.relative_to(folder).as_posix().casefold(): path for path in images_below(folder)},
        )

    def path(self, name: str) -> Path:
        """The file with this name, or the path where it should be."""
        exact = self.folder / name
        return exact if is_there(exact) else self.by_name.get(name.casefold(), exact)


def listing(items: Iterable[Item], files: Sequence[ImageFiles], what: str) -> Listing:
    """Sort the listed images by name; a note counts the images that no list names.

    Raises: MissingDataError, which names some, if files are missing.
    """
    found = existing(sorted(items, key=lambda item: item.name), what)
    used = {item.path for item in found}
    extra = [path for each in files for path in each.by_name.values() if path not in used]
    if not extra:
        return Listing(found)
    return Listing(found, (f"images that are not in any list were left out: {_some(extra)}",))


def _some(values: Sequence[object]) -> str:
    """Their number, and the first few."""
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
    """Suffix of an image file by its first bytes, ".bin" for other bytes.

    Other bytes are written out as well, so that the file can be named when decoding it fails.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _STARTS if content.startswith(start)), _NO_IMAGE)


def images_written(folder: Path) -> dict[str, Path]:
    """Images that are already in a folder, by name without suffix."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            Path(entry.name).stem: folder / entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.stat().st_size
        }


def write_image(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, without fsync; its folder must exist.

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
            "free); free some space and run it again, the images written so far are kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG: lossless, and fast rather than small."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def image_name(index: int) -> str:
    """File name, without suffix, of the n-th image in a container file."""
    return f"{index:07}"


def parts_note(ignored: Iterable[str], parts: Mapping[str, str]) -> tuple[str, ...]:
    """A note on the parts of a hub's copy that the card does not use, if there are any."""
    names = sorted(set(ignored))
    if not names:
        return ()
    return (f"parts of the copy left out: {', '.join(names)}; used: {', '.join(parts)}",)
