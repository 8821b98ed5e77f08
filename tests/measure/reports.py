"""Scores and plans made by hand, for the tests of tables and of the ledger."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from microclip import paths, runtime
from microclip.data import passport as passports
from microclip.study import Hole, Plan, PlannedRun, RunSpec, Selection

N = 200  # test images of a dataset, where runs are written
Cells = Mapping[str, Sequence[float]]  # dataset -> one number per seed


def scores(values: Mapping[tuple[str, str], Cells], **extra: Any) -> pd.DataFrame:
    """A frame of runs: (method, variant) -> dataset -> one number per seed."""
    rows = [
        {
            "dataset": dataset,
            "backbone": "b",
            "descriptions": "d",
            "method": method,
            "variant": variant,
            "seed": seed,
            "top1_pct": value,
            "top1_global_pct": value - 1 if method == "microclip" else None,
            "top1_local_pct": value - 2 if method == "microclip" else None,
            **extra,
        }
        for (method, variant), cells in values.items()
        for dataset, numbers in cells.items()
        for seed, value in enumerate(numbers)
    ]
    return pd.DataFrame(rows)


def plan(
    table: str,
    datasets: Iterable[str],
    *,
    runs: Iterable[tuple[str, str, str]] = (),
    holes: Mapping[tuple[str, str], str] | None = None,
    **selection: Any,
) -> Plan:
    """A plan of one table; `runs` are (dataset, method, variant), `holes` reasons."""
    names = tuple(datasets)
    part = Selection(names, ("b",), ("d",), (0, 1, 2))
    return Plan(
        study="s",
        title="Study S",
        runs=tuple(
            PlannedRun(RunSpec(dataset, "b", "d", method, variant), digest="", recipe=1)
            for dataset, method, variant in runs
        ),
        holes=tuple(
            Hole(RunSpec(dataset, "b", "d", method, variant), reason)
            for ((method, variant), reason), dataset in itertools.product(
                (holes or {}).items(), names
            )
        ),
        tables={table: replace(part, **selection)},
        figures={},
    )


def write_scores(frame: pd.DataFrame, study: str = "s") -> None:
    """Write `scores.csv` of a study under the working directory."""
    path = Path(paths.STUDY_SCORES.format(study=study))
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


def write_run(spec: RunSpec, right: np.ndarray, **heads: np.ndarray) -> float:
    """Write what a run leaves for others to read; return its accuracy."""
    labels = np.arange(N) % 4
    columns = {"prediction": right, **{f"prediction_{name}": own for name, own in heads.items()}}
    answered = {name: np.where(own, labels, (labels + 1) % 4) for name, own in columns.items()}
    spec.folder.mkdir(parents=True)
    table = pd.DataFrame({"label": labels, **answered, "correct": right})
    table.to_parquet(spec.folder / paths.RUN_PREDICTIONS, index=False)
    record = {
        "settings": {"spec": vars(spec), "device": "cpu"},
        "shared_recipe": 1,
        "inputs": {"images": spec.dataset},
    }
    (spec.folder / paths.RUN_RECORD).write_text(json.dumps(record))
    top1 = {f"top1_{name}_pct": 100 * float(own.mean()) for name, own in heads.items()}
    (spec.folder / paths.RUN_SCORES).write_text(json.dumps(top1))
    return 100 * float(right.mean())


def write_passport(dataset: str, *, classes: int, train: int, test: int, **changes: Any) -> None:
    """Write a passport with these counts where a stored dataset has its own."""
    names = tuple(f"class {label}" for label in range(classes))
    size = passports.ClassSize(name=names[0], train=train // classes, test=test // classes)
    nothing = passports.Overlap(rule="the same bytes", test=0, train=0, examples=())
    values: dict[str, Any] = {
        "format": passports.FORMAT,
        "dataset": dataset,
        "source": {"kind": "public", "dataset": dataset, "split": "paper", "seed": 0},
        "classes": names,
        "classes_sha256": passports.names_sha256(names),
        "train": train,
        "test": test,
        "unlabelled": 0,
        "smallest_class": size,
        "largest_class": size,
        "same_bytes": nothing,
        "look_alike": nothing,
        "manifest_sha256": "0",
        "images_sha256": "0",
        "pixels_sha256": "0",
    }
    found = passports.Passport.model_validate({**values, **changes})
    path = Path(paths.PASSPORT.format(dataset=dataset))
    runtime.write_json(path, found.model_dump(mode="json"))
