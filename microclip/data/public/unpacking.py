"""Unpack archives whole or not at all, and never outside their folder.

Every member is checked before a byte is written, and a member that could reach outside the folder
makes us refuse the whole archive. The files become visible once all of them are unpacked.

`tarfile` extracts with its data filter, but the checks before it are ours: the filter judges the
members one by one while it writes, so a bad one would leave half an archive behind; it lets links
through and shortens absolute paths instead of refusing them; and zip files have no filter at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, Self

from microclip import runtime
from microclip.data.public.downloads import check_space, in_words, tell
from microclip.settings.base import cut, loads

_CHUNK = 1 << 20
_LONGEST_NAME = 255  # bytes of a part of a path, on the file systems of Linux and macOS
_MOST_HEADER = 1 << 20  # bytes of a name or of attributes, which tarfile reads into memory
_MOST_MEMBERS = 3_000_000  # ImageNet has 1.3 million; empty ones cost memory and no disk
_SHOWN = 100  # characters of a name in an error
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_BROKEN = (  # what readers raise for files that are cut short or damaged
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,  # numbers and names that are none
    OverflowError,
    NotImplementedError,  # zipfile's own error for a compression that it cannot read
)


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive."""

    name: str  # as the archive writes it
    path: str  # below the folder: parts joined by "/", without "." and without a final "/"
    size: int
    is_folder: bool
    problem: str  # why it must not be unpacked; empty if it may be
    handle: Any  # the library's object for it


class Archive(Protocol):
    """What tar and zip have in common."""

    def members(self) -> Iterator[Member]:
        """Yield all members except the archive's root folder."""
        ...

    def sha256(self, member: Member) -> str:
        """Hash of a member's content."""
        ...

    def extract(self, folder: Path) -> None:
        """Write all members below an empty folder."""
        ...


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a tar or zip, recognised by its content, not its name.

    Raises: MissingDataError if it is neither, or turns out to be damaged while it is open.
    """
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) in (b"PK\3\4", b"PK\5\6")
        with (_Zip if is_zip else _Tar)(path) as archive:
            yield archive
    except _BROKEN as error:
        raise _damaged(path, error) from error
    except runtime.MissingDataError:  # an OSError without errno, but it already says what is wrong
        raise
    except OSError as error:
        # None is not from the system: gzip and bz2 raise it for damaged data. EINVAL is a seek to
        # before the file, where a damaged zip says that its member is.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(path, error) from error
        raise


def name_problem(name: str) -> str:
    """Say why a path from an archive or a server must not be used below a folder, or ""."""
    if "\0" in name:
        return "has a NUL in its name"
    if name.startswith("/"):
        return "has an absolute path"
    if "\\" in name or re.match("[A-Za-z]:", name):
        return "has a Windows path"
    if ".." in name.split("/"):
        return "leads out of its folder"
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in name.split("/")):
        return f"has a name of more than {_LONGEST_NAME} bytes"
    return ""


class _Strict(tarfile.TarInfo):
    """Refuses a tar that was cut between two members, which tarfile takes for a normal end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ != "EOFHeaderError":
                raise _ends_early(error) from error
            raise

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        """Refuse an extended header of gigabytes, which a small compressed file may hold."""
        if self.type in _EXTENDED and self.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


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
        if hasattr(tarfile, "data_filter"):
            self._tar.extractall(folder, filter="data")  # a second defence behind `members`
            return
        # Python before 3.11.4, Debian 12's among them. What the filter does to owners and modes:
        for info in self._tar.getmembers():
            info.mode = 0o755 if info.isdir() else 0o644
            info.uid, info.gid, info.uname, info.gname = os.getuid(), os.getgid(), "", ""
        self._tar.extractall(folder)  # noqa: S202  `members` has refused what leads outside


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
        return f"is a link to {_shown(info.linkname)}"
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
    """Read past the last member, because a compressed file's checksum is at its end."""
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
    reason = cut(str(error), 200) or type(error).__name__
    return runtime.MissingDataError(
        f"{path} is cut short, damaged or not an archive ({reason}); remove it and get it again"
    )


