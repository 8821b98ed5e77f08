"""One file from whichever of its mirrors works: resumed, checked by its hash, whole or absent.

By hand over `requests`, because no library here resumes a range after `kill -9` from the very byte
that was written (`torchvision` and `torch.hub` start again), goes through mirrors, and checks the
publisher's MD5 or SHA-256 as the bytes arrive.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from microclip import runtime
from microclip.settings.datasets import RemoteFile

_STEP = 0.1  # of the whole, between two lines
_QUIET_S = 30.0  # at most between two lines

Advance = Callable[[int], None]  # told the bytes that came since it was last called


def tell(text: str) -> None:
    """Write a line for people on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def in_words(n_bytes: float) -> str:
    """Return a size as people write it, in powers of 1,000: `3.4 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} bytes" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


@contextlib.contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show how `what`, of `total` bytes if that is known, grows from `done` bytes."""
    if sys.stderr.isatty():
        with _bar(what, total, done) as advance:
            yield advance
    else:
        yield _lines(what, total, done)


@contextlib.contextmanager
def _bar(what: str, total: int | None, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=total, completed=done)
        yield lambda n: shown.advance(task, n)


def _lines(what: str, total: int | None, done: int) -> Advance:
    said_at, said = time.monotonic(), done
    now = done

    def advance(n: int) -> None:
        nonlocal said_at, said, now
        now += n
        is_due = total is not None and now - said >= _STEP * total
        if is_due or now == total or time.monotonic() - said_at >= _QUIET_S:
            of = f" of {in_words(total)}, {100 * now / total:.0f} %" if total else ""
            tell(f"{what}: {in_words(now)}{of}")
            said_at, said = time.monotonic(), now

    return advance


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


PAUSE_S = 1.0  # before a mirror that broke off is asked again; twice as long each time
_TRIES = 4  # of a mirror, in a row and without a byte gained
_TIMEOUT_S = (20.0, 60.0)  # to connect; without a byte
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(file: RemoteFile, target: Path, *, is_offline: bool = False) -> str:
    """Bring a file to `target` from the first mirror that gives it, and return its SHA-256.

    A file that is there with the right hash, or for which none is stated, is left as it is; one
    with a wrong hash is moved aside. The same call continues what was broken off.

    Raises:
        ServiceError: no mirror gives the file, or none may be asked; the message tells how each
            failed.
        ResourceError: the disk is too small.
    """
    if target.is_file():
        found = hashes(target)
        wrong = difference(file, found)
        if not wrong:
            return found.sha256
        tell(f"{target} is not the published file ({wrong}); moved to {_move_aside(target)}")
    part = PartFile(target.with_name(f"{target.name}.part"), file)
    part.read()
    if part.is_proven():  # stopped between its last byte and its last step
        return part.finish(target)
    if is_offline:
        raise runtime.ServiceError(
            f"{target} is not there and the network is forbidden (--offline or MICROCLIP_OFFLINE); "
            f"place {file.name} there, or allow the network"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = _from_mirrors(part)
    if len(failures) < len(file.urls):
        return part.finish(target)
    raise runtime.ServiceError(
        f"{file.name} could not be had ({'; '.join(failures)}); the same command continues, or "
        f"place the file at {target}"
    )


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ResourceError if a folder's disk has no room for `needed` more bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise runtime.ResourceError(
            f"{what} needs {needed} bytes ({in_words(needed)}) in {folder}, {free} "
            f"({in_words(free)}) are free; make room, or set MICROCLIP_DATA to a larger disk"
        )


def _from_mirrors(part: PartFile) -> list[str]:
    """Complete the part from the first mirror that can; return how those before it failed."""
    failures = []
    for url in part.file.urls:
        try:
            _from_mirror(part, url)
        except MirrorError as error:
            failures.append(f"{urlsplit(url).netloc}: {error}")
            tell(f"{part.file.name}: {failures[-1]}")
            if not part.size:
                part.clear()
        else:
            break
    return failures


def _from_mirror(part: PartFile, url: str) -> None:
    """Complete the part from one mirror, asked again while that helps."""
    tries, is_fresh = 0, not part.size
    while True:
        before = part.size
        try:
            _ask(part, url)
        except PassingError:
            tries = 1 if part.size > before else tries + 1
            if tries >= _TRIES:
                raise
            time.sleep(PAUSE_S * 2 ** (tries - 1))
            continue
        wrong = part.wrong()
        if not wrong:
            return
        part.clear()
        if is_fresh:
            raise MirrorError(f"another file than the published one ({wrong})")
        is_fresh = True  # once more, in case the old half was another file's


def _ask(part: PartFile, url: str) -> None:
    """Ask for the file, or for the rest of it, and write what comes."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "microclip", **part.resuming(url)}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if not _is_complete(part, response):
                _take(part, url, response)
    except requests.exceptions.InvalidSchema as error:
        raise MirrorError(f"no address that can be fetched: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = _root(error)
        is_nobody = isinstance(reason, (socket.gaierror, ConnectionRefusedError))
        kind = MirrorError if is_nobody else PassingError  # a name or machine that is not there
        text = " ".join(str(reason).split()) or " ".join(str(error).split())
        raise kind(f"{type(error).__name__}: {text}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise runtime.ResourceError(
                f"the disk is full with {in_words(part.size)} of {part.path}; make room, then run "
                "the same command again"
            ) from error
        raise


def _is_complete(part: PartFile, response: requests.Response) -> bool:
    """Return whether the part was whole already; raise if the answer is not the file."""
    status = response.status_code
    if status == 416 and part.size:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(part.size):
            return True
        part.clear()
        raise PassingError("the file is shorter than what was had of it")
    if status not in (200, 206):
        kind = PassingError if status in _PASSING else MirrorError
        raise kind(f"HTTP {status} {response.reason}".rstrip())
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    if is_page and not part.file.name.endswith((".html", ".htm")):
        raise MirrorError("an HTML page instead of the file")
    return False


def _take(part: PartFile, url: str, response: requests.Response) -> None:
    if response.status_code == 206:
        begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if begin != str(part.size):
            part.clear()
            raise PassingError(f"another part of the file than was asked for (from {begin})")
    else:
        part.clear()
        part.began(url, response)
    length = response.headers.get("Content-Length", "")
    rest = int(length) if length.isdigit() else None
    check_space(part.path.parent, rest or 0, part.file.name)
    total = None if rest is None else part.size + rest
    with progress(part.file.name, total, part.size) as advance:
        part.append(response, advance)


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.wrong-{number}")).exists():
        number += 1
    return path.rename(aside)


def _root(error: BaseException) -> BaseException:
    """Return the innermost reason that a request failed."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error
