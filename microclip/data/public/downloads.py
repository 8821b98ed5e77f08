"""Download one file from the first mirror that works: resumable, hash-checked, whole or absent.

Written over `requests` by hand: no library that we use resumes after `kill -9` from the last byte
on disk (`torchvision` and `torch.hub` start again), tries mirrors in turn, and checks the
publisher's MD5 or SHA-256 as the bytes arrive. Bytes that have arrived are in `<name>.part` beside
the file, and `<name>.part.json` says where they came from.
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
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from microclip import runtime
from microclip.settings.datasets import RemoteFile

if TYPE_CHECKING:
    import requests

_STEP = 0.1  # share of the file between two lines of progress
_QUIET_S = 30.0  # longest time between two lines

Advance = Callable[[int], None]  # takes the number of bytes since the last call


def tell(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def in_words(n_bytes: float) -> str:
    """A size to read, in powers of 1,000: `3.4 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} bytes" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


@contextlib.contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show the progress of `what` from `done` bytes to `total`, None if that is unknown.

    A bar on a terminal, else a line now and then.
    """
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
_BLOCK = 1 << 16  # bytes read at a time, and so the most that a broken connection loses
_PAGE = (b"<!doctype html", b"<html")
_MAGIC = {
    ".gz": b"\x1f\x8b",
    ".tgz": b"\x1f\x8b",
    ".zip": b"PK",
    ".xz": b"\xfd7zXZ",
    ".bz2": b"BZh",
}


class MirrorError(Exception):
    """A mirror does not deliver the file; the message says why."""


class PassingError(MirrorError):
    """A mirror does not deliver the file now, but may when asked again."""


class Hashes(NamedTuple):
    """A file's hashes in hexadecimal: MD5, as publishers state it, and SHA-256, as we record it."""

    md5: str
    sha256: str


class Digests:
    """Both hashes, updated as bytes arrive."""

    def __init__(self) -> None:
        """Start with no bytes."""
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def update(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._md5.update(chunk)
        self._sha256.update(chunk)

    def hashes(self) -> Hashes:
        """Hashes of all bytes so far."""
        return Hashes(self._md5.hexdigest(), self._sha256.hexdigest())


@dataclass
class PartFile:
    """The part of a file that has arrived, with its hashes so far."""

    path: Path
    file: RemoteFile
    digests: Digests = field(default_factory=Digests)
    size: int = 0

    @property
    def _origin(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def read(self) -> None:
        """Read and hash the part that is on disk."""
        self._forget()
        if self.path.is_file():
            with self.path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    self._count(chunk)

    def clear(self) -> None:
        """Remove the part and start again."""
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)
        self._forget()

    def append(self, response: requests.Response, advance: Callable[[int], None]) -> None:
        """Append a mirror's bytes as sent: decoding them would change the published hashes."""
        with self.path.open("ab") as stream:
            for chunk in response.raw.stream(_BLOCK, decode_content=False):
                if self.size == 0:
                    _check_kind(self.file.name, chunk)
                stream.write(chunk)
                self._count(chunk)
                advance(len(chunk))

    def began(self, url: str, response: requests.Response) -> None:
        """Record where the part comes from, so that only the same file is resumed."""
        tag = response.headers.get("ETag", "")
        # A weak ETag (W/) does not promise the same bytes, so If-Range may not use it.
        mark = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
        runtime.write_json(self._origin, {"url": url, "validator": mark})

    def resuming(self, url: str) -> dict[str, str]:
        """Headers that ask for the rest; clears the part if it may belong to another file."""
        if not self.size:
            return {}
        mark = None
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(self._origin.read_text(encoding="utf-8"))
            mark = said["validator"] if said["url"] == url else None
        if mark is None and not (self.file.md5 or self.file.sha256):
            self.clear()  # nothing would reveal that the two halves come from different files
            return {}
        return {"Range": f"bytes={self.size}-", **({"If-Range": mark} if mark else {})}

    def is_proven(self) -> bool:
        """Do the stated hashes prove that the file is complete?"""
        return bool(self.size and (self.file.md5 or self.file.sha256)) and not self.wrong()

    def wrong(self) -> str:
        """How the hashes differ from those stated, or ""."""
        return difference(self.file, self.digests.hashes())

    def finish(self, target: Path) -> str:
        """Move the file into place and return its SHA-256."""
        with self.path.open("rb+") as stream:
            # Before the rename: else a power cut could leave the final name on a cut file.
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
    """MD5 and SHA-256 of a file."""
    digests = Digests()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digests.update(chunk)
    return digests.hashes()


def _check_kind(name: str, begin: bytes) -> None:
    """Refuse a web page, or a file of another kind than its suffix, by the first bytes."""
    if begin.lstrip()[:20].lower().startswith(_PAGE) and not name.endswith((".html", ".htm")):
        raise MirrorError("it sent an HTML page instead of the file")
    magic = _MAGIC.get(Path(name).suffix.lower(), b"")
    if not begin.startswith(magic):
        raise MirrorError(f"not a {Path(name).suffix} file (it begins with {begin[:8]!r})")


def difference(file: RemoteFile, found: Hashes) -> str:
    """How the hashes that were found differ from those stated for a file, or ""."""
    stated = {"md5": (file.md5, found.md5), "sha256": (file.sha256, found.sha256)}
    return "; ".join(
        f"{name} {own}, expected {value.lower()}"
        for name, (value, own) in stated.items()
        if value is not None and value.lower() != own
    )


PAUSE_S = 1.0  # before the first retry of a mirror; doubled for each further one
_TRIES = 4  # per mirror, in a row and without a byte gained
_TIMEOUT_S = (20.0, 60.0)  # to connect; to wait for the next byte
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(file: RemoteFile, target: Path, *, is_offline: bool = False) -> str:
    """Download a file to `target` from the first mirror that delivers it; return its SHA-256.

    A file that is already there is kept if its hash is right or no hash is stated, and moved aside
    if it is wrong. Calling this again resumes an interrupted download.

    Raises:
        ServiceError: no mirror delivers the file, or the network is forbidden; the message says
            how each mirror failed.
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
    if part.is_proven():  # stopped after the last byte, before the rename
        return part.finish(target)
    if is_offline:
        raise runtime.ServiceError(
            f"{target} is missing and the network is forbidden (--offline or MICROCLIP_OFFLINE); "
            f"place {file.name} there, or allow the network"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = _from_mirrors(part)
    if len(failures) < len(file.urls):
        return part.finish(target)
    raise runtime.ServiceError(
        f"could not download {file.name} ({'; '.join(failures)}); run the same command again to "
        f"continue, or place the file at {target}"
    )


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ResourceError if a folder's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise runtime.ResourceError(
            f"{what} needs {needed} bytes ({in_words(needed)}) in {folder}, {free} "
            f"({in_words(free)}) are free; free some space, or set MICROCLIP_DATA to a larger disk"
        )


def _from_mirrors(part: PartFile) -> list[str]:
    """Complete the part from the first mirror that can; return how the others failed."""
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
    """Complete the part from one mirror, retrying while that helps."""
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
            raise MirrorError(f"it sent another file than the published one ({wrong})")
        is_fresh = True  # try once more: the old half may have come from another file


def _ask(part: PartFile, url: str) -> None:
    """Request the file, or the rest of it, and write the bytes that arrive."""
    import requests  # here, because a dry run only asks which files are lacking
    import urllib3

    headers = {"Accept-Encoding": "identity", "User-Agent": "microclip", **part.resuming(url)}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if not _is_complete(part, response):
                _take(part, url, response)
    except requests.exceptions.InvalidSchema as error:
        raise MirrorError(f"not an address that can be fetched: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = _root(error)
        # No such host, or nothing listens there: asking again will not help.
        is_absent = isinstance(reason, (socket.gaierror, ConnectionRefusedError))
        kind = MirrorError if is_absent else PassingError
        text = " ".join(str(reason).split()) or " ".join(str(error).split())
        raise kind(f"{type(error).__name__}: {text}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise runtime.ResourceError(
                f"the disk is full after {in_words(part.size)} of {part.path}; free some space, "
                "then run the same command again"
            ) from error
        raise


def _is_complete(part: PartFile, response: requests.Response) -> bool:
    """Was the part complete already? Raise if the response is not the file."""
    status = response.status_code
    if status == 416 and part.size:  # nothing after the last byte that we have
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(part.size):
            return True
        part.clear()
        raise PassingError("its file is shorter than the part that had arrived")
    if status not in (200, 206):
        kind = PassingError if status in _PASSING else MirrorError
        raise kind(f"HTTP {status} {response.reason}".rstrip())
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    if is_page and not part.file.name.endswith((".html", ".htm")):
        raise MirrorError("it sent an HTML page instead of the file")
    return False


def _take(part: PartFile, url: str, response: requests.Response) -> None:
    if response.status_code == 206:
        begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if begin != str(part.size):
            part.clear()
            raise PassingError(f"it sent another part of the file than requested (from {begin})")
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
    """The innermost reason that a request failed."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error
