"""Descriptions that others published: where their files are, fetched whole, their keys known.

A location is a path or a web address; `#sha256=<64 hex digits>` at its end says what its content
must be. Of the files listed in `config/published/descriptions.yaml` the hash is known.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from microclip import paths, runtime
from microclip.settings import Frozen, Name, SettingsError, read_yaml, validated

logger = logging.getLogger(__name__)

LIST = "config/published/descriptions.yaml"
MAX_BYTES = 64 * 2**20  # CuPL's largest file has 2 MB
_TRIES, _TIMEOUT_S, _CHUNK = 3, 60.0, 1 << 16
_HASH = re.compile(r"#sha256=([0-9a-fA-F]{64})$")


class PublishedFile(Frozen):
    """A file of somebody's repository."""

    file: str = Field(description="its name there")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its content")


class PublishedSet(Frozen):
    """The files of one author."""

    repository: str
    files: dict[Name, PublishedFile] = Field(description="by dataset")


class PublishedList(Frozen):
    """`config/published/descriptions.yaml`."""

    files: dict[Name, PublishedSet] = Field(default_factory=dict, description="by prompt set")
    keys: dict[Name, dict[str, str]] = Field(
        default_factory=dict, description="by dataset: the key of a class"
    )
    unused: dict[Name, tuple[str, ...]] = Field(
        default_factory=dict, description="by dataset: keys that are no class"
    )


@dataclass(frozen=True)
class Source:
    """A file that is there: where, what it is called in records, its hash."""

    path: Path
    shown: str
    sha256: str


class Publication(TypedDict, total=False):
    """Who published a file, as descriptions record it; empty if nobody known did."""

    published_by: str
    is_as_published: bool


def published_list() -> PublishedList:
    """Return what is known of published files; nothing if the project has no such list."""
    return _read_list(paths.project_root() / LIST)


@cache
def _read_list(path: Path) -> PublishedList:
    return validated(PublishedList, read_yaml(path) if path.is_file() else {}, LIST)


def published_file(prompts: str, dataset: str) -> PublishedFile | None:
    """Return what is known of a dataset's file by one author; None if nothing is."""
    own = published_list().files.get(prompts)
    return None if own is None else own.files.get(dataset)


def publication(source: Source, prompts: str, dataset: str) -> Publication:
    """Return who published a file, and whether it is what they published; nothing if unknown."""
    known = published_file(prompts, dataset)
    if known is None:
        return {}
    repository = published_list().files[prompts].repository
    is_same = source.sha256 == known.sha256
    if not is_same:
        logger.warning("%s is not the file of %s, byte for byte", source.shown, repository)
    return {"published_by": repository, "is_as_published": is_same}


def is_url(location: str) -> bool:
    """Return whether a location is a web address."""
    return location.startswith(("http://", "https://"))


def local_path(location: str, known_sha256: str | None = None) -> Path:
    """Return where a location's content lies, or will lie once fetched."""
    place, expected = _split(location)
    if is_url(place):
        named = expected or known_sha256 or hashlib.sha256(place.encode()).hexdigest()
        return Path(paths.PUBLISHED_DESCRIPTIONS.format(sha256=named))
    path = Path(place)
    return path if path.is_absolute() else paths.project_root() / path


def fetch(location: str, known_sha256: str | None = None) -> Source:
    """Return a location's file, downloaded once if it is a web address, its hash compared.

    Of a local file only a hash in `location` is compared: it may have been edited on purpose.

    Raises:
        MissingDataError: no such file.  SettingsError: no hash for a web address, or a wrong one.
        ServiceError: the download fails.
    """
    place, expected = _split(location)
    path = local_path(location, known_sha256)
    if not is_url(place):
        root = paths.project_root()
        shown = str(path.relative_to(root) if path.is_relative_to(root) else path)
        return Source(path, shown, _checked_local(path, expected))
    expected = expected or known_sha256
    if path.is_file() and expected is not None and runtime.sha256(path) == expected:
        return Source(path, _shown(place), expected)
    content = download(place)
    found = hashlib.sha256(content).hexdigest()
    if expected is None:
        raise SettingsError(
            f"{_shown(place)} needs its sha256, so that it stays the same; it is {found} today: "
            f"look at it, then write {_shown(place)}#sha256={found}"
        )
    if found != expected:
        raise SettingsError(
            f"{_shown(place)} has sha256 {found}, expected {expected}; it is not the published "
            "file, correct the address or the hash"
        )
    with runtime.atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Source(path, _shown(place), expected)


def _checked_local(path: Path, expected: str | None) -> str:
    if not path.is_file():
        raise runtime.MissingDataError(
            f"descriptions {path} do not exist; write them or correct `files` in config/llms/"
        )
    found = runtime.sha256(path)
    if expected is not None and found != expected:
        raise SettingsError(f"{path} has sha256 {found}, expected {expected}; fetch it anew")
    return found


def download(url: str) -> bytes:
    """Return what stands at a web address; three tries where a fault may pass.

    Raises:
        ServiceError: no answer, a refusal, or more than `MAX_BYTES`.
    """
    # Not the resuming download of `data`: a file here is small, comes whole or not at all, and may
    # have no known hash yet. urllib3's `Retry` does not cover a body that is read in pieces, which
    # `MAX_BYTES` needs.
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                return _read_all(answer, url)
        except urllib.error.HTTPError as error:
            reason, is_passing = f"status {error.code}", error.code in (429, 500, 502, 503, 504)
        except (OSError, http.client.HTTPException) as error:
            reason, is_passing = " ".join(str(error).split()) or type(error).__name__, True
        if not is_passing or attempt == _TRIES:
            break
        logger.warning("%s: %s; trying again", _shown(url), reason)
        time.sleep(attempt)
    raise runtime.ServiceError(
        f"{_shown(url)} could not be fetched ({reason}); download it by other means and name the "
        "file in `files` of config/llms/"
    )


def _read_all(answer: http.client.HTTPResponse, url: str) -> bytes:
    """Return a body. Raises ServiceError if it is too large, HTTPException if it is cut short."""
    parts, size = [], 0
    while part := answer.read(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise runtime.ServiceError(
                f"{_shown(url)} has more than {MAX_BYTES // 2**20} MiB; that is no descriptions "
                "file, correct the address"
            )
    announced = answer.headers.get("Content-Length")
    if announced is not None and size < int(announced):
        raise http.client.IncompleteRead(b"", int(announced) - size)
    return b"".join(parts)


def _split(location: str) -> tuple[str, str | None]:
    """Return a location and the hash named at its end."""
    if is_url(location) and "@" in urlsplit(location).netloc:
        raise SettingsError(
            f"{_shown(location)} holds a user or password, which belongs in no setting; download "
            "the file and name its path"
        )
    named = _HASH.search(location)
    if named:
        return location[: named.start()], named[1].lower()
    if "#sha256" in location:
        raise SettingsError(
            f"{_shown(location)}: expected #sha256= and 64 hex digits at the end; correct it"
        )
    return location, None


def _shown(url: str) -> str:
    """Return an address without what may be secret: user, password, query."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.hostname:
        return url
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname}{port}", parts.path, "", ""))
