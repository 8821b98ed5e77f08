"""Files are the truth; MLflow mirrors each run once, can compare runs, and may be missing."""

import csv
import dataclasses
import json
import logging
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from microclip import paths, runtime
from microclip.data.manifest import read_manifest
from microclip.study import RunSettings
from microclip.tracking import mirror as tracking
from microclip.tracking.run import open_tracker, read_history, title
from tests.browser import Browser
from tests.fixtures.project import settings_of
from tests.fixtures.tracking import client, points, runs, served, show

ROWS = {
    0: {"test_fused_pct": 40.0},
    1: {"loss": 2.5, "test_fused_pct": 41.0, "seconds": 1.0},
    2: {"loss": 2.0, "test_fused_pct": 42.5, "seconds": 1.0},
    3: {"loss": 1.5, "test_fused_pct": 44.0, "seconds": 1.0},
}


def scores_of(settings: RunSettings, top1: float = 44.0) -> dict[str, Any]:
    return {
        "digest": settings.digest(),
        "recipe": settings.recipe,
        "top1_pct": top1,
        "mean_class_pct": top1 - 1,
        "seconds": 3.0,
        "n_test": 12,
        "device": "cpu",
    }


def write_run(settings: RunSettings, epochs: Iterator[int] | range = range(4)) -> dict[str, Any]:
    """Do what the command `run` does, without training, and show it in MLflow."""
    folder = settings.spec.folder
    tracker = open_tracker(settings, folder, "tiny")
    for epoch in epochs:
        tracker.epoch(epoch, ROWS[epoch])
    scores = scores_of(settings)
    runtime.write_json(folder / paths.RUN_SCORES, scores)
    tracker.finish(scores)
    show(folder)
    return scores


def test_a_run_is_mirrored_completely(work: Path) -> None:
    settings = settings_of("microclip", gamma=0.3)
    manifest = Path(paths.MANIFEST.format(dataset=settings.spec.dataset))
    runtime.write_text(manifest, "split,file,label,class,sha256\ntrain,a.png,0,red,00\n")
    images = read_manifest(settings.spec.dataset).images_sha256
    write_run(settings)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "microclip/default/shapes/seed-0/tiny/shipped"
    assert run.data.params["gamma"] == "0.3"
    assert run.data.params["learning_rate"] == "0.0001"
    assert {k: run.data.tags[k] for k in ("dataset", "method", "variant", "seed")} == {
        "dataset": "shapes",
        "method": "microclip",
        "variant": "default",
        "seed": "0",
    }
    assert run.data.tags["job_key"] == settings.digest()
    assert "mlflow.source.git.commit" in run.data.tags
    assert points(run, "loss") == [(1, 2.5), (2, 2.0), (3, 1.5)]
    assert points(run, "test_fused_pct") == [(e, r["test_fused_pct"]) for e, r in ROWS.items()]
    assert run.data.metrics["top1_pct"] == 44.0
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("shapes", images[:36])
    names = {item.path for item in client().list_artifacts(run.info.run_id)}
    assert names >= {paths.RUN_SETTINGS, paths.RUN_HISTORY, paths.RUN_SCORES}


def test_a_folder_records_its_mlflow_run_and_sync_adds_that_to_older_ones(
    work: Path,
) -> None:
    settings = settings_of("microclip")
    write_run(settings)
    marker = settings.spec.folder / paths.RUN_MIRRORED
    said = json.loads(marker.read_text())
    assert said["run_id"] == runs()[0].info.run_id
    del said["run_id"]
    marker.write_text(json.dumps(said))
    assert tracking.sync(Path("results")) == (1, 0)
    [run] = runs()
    assert json.loads(marker.read_text()) == {**said, "run_id": run.info.run_id}


MACHINE = {
    "system/cpu_utilization_percentage": (0, 100),
    "system/system_memory_usage_megabytes": (1, 1e9),
    "system/system_memory_usage_percentage": (0, 100),
    "system/process_cpu_cores": (0, 1024),
    "system/process_memory_megabytes": (1, 1e9),
}
USED = "system/process_cpu_cores"


@pytest.mark.parametrize("is_late", [False, True])
def test_what_a_run_used_of_its_machine_is_in_mlflow_by_epoch(work: Path, is_late: bool) -> None:
    settings = settings_of("microclip")
    write_run(settings)
    if is_late:  # `sync` reads the same from the journal
        client().delete_run(runs()[0].info.run_id)
        assert tracking.sync(Path("results")) == (1, 0)
    [run] = runs()
    assert {name for name in run.data.metrics if name.startswith("system/")} == MACHINE.keys()
    for name, (low, high) in MACHINE.items():
        found = points(run, name)
        assert [epoch for epoch, _ in found] == list(ROWS)
        assert all(low <= value <= high for _, value in found), name
    assert not [n for n in (read_history(settings.spec.folder)[0]) if n.startswith("system/")]


