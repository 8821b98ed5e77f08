"""The classes of a dataset, in label order: label 3 is the fourth name, everywhere."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from microclip import paths
from microclip.settings.base import SettingsError
from microclip.settings.datasets import DatasetSettings, FolderSource, IconSource, PublicSource

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


_COLUMNS = ("file", "class")
_SHOWN = 3  # faults in an error


@dataclass(frozen=True)
class LabelEntry:
    """A row: which image is of which class."""

    line: int
    file: str  # below the folder of images
    class_name: str


def read_label_list(path: Path) -> tuple[LabelEntry, ...]:
    """Return the rows of a list of labels; columns beside `file` and `class` are not looked at.

    Raises:
        SettingsError: no such file, no text, no such columns, no row, or a row with a gap.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            fields = tuple(reader.fieldnames or ())
            if not set(_COLUMNS) <= set(fields):
                got = ", ".join(fields) or "none"
                raise SettingsError(
                    f"line 1 of {path}: expected the columns file,class; got {got}; name them so"
                )
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise SettingsError(
            f"list of labels {path} cannot be read ({error.strerror}); correct its name"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(
            f"list of labels {path} is no CSV in UTF-8 ({error}); save it as such"
        ) from None
    entries = tuple(
        LabelEntry(line, (row["file"] or "").strip(), (row["class"] or "").strip())
        for line, row in rows
    )
    _refuse(path, [f"line {e.line}: a gap" for e in entries if not e.file or not e.class_name])
    if not entries:
        raise SettingsError(f"list of labels {path} has no row; write file,class lines")
    return entries


def match_label_list(
    path: Path, folder: Path, images: Sequence[Path], class_names: Sequence[str]
) -> dict[Path, int]:
    """Return the labels of the images below `folder` that the list `path` names.

    Classes may be written as `label_of_folder` says.

    Raises:
        SettingsError: see `read`; an unknown class, a file that is none of `images`, or one that
            stands twice, with their lines.
    """
    known = set(images)
    line_of: dict[Path, int] = {}
    labels: dict[Path, int] = {}
    faults = []
    for entry in read_label_list(path):
        image = folder / os.path.normpath(entry.file.replace("\\", os.sep))
        label = label_of_folder(entry.class_name, class_names)
        if image in line_of:
            faults.append(
                f"line {entry.line}: {entry.file!r} stands on line {line_of[image]} already"
            )
        elif image not in known:
            faults.append(f"line {entry.line}: {entry.file!r} is no image of {folder}")
        elif label is None:
            faults.append(f"line {entry.line}: unknown class {entry.class_name!r}")
        else:
            labels[image] = label
        line_of.setdefault(image, entry.line)
    _refuse(path, faults)
    return labels


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        more = ", …" if len(faults) > _SHOWN else ""
        raise SettingsError(
            f"{len(faults)} rows of {path} cannot be used: {'; '.join(faults[:_SHOWN])}{more}; "
            "correct them, nothing was started"
        )


CLASS_FILE = "classes.txt"
CLASS_LISTS = "resources/classes"  # <dataset>.txt: a name a line; "_" at the end is not read out
MAX_CHARACTERS = 200  # of a name; the text tower reads some 70 words, and a prompt has its own
_NOT_PRINTED = ("Cc", "Cs", "Co", "Zl", "Zp")  # Unicode's control characters and line breaks


@dataclass(frozen=True)
class Vocabulary:
    """Class names in label order, and the file or folder they were read from."""

    class_names: tuple[str, ...]
    where: str
    is_benchmark: bool = False  # a known dataset: each split must have every class

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)


