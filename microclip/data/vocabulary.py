"""The classes of a dataset, in label order: label 3 is the fourth name, everywhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microclip import paths
from microclip.data.folder_layout import (
    PARTS,
    beside,
    layout_of,
    source_folder,
    subfolders,
)
from microclip.data.label_list import read_label_list
from microclip.settings import (
    DatasetSettings,
    FolderSource,
    IconSource,
    PublicSource,
    SettingsError,
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