def test_a_run_of_an_older_version_gets_todays_name(work: Path) -> None:
    """Finished, it is renamed by `sync`; cut short, it is continued and stays one run."""
    settings = settings_of("microclip")
    write_run(settings)
    client().update_run(runs()[0].info.run_id, name=settings.spec.name)
    assert tracking.sync(Path("results")) == (0, 0)
    [run] = runs()
    assert run.info.run_name == title(settings.spec)
    other = dataclasses.replace(settings, spec=dataclasses.replace(settings.spec, seed=1))
    tracker = open_tracker(other, other.spec.folder, "tiny")
    tracker.epoch(0, ROWS[0])
    tracker.fail("KILLED", "interrupted")
    show(other.spec.folder)
    begun = next(r for r in runs() if r.data.tags["seed"] == "1")
    client().update_run(begun.info.run_id, name=other.spec.name)
    write_run(other, range(1, 4))
    assert {(r.info.run_id, r.info.run_name) for r in runs()} == {
        (run.info.run_id, title(settings.spec)),
        (begun.info.run_id, title(other.spec)),
    }


def test_everything_is_written_in_results(work: Path) -> None:
    write_run(settings_of("microclip"))
    [run] = runs()
    assert run.info.artifact_uri.startswith((work / paths.TRACKING_ARTIFACTS).as_uri())
    assert tracking.tracking_uri() == f"sqlite:///{work / 'results' / 'mlflow.db'}"
    assert [path.name for path in work.iterdir()] == ["results"]


def test_history_has_one_row_per_epoch_and_a_repeated_epoch_replaces_later_rows(work: Path) -> None:
    settings = settings_of("microclip")
    tracker = open_tracker(settings, settings.spec.folder, "tiny")
    for epoch in (0, 1, 2, 1):
        tracker.epoch(epoch, {"loss": 10.0 * epoch})
    with (settings.spec.folder / paths.RUN_HISTORY).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(float(row["epoch"]), float(row["loss"])) for row in rows] == [(0, 0), (1, 10)]
    assert json.loads((settings.spec.folder / paths.RUN_JOURNAL).read_text().splitlines()[-1])


def test_an_interrupted_run_is_continued_not_duplicated(work: Path) -> None:
    settings = settings_of("microclip")
    first = open_tracker(settings, settings.spec.folder, "tiny")
    for epoch in (0, 1, 2):
        first.epoch(epoch, ROWS[epoch])
    first.fail("KILLED", "interrupted")
    show(settings.spec.folder)
    [run] = runs()
    assert run.info.status == "KILLED"
    before = run.info.run_id
    write_run(settings, epochs=range(3, 4))
    [run] = runs()
    assert run.info.run_id == before
    assert run.info.status == "FINISHED"
    assert points(run, "loss") == [(1, 2.5), (2, 2.0), (3, 1.5)]
    with (settings.spec.folder / paths.RUN_HISTORY).open() as stream:
        assert [float(row["epoch"]) for row in csv.DictReader(stream)] == [0, 1, 2, 3]


def test_an_epoch_repeated_after_a_kill_is_logged_once(work: Path) -> None:
    settings = settings_of("microclip")
    first = open_tracker(settings, settings.spec.folder, "tiny")
    for epoch in (0, 1, 2):
        first.epoch(epoch, ROWS[epoch])
    show(settings.spec.folder)
    write_run(settings, epochs=range(2, 4))  # killed between report and checkpoint
    [run] = runs()
    assert points(run, "loss") == [(1, 2.5), (2, 2.0), (3, 1.5)]
    assert [epoch for epoch, _ in points(run, USED)] == [0, 1, 2, 3]


def test_a_repeated_run_replaces_the_finished_one(work: Path) -> None:
    settings = settings_of("microclip")
    for _ in range(2):
        write_run(settings)
    [run] = runs()
    assert points(run, "loss") == [(1, 2.5), (2, 2.0), (3, 1.5)]


def test_a_run_with_other_settings_replaces_that_of_the_same_name(work: Path) -> None:
    write_run(settings_of("microclip"))
    write_run(settings_of("microclip", gamma=0.3))
    [run] = runs()
    assert run.data.params["gamma"] == "0.3"


def test_history_of_other_settings_is_not_continued(work: Path) -> None:
    old = settings_of("microclip")
    tracker = open_tracker(old, old.spec.folder, "tiny")
    for epoch in (0, 1, 2, 3):
        tracker.epoch(epoch, ROWS[epoch])
    new = settings_of("microclip", gamma=0.3)
    tracker = open_tracker(new, new.spec.folder, "tiny")
    tracker.epoch(0, ROWS[0])
    with (new.spec.folder / paths.RUN_HISTORY).open() as stream:
        assert [float(row["epoch"]) for row in csv.DictReader(stream)] == [0]


def test_a_failed_run_records_the_reason(work: Path) -> None:
    settings = settings_of("microclip")
    open_tracker(settings, settings.spec.folder, "tiny").fail("FAILED", "loss is nan")
    show(settings.spec.folder)
    [run] = runs()
    assert run.info.status == "FAILED"
    assert "loss is nan" in run.data.tags.values()


