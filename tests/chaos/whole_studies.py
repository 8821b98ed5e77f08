"""What two results folders must share, whatever happened to one of them on the way."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

# What a clock or the machine's load decides.
TIMED = {"seconds", "elapsed_s", "images_per_s", "peak_memory_mib"}
SAME_BYTES = (
    "data/*/manifest.csv",
    "data/*/origin.json",
    "data/*/passport.json",
    "data/*/store.json",
    "data/*/*.npy",
    "data/*/pixels.bin",
    "descriptions/**/*.json",
    "classifiers/**/*.safetensors",
    "features/**/*.safetensors",
    "runs/**/predictions.parquet",
    "runs/**/adapted.safetensors",
    "*/tables/*",
    "*/figures/*",
    "*/ledger.*",
)
SAME_VALUES = ("runs/**/scores.json", "runs/**/history.csv", "*/scores.csv")
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")  # as `runtime.atomic_path` names them


def differences(expected: Path, found: Path) -> list[str]:
    """Files of a results folder that are missing, new, or other than expected, and leftovers."""
    wrong = []
    for patterns, read in ((SAME_BYTES, Path.read_bytes), (SAME_VALUES, values)):
        for pattern in patterns:
            names = {
                str(path.relative_to(root))
                for root in (expected, found)
                for path in root.glob(pattern)
            }
            for name in sorted(names):
                sides = (expected / name, found / name)
                if not all(side.is_file() for side in sides) or read(sides[0]) != read(sides[1]):
                    wrong.append(name)
    return wrong + leftovers(found / "runs")


def values(path: Path) -> Any:
    """What a file of numbers says, without what is timed."""
    text = path.read_text()
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(text).items() if key not in TIMED}
    return [
        {key: value for key, value in row.items() if key not in TIMED}
        for row in csv.DictReader(io.StringIO(text))
    ]


def leftovers(root: Path) -> list[str]:
    """Temporary files that a killed process left."""
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob(".*-*"))
        if path.is_file() and _TEMPORARY.fullmatch(path.name)
    ]
