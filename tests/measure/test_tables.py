"""Tables are views of scores.csv: the numbers, their ranks, three formats, the same bytes."""

import itertools
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from microclip import settings
from microclip.measure import tables
from microclip.settings import SettingsError, TableSettings

ROOT = Path(__file__).resolve().parents[2]
TITLES = {"cats": "Cats & Dogs", "cars": "Cars_100%"}
SETTINGS = TableSettings.model_validate(
    {
        "name": "t",
        "title": "T",
        "caption": "Top-1 accuracy (%) of A&B.",
        "label": "tab:t",
        "rows": [
            {"method": "clip", "label": "CLIP"},
            {"method": "cupl", "label": "CuPL_2"},
            {"method": "ours", "label": "Ours"},
            {"method": "ours", "variant": "off", "label": "Ours, off"},
        ],
    }
)


def scores(values: dict[tuple[str, str], dict[str, list[float]]]) -> pd.DataFrame:
    """Return a frame of runs: (method, variant) -> dataset -> a number a seed."""
    rows = [
        {
            "dataset": dataset,
            "backbone": "b",
            "descriptions": "d",
            "method": method,
            "variant": variant,
            "seed": seed,
            "top1_pct": value,
        }
        for (method, variant), cells in values.items()
        for dataset, numbers in cells.items()
        for seed, value in enumerate(numbers)
    ]
    return pd.DataFrame(rows)


ONE_SEED = scores(
    {
        ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
        ("cupl", "default"): {"cats": [41.126], "cars": [49.0]},
        ("ours", "default"): {"cats": [44.0], "cars": [49.0]},
    }
)


def build(frame: pd.DataFrame = ONE_SEED, table: TableSettings = SETTINGS) -> tables.Table:
    return tables.build(table, frame, titles=TITLES, study="s")


def printed(table: tables.Table) -> dict[str, list[str]]:
    return {name: [cell.text for cell in cells] for name, cells in table.rows}


def test_rows_are_those_of_the_study_in_the_table_s_order_with_their_mean() -> None:
    assert printed(build()) == {
        "CLIP": ["40.00", "50.00", "45.00"],
        "CuPL_2": ["41.13", "49.00", "45.06"],
        "Ours": ["44.00", "49.00", "46.50"],
    }


def test_the_best_is_bold_the_second_underlined_and_ties_share() -> None:
    lines = tables.to_markdown(build()).splitlines()
    assert lines[2:5] == [
        "| CLIP | 40.00 | **50.00** | 45.00 |",
        "| CuPL_2 | <u>41.13</u> | <u>49.00</u> | <u>45.06</u> |",
        "| Ours | **44.00** | <u>49.00</u> | **46.50** |",
    ]


def test_what_prints_alike_ranks_alike() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [40.001], "cars": [1.0]},
            ("cupl", "default"): {"cats": [40.004], "cars": [1.0]},
        }
    )
    ranks = [cells[0].rank for _, cells in build(frame).rows]
    assert ranks == [1, 1]


def test_ranks_compare_numbers_not_letters() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [9.5], "cars": [1.0]},
            ("cupl", "default"): {"cats": [10.5], "cars": [1.0]},
            ("ours", "default"): {"cats": [100.0], "cars": [1.0]},
        }
    )
    assert [cells[0].rank for _, cells in build(frame).rows] == [None, 2, 1]


def test_several_seeds_give_mean_and_sample_deviation() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
            ("ours", "default"): {"cats": [43.0, 45.0], "cars": [50.0, 52.0]},
        }
    )
    table = build(frame)
    ours = dict(table.rows)["Ours"]
    assert [cell.mean for cell in ours] == [44.0, 51.0, 47.5]
    assert [round(cell.deviation or 0, 4) for cell in ours] == [1.4142, 1.4142, 1.4142]
    assert all(cell.deviation is None for cell in dict(table.rows)["CLIP"])
    assert "**44.00** ± 1.41" in tables.to_markdown(table)
    assert "2 seeds" in tables.to_markdown(table)
    assert "Cats & Dogs sd" in tables.to_csv(table).splitlines()[0]


