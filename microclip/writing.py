"""Write files and folders whole or not at all; a refused command leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from microclip.settings.errors import ResourceError, SettingsError

_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


_REASONS = {  # why the folder that exists nearest to a place is no help
    errno.EACCES: "you may not write in {near}",
    errno.EPERM: "you may not write in {near}",
    errno.EROFS: "{near} is on a disk that is mounted read-only",
    errno.ENOTDIR: "{near} is no folder",
    errno.EEXIST: "{near} is no folder",
    errno.EISDIR: "it is a folder",
    errno.ENOENT: "no file can be made in {near}",  # such as /proc
}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it on success and is removed on error.

    Raises:
        SettingsError: nothing can be written there.
        ResourceError: the disk is full.
    """
    with made(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(_temporary(path))
    try:
        with filled(path):
            yield temporary
            with temporary.open("rb+") as stream:
                # Before the rename: else a power cut could leave the new name on an empty file.
                os.fsync(stream.fileno())
            # mkstemp makes files that only their owner can read
            temporary.chmod(0o666 & ~_umask())
        with made(path):
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> str:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    return name


@contextlib.contextmanager
def made(path: Path) -> Iterator[None]:
    """Make a file or a folder: any error of the system says why `path` cannot be written.

    Raises:
        SettingsError: the place is no place to write.
        ResourceError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(error, path) from error


def unwritable(error: OSError, path: Path) -> SettingsError | ResourceError:
    """What to say of any error of the system at making `path`: what, where, how to mend it."""
    if full := disk_full(error, path):
        return full
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    reason = reason.format(near=_nearest(path.absolute().parent))
    return SettingsError(
        f"{path} cannot be written: {reason}; name another place, or mend that one"
    )


def _nearest(folder: Path) -> Path:
    """The folder, or the last of those above it that is there."""
    return next(part for part in (folder, *folder.parents) if os.path.lexists(part))


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written, before the work for it begins.

    Raises:
        SettingsError: nothing can be written there.
        ResourceError: the disk is full.
    """
    with Untouched(path.parent), made(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        Path(_temporary(path)).unlink()


@contextlib.contextmanager
def filled(path: Path) -> Iterator[None]:
    """Write into `path`: of the system's errors, only a full disk is sure to be about it.

    Raises:
        ResourceError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if full := disk_full(error, path):
            raise full from error
        raise


def disk_full(error: OSError, path: Path | None = None) -> ResourceError | None:
    """What to say of an error that means a full disk or a used-up quota; None for others."""
    if error.errno not in _FULL:
        return None
    # What was being written may be gone again, and its folder with it.
    where = Path.cwd() if path is None else _nearest(path.absolute().parent)
    try:
        free = f" ({shutil.disk_usage(where).free / 2**20:.1f} MiB free)"
    except OSError:
        free = ""
    full = f"the disk of {where} is full{free}"
    if path is None:  # the error names no file
        full = f"the disk of the output, or of {where}{free}, is full"
    what = "" if path is None else f" while writing {path.name}"
    return ResourceError(
        f"{full}{what}; free some space and run the command again, which continues"
    )


def _sync_folder(path: Path) -> None:
    """Flush a folder: a rename in it is safe on disk only once the folder is."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network disks cannot: the file is there all the same, so the writing has not failed.
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` at the end, or is deleted on an error.

    Raises:
        SettingsError: `out` exists and is not an empty folder, or cannot be written.
        ResourceError: the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out} already exists; delete it, or name another folder")
    with Untouched(out.parent):
        with made(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            # Beside `out`, so on the same file system: the final rename is atomic.
            folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            with filled(out):
                yield folder
            with made(out):
                folder.chmod(0o755)  # mkdtemp made it private
                folder.replace(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Untouched(contextlib.AbstractContextManager[None]):
    """After an error, a folder is as it was when this was made, if only `marks` were added to it.

    So what a command writes before it may yet be refused, such as its lock, does not stay. Folders
    that were made for it go too.
    """

    def __init__(self, folder: Path, *marks: str) -> None:
        """Remember what is there; `marks` are names of files in the folder."""
        self._folder, self._marks = folder, set(marks)
        self._before = _names(folder)
        self._absent = [part for part in (folder, *folder.parents) if not os.path.lexists(part)]

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Tidy up if the block failed."""
        added = _names(self._folder) - self._before
        if kind is None or added - self._marks:
            return
        with contextlib.suppress(OSError):  # what another process has put there since stays
            for name in added:
                (self._folder / name).unlink()
            for part in self._absent:
                part.rmdir()


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()
