"""A study's one live view on a terminal, or a line for each event where there is none."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from snakemake_logger_plugin_microclip.progress import Job, Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

_REFRESH_PER_S = 2
_SHOWN_JOBS = 8
_PASSED_ON = ("WARNING:", "ERROR:", "CRITICAL:")  # lines of jobs that matter
_OUTPUT = "output.log"


def has_terminal() -> bool:
    """Whether people watch standard error."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def seconds_in_words(seconds: float) -> str:
    """45 s, 3 min 05 s, 2 h 13 min."""
    from microclip.runtime import duration

    return duration(seconds)


def time_left(progress: Progress) -> str:
    """The time left for all runs, in words; "" before the first one."""
    left = progress.time_left()
    if left is None or (not left.seconds and left.is_whole):
        return ""
    if not left.seconds:
        return "time left not known yet"
    words = seconds_in_words(left.seconds)
    return f"about {words} left" if left.is_whole else f"more than {words} left"


class Lines:
    """One line for each event, with its time."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        """Write to `stream`."""
        self._progress, self._stream = progress, stream

    def start(self) -> None:
        """The workflow begins."""
        stages = ", ".join(f"{name} {n}" for name, n in self._progress.planned.items())
        self.show(f"{self._progress.counts[1]} jobs: {stages}")

    def event(self, word: str, job: Job, note: str = "") -> None:
        """A job began, is done or failed."""
        kind = "" if job.journal is None else "run "
        self.show(f"{word:6} {kind}{job.text}{note}")

    def show(self, text: str) -> None:
        """A line with the time."""
        self.message(f"{time.strftime('%H:%M:%S')}  {text}")

    def message(self, text: str) -> None:
        """Lines as they are."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """The workflow has ended."""


class Screen(Lines):
    """The live view. What jobs print goes to a file meanwhile, as it would tear the view."""

    def __init__(self, progress: Progress, stream: TextIO, log: Path | None) -> None:
        """Draw on the terminal that `stream` writes to; `log` is Snakemake's own."""
        super().__init__(progress, stream)
        self._log = log
        self._output = Path(".snakemake/log", _OUTPUT) if log is None else log.with_suffix(".out")
        self._read = 0
        self._kept: list[tuple[int, int]] = []
        self._live: Live | None = None
        self._console: Console | None = None
        self._after: list[str] = []

    def start(self) -> None:
        """Take the terminal."""
        from rich.console import Console
        from rich.live import Live

        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._read = self._output.stat().st_size if self._output.exists() else 0
        own = os.fdopen(os.dup(self._stream.fileno()), "w", encoding="utf-8")
        self._console = Console(file=own, force_terminal=True)
        self._redirect()
        # `redirect_*` would catch Python's output alone, and not that of other programs.
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=_REFRESH_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)
        atexit.register(self.close)

    def _redirect(self) -> None:
        """Let standard output and error write to the file where they are terminals."""
        sys.stdout.flush()
        sys.stderr.flush()
        target = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            if os.isatty(number):
                self._kept.append((number, os.dup(number)))
                os.dup2(target, number)
        os.close(target)

    def event(self, word: str, job: Job, note: str = "") -> None:
        """Only what failed needs a line: the view shows the rest."""
        if word == "FAILED":
            super().event(word, job, note)

    def message(self, text: str) -> None:
        """Lines above the view; after it once all jobs are done."""
        if self._live is None or self._console is None:
            super().message(text)
        elif self._progress.is_complete:
            self._after.append(text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last view, and give the terminal back."""
        live, self._live = self._live, None
        if live is None:
            return
        live.stop()
        for number, kept in self._kept:
            with contextlib.suppress(OSError):
                os.dup2(kept, number)
                os.close(kept)
        for text in self._after:
            super().message(text)

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        self._progress.read()
        for line in self._matters():
            self.message(line)
        parts: list[RenderableType] = [Text(self._title(), style="bold"), self._stages()]
        if self._progress.running:
            parts += [Text(), self._jobs(), Text("Ctrl-C keeps what is done", style="dim")]
        log = "" if self._log is None else f"; Snakemake's: {_near(self._log)}"
        return Group(*parts, Text(f"jobs' logs: logs/{log}", style="dim"))

    def _matters(self) -> Iterator[str]:
        """New lines of the jobs' output that people should see."""
        with contextlib.suppress(OSError), self._output.open("rb") as stream:
            stream.seek(self._read)
            new = stream.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                if line.startswith(_PASSED_ON):
                    yield line

    def _title(self) -> str:
        done, planned = self._progress.counts
        parts = [f"{done} of {planned} jobs"]
        if self._progress.failed:
            parts.append(f"{len(self._progress.failed)} failed")
        parts.append(seconds_in_words(time.time() - self._progress.started))
        parts += filter(None, [time_left(self._progress)])
        study = os.environ.get("MICROCLIP_STUDY", "")
        return (f"study {study}: " if study else "") + ", ".join(parts)

    def _stages(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, planned in self._progress.planned.items():
            done = self._progress.done.get(name, 0)
            bar = ProgressBar(total=planned, completed=done, width=30)
            table.add_row(name, bar, f"{done}/{planned}")
        return table

    def _jobs(self) -> Table:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("running", "epoch", "loss", "test", "left"):
            table.add_column(title, justify="left" if title == "running" else "right")
        jobs = [job for job in self._progress.running.values() if job.rule != "all"]
        for job in jobs[:_SHOWN_JOBS]:
            table.add_row(job.text, *_numbers(job))
        if len(jobs) > _SHOWN_JOBS:
            table.add_row(f"and {len(jobs) - _SHOWN_JOBS} more")
        return table


def _numbers(job: Job) -> tuple[str, ...]:
    """A run's epoch, loss, accuracy and time left, as far as it has said them."""
    if job.journal is None:
        return ()
    told, row = job.journal, job.journal.row
    total = "" if told.n_epochs is None else f"/{told.n_epochs}"
    left = told.left_s(time.time())
    return (
        "" if told.epoch is None else f"{told.epoch}{total}",
        f"{row['loss']:.3f}" if "loss" in row else "",
        "" if told.accuracy_pct is None else f"{told.accuracy_pct:.1f} %",
        "" if left is None else seconds_in_words(left),
    )


def _near(path: Path) -> str:
    """A path as people write it from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def farewell(progress: Progress) -> Iterator[str]:
    """What an interruption or a failure leaves, and how to go on."""
    done, planned = progress.counts
    open_jobs = [*progress.stopped.values(), *progress.running.values()]
    # A signal to all processes of a cluster's job reaches the runs, and Snakemake does not say so.
    if progress.is_interrupted or (progress.stopped and not progress.failed):
        yield f"interrupted: {done} of {planned} jobs are done and kept"
    elif progress.failed:
        yield f"{len(progress.failed)} failed, {done} of {planned} jobs are done and kept"
    else:
        return
    for job in open_jobs:
        if job.journal is None or job.folder is None:
            continue
        job.journal.read()
        has_checkpoint = any((job.folder / "checkpoint").glob("*.safetensors"))
        epoch, total = job.journal.epoch, job.journal.n_epochs
        kept = f"its checkpoint after epoch {epoch} of {total}" if has_checkpoint else "nothing yet"
        yield f"  {job.text}: kept {kept}"
    yield "the same command continues"