def unpack(archive: Path, into: Path, inner: Sequence[str] = (), *, again: bool = False) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip into a folder, then the `inner` archives in it.

    Files that already exist must be the same as in the archive; the others are added. A second call
    does nothing unless `again` is set or the archive has changed.

    Raises:
        MissingDataError: a member leads outside or is a link or a device; the file is cut short or
            not an archive; another file is in the way. Nothing is changed then.
        ResourceError: the disk has too little room.
    """
    into.mkdir(parents=True, exist_ok=True)
    record = archive.with_name(f"{archive.name}.unpacked.json")
    status = archive.stat()
    sign = {"into": str(into), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if not again and _is_done(record, sign, into):
        return
    temporary = temporary_of(archive.name, into)
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
    try:
        n_files = _extract(archive, temporary)
        for name in inner:
            n_files += _extract_inner(temporary, name, archive) - 1
        entries = sorted(path.name for path in temporary.iterdir())
        _merge(temporary, into, archive)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    runtime.write_json(record, {**sign, "entries": entries, "files": n_files})


def temporary_of(name: str, into: Path) -> Path:
    """The folder in which an archive is unpacked before its files are moved into place."""
    return into / f".unpacking-{name}"


def _is_done(record: Path, sign: dict[str, object], into: Path) -> bool:
    try:
        said = loads(record.read_text(encoding="utf-8"))
        is_same = all(said.get(key) == value for key, value in sign.items())
        return is_same and all((into / entry).exists() for entry in said["entries"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _extract(path: Path, folder: Path) -> int:
    """Check all members of an archive, then write them below a folder; return how many files."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    with open_archive(path) as archive:
        members = _checked(archive, path, free)
        n_files = sum(not member.is_folder for member in members)
        n_bytes = sum(member.size for member in members)
        check_space(folder, n_bytes, f"unpacking {path.name}")
        tell(f"unpacking {path.name}: {n_files} files, {in_words(n_bytes)}")
        archive.extract(folder)
    return n_files


def _extract_inner(folder: Path, name: str, outer: Path) -> int:
    path = folder / name
    if not path.is_file():
        raise runtime.MissingDataError(
            f"{outer} has no {name}; check that it is the published archive, or get it again"
        )
    beside = folder / f".inner-{path.name}"
    n_files = _extract(path, beside)
    path.unlink()
    _merge(beside, folder, outer)
    beside.rmdir()
    return n_files


def _checked(archive: Archive, path: Path, free: int) -> list[Member]:
    """Return the members. Raises MissingDataError if one must not be unpacked."""
    members: list[Member] = []
    kinds: dict[str, bool] = {}  # path -> whether it is a folder
    doubled: set[str] = set()
    n_bytes = 0
    for member in archive.members():
        if member.problem:
            raise runtime.MissingDataError(
                f"{path} is refused, nothing was unpacked: its member {_shown(member.name)} "
                f"{member.problem}; get the archive from its publisher"
            )
        if len(members) == _MOST_MEMBERS:
            raise runtime.MissingDataError(
                f"{path} is refused, nothing was unpacked: it has more than {_MOST_MEMBERS} "
                "members; get the archive from its publisher"
            )
        n_bytes += member.size
        if n_bytes > free:  # raise now: a malicious archive may list members without end
            check_space(path.parent, n_bytes, f"unpacking {path.name}")
        if member.path in kinds and not (member.is_folder and kinds[member.path]):
            doubled.add(member.path)
        kinds[member.path] = kinds.get(member.path, False) or member.is_folder
        members.append(member)
    _check_paths(kinds, path)
    _check_doubled(archive, [m for m in members if m.path in doubled], path)
    return members


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")


def _check_paths(kinds: dict[str, bool], path: Path) -> None:
    """Refuse a file that would also have to be another member's folder."""
    files = {name for name, is_folder in kinds.items() if not is_folder}
    for name in sorted(kinds):
        parents = (parent.as_posix() for parent in Path(name).parents)
        through = next((parent for parent in parents if parent in files), None)
        if through is not None:
            raise runtime.MissingDataError(
                f"{path} is refused, nothing was unpacked: its member {_shown(name)} leads "
                f"through {_shown(through)}, which is not a folder; get the archive from its "
                "publisher"
            )


def _check_doubled(archive: Archive, members: Iterable[Member], path: Path) -> None:
    """Refuse two members of the same name that differ: nothing says which of them is meant."""
    seen: dict[str, str] = {}
    for member in members:
        digest = "folder" if member.is_folder else archive.sha256(member)
        if seen.setdefault(member.path, digest) != digest:
            raise runtime.MissingDataError(
                f"{path} is refused, nothing was unpacked: it has two different members named "
                f"{_shown(member.name)}; get the archive from its publisher"
            )


def _merge(source: Path, target: Path, archive: Path) -> None:
    """Move the contents of `source` into `target`, as whole folders where possible."""
    moves = list(_moves(source, target, archive))  # all checked before the first one is made
    for path, place in moves:
        path.rename(place)


def _moves(source: Path, target: Path, archive: Path) -> Iterable[tuple[Path, Path]]:
    for path in sorted(source.iterdir()):
        place = target / path.name
        if not os.path.lexists(place):
            yield path, place
        elif path.is_dir() and place.is_dir():
            yield from _moves(path, place, archive)
        elif path.is_dir() or not place.is_file() or not _is_same(path, place):
            raise runtime.MissingDataError(
                f"{place} is in the way and differs from the one in {archive.name}; move it away, "
                "then run the same command again"
            )


def _is_same(one: Path, other: Path) -> bool:
    sizes = one.stat().st_size, other.stat().st_size
    return sizes[0] == sizes[1] and runtime.sha256(one) == runtime.sha256(other)
