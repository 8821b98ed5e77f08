"""What is written down of a copy from the hub, beside its files; the hub itself is not asked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from microclip import runtime

LISTING = "copy.json"  # below data/<dataset>/hub: repository, commit and, once all came, files


@dataclass(frozen=True)
class CopiedFile:
    """A file of the copy."""

    path: str  # below data/<dataset>/hub
    size: int  # bytes
    sha256: str | None  # of large files, as the hub states it


@dataclass(frozen=True)
class CopyRecord:
    """What `copy.json` says."""

    repository: str
    revision: str  # commit
    files: tuple[CopiedFile, ...] | None = None  # None: the download is not finished


def read_listing(folder: Path) -> CopyRecord | None:
    """Return what is written down in the folder of a copy; None if it was placed by hand."""
    path = folder / LISTING
    if not path.is_file():
        return None
    said = json.loads(path.read_text(encoding="utf-8"))
    files = said.get("files")
    return CopyRecord(
        repository=said["repository"],
        revision=said["revision"],
        files=None if files is None else tuple(CopiedFile(**file) for file in files),
    )


def write_listing(folder: Path, record: CopyRecord) -> None:
    """Write down a copy; without its files while they are still coming."""
    said = {key: value for key, value in asdict(record).items() if value is not None}
    runtime.write_json(folder / LISTING, said)


def files_of_copy(folder: Path) -> tuple[CopiedFile, ...]:
    """Return the files of a whole copy as the hub stated them; none if it was placed by hand."""
    found = read_listing(folder)
    return () if found is None or found.files is None else found.files


def is_partial_copy(folder: Path) -> bool:
    """Return whether a download into the folder was begun and not finished."""
    found = read_listing(folder)
    return found is not None and found.files is None
