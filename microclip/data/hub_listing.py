"""What is written down of a copy from the hub, beside its files; the hub itself is not asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTING = "copy.json"  # below data/<dataset>/hub: repository, commit and, once all came, files


@dataclass(frozen=True)
class CopiedFile:
    """A file of the copy."""

    path: str  # below data/<dataset>/hub
    size: int  # bytes
    sha256: str | None  # of large files, as the hub states it


def read_listing(folder: Path) -> dict[str, Any]:
    """Return what is written down in the folder of a copy; nothing if it was placed by hand."""
    path = folder / LISTING
    if not path.is_file():
        return {}
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return said


def files_of_copy(folder: Path) -> list[CopiedFile]:
    """Return the files of a whole copy as the hub stated them; none if it was placed by hand."""
    return [CopiedFile(**file) for file in read_listing(folder).get("files", ())]


def is_partial_copy(folder: Path) -> bool:
    """Return whether a download into the folder was begun and not finished."""
    said = read_listing(folder)
    return bool(said) and "files" not in said
