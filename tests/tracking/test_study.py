"""A study in MLflow: sweeps as parents of their runs, tables and figures, each once."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from microclip import paths, runtime, study
from microclip.study import Plan, RunSpec, Study
from microclip.tracking import mirror
from microclip.tracking import study as study_cards
from microclip.tracking import study as study_tracking
from microclip.tracking.mirror import PARENT
from microclip.tracking.run import DESCRIPTION, open_tracker, title
from tests.browser import Browser, executable
from tests.fixtures.project import keep_three_methods
from tests.fixtures.servers import free_port
from tests.fixtures.tracking import client, own_store, points, runs, served, show

OWN = Path(__file__).resolve().parents[2] / "config"
STUDY = {
    "study": "tiny",
    "title": "Shapes",
    "datasets": ["shapes"],
    "backbones": ["tiny"],
    "descriptions": ["shipped"],
    "tables": [{"name": "table1", "is_brief": True}],
    "figures": [
        {"name": "figure5", "values": [0.0, 0.5, 1.0]},
        {"name": "figure8", "values": [1e-5, 1e-4]},
    ],
    "methods": {"microclip": {"epochs": 2, "batch_size": 4, "n_crops": 2}},
    "device": "cpu",
}
TOP1 = {  # by method and variant
    ("clip", "default"): 50.0,
    ("cupl", "default"): 52.0,
    ("microclip", "default"): 60.0,
    ("microclip", "gamma-0"): 55.0,
    ("microclip", "gamma-1"): 58.0,
    ("microclip", "rate-1e-05"): 54.0,
}
GAMMA, RATE = "sweep/figure5/shapes/seed-0", "sweep/figure8/shapes/seed-0"
CARDS = {"study/tiny", GAMMA, RATE}
TABLE = "| Method | Shapes |\n| --- | ---: |\n| microCLIP | **60.00** |\n"


def declared(**changes: Any) -> Study:
    return study.load({**STUDY, **changes})


def write_study(found: Study) -> Plan:
    """Write the files that a study has before it is shown in MLflow; return its plan."""
    name = found.settings.study
    plan = found.plan()
    plan.write()
    rows = [json.loads((s.folder / paths.RUN_SCORES).read_text()) for s in found.runs]
    table = pd.DataFrame(rows)
    table.to_csv(paths.STUDY_SCORES.format(study=name), index=False)
    for file, text in {
        paths.TABLE.format(study=name, table="table1", format="md"): TABLE,
        paths.TABLE.format(study=name, table="table1", format="tex"): "table",
        paths.FIGURE.format(study=name, figure="figure5", format="png"): "picture",
        paths.FIGURE.format(study=name, figure="figure5", format="csv"): "x,y\n",
        paths.LEDGER.format(study=name, format="csv"): "cell,verdict\na,differs\nb,not run\n",
        paths.PAGE.format(study=name): "<h1>Shapes</h1>",
    }.items():
        runtime.write_text(Path(file), text)
    return plan


def write_run(found: Study, spec: RunSpec, top1: float | None = None) -> None:
    """Do what the command `run` does, without training."""
    settings = found.resolve(spec)
    tracker = open_tracker(settings, spec.folder, found.settings.study)
    if spec.method == "microclip":
        tracker.epoch(0, {"test_fused_pct": 40.0})
        tracker.epoch(1, {"loss": 1.0, "peak_memory_mib": 100.0, "test_fused_pct": 41.0})
        tracker.epoch(2, {"loss": 0.5, "peak_memory_mib": 120.0, "test_fused_pct": 42.0})
    scores = {
        **asdict(spec),
        "digest": settings.digest(),
        "recipe": settings.recipe,
        "top1_pct": TOP1[spec.method, spec.variant] if top1 is None else top1,
        "seconds": 3.0,
    }
    runtime.write_json(spec.folder / paths.RUN_SCORES, scores)
    tracker.finish(scores)
    show(spec.folder)


@pytest.fixture(scope="module")
def root(project_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with the tables and figures of the real one."""
    folder = Path(shutil.copytree(project_source, tmp_path_factory.mktemp("root") / "project"))
    for kind in ("tables", "figures"):
        shutil.copytree(OWN / kind, folder / "config" / kind)
    keep_three_methods(folder / "config")
    return folder


