"""Processes that stop cleanly: signals, a worker that outlives its parent, orphans, locks.

Python raises from a signal handler wherever the main thread happens to be. If that is in a
finaliser or in a library's callback, the exception is dropped ("Exception ignored in ...") and the
work goes on. So the signal is remembered as well, and a loop that calls `raise_pending` at each
step stops at its next one.

A command that pays for language models' answers works in a second process (`work`), while the one
that the user started only waits. If the waiting process is killed, even by `kill -9`, the worker
notices, sends no further request, saves the answers in flight, and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from microclip import runtime
from microclip.settings.errors import SettingsError
from microclip.writing import Untouched

_main = os.getpid()  # the process that handles signals
_pending: list[BaseException] = []


class Terminated(BaseException):
    """A signal came that ends this process: of a scheduler, of `kill`, or of a closed terminal."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        """Remember the signal's number."""
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.code = 128 + number  # as a shell reports it


def listen(numbers: Iterable[int]) -> None:
    """Make signals raise that end a process, at once and again at each `raise_pending`.

    `numbers` are those of `warm.ENDING`, which this module must not import: the warm process does.
    A shell makes its background jobs ignore Ctrl-C, `nohup` a closed terminal; that stays so.
    """
    global _main
    _main = os.getpid()
    _pending.clear()
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def raise_pending() -> None:
    """Raise the last signal's exception, if a signal came. Cheap enough to call at each step."""
    if _pending:
        raise _pending[-1]


def _on_signal(number: int, _frame: FrameType | None) -> None:
    is_ctrl_c = number == signal.SIGINT
    # A forked data-loading worker inherits this handler: it ends at once, without our clean-up.
    if os.getpid() != _main and not is_ctrl_c:
        os._exit(128 + number)
    _pending.append(KeyboardInterrupt() if is_ctrl_c else Terminated(number))
    raise _pending[-1]


_MARK = "MICROCLIP_WORKER"  # set in the worker; "1": it must end when the waiting process does
_command: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the command line, for `work` to run it again."""
    _command[:] = arguments


def is_worker() -> bool:
    """Is this the process that does the work?"""
    return _MARK in os.environ


def work() -> int:
    """Run the same command in a worker process with its own session; return its exit code.

    Signals are passed on, as often as they come: Ctrl-C as itself, others as SIGTERM.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "microclip", *_command],
        stdin=subprocess.PIPE,  # the system closes it when this process ends, even by kill -9
        start_new_session=True,
        env={**os.environ, _MARK: "1"},
    )
    while True:
        try:
            code = worker.wait()
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGINT)
        except BaseException:  # another signal, as cli/main.py raises it
            worker.terminate()
        else:
            return code if code >= 0 else 128 - code


def watch() -> None:
    """In the worker: end as if by SIGTERM once the process that waits for it is gone."""
    if os.environ.get(_MARK) == "1":
        threading.Thread(target=_end_with_the_waiting_process, daemon=True).start()


def _end_with_the_waiting_process() -> None:
    while os.read(0, 4096):  # returns nothing only once the other end of the pipe is closed
        pass
    os.kill(os.getpid(), signal.SIGTERM)


MIRROR = "MICROCLIP_MIRROR"  # set in a workflow's jobs: its mirror process shows their runs
ELSEWHERE = "elsewhere"  # its value on a cluster's nodes; on the machine of that process, its id


class Companion:
    """A process that works beside this one until it is closed, or until this one is gone.

    Its standard input is the life line: the system closes it when this process ends, even by
    kill -9. It has a session of its own, so that Ctrl-C in a terminal does not reach it.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        handles: Sequence[int] = (),
    ) -> None:
        """Start `python -m microclip` with these arguments, variables and open files besides."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "microclip", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            pass_fds=handles,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, line: str) -> None:
        """Write a line to its standard input; a process that has ended reads nothing."""
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.write(line.encode() + b"\n")
            stream.flush()

    def close(self, wait_s: float) -> None:
        """Let it finish its work, and wait for that; it may go on by itself after `wait_s`."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)


_GRACE_S = 30.0
_TYPED = [  # verbs that a person types; a workflow's jobs never use them
    [verb]
    for verb in (
        *("adapt", "bundle", "data", "doctor", "explain", "export", "fetch-weights", "passport"),
        *("plan", "plan-overview", "predict", "retry", "show", "status", "sync", "ui", "unlock"),
        "verify",
    )
]


def _commands(folder: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yield the other processes that run in a folder, with their command lines."""
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
    return command[1:3] == ["-m", "microclip"] and command[3:4] not in _TYPED


