"""scores.csv: one row per run in the study's order; stale and missing scores are refused."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from microclip import paths, runtime
from microclip import study as expansion
from microclip.measure import scores
from microclip.methods.base import SHARED_RECIPE
from microclip.runtime import MissingDataError
from microclip.study import Plan, PlannedRun, Study
from tests.fixtures.project import load_study


def write_scores(run: PlannedRun, **changes: Any) -> Path:
    path = run.spec.folder / paths.RUN_SCORES
    values = asdict(run.spec) | {
        "digest": run.digest,
        "recipe": run.recipe,
        "shared_recipe": SHARED_RECIPE,
        "top1_pct": 50.12345678,
        "mean_class_pct": 49.0,
        "n_test": 12,
        "seconds": 60.0,
        "device": "cpu",
    }
    runtime.write_json(path, {**values, **changes})
    return path


@pytest.fixture
def plan(project: Path) -> Plan:
    return load_study().plan()


def test_there_is_one_row_per_run_in_the_studys_order(plan: Plan, project: Path) -> None:
    for run in reversed(plan.runs):
        write_scores(run)
    scores.collect(plan, Path("out/scores.csv"), SHARED_RECIPE)
    frame = pd.read_csv("out/scores.csv")
    assert list(frame["method"]) == ["clip", "cupl", "microclip"]
    assert tuple(frame.columns) == scores.COLUMNS
    assert frame["top1_pct"].tolist() == [50.1235] * 3


def test_the_best_epoch_is_blank_for_runs_without_one_and_for_older_ones(plan: Plan) -> None:
    clip, _, microclip = plan.runs
    for run in plan.runs:
        write_scores(run)  # as written before there was a best epoch
    write_scores(clip, best_top1_pct=None, best_epoch=None)
    write_scores(microclip, best_top1_pct=61.25, best_epoch=7)
    scores.collect(plan, Path("scores.csv"), SHARED_RECIPE)
    frame = pd.read_csv("scores.csv", dtype=str, keep_default_na=False)
    assert frame["best_top1_pct"].tolist() == ["", "", "61.2500"]
    assert frame["best_epoch"].tolist() == ["", "", "7"]
    read = scores.read_runs(plan, pd.read_csv("scores.csv"))
    best = [(run.best_top1_pct, run.best_epoch) for run in read]
    assert best == [(None, None), (None, None), (61.25, 7)]
    older = pd.read_csv("scores.csv").drop(columns=["best_top1_pct", "best_epoch"])
    assert {run.best_epoch for run in scores.read_runs(plan, older)} == {None}


def test_collecting_twice_gives_the_same_bytes(plan: Plan) -> None:
    for run in plan.runs:
        write_scores(run)
    texts = []
    for _ in range(2):
        scores.collect(plan, Path("scores.csv"), SHARED_RECIPE)
        texts.append(Path("scores.csv").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "0" * 16}, "digest is 0000000000000000"),
        ({"recipe": 0}, "recipe is 0"),
        ({"shared_recipe": 0}, "shared_recipe is 0"),
    ],
)
def test_a_stale_score_is_refused_with_the_command_to_run(
    plan: Plan, change: dict[str, Any], said: str
) -> None:
    for run in plan.runs:
        write_scores(run)
    path = write_scores(plan.runs[2], **change)
    with pytest.raises(MissingDataError) as caught:
        scores.collect(plan, Path("scores.csv"), SHARED_RECIPE)
    assert "shapes/tiny/shipped/microclip/default/seed-0" in str(caught.value)
    assert said in str(caught.value)
    assert f"snakemake --cores 1 --resources gpu=1 --forcerun {path}" in str(caught.value)
    assert not Path("scores.csv").exists()


def test_a_missing_run_is_named(plan: Plan) -> None:
    write_scores(plan.runs[0])
    with pytest.raises(MissingDataError, match="shapes/tiny/shipped/cupl.*is not complete"):
        scores.collect(plan, Path("scores.csv"), SHARED_RECIPE)


def test_the_time_left_is_estimated_from_done_runs_of_the_same_method(plan: Plan) -> None:
    study = load_study().settings.model_copy(update={"seeds": (0, 1, 2)})
    plan = Study(study, expansion.expand(study)).plan()
    assert len(plan.runs) == 5
    done, pending, left = scores.progress(plan)
    assert (len(done), len(pending), left) == (0, 5, None)
    write_scores(plan.runs[0], seconds=1.0)
    write_scores(plan.runs[1], seconds=2.0)
    write_scores(plan.runs[2], seconds=90.0)
    done, pending, left = scores.progress(plan)
    assert (len(done), len(pending), left) == (3, 2, 180.0)


def test_a_stale_run_counts_as_pending(plan: Plan) -> None:
    for run in plan.runs:
        write_scores(run)
    write_scores(plan.runs[2], digest="0" * 16)
    _, pending, _ = scores.progress(plan)
    assert [spec.method for spec in pending] == ["microclip"]
