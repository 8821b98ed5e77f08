"""The scores of a study: collected in `scores.csv`, one row per run, and averaged over seeds.

`collect` refuses a stale score. `runs_of` and `statistics` give what a row of a table shows, and
`missing` says why it has nothing to show for a dataset.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from microclip import paths, runtime, settings
from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError
from microclip.settings.reports import TableRow
from microclip.study import SPEC, Plan, PlannedRun, RunSpec, Selection

COLUMNS = (
    "dataset",
    "backbone",
    "descriptions",
    "method",
    "variant",
    "seed",
    "top1_pct",
    "mean_class_pct",
    "top1_zero_shot_pct",
    "top1_global_pct",
    "top1_local_pct",
    "n_test",
    "seconds",
    "device",
    "digest",
    "recipe",
    "shared_recipe",
)
ACCURACIES = {"fused": "top1_pct", "global": "top1_global_pct", "local": "top1_local_pct"}


def read(study: str) -> pd.DataFrame:
    """Read `scores.csv` of a study. Raises MissingDataError if it has not been written."""
    path = Path(paths.STUDY_SCORES.format(study=study))
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; run `make run` or `snakemake`")
    # A dataset may be called NA or 1: names stay text, and only an empty cell is a missing number.
    texts = {name: str for name in SPEC if name != "seed"}
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def read_score(run: PlannedRun, shared_recipe: int) -> dict[str, Any]:
    """Read the scores of a planned run and check that they belong to its current settings.

    Raises:
        MissingDataError: the run is not complete, or its settings or code have changed since.
    """
    path = run.spec.folder / paths.RUN_SCORES
    if not path.is_file():
        raise MissingDataError(f"run {run.name} is not complete: no {path}; run `snakemake`")
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    expected = {
        "digest": run.digest,
        "recipe": run.recipe,
        "shared_recipe": shared_recipe,
    }
    for key, value in expected.items():
        if scores.get(key) != value:
            raise MissingDataError(
                f"scores of {run.name} are stale: {key} is {scores.get(key)}, expected {value}; "
                f"run `snakemake --cores 1 --resources gpu=1 --forcerun {path}`"
            )
    return scores


def collect(plan: Plan, target: Path, shared_recipe: int) -> pd.DataFrame:
    """Write `scores.csv`, one row per run in the study's order, and return it."""
    rows = [read_score(run, shared_recipe) for run in plan.runs]
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    with runtime.atomic_path(target) as path:
        frame.to_csv(path, index=False, lineterminator="\n", float_format="%.4f")
    return frame


def progress(plan: Plan, jobs: int = 1) -> tuple[list[RunSpec], list[RunSpec], float | None]:
    """The done runs, the pending runs, and the seconds left with `jobs` at a time.

    A pending run is expected to take as long per image as the done runs of its method on average.
    The time is None if a pending run's method has no done run yet.
    """
    done: list[RunSpec] = []
    pending: list[RunSpec] = []
    taken: dict[str, list[float]] = {}
    for run in plan.runs:
        spec = run.spec
        path = spec.folder / paths.RUN_SCORES
        scores = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if scores.get("digest") == run.digest and scores.get("recipe") == run.recipe:
            done.append(spec)
            pace = float(scores["seconds"]) / _n_images(spec.dataset)
            taken.setdefault(spec.method, []).append(pace)
        else:
            pending.append(spec)
    if any(spec.method not in taken for spec in pending):
        return done, pending, None
    left = sum(sum(taken[s.method]) / len(taken[s.method]) * _n_images(s.dataset) for s in pending)
    return done, pending, left / jobs


@cache
def _n_images(dataset: str) -> int:
    """Number of images of a fetched dataset; 1 if it is not fetched."""
    manifest = Path(paths.MANIFEST.format(dataset=dataset))
    if not manifest.is_file():
        return 1
    with manifest.open("rb") as lines:
        return max(1, sum(1 for _ in lines) - 1)


@dataclass(frozen=True)
class Statistic:
    """Mean and sample deviation over `n` seeds, in percent; without a seed there is no mean."""

    mean: float | None
    deviation: float | None
    n: int


def runs_of(row: TableRow, scores: pd.DataFrame, selection: Selection, table: str) -> pd.DataFrame:
    """The runs that a table's row averages over seeds.

    Raises:
        SettingsError: they have several backbones or descriptions.
    """
    own = scores[
        (scores["method"] == row.method)
        & (scores["variant"] == row.variant)
        & scores["dataset"].isin(selection.datasets)
    ]
    for field, several in (("backbone", "backbones"), ("descriptions", "descriptions")):
        named = getattr(row, field)
        own = own[own[field].isin(getattr(selection, several) if named is None else [named])]
        if own[field].nunique() > 1:
            raise SettingsError(
                f"row {row.label!r} of table {table} mixes {field} "
                f"{', '.join(sorted(own[field].unique()))}; name one in config/tables/{table}.yaml"
            )
    if settings.load_method_file(row.method).seeded:
        own = own[own["seed"].isin(selection.seeds)]
    return own


def statistics(own: pd.DataFrame, datasets: Sequence[str], head: str) -> list[Statistic]:
    """One statistic per dataset, then that of the mean over datasets.

    The mean takes only the seeds that every dataset has: otherwise it would average other datasets
    for some seeds than for others.
    """
    table = own.pivot(index="seed", columns="dataset", values=ACCURACIES[head])
    table = table.reindex(columns=list(datasets)).astype(float)
    columns = [table[name].dropna() for name in datasets] + [table.dropna().mean(axis=1)]
    return [
        Statistic(
            float(c.mean()) if len(c) else None,
            float(c.std(ddof=1)) if len(c) > 1 else None,
            len(c),
        )
        for c in columns
    ]


def missing(row: TableRow, dataset: str, plan: Plan, selection: Selection) -> str:
    """Why a row has no number for a dataset."""
    hole = hole_of(row, dataset, plan, selection)
    if hole is not None:
        return hole
    if any(_is_of(run.spec, row, dataset, selection) for run in plan.runs):
        if row.head != "fused":
            return f"no accuracy of the {row.head} token in its runs"
        return "planned, and not in scores.csv"
    return "not run in this study"


def hole_of(row: TableRow, dataset: str, plan: Plan, selection: Selection) -> str | None:
    """Why a row cannot run on a dataset; None if the plan has no such hole."""
    for hole in plan.holes:
        if _is_of(hole.spec, row, dataset, selection):
            return hole.reason
    return None


def _is_of(spec: RunSpec, row: TableRow, dataset: str, selection: Selection) -> bool:
    backbones = selection.backbones if row.backbone is None else (row.backbone,)
    descriptions = selection.descriptions if row.descriptions is None else (row.descriptions,)
    return (
        spec.method == row.method
        and spec.variant == row.variant
        and spec.dataset == dataset
        and spec.backbone in backbones
        and spec.descriptions in descriptions
    )
