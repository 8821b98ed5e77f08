"""A file that has come in part: what is on disk, its hashes so far, and how the rest is asked for.

What has come lies beside the file as `<name>.part`; `<name>.part.json` says from where.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import requests

from microclip import runtime
from microclip.settings.datasets import RemoteFile

_CHUNK = 1 << 20
_BLOCK = 1 << 16  # of what is sent: at most this much is lost when a connection breaks
_PAGE = (b"<!doctype html", b"<html")
_MAGIC = {
    ".gz": b"\x1f\x8b",
    ".tgz": b"\x1f\x8b",
    ".zip": b"PK",
    ".xz": b"\xfd7zXZ",
    ".bz2": b"BZh",
}


class MirrorError(Exception):
    """A mirror does not give the file; the message is the reason, for people."""


class PassingError(MirrorError):
    """Likewise, but the same request may work a moment later."""


class Hashes(NamedTuple):
    """Of a file, in hexadecimal. Publishers and torchvision state MD5s; our records SHA-256."""

    md5: str
    sha256: str


class Digests:
    """Both hashes of bytes that come one after another."""

    def __init__(self) -> None:
        """Begin with no byte."""
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._md5.update(chunk)
        self._sha256.update(chunk)

    def hashes(self) -> Hashes:
        """Return the hashes of all bytes so far."""
        return Hashes(self._md5.hexdigest(), self._sha256.hexdigest())


@dataclass
class PartFile:
    """What has come of a file, with its hashes so far."""

    path: Path
    file: RemoteFile
    digests: Digests = field(default_factory=Digests)
    size: int = 0

    @property
    def _origin(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def read(self) -> None:
        """Take up what is on disk, hashed again."""
        self._forget()
        if self.path.is_file():
            with self.path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    self._count(chunk)

    def clear(self) -> None:
        """Begin from nothing."""
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)
        self._forget()

    def append(self, response: requests.Response, advance: Callable[[int], None]) -> None:
        """Write what a mirror sends, as it is sent: an encoding is never undone."""
        with self.path.open("ab") as stream:
            for chunk in response.raw.stream(_BLOCK, decode_content=False):
                if self.size == 0:
                    _check_kind(self.file.name, chunk)
                stream.write(chunk)
                self._count(chunk)
                advance(len(chunk))

    def began(self, url: str, response: requests.Response) -> None:
        """Write down where the part is from, so that only the same file is resumed."""
        tag = response.headers.get("ETag", "")
        mark = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
        runtime.write_json(self._origin, {"url": url, "validator": mark})

    def resuming(self, url: str) -> dict[str, str]:
        """Return the headers that ask for the rest; cleared first if it could be another file."""
        if not self.size:
            return {}
        mark = None
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(self._origin.read_text(encoding="utf-8"))
            mark = said["validator"] if said["url"] == url else None
        if mark is None and not (self.file.md5 or self.file.sha256):
            self.clear()  # nothing would show that two halves are of two files
            return {}
        return {"Range": f"bytes={self.size}-", **({"If-Range": mark} if mark else {})}

    def is_proven(self) -> bool:
        """Return whether it is the whole file by the hashes stated for it."""
        return bool(self.size and (self.file.md5 or self.file.sha256)) and not self.wrong()

    def wrong(self) -> str:
        """Return how the hashes differ from those stated, or an empty text."""
        return difference(self.file, self.digests.hashes())

    def finish(self, target: Path) -> str:
        """Put the file in its place and return its SHA-256."""
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(target)
        self._origin.unlink(missing_ok=True)
        return self.digests.hashes().sha256

    def _forget(self) -> None:
        self.digests = Digests()
        self.size = 0

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digests.update(chunk)


def hashes(path: Path) -> Hashes:
    """Return the MD5 and SHA-256 of a file."""
    digests = Digests()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digests.update(chunk)
    return digests.hashes()


def _check_kind(name: str, begin: bytes) -> None:
    """Refuse a page, or what is no archive, by its first bytes."""
    if begin.lstrip()[:20].lower().startswith(_PAGE) and not name.endswith((".html", ".htm")):
        raise MirrorError("an HTML page instead of the file")
    magic = _MAGIC.get(Path(name).suffix.lower(), b"")
    if not begin.startswith(magic):
        raise MirrorError(f"no {Path(name).suffix} file (it begins with {begin[:8]!r})")


def difference(file: RemoteFile, found: Hashes) -> str:
    """Return how hashes that were found differ from those stated for a file, or an empty text."""
    stated = {"md5": (file.md5, found.md5), "sha256": (file.sha256, found.sha256)}
    return "; ".join(
        f"{name} {own}, expected {value.lower()}"
        for name, (value, own) in stated.items()
        if value is not None and value.lower() != own
    )