@pytest.fixture(scope="module")
def made(root: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose runs are mirrored, but not the study itself."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "results").mkdir()
    shutil.copy(empty_database, folder / paths.TRACKING_DATABASE)
    with own_store(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROCLIP_ROOT", str(root))
        mirror.init("tiny")
        found = declared()
        for spec in found.runs:
            write_run(found, spec)
        write_study(found)
    return folder


@pytest.fixture
def place(
    made: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Work in a copy of that folder whose records point to its own store."""
    shutil.copytree(made / "results", tmp_path / "results")
    for record in tmp_path.rglob(paths.RUN_MIRRORED):
        record.write_text(record.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    with own_store(tmp_path):
        yield tmp_path


def plan_of(name: str = "tiny") -> Plan:
    return Plan.read(name)


def record_of(name: str = "tiny") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(paths.STUDY_MIRRORED.format(study=name)).read_text())
    return found


def shown(name: str = "tiny") -> dict[str, Any]:
    """Runs that a user sees, by name; no name appears twice."""
    found = runs(name)
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def run_name(variant: str, method: str = "microclip") -> str:
    return title(RunSpec("shapes", "tiny", "shipped", method, variant))


def parents(of: dict[str, Any]) -> dict[str, str]:
    """Parents of the runs, by name."""
    names = {run.info.run_id: name for name, run in of.items()}
    return {
        name: names[run.data.tags[PARENT]] for name, run in of.items() if PARENT in run.data.tags
    }


def make_gamma_1_anew(top1: float) -> None:
    """Change a result and the tables made from it."""
    found = declared()
    write_run(found, RunSpec("shapes", "tiny", "shipped", "microclip", "gamma-1"), top1)
    write_study(found)


def test_a_sweep_is_the_parent_run_of_its_points_and_shows_their_curve(place: Path) -> None:
    assert study_tracking.mirror(plan_of())
    found = shown()
    assert found.keys() - {run_name(v, m) for m, v in TOP1} == CARDS
    sweep = found[GAMMA]
    assert points(sweep, "sweep/top1_pct") == [(0, 55.0), (1, 60.0), (2, 58.0)]
    assert points(sweep, "setting_value") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert points(sweep, "sweep/total_seconds") == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert points(sweep, "sweep/peak_memory_mib") == [(0, 120.0), (1, 120.0), (2, 120.0)]
    assert sweep.data.params == {
        "figure": "figure5",
        "setting": "gamma",
        "values": "0, 0.5, 1",
        "seed": "0",
    }
    assert json.loads(sweep.data.tags["points"]) == {
        "0": found[run_name("gamma-0")].info.run_id,
        "0.5": found[run_name("default")].info.run_id,
        "1": found[run_name("gamma-1")].info.run_id,
    }
    assert "| 0.5 | 60.00 | 3 | [default](#/experiments/" in sweep.data.tags[DESCRIPTION]
    assert points(found[RATE], "setting_value") == [(0, 1e-5), (1, 1e-4)]


def test_the_default_run_belongs_to_all_sweeps_and_has_no_parent(place: Path) -> None:
    study_tracking.mirror(plan_of())
    assert parents(shown()) == {
        run_name("gamma-0"): GAMMA,
        run_name("gamma-1"): GAMMA,
        run_name("rate-1e-05"): RATE,
    }


def test_a_run_in_two_sweeps_has_no_parent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    figures = [{"name": "figure6", "values": [1, 2, 4]}, {"name": "figure6a", "values": [1]}]
    sweeps = study_cards.sweeps(declared(figures=figures).plan())
    assert [(s.name, [value for value, _ in s.points]) for s in sweeps] == [
        ("sweep/figure6/shapes/seed-0", [1, 2, 4]),
        ("sweep/figure6a/shapes/seed-0", [1]),
    ]
    run = "shapes/tiny/shipped/microclip/crops-4/seed-0"
    assert study_cards.parents(sweeps) == {run: "sweep/figure6/shapes/seed-0"}


def test_each_seed_has_its_own_sweep(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    sweeps = study_cards.sweeps(declared(seeds=[3, 4], figures=[STUDY["figures"][1]]).plan())
    assert [sweep.name for sweep in sweeps] == [
        "sweep/figure8/shapes/seed-3",
        "sweep/figure8/shapes/seed-4",
    ]
    assert {spec.seed for _, spec in sweeps[1].points} == {4}


def test_the_study_run_shows_tables_figures_and_sweeps(place: Path) -> None:
    study_tracking.mirror(plan_of())
    found = shown()
    card = found["study/tiny"]
    note = card.data.tags[DESCRIPTION]
    assert note.startswith("**Shapes**: 6 runs, 0 holes.")
    assert "| microCLIP | **60.00** |" in note
    assert f"/runs/{found[GAMMA].info.run_id}?" in note
    assert f"figures%2Ffigure5.png&run_uuid={card.info.run_id}" in note
    assert card.data.metrics == {
        "n_runs": 6,
        "n_holes": 0,
        "total_seconds": 18,
        "tolerance_pct/table1": 0.5,
        "mean_top1_pct/clip": 50,
        "mean_top1_pct/cupl": 52,
        "mean_top1_pct/microclip": 60,
        "ledger/differs": 1,
        "ledger/not run": 1,
    }
    files = {item.path for f in (None, "tables", "figures") for item in listed(card.info.run_id, f)}
    assert files == {
        "plan.json",
        "scores.csv",
        "ledger.csv",
        "index.html",
        "tables",
        "tables/table1.md",
        "tables/table1.tex",
        "figures",
        "figures/figure5.png",
        "figures/figure5.csv",
    }
    assert record_of() == {
        "uri": mirror.tracking_uri(),
        "study": card.info.run_id,
        "sweeps": {name: found[name].info.run_id for name in (GAMMA, RATE)},
        "missing": [],
    }


def listed(run_id: str, folder: str | None) -> list[Any]:
    found: list[Any] = client().list_artifacts(run_id, folder)
    return found


def test_the_experiment_links_to_the_study_but_keeps_what_users_wrote(place: Path) -> None:
    study_tracking.mirror(plan_of())
    experiment = client().get_experiment_by_name("tiny")
    assert record_of()["study"] in experiment.tags[DESCRIPTION]
    client().set_experiment_tag(experiment.experiment_id, DESCRIPTION, "our own words")
    make_gamma_1_anew(59.0)
    study_tracking.mirror(plan_of())
    assert client().get_experiment_by_name("tiny").tags[DESCRIPTION] == "our own words"


def test_mirroring_twice_creates_nothing_new(place: Path) -> None:
    from mlflow.entities import ViewType

    def everything() -> list[tuple[str, Any, Any]]:
        mlflow = client()
        known = [mlflow.get_experiment_by_name("tiny").experiment_id]
        found = mlflow.search_runs(known, run_view_type=ViewType.ALL)
        return sorted((r.info.run_id, r.data.tags, r.data.metrics) for r in found)

    study_tracking.mirror(plan_of())
    before, record = everything(), record_of()
    assert study_tracking.mirror(plan_of())
    assert everything() == before
    assert record_of() == record


def test_a_changed_result_replaces_only_the_cards_that_show_it(place: Path) -> None:
    study_tracking.mirror(plan_of())
    before = shown()
    make_gamma_1_anew(59.0)
    study_tracking.mirror(plan_of())
    after = shown()
    assert before.keys() == after.keys()
    changed = {n for n in after if after[n].info.run_id != before[n].info.run_id}
    assert changed == {"study/tiny", GAMMA, run_name("gamma-1")}
    assert points(after[GAMMA], "sweep/top1_pct") == [(0, 55.0), (1, 60.0), (2, 59.0)]
    assert parents(after) == parents(before)


def test_a_sweep_that_is_no_longer_declared_is_removed_but_its_runs_stay(place: Path) -> None:
    study_tracking.mirror(plan_of())
    found = declared(
        figures=STUDY["figures"][1:],
        runs=[{"methods": ["microclip"], "variants": ["gamma-0", "gamma-1"]}],
    )
    study_tracking.mirror(write_study(found))
    after = shown()
    assert GAMMA not in after
    assert run_name("gamma-0") in after
    assert parents(after) == {run_name("rate-1e-05"): RATE}


def test_a_study_links_to_runs_of_another_study_and_leaves_them_in_place(place: Path) -> None:
    study_tracking.mirror(write_study(declared(study="second")))
    assert shown("second").keys() == {"study/second", GAMMA, RATE}
    there = shown()
    named = json.loads(shown("second")[GAMMA].data.tags["points"])
    assert named["1"] == there[run_name("gamma-1")].info.run_id
    assert parents(there) == {}


def test_without_mlflow_the_record_lists_what_is_missing_and_sync_adds_it_once(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
        with caplog.at_level(logging.WARNING, logger="microclip"):
            assert not study_tracking.mirror(plan_of())
    [warning] = [r.getMessage() for r in caplog.records if r.name.startswith("microclip")]
    assert "microclip sync" in warning
    assert len(warning.splitlines()) == 1
    assert set(record_of()["missing"]) == CARDS
    assert CARDS.isdisjoint(shown())
    assert study_tracking.sync(Path("results")) == (1, 0)
    assert shown().keys() > CARDS
    assert study_tracking.sync(Path("results")) == (0, 0)


def test_sync_restores_what_was_deleted_in_mlflow(place: Path) -> None:
    study_tracking.mirror(plan_of())
    before = shown()
    for name in (run_name("gamma-1"), RATE, "study/tiny"):
        client().delete_run(before[name].info.run_id)
    assert mirror.sync(Path("results")) == (1, 0)
    assert study_tracking.sync(Path("results")) == (1, 0)
    after = shown()
    assert after.keys() == before.keys()
    assert parents(after) == parents(before)
    assert points(after[run_name("gamma-1")], "loss") == [(1, 1.0), (2, 0.5)]
    assert (mirror.sync(Path("results")), study_tracking.sync(Path("results"))) == (
        (0, 0),
        (0, 0),
    )


def test_a_run_missing_from_mlflow_is_named_and_its_point_drawn_from_its_scores(
    place: Path,
) -> None:
    client().delete_run(shown()[run_name("gamma-1")].info.run_id)
    assert not study_tracking.mirror(plan_of())
    assert record_of()["missing"] == ["shapes/tiny/shipped/microclip/gamma-1/seed-0"]
    sweep = shown()[GAMMA]
    assert points(sweep, "sweep/top1_pct") == [(0, 55.0), (1, 60.0), (2, 58.0)]
    assert json.loads(sweep.data.tags["points"]).keys() == {"0", "0.5"}


def test_a_study_without_scores_is_refused(place: Path) -> None:
    Path(paths.STUDY_SCORES.format(study="tiny")).unlink()
    with pytest.raises(runtime.MissingDataError, match="results/tiny/scores.csv does not exist"):
        study_tracking.mirror(plan_of())


def test_sync_without_mlflow_is_refused_in_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    with pytest.raises(runtime.ServiceError, match="then run `microclip sync`$"):
        mirror.sync(Path("results"))


def row(method: str, dataset: str, top1: float, seed: int = 0) -> dict[str, str]:
    return {
        "method": method,
        "dataset": dataset,
        "top1_pct": str(top1),
        "seed": str(seed),
        "variant": "default",
        "backbone": "tiny",
        "descriptions": "shipped",
    }


def test_methods_are_averaged_over_the_datasets_that_they_all_have() -> None:
    rows = [
        row("clip", "a", 10.0),
        row("clip", "b", 20.0),
        row("microclip", "a", 30.0),
        row("microclip", "b", 40.0, seed=0),
        row("microclip", "b", 50.0, seed=1),
        row("microclip", "c", 99.0),
        {**row("microclip", "a", 0.0), "variant": "gamma-0"},
    ]
    assert study_cards.mean_accuracies(rows) == {
        "mean_top1_pct/clip": 15.0,
        "mean_top1_pct/microclip": 37.5,  # (30 + 45) / 2
    }


def test_a_long_description_is_cut_at_a_line_within_mlflows_limit(place: Path) -> None:
    table = Path(paths.TABLE.format(study="tiny", table="table1", format="md"))
    table.write_text(TABLE + "| a row of a very long table | 12.34 |\n" * 300)
    assert study_tracking.mirror(plan_of())
    note = shown()["study/tiny"].data.tags[DESCRIPTION]
    assert 7800 < len(note) <= 8000
    assert note.endswith("| 12.34 |\n\n(cut; the rest is among the artifacts)")


@pytest.mark.slow
def test_a_server_that_was_down_gets_everything_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with served(place, port) as address:
        assert mirror.sync(Path("results")) == (6, 0)  # the records do not know this address yet
        assert study_tracking.mirror(plan_of())
        assert study_tracking.mirror(plan_of())
        first = record_of()
        experiment = client().get_experiment_by_name("tiny").experiment_id
        if executable() is not None:
            page = study_cards.address(experiment, first["study"])
            check_page(request.getfixturevalue("browser"), f"{address}/{page}")
    make_gamma_1_anew(59.0)
    assert not study_tracking.mirror(plan_of())
    assert set(record_of()["missing"]) == CARDS
    with served(place, port):
        assert mirror.sync(Path("results")) == (1, 0)
        assert study_tracking.sync(Path("results")) == (1, 0)
        assert study_tracking.sync(Path("results")) == (0, 0)
        after = shown()
        assert after.keys() == CARDS | {run_name(v, m) for m, v in TOP1}
        assert points(after[GAMMA], "sweep/top1_pct") == [(0, 55.0), (1, 60.0), (2, 59.0)]
        assert record_of()["sweeps"][RATE] == first["sweeps"][RATE]
        assert record_of()["study"] != first["study"]


def check_page(browser: Browser, address: str) -> None:
    """The page shows the study's name, its table as a table, and its numbers."""
    with browser.visit(address, (1500, 1100)) as seen:
        seen.page.get_by_role("heading", name="study/tiny").first.wait_for(timeout=60_000)
        seen.page.get_by_role("cell", name="60.00").first.wait_for()
        assert "mean_top1_pct/microclip" in seen.page.inner_text("body")


def test_a_run_lists_changed_settings_and_keeps_all_of_them(place: Path) -> None:
    found = shown()
    tags = found[run_name("gamma-1")].data.tags
    assert tags["kind"] == "run"
    assert tags["changed"] == "batch_size=4, epochs=2, gamma=1.0, n_crops=2"
    assert "gamma=1.0" in tags[DESCRIPTION]
    assert found[run_name("default", "clip")].data.tags["changed"] == "nothing"
    spec = RunSpec("shapes", "tiny", "shipped", "microclip", "gamma-1")
    written = yaml.safe_load((spec.folder / paths.RUN_SETTINGS).read_text())
    shown_settings = found[run_name("gamma-1")].data.params
    assert shown_settings == {**{k: str(v) for k, v in written["method"].items()}, "seed": "0"}
    assert json.loads(tags["data"]) == written["dataset"]["source"]
    assert tags["precision"] == written["precision"]
