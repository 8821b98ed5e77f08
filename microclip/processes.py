"""What an interrupted workflow leaves: stale locks, and jobs that outlived their scheduler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from microclip import runtime
from microclip.settings import SettingsError

_GRACE_S = 30.0
_FOR_PEOPLE = [
    [verb]
    for verb in ("adapt", "predict", "doctor", "show", "status", "sync", "ui", "unlock", "verify")
]


def _commands(folder: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yield the processes of other programs that work in a folder, with their command lines."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in own and Path(process.cwd()) == folder:
                yield process, process.cmdline()


def _is_scheduler(command: list[str]) -> bool:
    return any(Path(part).name == "snakemake" for part in command[:3]) or (
        "-m" in command and command[command.index("-m") + 1 :][:1] == ["snakemake"]
    )


def _is_job(command: list[str]) -> bool:
    return command[1:3] == ["-m", "microclip"] and command[3:4] not in _FOR_PEOPLE


def release(folder: Path) -> list[str]:
    """Remove a dead workflow's locks, end the jobs it left, and return what was done.

    Raises: SettingsError if a workflow is at work in the folder.
    """
    folder = folder.resolve()
    found = list(_commands(folder))
    for process, command in found:
        if _is_scheduler(command):
            raise SettingsError(
                f"a workflow (process {process.pid}) is at work in {folder}; wait, or stop it"
            )
    orphans = [process for process, command in found if _is_job(command)]
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(orphans, timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    done = [f"ended job {process.pid}, left by an earlier workflow" for process in orphans]
    locks = sorted((folder / ".snakemake" / "locks").glob("*.lock"))
    for lock in locks:
        lock.unlink()
    return done + (["released the lock of an interrupted workflow"] if locks else [])


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run's folder for one process; the lock goes with the process, however it ends.

    Raises:
        SettingsError: another process writes there.  ResourceError: no locks on that disk.
    """

    def refuse() -> None:
        raise SettingsError(f"another process is writing {folder}; wait for it to end, or stop it")

    with runtime.locked(folder / ".lock", on_busy=refuse):
        yield
