"""One file from whichever of its mirrors works: resumed, checked by its hash, whole or absent.

By hand over `requests`, because no library here resumes a range after `kill -9` from the very byte
that was written (`torchvision` and `torch.hub` start again), goes through mirrors, and checks the
publisher's MD5 or SHA-256 as the bytes arrive.
"""

from __future__ import annotations

import errno
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from microclip import runtime
from microclip.data.part_file import MirrorError, PartFile, PassingError, difference, hashes
from microclip.data.progress import in_words, progress, tell
from microclip.settings.datasets import RemoteFile

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
