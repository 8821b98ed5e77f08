"""Tables are views of scores.csv: the numbers, their ranks, holes with reasons, the same bytes."""

import csv
import io
import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from microclip import paths, runtime, settings, study
from microclip.measure import tables, typesetting
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError, reports
from microclip.settings.declarations import Supervision
from microclip.settings.reports import TableSettings
from microclip.study import Plan
from tests.measure.reports import plan, scores, write_passport, write_scores

ROOT = Path(__file__).resolve().parents[2]
TITLES = {"cats": "Cats & Dogs", "cars": "Cars_100%"}
SETTINGS = TableSettings.model_validate(
    {
        "name": "t",
        "title": "Table 0",
        "caption": "Top-1 accuracy (%) of A&B.",
        "label": "tab:t",
        "shows_supervision": False,  # most tests here are about accuracies
        "rows": [
            {"method": "clip", "label": "CLIP"},
            {"method": "cupl", "label": "CuPL_2"},
            {"method": "microclip", "label": "Ours"},
            {"method": "microclip", "variant": "off", "label": "Ours, off"},
        ],
    }
)
ONE_SEED = scores(
    {
        ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
        ("cupl", "default"): {"cats": [41.126], "cars": [49.0]},
        ("microclip", "default"): {"cats": [44.0], "cars": [49.0]},
    }
)


def changed(**values: Any) -> TableSettings:
    """The settings with some values changed."""
    return TableSettings.model_validate({**SETTINGS.model_dump(), **values})


def build(
    frame: pd.DataFrame = ONE_SEED, table: TableSettings = SETTINGS, **selection: Any
) -> typesetting.Table:
    """A table of the rows that were run, unless `selection` says otherwise."""
    planned = plan("t", TITLES, **{"is_brief": True, **selection})
    return tables.build(table, frame, titles=TITLES, plan=planned)


def printed(table: typesetting.Table) -> dict[str, list[str]]:
    return {row.label: [cell.text for cell in row.cells] for row in table.rows}


