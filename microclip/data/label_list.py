"""A CSV with columns `file` and `class`, by which images are tested; each fault has its line."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microclip.data.folder_layout import label_of_folder
from microclip.settings import SettingsError

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
