"""RESISC45 as `NWPU-RESISC45.rar` unpacks: numbered images per class, no lists."""

from __future__ import annotations

from pathlib import Path

from tests.data.layouts import pictures

CLASSES = ("airplane", "baseball diamond", "railway", "railway station")
SPLITS = {"paper": (32, 8)}
PER_CLASS = 10


def build(folder: Path) -> None:
    """Write the copy below `folder`."""
    for name in CLASSES:
        key = name.replace(" ", "_")
        for number in range(1, PER_CLASS + 1):
            pictures.write(folder / f"NWPU-RESISC45/{key}/{key}_{number:03}.jpg", (32, 32))