def cells_of(markdown: str) -> list[list[str]]:
    """The cells of a Markdown table, without the padding that aligns them."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_rows_are_the_studys_in_the_tables_order_with_their_mean() -> None:
    assert printed(build()) == {
        "CLIP": ["40.00", "50.00", "45.00"],
        "CuPL_2": ["41.13", "49.00", "45.06"],
        "Ours": ["44.00", "49.00", "46.50"],
    }


def test_the_best_is_bold_the_second_underlined_and_ties_share_a_rank() -> None:
    assert cells_of(typesetting.to_markdown(build()))[2:] == [
        ["CLIP", "40.00", "**50.00**", "45.00"],
        ["CuPL_2", "<u>41.13</u>", "<u>49.00</u>", "<u>45.06</u>"],
        ["Ours", "**44.00**", "<u>49.00</u>", "**46.50**"],
    ]


def test_markdown_is_aligned_so_that_it_reads_as_plain_text() -> None:
    lines = [line for line in typesetting.to_markdown(build()).splitlines() if line[:1] == "|"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ------ | -----------: | -----------: | -----------: |"


def test_a_bound_that_learns_labels_stands_above_and_outranks_none() -> None:
    frame = scores(
        {
            ("oracle", "default"): {"cats": [90.0], "cars": [91.0]},
            ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
            ("microclip", "default"): {"cats": [44.0], "cars": [49.0]},
        }
    )
    bound = {"method": "oracle", "label": "Oracle", "group": "Bounds"}
    rows = [bound, *SETTINGS.model_dump()["rows"]]
    built = build(frame, changed(rows=rows, shows_supervision=True))
    heads, _, *lines = cells_of(typesetting.to_markdown(built))
    assert [heads, *lines] == [
        ["Method", "Supervision", "Cats & Dogs", "Cars_100%", "Mean"],
        ["*Bounds*", "", "", "", ""],
        ["Oracle", "labels", "90.00", "91.00", "90.50"],
        ["CLIP", "none", "<u>40.00</u>", "**50.00**", "<u>45.00</u>"],
        ["Ours", "unlabelled", "**44.00**", "<u>49.00</u>", "**46.50**"],
    ]
    assert r"\midrule" in typesetting.to_tex(built)
    assert typesetting.to_csv(built).startswith("Group,Method,Supervision,Cats & Dogs,Cars_100%,")
    ranked = build(frame, changed(rows=rows, shows_supervision=True), has_ranks=True)
    assert ranked.caption.endswith("No ranks: they need three rows without holes and two datasets.")
    without = build(frame, changed(rows=rows))
    assert [row.cells for row in without.rows] == [row.cells[1:] for row in built.rows]


def test_a_rows_variant_decides_what_its_method_sees() -> None:
    rows = [
        {"method": "reclip", "label": "ReCLIP"},
        {"method": "reclip", "variant": "official", "label": "as released"},
    ]
    built = build(table=changed(rows=rows, shows_supervision=True), is_brief=False)
    assert [row.cells[0].text for row in built.rows] == ["unlabelled", "transductive"]


def test_a_method_without_code_says_no_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "unavailable", lambda _: "no code")
    wca = {"method": "wca", "label": "WCA"}
    built = build(table=changed(rows=[wca], shows_supervision=True), is_brief=False)
    assert built.rows[0].cells[0].text == typesetting.HOLE


def test_numbers_that_print_alike_rank_alike() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [40.001], "cars": [1.0]},
            ("cupl", "default"): {"cats": [40.004], "cars": [1.0]},
        }
    )
    assert [row.cells[0].rank for row in build(frame).rows] == [1, 1]


def test_ranks_compare_numbers_not_text() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [9.5], "cars": [1.0]},
            ("cupl", "default"): {"cats": [10.5], "cars": [1.0]},
            ("microclip", "default"): {"cats": [100.0], "cars": [1.0]},
        }
    )
    assert [row.cells[0].rank for row in build(frame).rows] == [None, 2, 1]


def test_the_only_number_in_a_column_is_not_marked_as_the_best() -> None:
    frame = scores({("clip", "default"): {"cats": [40.0], "cars": [50.0]}})
    assert [cell.rank for cell in build(frame).rows[0].cells] == [None, None, None]


def test_several_seeds_give_mean_and_sample_deviation() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
            ("microclip", "default"): {"cats": [43.0, 45.0], "cars": [50.0, 52.0]},
        }
    )
    table = build(frame)
    ours = table.rows[1].cells
    assert [cell.text for cell in ours] == ["44.00", "51.00", "47.50"]
    assert [cell.deviation for cell in ours] == ["1.41", "1.41", "1.41"]  # sqrt(2)
    assert not any(cell.deviation for cell in table.rows[0].cells)
    markdown = typesetting.to_markdown(table)
    assert "**44.00** ± 1.41" in markdown
    assert "mean ± sample deviation, 2 seeds; a number alone is of one run." in markdown
    assert list(csv.reader(io.StringIO(typesetting.to_csv(table))))[0][1:3] == [
        "Cats & Dogs",
        "Cats & Dogs sd",
    ]


def test_the_mean_is_over_the_seeds_that_all_datasets_have() -> None:
    frame = scores({("microclip", "default"): {"cats": [40.0, 50.0], "cars": [60.0]}})
    assert printed(build(frame))["Ours"] == ["45.00", "60.00", "50.00"]  # (40 + 60) / 2


def test_seeds_that_the_study_does_not_show_are_left_out() -> None:
    frame = scores({("microclip", "default"): {"cats": [40.0, 50.0], "cars": [60.0, 70.0]}})
    assert printed(build(frame, seeds=[1]))["Ours"] == ["50.00", "70.00", "60.00"]
    unseeded = scores({("clip", "default"): {"cats": [40.0], "cars": [60.0]}})
    assert printed(build(unseeded, seeds=[1]))["CLIP"] == ["40.00", "60.00", "50.00"]


def test_one_dataset_needs_no_mean() -> None:
    table = tables.build(SETTINGS, ONE_SEED, titles={"cats": "Cats"}, plan=plan("t", ["cats"]))
    assert [column.name for column in table.columns] == ["Cats"]
    assert printed(table)["CLIP"] == ["40.00"]


def test_a_row_may_show_the_accuracy_of_one_token() -> None:
    rows = [
        {"method": "microclip", "label": "Both"},
        {"method": "microclip", "label": "CLS", "head": "global"},
        {"method": "microclip", "label": "FG", "head": "local"},
        {"method": "clip", "label": "CLIP's FG", "head": "local"},
    ]
    runs = [(dataset, "clip", "default") for dataset in TITLES]
    table = tables.build(
        changed(rows=rows), ONE_SEED, titles=TITLES, plan=plan("t", TITLES, runs=runs)
    )
    assert printed(table) == {
        "Both": ["44.00", "49.00", "46.50"],
        "CLS": ["43.00", "48.00", "45.50"],
        "FG": ["42.00", "47.00", "44.50"],
        "CLIP's FG": ["", "", ""],
    }
    assert table.notes == ("CLIP's FG: no accuracy of the local token in its runs",)


def test_the_best_epoch_is_marked_as_selected_with_test_labels() -> None:
    frame = ONE_SEED.assign(best_top1_pct=[None, None, None, None, 47.0, 49.5])
    assert printed(build(frame)) == printed(build())  # the last epoch, unless asked for
    for table in (build(frame, epoch="best"), build(frame, changed(epoch="best"))):
        assert printed(table) == {
            "CLIP": ["40.00", "50.00", "45.00"],  # trains nothing: there is nothing to select
            "CuPL_2": ["41.13", "49.00", "45.06"],
            "Ours ‡": ["47.00", "49.50", "48.25"],
        }
        assert table.caption.endswith("‡ best epoch of each run, selected with test labels.")
        assert r"Ours $\ddagger$ &" in typesetting.to_tex(table)
    assert "‡" not in build(frame[frame["method"] != "microclip"], epoch="best").caption


def test_runs_that_recorded_no_best_epoch_leave_a_hole_with_the_reason() -> None:
    older = build(epoch="best")  # scores.csv from before there was such a column
    assert printed(older)["Ours ‡"] == ["", "", ""]
    assert older.notes == (f"Ours ‡: {tables.NO_BEST}",)
    some = build(ONE_SEED.assign(best_top1_pct=[None] * 4 + [47.0, None]), epoch="best")
    assert printed(some)["Ours ‡"] == ["47.00", "", ""]
    assert some.notes == (f"Ours ‡ (Cars_100%): {tables.NO_BEST}",)


def test_a_missing_cell_is_a_hole_with_its_place_and_leaves_no_mean() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
            ("microclip", "default"): {"cats": [43.0]},
        }
    )
    table = build(frame)
    assert printed(table)["Ours"] == ["43.00", "", ""]
    markdown = typesetting.to_markdown(table)
    assert cells_of(markdown)[-1] == ["Ours", "**43.00**", "—", "—"]
    assert "— Ours (Cars_100%): not run in this study" in markdown


def test_a_hole_of_the_plan_shows_its_reason_once() -> None:
    reason = "method cupl has no code in this release"
    runs = [("cats", "microclip", "off")]
    planned = plan("t", TITLES, runs=runs, holes={("cupl", "default"): reason})
    frame = ONE_SEED[ONE_SEED["method"] == "clip"]
    table = tables.build(SETTINGS, frame, titles=TITLES, plan=planned)
    assert table.notes == (
        f"CuPL_2: {reason}",
        "Ours; Ours, off (Cars_100%): not run in this study",
        "Ours, off (Cats & Dogs): planned, and not in scores.csv",
    )
    markdown = typesetting.to_markdown(table)
    assert cells_of(markdown)[3] == ["CuPL_2", "—", "—", "—"]
    assert markdown.count(reason) == 1
    rows = list(csv.DictReader(io.StringIO(typesetting.to_csv(table))))
    assert [row["Hole"] for row in rows][:2] == ["", reason]
    assert rows[1]["Mean"] == ""


def test_a_brief_table_leaves_out_rows_that_were_not_run() -> None:
    holes = {("cupl", "default"): "no code"}
    frame = ONE_SEED[ONE_SEED["method"] == "clip"]
    planned = plan("t", TITLES, holes=holes, is_brief=True)
    table = tables.build(SETTINGS, frame, titles=TITLES, plan=planned)
    assert list(printed(table)) == ["CLIP"]
    assert table.notes == ()


@pytest.mark.parametrize(
    ("is_brief", "note"),
    [(True, "no row of this table was run in this study"), (False, "all rows: not run in this")],
)
def test_a_table_without_any_score_is_still_written(is_brief: bool, note: str) -> None:
    frame = scores({("tent", "default"): {"cats": [1.0], "cars": [1.0]}})
    table = build(frame, is_brief=is_brief)
    assert len(table.rows) == (0 if is_brief else 4)
    for format_ in tables.FORMATS.values():
        assert format_(table)
    assert note in typesetting.to_markdown(table)
    assert "Study s; no score yet." in typesetting.to_markdown(table)


def test_groups_are_headings_above_their_rows() -> None:
    rows = [
        {"group": "Fixed | frozen", "method": "clip", "label": "One"},
        {"group": "Fixed | frozen", "method": "cupl", "label": "Two"},
        {"group": "Shared", "method": "microclip", "label": "One"},
        {"group": "Shared", "method": "microclip", "variant": "off", "label": "Two"},
    ]
    table = build(table=changed(rows=rows), is_brief=False)
    assert [line[0] for line in cells_of(typesetting.to_markdown(table))[2:]] == [
        r"*Fixed \| frozen*", "One", "Two", "*Shared*", "One", "Two",
    ]  # fmt: skip
    assert table.notes == ("Shared: Two: not run in this study",)
    written = list(csv.DictReader(io.StringIO(typesetting.to_csv(table))))
    assert [row["Group"] for row in written] == ["Fixed | frozen"] * 2 + ["Shared"] * 2


def test_backbones_are_never_averaged_silently() -> None:
    frame = pd.concat([ONE_SEED, ONE_SEED.assign(backbone="c")])
    with pytest.raises(SettingsError, match="mixes backbone b, c; name one"):
        build(frame, backbones=["b", "c"])
    rows = [{"method": "clip", "label": "CLIP", "backbone": "c"}]
    assert list(printed(build(frame, changed(rows=rows)))) == ["CLIP"]


def test_runs_of_the_studys_other_tables_are_left_out() -> None:
    others = [
        ONE_SEED.assign(backbone="c", top1_pct=1.0),
        ONE_SEED.assign(descriptions="e", top1_pct=1.0),
        ONE_SEED.assign(dataset="dogs", top1_pct=1.0),
    ]
    assert printed(build(pd.concat([ONE_SEED, *others]))) == printed(build())


def test_the_csv_is_plain_numbers() -> None:
    assert typesetting.to_csv(build()).splitlines() == [
        "Method,Cats & Dogs,Cars_100%,Mean",
        "CLIP,40.00,50.00,45.00",
        "CuPL_2,41.13,49.00,45.06",
        "Ours,44.00,49.00,46.50",
    ]


def test_the_order_of_scores_does_not_matter() -> None:
    shuffled = list(ONE_SEED.to_dict("records"))
    random.Random(0).shuffle(shuffled)
    for format_ in tables.FORMATS.values():
        assert format_(build(pd.DataFrame(shuffled))) == format_(build())


@pytest.fixture
def icons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Work in an empty folder; return the plan of the shipped study."""
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return study.load(settings.read_yaml(ROOT / "config" / "icons-all.yaml")).plan()


