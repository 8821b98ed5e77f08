"""What a parser may do with hostile input: return a value, or raise our own error with one line.

Anything else is a fault: another exception, an error of several lines or of a page, a hang, memory
without end. The system limits time, so that no test needs a clock. It limits memory, too, where
nothing but these tests runs (`make fuzz`): a library of C that other tests have loaded into the
process may crash when it gets none. In the suite, memory is measured instead.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import hypothesis

from microclip import runtime
from microclip.cli import one_line
from microclip.settings.base import SettingsError

OWN = (
    SettingsError,
    runtime.MissingDataError,
    runtime.ResourceError,
    runtime.ServiceError,
    runtime.VerificationError,
)
MAX_S = 20  # a parser of small files takes milliseconds; this is what counts as a hang
MAX_BYTES = 512 * 2**20  # above what the process has: torch and numpy are there already
LONGEST = 2500  # characters of an error
COUNTS: dict[str, Counter[str]] = {}


class HangError(BaseException):
    """A parser took too long; no `except Exception` within it may hide that."""


def few(share: int) -> hypothesis.settings:
    """Fewer examples, for a parser that reads whole folders or starts a library for each."""
    common = hypothesis.settings.default
    assert common is not None
    return hypothesis.settings(common, max_examples=max(8, common.max_examples // share))


@contextlib.contextmanager
def judged(parser: str, *also: type[Exception]) -> Iterator[None]:
    """Run one example of a parser; `also` are its own errors beside those of the command line."""
    counts = COUNTS.setdefault(parser, Counter())
    counts["examples"] += 1
    try:
        with _bounded():
            yield
    except (*OWN, *also) as error:
        counts["refused"] += 1
        _check_message(error)


def _check_message(error: Exception) -> None:
    """Fail unless an error is one line of reasonable length."""
    text = one_line(str(error))  # as the command line prints it
    assert text, f"{type(error).__name__} without a word"
    assert "\n" not in str(error), f"not one line: {str(error)!r}"
    assert len(text) <= LONGEST, f"{len(text)} characters: {text[:200]!r}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Limit the time and the memory of a block."""
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, MAX_S)
    try:
        with _limited_memory() if os.environ.get("MICROCLIP_FUZZ") else _measured_memory():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _hang(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise HangError(f"no end after {MAX_S} s")


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_bytes("VmData") + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextlib.contextmanager
def _measured_memory() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    before = _bytes("VmHWM")
    yield
    used = _bytes("VmHWM") - before
    assert used <= MAX_BYTES, f"{used / 2**20:.0f} MiB"


def _bytes(name: str) -> int:
    """An amount of memory in Linux's status of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def table() -> list[str]:
    """Examples of each parser, and how many of them it refused."""
    rows = [
        f"{name:<28} {counts['examples']:>9} {counts['refused']:>9}"
        for name, counts in sorted(COUNTS.items())
    ]
    return [f"{'parser':<28} {'examples':>9} {'refused':>9}", *rows]
