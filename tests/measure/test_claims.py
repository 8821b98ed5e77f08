"""A table of claims: verdicts from runs' own predictions and histories, made by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from microclip import study
from microclip.measure import statistics, tables
from microclip.measure.typesetting import Cell, Table
from microclip.settings import SettingsError, read_yaml, validated
from microclip.settings.reports import TableSettings, load_table
from microclip.study import FigureSelection, Plan, RunSpec, SweepPoint
from microclip.tracking.run import write_history
from tests.measure.reports import N, plan, write_run, write_scores

ROOT = Path(__file__).resolve().parents[2]
TITLES = {"cats": "Cats", "cars": "Cars"}
Right = Mapping[str, Sequence[int]]  # by dataset: how many images each seed got right
RUNS: dict[tuple[str, str], Right] = {
    ("microclip", "default"): {"cats": [120, 122, 124], "cars": [100, 101, 102]},
    ("microclip", "gamma-0"): {"cats": [60, 62, 64], "cars": [100, 101, 102]},
    ("microclip", "gamma-1"): {"cats": [180, 182, 184], "cars": [160, 161, 162]},
    ("microclip", "crops-1"): {"cats": [119, 122, 125], "cars": [99, 101, 103]},
    ("clip", "default"): {"cats": [70], "cars": [98]},
}


def claim(label: str, **values: Any) -> dict[str, Any]:
    return {"group": "Table 9", "label": label, "source": "somewhere", **values}


BETTER = claim("better than gamma 0", second={"variant": "gamma-0"}, published_pct=2.5)
WORSE = claim("better than gamma 1", second={"variant": "gamma-1"})
CLIP = claim("better than CLIP", second={"method": "clip"})
ALIKE = claim("like one crop", second={"figure": "crops", "value": 1}, alike_pct=3.0)


def card(*claims: dict[str, Any]) -> TableSettings:
    given = {"name": "t", "title": "Claims", "caption": "They say.", "label": "tab:c"}
    return TableSettings.model_validate({**given, "kind": "claims", "claims": claims})


def planned() -> Plan:
    found = plan("t", TITLES)
    points = tuple(SweepPoint(dataset, 1, "crops-1") for dataset in TITLES)
    return replace(found, figures={"crops": FigureSelection((), (), (), (), points=points)})


@pytest.fixture
def frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Scores of runs that are written to a folder."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for (method, variant), sets in RUNS.items():
        for dataset, counts in sets.items():
            for seed, count in enumerate(counts):
                spec = RunSpec(dataset, "b", "d", method, variant, seed)
                rows.append({**vars(spec), "top1_pct": write_run(spec, np.arange(N) < count)})
    return pd.DataFrame(rows)


def built(frame: pd.DataFrame, *claims: dict[str, Any], of: Plan | None = None) -> Table:
    write_scores(frame)
    return tables.claims.build(card(*claims), frame, titles=TITLES, plan=of or planned())


def cells(table: Table, row: int) -> list[list[Cell]]:
    """Effect, p and verdict by heading."""
    own = table.rows[row].cells[1:]
    return [list(own[start : start + 3]) for start in range(0, len(own), 3)]


def verdicts(table: Table, row: int) -> list[str]:
    return [verdict.text for _, _, verdict in cells(table, row)]


def test_a_claim_holds_fails_or_is_open_on_each_set_and_on_all(frame: pd.DataFrame) -> None:
    table = built(frame, BETTER, WORSE, CLIP, ALIKE)
    assert [c.group for c in table.columns[1::3]] == ["Cats", "Cars", "All sets"]
    assert verdicts(table, 0) == ["holds", "cannot tell", "holds"]
    assert verdicts(table, 1) == ["does not hold"] * 3
    assert verdicts(table, 2) == ["holds", "cannot tell", "holds"]
    assert verdicts(table, 3) == ["holds"] * 3
    effects = [[effect.text for effect, _, _ in cells(table, row)] for row in range(4)]
    # 60 and 0 of 200 images, 30 and 0 points; 15 on average. CLIP: (122 - 70) / 2, (101 - 98) / 2.
    assert effects[0] == ["+30.00", "+0.00", "+15.00"]
    assert effects[1] == ["-30.00", "-30.00", "-30.00"]
    assert effects[2] == ["+26.00", "+1.50", "+13.75"]
    assert [row.cells[0].text for row in table.rows] == ["+2.50", "", "", ""]
    assert table.notes == ()
    assert table.caption.endswith("All sets: holds 3, does not hold 1, cannot tell 0.")


def test_p_is_that_of_the_bootstrap_adjusted_for_all_differences(frame: pd.DataFrame) -> None:
    table = built(frame, BETTER, CLIP, ALIKE)
    ours = np.array([np.arange(N) < count for count in RUNS["microclip", "default"]["cars"]])
    theirs = np.array([np.arange(N) < RUNS["clip", "default"]["cars"][0]])
    alone = statistics.difference([theirs], [ours], is_paired=False)
    effect, p, _ = cells(table, 1)[1]
    assert (effect.low, effect.high) == (
        f"{alone.interval.low:.2f}",
        f"{alone.interval.high:.2f}",
    )
    # Six differences; the claim of likeness is no test. One p, of equal runs, is larger.
    assert float(p.text) == pytest.approx(min(1, 2 * alone.p), abs=6e-4)
    assert [p.text for _, p, _ in cells(table, 2)] == ["", "", ""]
    assert "adjusted by Holm for the 6 differences" in table.caption
    assert "p below 0.05" in table.caption


def test_sides_are_alike_only_within_the_margin(frame: pd.DataFrame) -> None:
    narrow = {**ALIKE, "alike_pct": 0.1}
    far = claim("like gamma 1", second={"variant": "gamma-1"}, alike_pct=1.0)
    table = built(frame, narrow, far)
    assert verdicts(table, 0) == ["cannot tell"] * 3
    assert verdicts(table, 1) == ["does not hold"] * 3


def test_a_side_without_runs_is_a_hole_with_its_reason(frame: pd.DataFrame) -> None:
    unknown = claim("better than two crops", second={"figure": "crops", "value": 2})
    absent = claim("better than CuPL", second={"method": "cupl"})
    table = built(frame, unknown, absent)
    assert all(cell.hole is not None for row in table.rows for cell in row.cells)
    assert table.notes == (
        "Table 9, better than two crops: value 2 of crops is no point of crops in this study",
        "Table 9, better than CuPL: cupl/default was not run",
    )


HISTORY = {"default": (60.0, 64.0), "gamma-1": (58.0, 58.0)}  # first and last epoch, seed 0


def test_pseudo_labels_are_compared_over_seeds(frame: pd.DataFrame) -> None:
    for variant, values in HISTORY.items():
        for dataset in TITLES:
            for seed in range(3):
                spec = RunSpec(dataset, "b", "d", "microclip", variant, seed)
                more = seed if variant == "default" else 0
                rows = [{"epoch": 0.0}] + [
                    {"epoch": epoch, "pseudo_mix_pct": value + more}
                    for epoch, value in enumerate(values, start=1)
                ]
                write_history(spec.folder, rows)
    mix = {"column": "pseudo_mix_pct"}
    prior = {"variant": "gamma-1", **mix}
    table = built(
        frame,
        claim("the mix better", first=mix, second=prior),
        claim("it improves", first={**mix, "epoch": "last"}, second={**mix, "epoch": "first"}),
        claim("the prior stays", first={**prior, "epoch": "last"}, second=prior, alike_pct=1.0),
    )
    effect, _, _ = cells(table, 0)[0]
    # By seed 62, 63, 64 against 58: 4, 5, 6 points. t of 2 degrees of freedom: 4.3027 / sqrt(3).
    assert (effect.text, effect.low, effect.high) == ("+5.00", "2.52", "7.48")
    assert verdicts(table, 1) == ["holds"] * 3
    assert [effect.text for effect, _, _ in cells(table, 1)] == ["+4.00"] * 3
    assert verdicts(table, 2) == ["holds"] * 3


def test_the_table_is_written_in_every_format(frame: pd.DataFrame, tmp_path: Path) -> None:
    write_scores(frame)
    root = tmp_path / "root"
    for name in TITLES:
        file = root / "config" / "datasets" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        source = {"kind": "folder", "folder": "images"}
        file.write_text(json.dumps({"title": TITLES[name], "source": source, "templates": ["{}"]}))
    (root / "config" / "methods").symlink_to(ROOT / "config" / "methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROCLIP_ROOT", str(root))
        stem = tables.write(card(BETTER, ALIKE), planned())
    with io.StringIO(stem.with_suffix(".csv").read_text(encoding="utf-8")) as stream:
        first = next(csv.DictReader(stream))
    assert first["Cats, effect"] == "+30.00"
    assert float(first["Cats, effect low"]) < 30 < float(first["Cats, effect high"])
    assert first["Cats, verdict"] == "holds"
    assert " holds |" in stem.with_suffix(".md").read_text(encoding="utf-8")
    assert r"\label{tab:c}" in stem.with_suffix(".tex").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"second": {"figure": "figure5"}}, "needs both 'figure' and 'value'"),
        ({"second": {"figure": "f", "value": 1, "variant": "v"}}, "leave out 'variant'"),
        ({"second": {"column": "c"}}, "both sides need a 'column', or none"),
        ({"second": {"column": "c", "head": "local"}}, "leave out 'head'"),
    ],
)
def test_a_side_that_means_nothing_is_refused(values: dict[str, Any], message: str) -> None:
    given = {"name": "t", "title": "T", "caption": "C", "label": "l", "kind": "claims"}
    with pytest.raises(SettingsError, match=message):
        validated(TableSettings, {**given, "claims": [claim("x", **values)]}, "here")


def test_a_study_makes_the_runs_of_both_sides() -> None:
    """All but the points of sweeps, which the figures make."""
    config = read_yaml(ROOT / "config" / "icons-claims.yaml")
    alone = study.load({**config, "tables": ["claims"], "figures": [], "seeds": [0]})
    sides = [side for one in load_table("claims").claims for side in (one.first, one.second)]
    wanted = {(side.method, side.variant) for side in sides if side.figure is None}
    assert {(spec.method, spec.variant) for spec in alone.runs} == wanted
    whole = study.load(config).plan()
    listed = {(name, point.value) for name, part in whole.figures.items() for point in part.points}
    assert {(side.figure, side.value) for side in sides if side.figure is not None} <= listed
    assert all(one.source for one in load_table("claims").claims)