def test_a_missing_cell_is_a_hole_and_leaves_no_mean() -> None:
    frame = scores(
        {
            ("clip", "default"): {"cats": [40.0], "cars": [50.0]},
            ("ours", "default"): {"cats": [43.0]},
        }
    )
    assert printed(build(frame))["Ours"] == ["43.00", "", ""]
    assert "| Ours | **43.00** | — | — |" in tables.to_markdown(build(frame))


def test_a_table_without_a_row_is_an_error() -> None:
    frame = scores({("tent", "default"): {"cats": [1.0], "cars": [1.0]}})
    with pytest.raises(SettingsError, match="table t has no row in the scores of study s"):
        build(frame)


def test_backbones_are_never_averaged_in_secret() -> None:
    frame = pd.concat([ONE_SEED, ONE_SEED.assign(backbone="c")])
    with pytest.raises(SettingsError, match="mixes backbone b, c; name one"):
        build(frame)
    rows = [{"method": "clip", "label": "CLIP", "backbone": "c"}]
    named = TableSettings.model_validate({**SETTINGS.model_dump(), "rows": rows})
    assert list(printed(build(frame, named))) == ["CLIP"]


def test_the_csv_is_plain_numbers() -> None:
    assert tables.to_csv(build()).splitlines() == [
        "Method,Cats & Dogs,Cars_100%,Mean",
        "CLIP,40.00,50.00,45.00",
        "CuPL_2,41.13,49.00,45.06",
        "Ours,44.00,49.00,46.50",
    ]


def test_the_order_of_scores_does_not_matter() -> None:
    shuffled = list(ONE_SEED.to_dict("records"))
    random.Random(0).shuffle(shuffled)
    for write in tables.FORMATS.values():
        assert write(build(pd.DataFrame(shuffled))) == write(build())


def test_the_tex_says_where_it_is_from_and_is_well_formed() -> None:
    tex = tables.to_tex(build())
    lines = tex.splitlines()
    assert lines[0] == "% generated by microclip tabulate from results/s/scores.csv"
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    for command in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert tex.count(command) == 1
    body = [line for line in lines if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {3}
    assert r"Cats \& Dogs & Cars\_100\% & Mean" in tex
    assert r"\textbf{44.00}" in tex
    assert r"\underline{41.13}" in tex
    for line in lines[1:]:
        unescaped = re.sub(r"\\label\{[^}]*\}", "", line)
        assert not re.search(r"(?<!\\)[_%#]", unescaped), line


def test_every_special_character_is_escaped() -> None:
    assert tables.escape(r"a\b_c%d#e&f$g{h}i~j^k") == (
        r"a\textbackslash{}b\_c\%d\#e\&f\$g\{h\}i\textasciitilde{}j\textasciicircum{}k"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: structure alone")
def test_the_tex_compiles_with_booktabs_alone(tmp_path: Path) -> None:
    frame = pd.concat([ONE_SEED, ONE_SEED.assign(seed=1, top1_pct=lambda f: f["top1_pct"] + 1)])
    (tmp_path / "t.tex").write_text(tables.to_tex(build(frame)))
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n"
        "\\begin{document}\n\\input{t.tex}\n\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").stat().st_size > 1000


def test_table_1_has_the_rows_of_the_shipped_study() -> None:
    table = settings.load_table("table1")
    study = settings.load_study(settings.read_yaml(ROOT / "config" / "config.yaml"))
    names = [settings.load_dataset(name) for name in study.datasets]
    runs: dict[tuple[str, str], Any] = {
        (method, "default"): {dataset.name: [50.0] for dataset in names}
        for method in itertools.chain.from_iterable(grid.methods for grid in study.runs)
    }
    built = tables.build(table, scores(runs), titles={d.name: d.title for d in names}, study="x")
    assert [name for name, _ in built.rows] == ["CLIP", "CuPL", "microCLIP"]
    assert built.columns == ("Animals", "Food", "Objects", "Travel", "Flags", "Faces", "Mean")