def _is_typed(command: list[str]) -> bool:
    """Did a person type it: the console script, or a verb that workflows never use?"""
    is_script = any(Path(part).name == "microclip" for part in command[:2])
    return is_script or (command[1:3] == ["-m", "microclip"] and command[3:4] in _TYPED)


def _is_left(process: psutil.Process) -> bool:
    """Is there nobody who waits for it? A typed command has a mirror and a worker of its own."""
    with contextlib.suppress(psutil.Error):
        return not any(_is_typed(parent.cmdline()) for parent in process.parents())
    return True


_OLD_S = 86400.0
# As `runtime.atomic_path` names files; SQLite has another beside its own.
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+(-journal)?)?")


def remove_leftovers(folder: Path, *, unchanged_s: float = 0.0) -> list[Path]:
    """Remove temporary files of killed processes, or only those that nobody has written to lately.

    Without `unchanged_s`, nothing may be writing there.
    """
    found = [path for path in folder.rglob(".*-*") if _TEMPORARY.fullmatch(path.name)]
    before = time.time() - unchanged_s
    left = []
    for path in found:
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink() and path.stat().st_mtime <= before:
                path.unlink()
                left.append(path)
    return left


def release(folder: Path) -> list[str]:
    """Remove a dead workflow's locks, end the jobs that outlived it, and say what was done.

    Raises: SettingsError if a workflow is running in the folder.
    """
    folder = folder.resolve()
    found = list(_commands(folder))
    for process, command in found:
        if _is_scheduler(command):
            raise SettingsError(
                f"a workflow (process {process.pid}) is running in {folder}; wait, or stop it"
            )
    orphans = [process for process, command in found if _is_job(command) and _is_left(process)]
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    # Before the locks go: a new workflow must not start while an old job still writes.
    _, alive = psutil.wait_procs(orphans, timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    done = [f"ended job {process.pid}, left by an earlier workflow" for process in orphans]
    locks = sorted((folder / ".snakemake" / "locks").glob("*.lock"))
    for lock in locks:
        lock.unlink()
    done += ["released the lock of an interrupted workflow"] if locks else []
    # Not at once: a typed command, or a cluster's job, may be writing them.
    left = remove_leftovers(folder / "results", unchanged_s=_OLD_S)
    return done + ([f"removed {len(left)} temporary files of killed processes"] if left else [])


_LOCK = ".lock"
_CLAIM = ".owner"  # in a run's folder: the process that started there last
_WATCH_S = 20.0


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let only this process write a run's folder; the lock ends with it, however it ends.

    On a disk that several machines share, locks may be missing, or hold on each machine alone. So
    the process also claims the folder in a file. Should another one claim it later, such as the
    next attempt of a job that its scheduler lost sight of, this process notices and ends. In the
    seconds between, both write the same bytes, and each file whole. Lock and claim stay, unless an
    error leaves nothing else.

    Raises:
        SettingsError: another process is writing there.
    """

    def refuse() -> None:
        raise SettingsError(f"another process is writing {folder}; wait for it to end, or stop it")

    mine = Untouched(folder, _LOCK, _CLAIM)  # before the lock makes the folder
    # The lock's file goes while the lock is held: whoever took it in between would hold no lock.
    with runtime.locked(folder / _LOCK, on_busy=refuse), mine, _claimed(folder):
        yield


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    claim = {"host": platform.node(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    runtime.write_json(folder / _CLAIM, claim)
    is_over = threading.Event()
    arguments = (folder, claim["token"], is_over)
    threading.Thread(target=_watch_claim, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _watch_claim(folder: Path, token: str, is_over: threading.Event) -> None:
    """End this process, without a word in the run's files, once another one claims the folder."""
    while not is_over.wait(_WATCH_S):
        try:
            found = json.loads((folder / _CLAIM).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the disk is away for a moment
            continue
        if found.get("token") != token and not is_over.is_set():
            sys.stderr.write(
                f"microclip: process {found.get('pid')} on {found.get('host')} has begun to write "
                f"{folder}; this one ends\n"
            )
            sys.stderr.flush()
            os._exit(128 + signal.SIGTERM)