def load_vocabulary(dataset: DatasetSettings) -> Vocabulary:
    """Return the classes of `dataset`.

    A public dataset: its list in `resources/classes`. Icons: as many lines of
    `resources/icons/<drawings>/classes.txt` as the source asks for. A folder: the list that its
    source names, else `resources/classes/<dataset>.txt` if the project has it, else the folder's
    own `classes.txt`, else the sorted names of its class folders (below `train/` if it has that)
    or of its list of labels.

    Raises:
        SettingsError: no class list, fewer names than asked for, or a name that stands twice or
            cannot be used.
    """
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import class_names  # the renderer chooses the classes

            names = class_names(source.drawings, source.classes, source.seed)
            return checked(names, f"resources/icons/{source.drawings}/{CLASS_FILE}")
        case PublicSource() as source:
            listed = f"{CLASS_LISTS}/{source.dataset}.txt"
            found = _listed(paths.project_root() / listed, listed)
            return replace(found, is_benchmark=True)
        case FolderSource() as source:
            listed = f"{CLASS_LISTS}/{dataset.name}.txt"
            if source.classes is None and (paths.project_root() / listed).is_file():
                found = _listed(paths.project_root() / listed, listed)
                return replace(found, is_benchmark=True)
            return _folder_vocabulary(source)


def checked(names: Sequence[str], where: str, lines: Sequence[int] = ()) -> Vocabulary:
    """Return `names` as a vocabulary; `lines` are where in `where` they stand.

    Raises:
        SettingsError: fewer than two names, a name that stands twice, or one that no text can hold.
    """
    unit, units = ("line", "lines") if lines else ("entry", "entries")
    numbered = list(zip(lines or range(1, len(names) + 1), names, strict=True))
    if len(names) < 2:
        raise SettingsError(f"expected at least 2 classes, got {len(names)} in {where}; add names")
    seen: dict[str, int] = {}
    for number, name in numbered:
        check_name(name, f"{unit} {number} of {where}")
        if name in seen:
            raise SettingsError(
                f"class {name!r} stands twice in {where} ({units} {seen[name]} and {number}); "
                "labels would be ambiguous: remove one, tell them apart (as 'crane (bird)'), or "
                f"write {name + '_'!r} for one, which is read the same"
            )
        seen[name] = number
    return Vocabulary(tuple(names), where)


def check_name(name: str, where: str) -> None:
    """Refuse a class name that is no line of text; slashes, quotes and emoji are data like others.

    Raises:
        SettingsError: a control character, or more than 200 characters.
    """
    if any(unicodedata.category(sign) in _NOT_PRINTED for sign in name):
        raise SettingsError(
            f"{where}: a class name holds a tab, a line break or another sign that is not printed "
            f"({name[:30]!r}); write it in plain signs"
        )
    if len(name) > MAX_CHARACTERS:
        raise SettingsError(
            f"{where}: a class name of {len(name)} characters ({name[:30]!r}…), at most "
            f"{MAX_CHARACTERS} are read; shorten it, what it looks like belongs to descriptions"
        )


def _folder_vocabulary(source: FolderSource) -> Vocabulary:
    folder = source_folder(source)
    if source.classes is not None:
        listed = beside(source, source.classes)
        return _listed(listed, str(listed))
    if (folder / CLASS_FILE).is_file():
        return _listed(folder / CLASS_FILE, str(folder / CLASS_FILE))
    layout = layout_of(source)
    if layout == "labels":
        assert source.labels is not None
        path = beside(source, source.labels)
        return checked(sorted({entry.class_name for entry in read_label_list(path)}), str(path))
    place = folder / PARTS[0] if layout == "parts" else folder
    names = [path.name for path in subfolders(place)]
    if not names:
        raise SettingsError(
            f"no class names for {folder}: expected {folder / CLASS_FILE} (a name a line) or "
            f"folders {place}/<class>; CLIP compares images with names"
        )
    return checked(names, str(place))


def _listed(path: Path, where: str) -> Vocabulary:
    """Return the stripped, non-empty lines of a class list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"class list {path} does not exist; create it, a name a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"class list {path} cannot be read as UTF-8 text ({error}); give one, a name a line"
        ) from None
    numbered = [(n, line.strip()) for n, line in enumerate(text.split("\n"), start=1)]
    numbered = [(n, name) for n, name in numbered if name]
    return checked([name for _, name in numbered], where, [n for n, _ in numbered])
