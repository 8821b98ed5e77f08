"""The classes of a dataset, in label order: label 3 is the fourth name, everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microclip import paths
from microclip.settings import (
    DatasetSettings,
    FolderSource,
    IconSource,
    PublicSource,
    SettingsError,
)

CLASS_FILE = "classes.txt"
CLASS_LISTS = "resources/classes"  # <dataset>.txt: a name a line; "_" at the end is not read out


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
    `resources/icons/<drawings>/classes.txt` as the source asks for. A folder:
    `resources/classes/<dataset>.txt` if the project has it, else the folder's own `classes.txt`,
    else the sorted names below its `train/`.

    Raises:
        SettingsError: no class list, fewer names than asked for, or a name that stands twice.
    """
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import class_names  # the renderer chooses the classes

            names = class_names(source.drawings, source.classes, source.seed)
            return checked(names, f"resources/icons/{source.drawings}/{CLASS_FILE}")
        case PublicSource() as source:
            listed = f"{CLASS_LISTS}/{source.dataset}.txt"
            names = _lines(paths.project_root() / listed)
            return replace(checked(names, listed), is_benchmark=True)
        case FolderSource() as source:
            listed = f"{CLASS_LISTS}/{dataset.name}.txt"
            if (paths.project_root() / listed).is_file():
                names = _lines(paths.project_root() / listed)
                return replace(checked(names, listed), is_benchmark=True)
            return _folder_vocabulary(source.folder)


def checked(names: Sequence[str], where: str) -> Vocabulary:
    """Return `names` as a vocabulary.

    Raises:
        SettingsError: fewer than two names, or a name that stands twice.
    """
    if len(names) < 2:
        raise SettingsError(f"expected at least 2 classes, got {len(names)} in {where}; add names")
    seen: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if name in seen:
            raise SettingsError(
                f"class {name!r} stands twice in {where} (entries {seen[name]} and {line}); "
                "labels would be ambiguous, remove or rename one"
            )
        seen[name] = line
    return Vocabulary(tuple(names), where)


def _folder_vocabulary(folder: Path) -> Vocabulary:
    if (folder / CLASS_FILE).is_file():
        return checked(_lines(folder / CLASS_FILE), str(folder / CLASS_FILE))
    train = folder / "train"
    names = sorted(p.name for p in train.iterdir() if p.is_dir()) if train.is_dir() else []
    if not names:
        raise SettingsError(
            f"no class names for {folder}: expected {folder / CLASS_FILE} (a name a line) or "
            f"folders {train}/<class>; CLIP compares images with names"
        )
    return checked(names, str(train))


def _lines(path: Path) -> list[str]:
    """Return the stripped, non-empty lines of a class list."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"class list {path} does not exist; create it, a name a line") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
