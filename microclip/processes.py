"""What an interrupted workflow leaves: stale locks, and jobs that outlived their scheduler."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

from microclip import runtime
from microclip.settings.base import SettingsError

TERMINATED = 143  # exit code, as of a process that SIGTERM ends
INTERRUPTED = 130
_MAIN = os.getpid()
_told: list[type[BaseException]] = []


class Terminated(BaseException):
    """SIGTERM: the scheduler wants this process to end."""


_RAISED: dict[int, type[BaseException]] = {
    signal.SIGTERM: Terminated,
    signal.SIGINT: KeyboardInterrupt,
}


def listen() -> None:
    """Make SIGTERM and Ctrl-C raise, once at the signal and again at each `heed`.

    A shell that starts a job in the background makes it deaf to Ctrl-C; that is left so.
    """
    _told.clear()
    for number in _RAISED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def heed() -> None:
    """Raise what the last signal asked for, if one came. Costs nothing: call it at each step."""
    if _told:
        raise _told[-1]


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != _MAIN and number == signal.SIGTERM:  # a worker that inherited this
        os._exit(TERMINATED)
    _told.append(_RAISED[number])
    raise _RAISED[number]


_MARK = "MICROCLIP_WORKER"  # set in the worker: "1" where it shall watch for the other's end
_command: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Note the command as it was typed."""
    _command[:] = arguments


def is_worker() -> bool:
    """Return whether this process is the one that works."""
    return _MARK in os.environ


def work() -> int:
    """Run the same command as a worker in a session of its own; return its exit code.

    Ctrl-C and SIGTERM are passed on, as often as they come.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "microclip", *_command],
        stdin=subprocess.PIPE,  # closed by the system when this process ends, however it does
        start_new_session=True,
        env={**os.environ, _MARK: "1"},
    )
    while True:
        try:
            code = worker.wait()
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGINT)
        except BaseException:  # SIGTERM, as cli/main.py raises it
            worker.terminate()
        else:
            return code if code >= 0 else 128 - code


def watch() -> None:
    """End this process in order, as by SIGTERM, when the one that waits for it is gone."""
    if os.environ.get(_MARK) == "1":
        threading.Thread(target=_end_with_the_other, daemon=True).start()


def _end_with_the_other() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


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
