"""Files that cannot be used, named for people: on screen the first few, in a list all of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microclip import runtime

BAD_FILES = "bad_files.csv"
_COLUMNS = ("file", "reason", "step")
_SHOWN_BAD = 3  # bad files named in an error


@dataclass(frozen=True)
class BadFile:
    """A file that looks like an image and cannot be used, or one that is not followed."""

    path: Path
    reason: str  # for people: what is wrong with it, with its size and the limit


def printable(path: Path) -> str:
    """Return a path in one line, whatever characters its name has."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape", "replace").decode("ascii")


def complaint(bad: Sequence[BadFile], n_files: int) -> str:
    """Return how many of `n_files` cannot be read and why the first ones; without a remedy."""
    shown = "; ".join(f"{printable(file.path)}: {file.reason}" for file in bad[:_SHOWN_BAD])
    more = "; …" if len(bad) > _SHOWN_BAD else ""
    return f"{len(bad)} of {n_files} images cannot be read: {shown}{more}"


def write_bad_files(bad: Sequence[BadFile], path: Path, *, step: str) -> None:
    """Write the bad files that a step found; those of other steps stay. No bad file, no list."""
    rows = [row for row in read_bad_files(path) if row["step"] != step]
    rows += [{"file": _text(f.path), "reason": f.reason, "step": step} for f in bad]
    if not rows:
        path.unlink(missing_ok=True)
        return
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runtime.write_text(path, stream.getvalue())


def read_bad_files(path: Path) -> list[dict[str, str]]:
    """Return the rows of a list of bad files; none if there is no list."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if set(_COLUMNS) <= row.keys()]


def _text(path: Path) -> str:
    """Return a path as it can be written as UTF-8: bytes of no character are spelled out."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")
