"""All scores of a study in one tidy file: a row a run, and nothing stale among them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from microclip import paths, runtime
from microclip.runs import SPEC, Plan, PlannedRun, RunSpec
from microclip.runtime import MissingDataError

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


def read(study: str) -> pd.DataFrame:
    """Return `scores.csv` of a study. Raises MissingDataError if it has not been written."""
    path = Path(paths.STUDY_SCORES.format(study=study))
    if not path.is_file():
        raise MissingDataError(f"{path} is not there; run `make run` or `snakemake`")
    texts = {name: str for name in SPEC if name != "seed"}
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def read_score(run: PlannedRun, shared_recipe: int) -> dict[str, Any]:
    """Return the scores of a planned run, checked against today's settings.

    Raises: MissingDataError if the run is not complete, or was made by other settings or code.
    """
    path = run.spec.folder / paths.RUN_SCORES
    if not path.is_file():
        raise MissingDataError(f"run {run.name} is not complete, no {path}; run `snakemake`")
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    expected = {
        "digest": run.digest,
        "recipe": run.recipe,
        "shared_recipe": shared_recipe,
    }
    for key, value in expected.items():
        if scores.get(key) != value:
            raise MissingDataError(
                f"scores of {run.name} are stale: {key} is {scores.get(key)}, today's is {value}; "
                f"run `snakemake --cores 1 --resources gpu=1 --forcerun {path}`"
            )
    return scores


def collect(plan: Plan, target: Path, shared_recipe: int) -> pd.DataFrame:
    """Write `scores.csv`, a row a run in the study's order; return it."""
    rows = [read_score(run, shared_recipe) for run in plan.runs]
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    with runtime.atomic_path(target) as path:
        frame.to_csv(path, index=False, lineterminator="\n", float_format="%.4f")
    return frame


def progress(plan: Plan, jobs: int = 1) -> tuple[list[RunSpec], list[RunSpec], float | None]:
    """Return done and pending runs, and the seconds left for `jobs` at a time if that can be told.

    A pending run is expected to take, an image, what done runs of its method took on average.
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
    """Return the images of a fetched dataset; 1 if it is not fetched."""
    manifest = Path(paths.MANIFEST.format(dataset=dataset))
    if not manifest.is_file():
        return 1
    with manifest.open("rb") as lines:
        return max(1, sum(1 for _ in lines) - 1)
