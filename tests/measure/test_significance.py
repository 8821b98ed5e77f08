"""Intervals, daggers and ranks in tables, built from runs' own predictions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jinja2 import Template

from microclip import paths, study
from microclip.measure import significance, statistics, tables, typesetting
from microclip.measure.typesetting import Table
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from microclip.settings.reports import TableSettings
from microclip.study import Plan, RunSpec
from tests.measure.reports import N, plan, write_run

TITLES = {"cats": "Cats", "cars": "Cars"}
ROWS = [
    {"method": "clip", "label": "CLIP"},
    {"method": "cupl", "label": "CuPL"},
    {"method": "microclip", "label": "Ours", "group": "Trained"},
]
Answers = Mapping[str, Mapping[str, Sequence[tuple[int, int]]]]
# By method and dataset, for each seed the first and the last image that is right.
ANSWERS: Answers = {
    "clip": {"cats": [(0, 100)], "cars": [(0, 100)]},
    "cupl": {"cats": [(3, 106)], "cars": [(1, 99)]},
    "microclip": {"cats": [(0, 130), (0, 134), (0, 138)], "cars": [(0, 98), (0, 101), (0, 104)]},
}


def card(**values: Any) -> TableSettings:
    given: dict[str, Any] = {"name": "t", "title": "Table 0", "caption": "Accuracy."}
    given["label"] = "tab:t"
    given |= {"shows_supervision": False}  # the columns are then those of the accuracies
    return TableSettings.model_validate({**given, "rows": ROWS, **values})


def write_runs(answers: Answers) -> pd.DataFrame:
    """Write runs with these answers and return their scores."""
    rows = []
    for method, sets in answers.items():
        for dataset, spans in sets.items():
            for seed, (first, last) in enumerate(spans):
                spec = RunSpec(dataset, "b", "d", method, seed=seed)
                right = (np.arange(N) >= first) & (np.arange(N) < last)
                rows.append({**vars(spec), "top1_pct": write_run(spec, right)})
    return pd.DataFrame(rows)


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The scores of runs whose folders are in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_runs(ANSWERS)


def build(scores: pd.DataFrame, table: TableSettings | None = None, **selection: Any) -> Table:
    titles = selection.pop("titles", TITLES)
    planned = plan("t", titles, is_brief=True, **selection)
    return tables.build(table or card(), scores, titles=titles, plan=planned)


def test_without_options_no_run_is_read_and_nothing_is_added(scores: pd.DataFrame) -> None:
    before = build(scores)
    for file in Path("results/runs").rglob("*.parquet"):
        file.unlink()
    plain = build(scores)
    assert [format_(plain) for format_ in tables.FORMATS.values()] == [
        format_(before) for format_ in tables.FORMATS.values()
    ]
    assert plain.caption == (
        "Accuracy. Study s; mean ± sample deviation, 3 seeds; a number alone is of one run."
    )
    assert "†" not in typesetting.to_markdown(plain)


def test_intervals_replace_deviations_and_are_the_bootstraps(scores: pd.DataFrame) -> None:
    table = build(scores, spread="interval")
    ours = table.rows[2].cells
    rights = [[np.arange(N) < last for _, last in ANSWERS["microclip"][name]] for name in TITLES]
    sets = [np.array(right) for right in rights]
    for cell, behind in zip(ours, ([sets[0]], [sets[1]], sets), strict=True):
        found = statistics.accuracy_interval(behind)
        assert (cell.low, cell.high) == (f"{found.low:.1f}", f"{found.high:.1f}")
    assert f"67.00** [{ours[0].low}, {ours[0].high}] |" in typesetting.to_markdown(table)
    assert rf"\,{{\scriptsize[{ours[0].low}, {ours[0].high}]}}" in typesetting.to_tex(table)
    assert "±" not in typesetting.to_markdown(table)
    assert table.caption == (
        "Accuracy. Study s; mean [95 % interval, percentile bootstrap of test images and seeds], "
        "3 seeds; that of a single run: of images alone. 200 test images a dataset."
    )
    row = list(csv.DictReader(io.StringIO(typesetting.to_csv(table))))[2]
    assert (row["Cats"], row["Cats sd"], row["Cats low"]) == ("67.00", "2.00", ours[0].low)


def test_a_dagger_marks_what_differs_from_the_reference_after_holm(scores: pd.DataFrame) -> None:
    table = build(scores, reference="CLIP")
    marks = {row.label: [cell.is_marked for cell in row.cells] for row in table.rows}
    assert marks == {
        "CLIP": [False, False, False],
        "CuPL": [False, False, False],
        "Ours": [True, False, True],
    }
    # CuPL against CLIP is McNemar between two runs: 3 images against 6, and 0 against 2.
    assert all(not cell.p for cell in table.rows[0].cells)
    alone = [statistics.mcnemar(3, 6), statistics.mcnemar(2, 0)]
    ps = [float(cell.p) for row in table.rows[1:] for cell in row.cells]
    assert ps[0] == ps[1] == 1  # adjusted upwards
    assert min(alone) > 0.2
    assert table.caption.endswith(
        "200 test images a dataset. † differs from CLIP at the 5 % level: two-sided, adjusted by "
        "Holm for the 6 differences of this table; paired bootstrap of test images and seeds, "
        "between two single runs McNemar's exact test."
    )
    assert "**67.00**† ± 2.00" in typesetting.to_markdown(table)
    tex = typesetting.to_tex(table)
    assert r"\textbf{67.00}$^\dagger$\,{\scriptsize$\pm$\,2.00}" in tex
    assert r"$\dagger$ differs from CLIP" in tex


def test_holm_counts_every_difference_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # 7 images against none: p = 2 / 2^7 = 0.0156; alone significant, not as one of four.
    found = write_runs(
        {
            "clip": {"cats": [(0, 100)]},
            "cupl": {"cats": [(0, 107)]},
        }
    )
    one = build(found, reference="CLIP", titles={"cats": "Cats"})
    assert [cell.is_marked for row in one.rows for cell in row.cells] == [False, True]
    assert one.rows[1].cells[0].p == "0.0156"
    rows = [*ROWS[:2], *({**ROWS[1], "label": f"CuPL {n}"} for n in range(3))]
    four = build(found, card(rows=rows), reference="CLIP", titles={"cats": "Cats"})
    assert [row.cells[0].p for row in four.rows[1:]] == ["0.0625"] * 4
    assert not any(row.cells[0].is_marked for row in four.rows)


def test_the_page_shows_daggers_and_intervals(scores: pd.DataFrame) -> None:
    table = build(scores, reference="CLIP", spread="interval")
    ours = table.rows[2].cells[0]
    parts: Template = typesetting.template("parts.html")
    shown = str(parts.module.cell_html(ours))  # type: ignore[attr-defined]
    assert f"<strong>67.00</strong><sup>†</sup> <small>{ours.interval}</small>" in shown


def test_the_card_names_a_reference_and_the_study_another(scores: pd.DataFrame) -> None:
    of_card = card(reference="Trained: Ours")
    assert "† differs from Ours" in build(scores, of_card).caption
    assert "† differs from CuPL" in build(scores, of_card, reference="CuPL").caption
    with pytest.raises(SettingsError, match="reference 'Theirs' of table t names 0 rows"):
        build(scores, reference="Theirs")


def test_a_reference_that_was_not_run_leaves_no_dagger(scores: pd.DataFrame) -> None:
    without = scores[scores["method"] != "clip"]
    table = build(without, reference="CLIP")
    assert table.caption.endswith("Nothing is compared: CLIP was not run.")
    assert not any(cell.p for row in table.rows for cell in row.cells)


def test_ranks_are_a_column_with_their_critical_difference(scores: pd.DataFrame) -> None:
    table = build(scores, has_ranks=True)
    assert table.columns[-1].name == "Rank"
    # Cats: 50, 51.5, 67; Cars: 50, 49, 50.5.
    assert [row.cells[-1].text for row in table.rows] == ["2.50", "2.50", "1.00"]
    assert "Rank: mean over 2 datasets, 1 is best; Friedman's test of 3 rows: p = " in table.caption
    assert "ranks 2.34 or more apart differ at the 5 % level (Nemenyi)." in table.caption
    heads = typesetting.to_csv(table).splitlines()[0].split(",")
    assert heads[-2:] == ["Mean sd", "Rank"]
    assert build(scores, has_ranks=True, titles={"cats": "Cats"}).caption.endswith(
        "No ranks: they need three rows without holes and two datasets."
    )


def test_a_row_of_one_token_is_measured_by_that_tokens_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = RunSpec("cats", "b", "d", "microclip")
    right, weaker = np.arange(N) < 150, np.arange(N) < 90
    found = pd.DataFrame(
        [{**vars(spec), "top1_pct": write_run(spec, right, local=weaker), "top1_local_pct": 45.0}]
    )
    rows = [
        {"method": "microclip", "label": "Both"},
        {"method": "microclip", "label": "FG", "head": "local"},
    ]
    table = build(found, card(rows=rows), reference="Both", titles={"cats": "Cats"})
    assert [cell.is_marked for row in table.rows for cell in row.cells] == [False, True]
    (spec.folder / paths.RUN_PREDICTIONS).unlink()
    with pytest.raises(MissingDataError, match="does not say which images its fused head got"):
        build(found, card(rows=rows), reference="Both", titles={"cats": "Cats"})


def test_a_run_of_several_draws_is_measured_by_the_share_that_each_image_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec, other = RunSpec("cats", "b", "d", "wca"), RunSpec("cats", "b", "d", "clip")
    first, second = np.arange(N) < 80, (np.arange(N) >= 60) & (np.arange(N) < 180)
    write_run(spec, first, repeat_2=second)
    found = pd.DataFrame(
        [
            {**vars(spec), "top1_pct": 50.0},  # the mean of 40 and 60
            {**vars(other), "top1_pct": write_run(other, np.arange(N) < 100)},
        ]
    )
    rows = [{"method": "clip", "label": "CLIP"}, {"method": "wca", "label": "WCA"}]
    asked = {"spread": "interval", "reference": "CLIP"}
    table = build(found, card(rows=rows), titles={"cats": "Cats"}, **asked)
    cell, share = table.rows[1].cells[0], (first + 0.0 + second) / 2
    expected = statistics.accuracy_interval([share[None]])
    assert (cell.text, cell.low, cell.high) == (
        "50.00",
        f"{expected.low:.1f}",
        f"{expected.high:.1f}",
    )
    clip = (np.arange(N) < 100)[None]
    # By the bootstrap, which sees both draws; McNemar's test would compare one of them.
    p = statistics.difference([clip], [share[None]], is_paired=False).p
    assert cell.p == f"{p:.4f}"


def test_runs_that_are_not_those_of_the_scores_are_refused(scores: pd.DataFrame) -> None:
    older = scores.assign(top1_pct=scores["top1_pct"] + 1)
    with pytest.raises(SettingsError, match="scores.csv has 51.0000 %: it is older; run `snake"):
        build(older, spread="interval")


def test_seeds_of_both_are_paired_only_if_they_are_the_same(scores: pd.DataFrame) -> None:
    one = significance.ShownRow(card().rows[2], scores[scores["method"] == "microclip"])
    other = significance.ShownRow(card().rows[0], scores[scores["method"] == "clip"])
    ours, theirs = one.measured(["cats", "cars"]), other.measured(["cats"])
    assert ours is not None
    assert theirs is not None
    assert (ours.seeds, theirs.seeds) == ((0, 1, 2), (0,))
    assert one.measured(["dogs"]) is None


STUDY = {
    "study": "s",
    "datasets": ["icons-food"],
    "backbones": ["icon-clip"],
    "descriptions": ["shipped"],
}


def planned(**entry: Any) -> Plan:
    return study.load({**STUDY, "tables": [{"name": "table1", "is_brief": True, **entry}]}).plan()


def test_a_plan_keeps_the_options_and_is_the_old_one_without_them() -> None:
    plain = planned().as_dict()["tables"]["table1"]
    assert set(plain) == {"datasets", "backbones", "descriptions", "seeds", "is_brief"}
    assert planned(spread="deviation").as_dict() == planned().as_dict()
    asked = planned(spread="interval", reference="Zero-shot: CLIP", has_ranks=True)
    read = Plan.from_dict(json.loads(json.dumps(asked.as_dict()))).tables["table1"]
    assert (read.spread, read.reference, read.has_ranks) == ("interval", "Zero-shot: CLIP", True)
    assert [run.digest for run in asked.runs] == [run.digest for run in planned().runs]


def test_options_that_mean_nothing_are_refused_before_anything_runs() -> None:
    with pytest.raises(SettingsError, match="reference 'BLIP' of table table1 names 0 rows"):
        planned(reference="BLIP")
    with pytest.raises(SettingsError, match="reference 'Single-view alignment' .* names 2 rows"):
        study.load({**STUDY, "tables": [{"name": "table4", "reference": "Single-view alignment"}]})
    for kind, name in (("tables", "table10"), ("figures", "figure3")):
        with pytest.raises(SettingsError, match=f"spread of {name} in the study: only a table of"):
            study.load({**STUDY, kind: [{"name": name, "spread": "interval"}]})
        with pytest.raises(SettingsError, match=f"epoch of {name} in the study: only a table of"):
            study.load({**STUDY, kind: [{"name": name, "epoch": "best"}]})


def test_what_comes_from_the_last_epochs_predictions_is_refused_beside_the_best_epoch() -> None:
    assert planned(epoch="best", has_ranks=True).tables["table1"].epoch == "best"
    assert planned(epoch="last").as_dict() == planned().as_dict()
    for option in ({"spread": "interval"}, {"reference": "Zero-shot: CLIP"}):
        with pytest.raises(SettingsError, match="keep the predictions of the last epoch alone"):
            planned(epoch="best", **option)


def test_the_best_epoch_of_one_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"method": "microclip", "label": "FG", "head": "local"}]
    monkeypatch.setattr(study.reports, "load_table", lambda _: card(rows=rows, epoch="best"))
    with pytest.raises(SettingsError, match="a row shows one token, whose best epoch no run reco"):
        planned()