def test_every_table_of_the_shipped_study_has_the_same_bytes_each_time(icons: Plan) -> None:
    frame = pd.DataFrame([run.as_dict() for run in icons.runs]).assign(top1_pct=50.0)
    write_scores(frame, "icons-all")
    for name in icons.tables:
        target = tables.write(reports.load_table(name), icons)
        assert target == Path("results/icons-all/tables") / name
        before = {s: target.with_suffix(f".{s}").read_bytes() for s in tables.FORMATS}
        tables.write(reports.load_table(name), icons)
        assert before == {s: target.with_suffix(f".{s}").read_bytes() for s in tables.FORMATS}
        assert "—" not in before["md"].decode(), f"{name} has a hole"


@pytest.mark.parametrize("name", settings.base.known("tables"))
def test_every_shipped_table_of_accuracies_says_what_each_method_may_see(name: str) -> None:
    card = reports.load_table(name)
    if card.kind != "accuracy":
        return
    runs = {(row.method, row.variant): {"cats": [50.0]} for row in card.rows}
    frame = scores(runs).assign(top1_local_pct=1.0, top1_global_pct=1.0)
    rows = [row.model_copy(update={"backbone": None}) for row in card.rows]
    card = card.model_copy(update={"rows": tuple(rows)})
    built = tables.build(card, frame, titles={"cats": "Cats"}, plan=plan(name, ["cats"]))
    seen = [row.cells[0].text for row in built.rows]
    assert len(seen) == len(card.rows)
    assert set(seen) <= {one.value for one in Supervision}
    for format_ in tables.FORMATS.values():
        assert "Supervision" in format_(built)
    assert "unlabelled" in seen or name == "table11"


