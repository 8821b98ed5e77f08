"""How far a long download has come, for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_STEP = 0.1  # of the whole, between two lines
_QUIET_S = 30.0  # at most between two lines

Advance = Callable[[int], None]  # told the bytes that came since it was last called


def tell(text: str) -> None:
    """Write a line for people on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def in_words(n_bytes: float) -> str:
    """Return a size as people write it, in powers of 1,000: `3.4 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} bytes" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


@contextlib.contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show how `what`, of `total` bytes if that is known, grows from `done` bytes."""
    if sys.stderr.isatty():
        with _bar(what, total, done) as advance:
            yield advance
    else:
        yield _lines(what, total, done)


@contextlib.contextmanager
def _bar(what: str, total: int | None, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=total, completed=done)
        yield lambda n: shown.advance(task, n)


def _lines(what: str, total: int | None, done: int) -> Advance:
    said_at, said = time.monotonic(), done
    now = done

    def advance(n: int) -> None:
        nonlocal said_at, said, now
        now += n
        is_due = total is not None and now - said >= _STEP * total
        if is_due or now == total or time.monotonic() - said_at >= _QUIET_S:
            of = f" of {in_words(total)}, {100 * now / total:.0f} %" if total else ""
            tell(f"{what}: {in_words(now)}{of}")
            said_at, said = time.monotonic(), now

    return advance
