"""`history.csv` of a run: a row an epoch, and who reports it."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from microclip import paths, runtime

if TYPE_CHECKING:
    from microclip.methods.base import Tracker


def write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write `history.csv`, a row an epoch; the columns are those of the last row."""
    with (
        runtime.atomic_path(folder / paths.RUN_HISTORY) as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(
            stream, fieldnames=list(rows[-1]), extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of `history.csv`, none if there is no such file."""
    path = folder / paths.RUN_HISTORY
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            {key: float(value) for key, value in row.items() if value not in ("", None)}
            for row in csv.DictReader(stream)
        ]


class RunClock:
    """Seconds that a run has taken over all its processes: an interruption starts no new count."""

    def __init__(self, folder: Path | None = None) -> None:
        """Start this process's share of the run in `folder`; None: the run has no other share."""
        self._started = time.perf_counter()
        past = [] if folder is None else read_history(folder)
        self._elapsed = {int(r["epoch"]): r.get("elapsed_s", 0.0) for r in past}
        self._before: float | None = None

    def at(self, epoch: int) -> float:
        """Return the seconds at the end of an epoch; the first call tells where the run went on."""
        if self._before is None:
            self._before = self._elapsed.get(epoch - 1, 0.0)
        return self.seconds()

    def seconds(self) -> float:
        """Return the seconds up to now."""
        return (self._before or 0.0) + time.perf_counter() - self._started


def epoch_line(
    epoch: int, n_epochs: int | None, row: Mapping[str, float], shown: Mapping[str, str]
) -> str:
    """Return an epoch's row for people: what it has of `shown` (column: format), the time left."""
    parts = [form.format(row[name]) for name, form in shown.items() if name in row]
    if n_epochs and "seconds" in row:
        parts.append(f"about {round((n_epochs - epoch) * row['seconds'])} s left")
    total = "" if n_epochs is None else f"/{n_epochs}"
    return f"epoch {epoch}{total}: " + ", ".join(parts)


class Observer(Protocol):
    """Whoever measures a method at work, with labels or without."""

    @property
    def shown(self) -> Mapping[str, str]:
        """Return the columns that people see of an epoch, each with its format."""

    def take(self, epoch: int) -> dict[str, float]:
        """Return what was measured since the last call, by column of history."""


class EpochReporter:
    """A tracker that adds what an observer measured to each epoch's row, and shows it in a line."""

    def __init__(
        self,
        tracker: Tracker,
        observer: Observer,
        clock: RunClock,
        *,
        n_epochs: int | None,
        past: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Pass everything on to `tracker`; `past` is what an interrupted process recorded."""
        self._tracker, self._observer = tracker, observer
        self._clock, self._n_epochs = clock, n_epochs
        self._rows = {int(row["epoch"]): dict(row) for row in past}

    @property
    def rows(self) -> list[dict[str, float]]:
        """Return the history, epoch by epoch."""
        return [self._rows[epoch] for epoch in sorted(self._rows)]

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record a row with what was measured; it replaces this epoch's row and all later ones."""
        elapsed = round(self._clock.at(epoch), 3)
        full = {**row, **self._observer.take(epoch), "elapsed_s": elapsed}
        self._rows = {e: r for e, r in self._rows.items() if e < epoch}
        self._rows[epoch] = {"epoch": epoch, **full}
        self._tracker.epoch(epoch, full)
        self._tracker.message(epoch_line(epoch, self._n_epochs, full, self._observer.shown))

    def message(self, text: str) -> None:
        """Show a line."""
        self._tracker.message(text)
