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


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it on success and is removed on error.

    Raises:
        ResourceError: the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = _temporary(path)
    except OSError as error:
        if full := disk_full(error, path):
            raise full from error
        raise
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            # Before the rename: else a power cut could leave the new name on an empty file.
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if full := disk_full(error, path):
            raise full from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> str:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    return name


def disk_full(error: OSError, path: Path | None = None) -> ResourceError | None:
    """What to say of an error that means a full disk or a used-up quota; None for others."""
    if error.errno not in _FULL:
        return None
    where = Path.cwd() if path is None else path.parent
    try:
        free = f" ({shutil.disk_usage(where).free / 2**20:.1f} MiB free)"
    except OSError:
        free = ""
    what = "" if path is None else f" while writing {path.name}"
    return ResourceError(
        f"the disk of {where} is full{free}{what}; free some space and run the command again, "
        "which continues"
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
        SettingsError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out} already exists; delete it, or name another folder")
    with Untouched(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside `out`, so on the same file system: the final rename is atomic.
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            yield folder
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
        self._absent = [part for part in (folder, *folder.parents) if not part.exists()]

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
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