def test_sync_replays_what_the_mirror_missed_exactly_once(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of("microclip")
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
        with caplog.at_level(logging.WARNING, logger="microclip"):
            write_run(settings)
    warned = [r for r in caplog.records if r.name.startswith("microclip")]
    assert len(warned) == 1
    assert "microclip sync" in warned[0].getMessage()
    assert (settings.spec.folder / paths.RUN_SCORES).is_file()
    assert runs() == []
    assert tracking.sync(Path("results")) == (1, 0)
    assert tracking.sync(Path("results")) == (0, 0)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert points(run, "loss") == [(1, 2.5), (2, 2.0), (3, 1.5)]
    assert run.data.metrics["top1_pct"] == 44.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": 3}'])
def test_sync_names_damaged_scores_and_goes_on(
    work: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of("microclip")
    write_run(settings)
    damaged = Path("results/runs/a/b/c/microclip/default/seed-0")
    damaged.mkdir(parents=True)
    (damaged / paths.RUN_SCORES).write_text(text)
    (settings.spec.folder / paths.RUN_MIRRORED).write_text(text)  # forgets where it was shown
    with caplog.at_level(logging.WARNING, logger="microclip"):
        assert tracking.sync(Path("results")) == (1, 1)
    assert str(damaged) in caplog.text
    assert len(runs()) == 1


def test_a_server_that_never_answers_costs_seconds_not_minutes(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    settings = settings_of("microclip")
    open_tracker(settings, settings.spec.folder, "tiny")
    started = time.monotonic()
    tracking.Follower({str(settings.spec.folder): 0}).look()
    assert time.monotonic() - started < 15


def test_a_password_in_the_address_is_not_shown(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush-hush@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = settings_of("clip")
    with caplog.at_level(logging.DEBUG, logger="microclip"):
        write_run(settings, epochs=range(0))
    assert caplog.records
    own = [r.getMessage() for r in caplog.records if r.name.startswith("microclip")]
    assert "hush-hush" not in "\n".join(own)
    for path in settings.spec.folder.rglob("*"):
        assert path.is_dir() or b"hush-hush" not in path.read_bytes()


def test_init_can_be_repeated_and_a_dead_server_is_no_error(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.init("tiny")
    assert runs() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    tracking.init("tiny")


def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.slow
def test_a_user_can_compare_runs_on_a_real_server(
    work: Path, request: pytest.FixtureRequest
) -> None:
    one = settings_of("microclip")
    other = settings_of("microclip", gamma=0.3)
    variant = dataclasses.replace(other.spec, variant="gamma-0.3")
    write_run(one)
    write_run(dataclasses.replace(other, spec=variant))
    experiment = client().get_experiment_by_name("tiny").experiment_id
    with served(work) as address:
        found = post(address, "runs/search", {"experiment_ids": [experiment]})["runs"]
        params = [{p["key"]: p["value"] for p in run["data"]["params"]} for run in found]
        differing = {key for key in params[0] if params[0][key] != params[1].get(key)}
        assert differing == {"gamma"}
        for run in found:
            metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
            assert metrics["top1_pct"] == 44.0
        ids = [run["info"]["run_id"] for run in found]
        listed = urllib.request.urlopen(
            f"{address}/api/2.0/mlflow/artifacts/list?run_id={ids[0]}", timeout=20
        )
        assert {"scores.json"} <= {Path(f["path"]).name for f in json.load(listed)["files"]}
        query = f"runs=%5B%22{ids[0]}%22,%22{ids[1]}%22%5D&experiments=%5B%22{experiment}%22%5D"
        browser: Browser = request.getfixturevalue("browser")  # only the check of the page needs it
        with browser.visit(f"{address}/#/compare-runs?{query}", (1500, 1100)) as seen:
            check_comparison(seen.page, [title(one.spec), title(variant)], work / "compare.png")


def check_comparison(page: Any, names: list[str], picture: Path) -> None:
    """The page shows both runs, the setting that differs and the accuracy, as plot and text."""
    for name in names:
        page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
    plot = page.locator(".parcoords")
    plot.locator(".axis-title").first.wait_for(timeout=60_000)
    titles = plot.locator(".axis-title").all_text_contents()
    assert titles == [
        "gamma",
        "test_fused_pct",
    ]  # opens with the setting that differs, and an accuracy
    ends = plot.locator(".y-axis").first.locator(".axis-extent-text").all_text_contents()
    assert sorted(map(float, ends)) == [0.3, 0.5]  # gamma has a numeric axis
    page.screenshot(path=picture)
    text = page.inner_text("body")
    assert "top1_pct" in text
    assert "44" in text
    image = Image.open(picture).convert("L")
    assert image.size == (1500, 1100)
    assert len(image.getcolors() or range(256)) > 50  # text and plots, not a blank page
