"""Class names of one's own: from a list, from the folders that the images lie in, from labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from microclip.data.vocabulary import Vocabulary, check_name
from microclip.runtime import MissingDataError
from microclip.safe_files import refuse_pickle
from microclip.settings import SettingsError
from microclip.text.prompts import readable

_SHOWN = 3  # doubled names listed in an error
_NEEDED = (
    "class names are needed because CLIP compares images with names; give --classes FILE (a name "
    "a line), --classes-from-folders, or --labels FILE"
)


def from_file(path: Path, *, allow_duplicates: bool = False) -> Vocabulary:
    """Return the names of a text file, a line each; blank lines are left out.

    Raises:
        MissingDataError: no such file.
        SettingsError: no text, fewer than two names, doubled names, or one that cannot be used.
    """
    if not path.is_file():
        raise MissingDataError(f"class list {path} is no file; give one with a class name a line")
    refuse_pickle(path, "a text file, a class name a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"class list {path} is no UTF-8 text ({error.reason} at byte {error.start}); save it "
            "as UTF-8"
        ) from None
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    return checked_names(numbered, str(path), allow_duplicates=allow_duplicates)


def from_folders(folder: Path, images: Sequence[Path]) -> Vocabulary:
    """Return the sorted names of the folders just below `folder` that hold images.

    Raises:
        SettingsError: images that lie in no such folder, or fewer than two folders.
    """
    loose = [path for path in images if len(path.relative_to(folder).parts) < 2]
    if loose:
        raise SettingsError(
            f"--classes-from-folders: {len(loose)} images lie in {folder} itself, first "
            f"{loose[0].name}; move them into folders named by class, or give --classes FILE"
        )
    found = sorted({path.relative_to(folder).parts[0] for path in images})
    return checked_names(list(enumerate(found, start=1)), f"the folders of {folder}", unit="folder")


def needed() -> SettingsError:
    """Return what to say where no class names were given."""
    return SettingsError(_NEEDED)


def checked_names(
    numbered: Sequence[tuple[int, str]],
    where: str,
    *,
    allow_duplicates: bool = False,
    unit: str = "line",
) -> Vocabulary:
    """Return names as a vocabulary; `numbered` has each with the number of its line.

    Names that read the same (case, underscores and blanks apart) are one class for CLIP. With
    `allow_duplicates` the later ones get an underscore at their end, which is not read out.

    Raises:
        SettingsError: fewer than two names, doubled names, or one that cannot be used.
    """
    names: list[str] = []
    first: dict[str, int] = {}
    doubled: list[str] = []
    for number, raw in numbered:
        name = unicodedata.normalize("NFC", raw.strip(" \r\ufeff"))
        if not name:
            continue
        _check_name(name, f"{unit} {number} of {where}")
        key = readable(name).casefold()
        if key in first:
            doubled.append(f"{readable(name)!r} ({unit}s {first[key]} and {number})")
            while name in names:
                name += "_"
        first.setdefault(key, number)
        names.append(name)
    if doubled and not allow_duplicates:
        raise SettingsError(_doubled(doubled, where))
    if len(names) < 2:
        raise SettingsError(
            f"expected at least 2 classes, got {len(names)} in {where}; an image is put where its "
            "name fits best, add names"
        )
    return Vocabulary(tuple(names), where)


def _check_name(name: str, where: str) -> None:
    check_name(name, where)
    if not any(unicodedata.category(sign)[0] in "LNS" for sign in name):
        raise SettingsError(
            f"{where}: the class name {name!r} has no letter, digit or symbol; give it a word"
        )


def _doubled(doubled: Sequence[str], where: str) -> str:
    more = ", …" if len(doubled) > _SHOWN else ""
    return (
        f"{len(doubled)} class names stand twice in {where}: {', '.join(doubled[:_SHOWN])}{more}; "
        "an image could be either, so tell them apart (as 'missile (weapon)') or remove one; "
        "--allow-duplicates keeps both, and zero-shot then takes the first alone"
    )
