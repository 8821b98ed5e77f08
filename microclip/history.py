"""`history.csv` of a run: a row an epoch."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path

from microclip import paths, runtime


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
