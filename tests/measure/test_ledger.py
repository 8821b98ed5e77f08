"""The ledger: each published cell beside ours, verdicts and reasons, and `microclip verify`."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from microclip import runtime, settings, study
from microclip.cli import main
from microclip.measure import ledger, published
from microclip.measure.ledger import Entry
from microclip.settings import SettingsError, reports
from tests.measure.reports import plan, scores, write_passport, write_scores

ROOT = Path(__file__).resolve().parents[2]
SIX = ("cars", "dtd", "fgvc", "flowers", "pets", "ucf101")
MICROCLIP = (65.81, 60.00, 22.74, 75.84, 90.24, 70.98)  # Tables 2 to 5, average 64.27


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)


def compared(table: str, frame: pd.DataFrame, **planned: Any) -> dict[tuple[str, str], Entry]:
    """The entries of one table by row and column."""
    write_scores(frame)
    found = ledger.compare(plan(table, planned.pop("datasets", SIX), **planned))
    return {(entry.row, entry.column): entry for entry in found}


def of_default(values: dict[str, list[float]]) -> pd.DataFrame:
    return scores({("microclip", "default"): values})


def test_every_row_and_column_has_an_entry_with_its_average() -> None:
    found = compared("table4", of_default({"dtd": [60.0]}))
    assert len(found) == 6 * 7
    assert {entry.table for entry in found.values()} == {"table4"}
    assert list(found)[6][1] == "avg"


def test_a_cell_within_the_tolerance_matches_and_one_outside_differs() -> None:
    values = {name: [value] for name, value in zip(SIX, MICROCLIP, strict=True)}
    values |= {"cars": [65.31], "dtd": [60.51]}  # off by 0.50 and 0.51
    found = compared("table4", of_default(values))
    row = "dynamic knowledge aggregation"
    cars, dtd, mean = (found[row, column] for column in ("cars", "dtd", "avg"))
    assert (cars.verdict, cars.difference, cars.tolerance) == ("match", "-0.50", "0.50")
    assert (dtd.verdict, dtd.difference, dtd.ours) == ("differs", "+0.51", "60.51")
    # (385.61 - 0.50 + 0.51) / 6 = 64.27
    assert (mean.verdict, mean.published, mean.ours) == ("match", "64.27", "64.27")


def test_seeds_are_averaged_with_their_deviation() -> None:
    found = compared("table4", of_default({"dtd": [59.0, 60.0, 61.0]}))
    dtd = found["dynamic knowledge aggregation", "dtd"]
    assert (dtd.ours, dtd.deviation, dtd.n_seeds, dtd.verdict) == ("60.00", "1.00", 3, "match")


def test_a_cell_that_was_not_run_says_why() -> None:
    found = compared("table4", of_default({"dtd": [60.0]}), datasets=["dtd", "pets"])
    row = "dynamic knowledge aggregation"
    assert found[row, "pets"].reason == "not run in this study"
    assert found[row, "cars"].reason == "cars is not in this study"
    assert found[row, "avg"].reason == "lacks cars, fgvc, flowers, pets, ucf101"
    assert {found[row, c].verdict for c in ("pets", "cars", "avg")} == {"not run"}
    assert found[row, "cars"].ours == ""


def test_a_planned_run_without_a_score_is_pending() -> None:
    found = compared("table4", of_default({"dtd": [60.0]}), runs=[("pets", "microclip", "default")])
    assert found["dynamic knowledge aggregation", "pets"].reason == "planned, and not in scores.csv"


def test_a_hole_of_the_plan_cannot_run() -> None:
    reason = "method dpa has no code in this release"
    found = compared("table6", of_default({"dtd": [60.0]}), holes={("dpa", "default"): reason})
    cells = [found["DPA / unsupervised", column] for column in (*SIX, "avg")]
    assert {(cell.verdict, cell.reason) for cell in cells} == {("cannot run", reason)}


def test_an_illegible_cell_has_no_verdict_and_keeps_our_number() -> None:
    frame = scores({("microclip", "both-templates"): {"cars": [50.0], "dtd": [57.0]}})
    found = compared("table5", frame)
    cell = found["handcrafted prompts for both", "cars"]
    assert (cell.published, cell.ours, cell.verdict) == ("", "50.00", "")
    assert cell.reason == "illegible in the paper"
    assert found["handcrafted prompts for both", "dtd"].verdict == "match"


def test_a_derived_average_is_marked_with_its_sentence() -> None:
    values = {name: [62.5] for name in SIX}
    found = compared("table3", scores({("microclip", "query-average"): values}))
    cell = found["attention pooling query / naive token average", "avg"]
    assert (cell.published, cell.is_derived, cell.verdict) == ("62.56", True, "match")
    assert "1.71% and 1.39% drops" in cell.note
    assert not found["SOAP", "avg"].is_derived


def test_counts_of_datasets_match_exactly_or_differ() -> None:
    write_passport("pets", classes=37, train=3680, test=3668)
    found = compared("table10", of_default({"pets": [90.0]}), datasets=["pets", "dtd"])
    counted = {column: found["pets", column] for column in ("classes", "train", "test")}
    assert {column: cell.verdict for column, cell in counted.items()} == {
        "classes": "match", "train": "match", "test": "differs",
    }  # fmt: skip
    assert counted["test"].difference == "-1"
    assert found["pets", "descriptions_per_class"].reason == "descriptions not gathered"
    assert found["dtd", "train"].reason == "not fetched"
    assert found["cars", "train"].reason == "cars is not in this study"


def test_a_table_may_name_only_an_existing_published_row_and_only_once() -> None:
    table = reports.load_table("table5")
    printed = published.load("table5")
    rows = [row.model_dump() for row in table.rows]
    twice = table.model_validate({**table.model_dump(), "rows": [*rows, rows[0]]})
    with pytest.raises(SettingsError, match="two rows of config/tables/table5.yaml name"):
        ledger.rows_by_key(twice, printed)
    wrong = table.model_validate({**table.model_dump(), "rows": [{**rows[0], "published": "x"}]})
    with pytest.raises(SettingsError, match=r"no row 'x' in config/published/table5.csv, named in"):
        ledger.rows_by_key(wrong, printed)


def write(table: str, frame: pd.DataFrame, **planned: Any) -> tuple[list[dict[str, str]], str]:
    """The rows of ledger.csv and the text of ledger.md."""
    write_scores(frame)
    target = ledger.write(plan(table, planned.pop("datasets", SIX), **planned))
    assert target == Path("results/s/ledger")
    with target.with_suffix(".csv").open(newline="") as stream:
        return list(csv.DictReader(stream)), target.with_suffix(".md").read_text()


def test_the_ledger_shows_pairs_footnotes_and_averages() -> None:
    values = {name: [value] for name, value in zip(SIX, MICROCLIP, strict=True)}
    rows, text = write("table3", of_default(values | {"dtd": [50.0, 52.0], "pets": [90.0, 90.0]}))
    assert list(rows[0]) == [
        "table", "row", "column", "published", "is_derived", "ours", "deviation", "n_seeds",
        "difference", "tolerance", "verdict", "reason", "note",
    ]  # fmt: skip
    assert len(rows) == 5 * 7
    assert "**60.00 / 51.00 ± 1.41 (-9.00)**" in text
    assert " 65.81 / 65.81 (+0.00) " in text
    assert "62.30* [2] / —" in text
    assert "1. Table 3: Appendix D.2 builds a sparse graph" in text
    assert "2. Table 3, no attention pooling / naive token average as [FG], average: " in text
    assert "Ours: b; descriptions d; 1 to 2 seeds a cell; tolerance 0.50 points." in text
    assert "- table1, ReCLIP / unsupervised: printed 64.69, mean of its cells 65.05" in text


def test_the_ledger_counts_cells_by_verdict() -> None:
    rows, text = write("table4", of_default({"dtd": [60.0], "cars": [60.0]}))
    counts = Counter(row["verdict"] for row in rows)
    assert counts == {"match": 1, "differs": 1, "not run": 40}
    assert "| Table 4 |     1 |       1 |      40 |          0 |         0 |" in text
    assert "| All     |     1 |       1 |      40 |          0 |         0 |" in text


def test_each_reason_is_listed_once_with_its_number_of_cells() -> None:
    reason = "method dpa has no code in this release"
    _, text = write("table6", of_default({"dtd": [60.0]}), holes={("dpa", "default"): reason})
    assert text.count(reason) == 1
    assert f"- 7 cells cannot run: {reason}" in text


def test_writing_twice_gives_the_same_bytes() -> None:
    first = write("table4", of_default({"dtd": [60.0]}))
    assert write("table4", of_default({"dtd": [60.0]})) == first


def test_a_study_without_a_dataset_of_the_paper_has_a_short_ledger() -> None:
    planned = study.load(settings.read_yaml(ROOT / "config" / "icons-all.yaml")).plan()
    write_scores(
        pd.DataFrame([run.as_dict() for run in planned.runs]).assign(top1_pct=50.0), "icons-all"
    )
    target = ledger.write(planned)
    text = target.with_suffix(".md").read_text()
    assert "- Table 1: 126 cells not run: no dataset of the paper in this study\n" in text
    assert len(text.splitlines()) < 60
    with target.with_suffix(".csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 126 + 35 + 35 + 42 + 21 + 21  # tables 1, 2, 3, 4, 5, 7
    assert {row["verdict"] for row in rows} == {"not run", ""}


def verify(
    table: str, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str, str]:
    write_scores(frame)
    planned = plan(table, SIX)
    planned.write()
    code = main.main(["verify", "--study", "s", *options])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_verify_passes_when_nothing_differs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verify("table4", of_default({"dtd": [60.2]}), capsys)
    assert code == 0
    assert "differs  " not in out
    assert "| All     |     1 |       0 |      41 |          0 |         0 |" in out
    assert "average  table1, ReCLIP / unsupervised: printed 64.69" in out


def test_verify_names_each_differing_cell_and_exits_with_6(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = verify("table4", of_default({"dtd": [58.0, 59.0], "pets": [90.0]}), capsys)
    assert code == 6
    assert [line for line in out.splitlines() if line.startswith("differs")] == [
        "differs  table4, dynamic knowledge aggregation, dtd: published 60.00, ours 58.50 ± 0.71, "
        "2 seeds, difference -1.50, tolerance 0.50"
    ]
    assert "1 of 42 published cells differ from study s beyond their tolerance" in err


def test_verify_can_list_every_average(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = verify("table4", of_default({"dtd": [60.0]}), capsys, "--audit")
    assert out.count("agrees   ") == 47
    assert out.count("average  ") == 2


def test_verify_of_a_study_that_was_not_run_exits_with_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["verify", "--study", "s"]) == 3
    assert "results/s/plan.json does not exist" in capsys.readouterr().err
    plan("table4", SIX).write()
    assert main.main(["verify", "--study", "s"]) == 3
    assert "results/s/scores.csv does not exist" in capsys.readouterr().err


def test_show_prints_the_tables_in_the_order_of_their_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["show", "--study", "s"]) == 3
    assert "results/s/tables holds no table" in capsys.readouterr().err
    for number in (10, 2, 1):
        runtime.write_text(Path(f"results/s/tables/table{number}.md"), f"<{number}>\n")
    assert main.main(["show", "--study", "s"]) == 0
    out = capsys.readouterr().out
    assert out.index("<1>") < out.index("<2>") < out.index("<10>")