def test_table_1_has_the_rows_of_the_shipped_study(icons: Plan) -> None:
    write_scores(
        pd.DataFrame([run.as_dict() for run in icons.runs]).assign(top1_pct=50.0), "icons-all"
    )
    shown = tables.write(reports.load_table("table1"), icons).with_suffix(".csv").read_text()
    rows = list(csv.DictReader(io.StringIO(shown)))
    labels = {row.label: row.method for row in reports.load_table("table1").rows}
    assert [row["Method"] for row in rows] == [
        label for label, method in labels.items() if study.unavailable(method) is None
    ]
    assert list(rows[0])[2:] == [
        "Supervision", "Animals", "Food", "Objects", "Travel", "Flags", "Faces", "Mean",
    ]  # fmt: skip


def test_a_study_without_scores_or_without_the_table_is_refused(icons: Plan) -> None:
    with pytest.raises(MissingDataError, match="results/icons-all/scores.csv does not exist; run"):
        tables.write(reports.load_table("table1"), icons)
    with pytest.raises(
        SettingsError, match="study icons-all has no table table12; its tables: table1"
    ):
        tables.write(reports.load_table("table12"), icons)


def test_dataset_counts_are_shown_beside_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    write_passport(
        "fgvc", classes=100, train=3334, test=3300, differences=("3300 test images, expected 3333",)
    )
    for dataset, sentences in {"fgvc": [["s"] * 20] * 2, "pets": [["s"] * 19, ["s"] * 21]}.items():
        texts = {f"class {number}": own for number, own in enumerate(sentences)}
        target = Path(paths.DESCRIPTIONS.format(descriptions="d", dataset=dataset))
        runtime.write_json(target, {"descriptions": texts})
    titles = {"fgvc": "FGVC", "pets": "Pets", "dtd": "DTD", "icons-food": "Food"}
    table = tables.count_table(
        reports.load_table("table10"), titles, plan("t", titles).tables["t"], "s"
    )
    assert cells_of(typesetting.to_markdown(table))[2:] == [
        ["FGVC", "20", "20", "100", "≠ 102", "3334", "3334", "3300", "≠ 3333"],
        ["Pets", "19–21", "≠ 20", "37*", "37", "3680*", "3680", "3669*", "3669"],
        ["DTD", "—", "60", "47*", "47", "3760*", "3760", "1880*", "1880"],
        ["Food", "—", "", "—", "", "—", "", "—", ""],
    ]
    assert table.notes[:2] == ("Food: not fetched", "DTD, Food: descriptions not gathered")
    assert table.notes[2].startswith("* declared by the dataset's card, not counted here: Pets (")
    assert "; DTD (Table 10; train1 and val1 of the release)" in table.notes[2]
    assert "FGVC: 3300 test images, expected 3333" in table.notes
    assert "FGVC: Table 10 prints 102 classes; the release has 100 variants" in table.notes
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in tables.FORMATS["tex"](table)
