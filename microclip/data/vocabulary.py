"""The classes of a dataset in label order, from class lists, class folders and lists of labels.

Label 3 is the fourth name, everywhere. Folders are matched with classes by name, never by position.
"""

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
from microclip.settings.base import MissingFileError, SettingsError
from microclip.settings.datasets import DatasetSettings, FolderSource, IconSource, PublicSource

Layout = Literal["parts", "classes", "labels"]
PARTS = ("train", "test")


def source_folder(source: FolderSource) -> Path:
    """A source's folder, relative to the working directory; ~ is the home directory."""
    return source.folder.expanduser()


def beside(source: FolderSource, path: Path) -> Path:
    """A file that a source names: the path itself, or else below the source's folder."""
    named = path.expanduser()
    below = source_folder(source) / named
    return named if named.exists() or not below.exists() else below


def layout_of(source: FolderSource) -> Layout:
    """How to read a folder: by a list of labels, as `train/` and `test/`, or as class folders."""
    if source.labels is not None:
        return "labels"
    there = {path.name for path in subfolders(source_folder(source))}
    # A class may be called "train", beside "boat" and "plane".
    return "parts" if set(PARTS) <= there or (there and there < set(PARTS)) else "classes"


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def label_of_folder(folder_name: str, class_names: Sequence[str]) -> int | None:
    """Label of the class that a folder is named for, or None.

    The folder's name is the class's name, but spaces, underscores, hyphens and slashes are
    interchangeable: a folder's name cannot contain a slash and some copies have no spaces. `F-A-18`
    is "F/A-18", `pink_primrose` is "pink primrose". If classes differ only in these characters, the
    folder must match exactly.
    """
    if folder_name in class_names:
        return class_names.index(folder_name)
    wanted = one_separator(folder_name)
    same = [label for label, name in enumerate(class_names) if one_separator(name) == wanted]
    return same[0] if len(same) == 1 else None


def one_separator(name: str) -> str:
    """A name with hyphens in place of spaces, underscores and slashes."""
    return re.sub("[ _/-]", "-", name)


_COLUMNS = ("file", "class")
_SHOWN = 3  # faulty rows named in an error


@dataclass(frozen=True)
class LabelEntry:
    """A row of a list of labels: an image and its class."""

    line: int
    file: str  # below the folder of images
    class_name: str


def read_label_list(path: Path) -> tuple[LabelEntry, ...]:
    """Read a list of labels; columns other than `file` and `class` are ignored.

    Raises:
        SettingsError: no such file, not text, no such columns, no row, or an empty cell.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            fields = tuple(reader.fieldnames or ())
            if not set(_COLUMNS) <= set(fields):
                got = ", ".join(fields) or "none"
                raise SettingsError(
                    f"line 1 of {path}: expected the columns file,class; got {got}; rename them"
                )
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise SettingsError(
            f"list of labels {path} cannot be read ({error.strerror}); correct its name"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(
            f"list of labels {path} is not a CSV file in UTF-8 ({error}); save it as one"
        ) from None
    entries = tuple(
        LabelEntry(line, (row["file"] or "").strip(), (row["class"] or "").strip())
        for line, row in rows
    )
    gaps = [f"line {e.line}: an empty cell" for e in entries if not e.file or not e.class_name]
    _refuse(path, gaps)
    if not entries:
        raise SettingsError(f"list of labels {path} has no row; write file,class lines")
    return entries


def match_label_list(
    path: Path, folder: Path, images: Sequence[Path], class_names: Sequence[str]
) -> dict[Path, int]:
    """Return the labels of the images below `folder` that the list `path` names.

    Classes may be spelled as in `label_of_folder`.

    Raises:
        SettingsError: see `read_label_list`; also for an unknown class, a file that is not among
            `images`, or a file listed twice, with their line numbers.
    """
    known = set(images)
    line_of: dict[Path, int] = {}
    labels: dict[Path, int] = {}
    faults = []
    for entry in read_label_list(path):
        image = folder / os.path.normpath(entry.file.replace("\\", os.sep))
        label = label_of_folder(entry.class_name, class_names)
        if image in line_of:
            faults.append(f"line {entry.line}: {entry.file!r} is already on line {line_of[image]}")
        elif image not in known:
            faults.append(f"line {entry.line}: {entry.file!r} is not an image in {folder}")
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
CLASS_LISTS = "resources/classes"  # <dataset>.txt: one name per line; prompts drop a final "_"
MAX_CHARACTERS = 200  # of a name; the text tower reads about 70 words, some of them the prompt's
_NOT_PRINTED = ("Cc", "Cs", "Co", "Zl", "Zp")  # Unicode's control characters and line breaks


@dataclass(frozen=True)
class Vocabulary:
    """Class names in label order, and the file or folder they were read from."""

    class_names: tuple[str, ...]
    where: str
    is_benchmark: bool = False  # a published dataset: each split must have every class

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)


def load_vocabulary(dataset: DatasetSettings) -> Vocabulary:
    """Return the classes of `dataset`.

    For a public dataset, its list in `resources/classes`. For icons, as many lines of
    `resources/icons/<drawings>/classes.txt` as the source asks for. For a folder, the list that its
    source names, else `resources/classes/<dataset>.txt` if the project has it, else the folder's
    own `classes.txt`, else the sorted names of its class folders (below `train/` if it has one) or
    of the classes in its list of labels.

    Raises:
        SettingsError: no class list, too few names, or a name that is listed twice or unusable.
    """
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import class_names  # late: the renderer is a heavy import

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
    """Return `names` as a vocabulary; `lines` are their line numbers in `where`.

    Raises:
        SettingsError: fewer than two names, a name listed twice, or an unusable name.
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
                f"class {name!r} is listed twice in {where} ({units} {seen[name]} and {number}); "
                "labels would be ambiguous: remove one, tell them apart (as 'crane (bird)'), or "
                f"write {name + '_'!r} for one, which prompts read the same"
            )
        seen[name] = number
    return Vocabulary(tuple(names), where)


def check_name(name: str, where: str) -> None:
    """Refuse a class name that is not one line of text; slashes, quotes and emoji are allowed.

    Raises:
        SettingsError: a control character, or more than 200 characters.
    """
    if any(unicodedata.category(sign) in _NOT_PRINTED for sign in name):
        raise SettingsError(
            f"{where}: a class name contains a tab, a line break or another invisible character "
            f"({name[:30]!r}); use plain characters"
        )
    if len(name) > MAX_CHARACTERS:
        raise SettingsError(
            f"{where}: a class name of {len(name)} characters ({name[:30]!r}…), at most "
            f"{MAX_CHARACTERS} are allowed; shorten it, what the class looks like belongs in the "
            "descriptions"
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
            f"no class names for {folder}: expected {folder / CLASS_FILE} (one name per line) or "
            f"folders {place}/<class>; CLIP compares images with names"
        )
    return checked(names, str(place))


def _listed(path: Path, where: str) -> Vocabulary:
    """Read the stripped, non-empty lines of a class list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(
            f"class list {path} does not exist; create it, with one name per line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"class list {path} cannot be read as UTF-8 text ({error}); give a list with one name "
            "per line"
        ) from None
    numbered = [(n, line.strip()) for n, line in enumerate(text.split("\n"), start=1)]
    numbered = [(n, name) for n, name in numbered if name]
    return checked([name for _, name in numbered], where, [n for n, _ in numbered])
