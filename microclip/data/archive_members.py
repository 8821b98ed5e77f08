"""The members of a tar or zip as one kind of thing, each with what speaks against unpacking it."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, Self

from microclip import runtime

_CHUNK = 1 << 20
_BROKEN = (  # what the readers raise for files that are cut short or damaged
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # a zip's compression that Python cannot undo
)


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive."""

    name: str  # as the archive has it
    path: str  # below the folder: "/" between parts, neither "." nor an end
    size: int
    is_folder: bool
    problem: str  # why it may not be unpacked; empty if it may
    handle: Any  # the library's own


class Archive(Protocol):
    """What tar and zip have in common."""

    def members(self) -> Iterator[Member]:
        """Yield all members but the folder itself."""
        ...

    def sha256(self, member: Member) -> str:
        """Return the hash of a member's content."""
        ...

    def extract(self, folder: Path) -> None:
        """Write all members below an empty folder."""
        ...


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a tar or zip, told by its content, not its name.

    Raises: MissingDataError if it is neither, or turns out damaged while it is open.
    """
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) in (b"PK\3\4", b"PK\5\6")
        with (_Zip if is_zip else _Tar)(path) as archive:
            yield archive
    except _BROKEN as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # not the system's: gzip and bz2 say so that their data is wrong
            raise _damaged(path, error) from error
        raise


def name_problem(name: str) -> str:
    """Return why a path of an archive or a server may not be used below a folder, or nothing."""
    if "\0" in name:
        return "has a NUL in its name"
    if name.startswith("/"):
        return "has an absolute path"
    if "\\" in name or re.match("[A-Za-z]:", name):
        return "has a path of Windows"
    if ".." in name.split("/"):
        return "leads out of its folder"
    return ""


class _Strict(tarfile.TarInfo):
    """Refuses what tarfile takes for a normal end: a file cut between two members."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ != "EOFHeaderError":
                raise _ends_early(error) from error
            raise


class _Tar:
    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:*", tarinfo=_Strict, errorlevel=2)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def members(self) -> Iterator[Member]:
        for info in self._tar:
            path = PurePosixPath(info.name).as_posix()
            problem = name_problem(info.name) or _tar_problem(info)
            if path != "." or problem:
                yield Member(info.name, path, info.size, info.isdir(), problem, info)
        _read_to_end(self._tar.fileobj)

    def sha256(self, member: Member) -> str:
        stream = self._tar.extractfile(member.handle)
        assert stream is not None
        with stream:
            return _sha256(stream)

    def extract(self, folder: Path) -> None:
        self._tar.extractall(folder, filter="data")  # a second wall behind `members`


class _Zip:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def members(self) -> Iterator[Member]:
        for info in self._zip.infolist():
            path = PurePosixPath(info.filename).as_posix()
            problem = name_problem(info.orig_filename) or _zip_problem(info)
            if path != "." or problem:
                yield Member(info.orig_filename, path, info.file_size, info.is_dir(), problem, info)

    def sha256(self, member: Member) -> str:
        with self._zip.open(member.handle) as stream:
            return _sha256(stream)

    def extract(self, folder: Path) -> None:
        self._zip.extractall(folder)


def _tar_problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname!r}"
    if not (info.isreg() or info.isdir()):
        return "is a device or another special file"
    return ""


def _zip_problem(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if stat.S_ISLNK(kind):
        return "is a link"
    if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return "is a device or another special file"
    return "needs a password" if info.flag_bits & 1 else ""


def _read_to_end(stream: Any) -> None:
    """Read past the last member, where a compressed file keeps its check sum."""
    while stream.read(_CHUNK):
        pass


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


_HeaderError: type[Exception] = tarfile.HeaderError


def _ends_early(error: Exception) -> tarfile.ReadError:
    return tarfile.ReadError(f"it ends without an end mark: {error}")


def _damaged(path: Path, error: BaseException) -> runtime.MissingDataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return runtime.MissingDataError(
        f"{path} is cut short, damaged or no archive ({reason}); remove it and get it again"
    )
