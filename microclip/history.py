"""`history.csv` of a run: a row an epoch."""

from __future__ import annotations

import csv
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
