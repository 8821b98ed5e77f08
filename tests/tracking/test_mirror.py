"""A mirror process shows runs while they train; no run needs it, and `sync` does what it left."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip import paths, processes, runtime
from microclip.settings.base import say_once
from microclip.study import RunSettings
from microclip.tracking import mirror
from microclip.tracking.run import open_tracker, title
from tests.fixtures.project import prepare, settings_of
from tests.fixtures.tracking import points, runs, show
from tests.fixtures.waiting import until

ROWS = {epoch: {"loss": 10.0 - epoch} for epoch in range(8)}


def seeds(n: int) -> list[RunSettings]:
    """Settings of runs that differ in their seeds."""
    one = settings_of("microclip")
    return [dataclasses.replace(one, spec=dataclasses.replace(one.spec, seed=i)) for i in range(n)]


@contextlib.contextmanager
def mirroring(*settings: RunSettings) -> Iterator[processes.Companion]:
    """A mirror process of these runs."""
    companion = mirror.start([one.spec.folder for one in settings])
    try:
        yield companion
    finally:
        companion.close(60)


def finish(settings: RunSettings) -> None:
    scores = {"digest": settings.digest(), "recipe": 1, "top1_pct": 50.0, "seconds": 3.0}
    runtime.write_json(settings.spec.folder / paths.RUN_SCORES, scores)


@pytest.mark.parametrize(
    "name", ["what?=1", 'it\'s "so"', "a:b {y} #1 50%20 [x]", "back\\slash $HOME ü"]
)
def test_the_store_lies_in_its_project_whatever_the_folder_is_called(
    project: Path, empty_database: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / name / "results").mkdir(parents=True)
    monkeypatch.chdir(project / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "./mlruns")  # put back after the test
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT")
    shutil.copy(empty_database, paths.TRACKING_DATABASE)
    database = sqlite3.connect(paths.TRACKING_DATABASE)
    database.execute("delete from experiments")  # MLflow makes the first one, as in a new store
    database.commit()
    settings = settings_of("cupl")
    tracker = open_tracker(settings, settings.spec.folder, "tiny")
    finish(settings)
    tracker.finish({"digest": settings.digest(), "top1_pct": 50.0})
    assert show(settings.spec.folder)
    assert [tuple(row) for row in database.execute("select status from runs")] == [("FINISHED",)]
    assert [path.name for path in Path("results/mlflow-artifacts").rglob("scores.json")]
    assert [path.name for path in project.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "is_said"), [("ird #1.db", True), ("a=1/x.db", True), ("timeout=9", False)]
)
def test_an_address_whose_path_ends_too_early_is_said(
    project: Path,
    options: str,
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/we?{options}")
    say_once.cache_clear()
    mirror.connect()
    assert (f"so the database is sqlite:///{project}/we and not" in caplog.text) is is_said


@pytest.mark.usefixtures("work")
def test_epochs_appear_while_the_run_trains_and_sync_completes_what_a_killed_mirror_left() -> None:
    first, second = seeds(2)
    with mirroring(first, second) as companion:
        failing = open_tracker(first, first.spec.folder, "tiny")
        failing.epoch(0, ROWS[0])
        until(lambda: len(runs()) == 1 and points(runs()[0], "loss") == [(0, 10.0)])
        assert runs()[0].info.status == "RUNNING"
        failing.epoch(1, ROWS[1])
        until(lambda: points(runs()[0], "loss") == [(0, 10.0), (1, 9.0)])
        failing.fail("FAILED", "loss is nan")
        until(lambda: runs()[0].info.status == "FAILED")
        assert runs()[0].data.tags["reason"] == "loss is nan"
        tracker = open_tracker(second, second.spec.folder, "tiny")
        tracker.epoch(0, ROWS[0])
        until(lambda: len(runs()) == 2 and points(runs()[0], "loss") == [(0, 10.0)])
        os.kill(companion.pid, signal.SIGKILL)
    tracker.epoch(1, ROWS[1])
    finish(second)
    tracker.finish(json.loads((second.spec.folder / paths.RUN_SCORES).read_text()))
    assert mirror.sync(Path("results")) == (1, 0)
    [run] = [run for run in runs() if run.data.tags["seed"] == "1"]
    assert run.info.status == "FINISHED"
    assert points(run, "loss") == [(0, 10.0), (1, 9.0)]
    assert [epoch for epoch, _ in points(run, "system/process_cpu_cores")] == [0, 1]


def writing(settings: RunSettings) -> int:
    """Write a run in a process of its own; return its number."""
    if pid := os.fork():
        return pid
    tracker = open_tracker(settings, settings.spec.folder, "tiny")
    for epoch, row in ROWS.items():
        tracker.epoch(epoch, row)
    tracker.finish({"digest": settings.digest(), "recipe": 1, "top1_pct": 50.0})
    os._exit(0)


@pytest.mark.usefixtures("work")
def test_one_mirror_shows_runs_that_write_side_by_side_and_loses_nothing() -> None:
    settings = seeds(4)
    follower = mirror.Follower(mirror.sizes([one.spec.folder for one in settings]))
    left = {writing(one) for one in settings}
    while left:
        follower.look()
        pid, code = os.waitpid(-1, os.WNOHANG)
        assert code == 0
        left.discard(pid)
    assert follower.close()
    found = runs()
    assert len(found) == 4
    for run in found:
        assert run.info.status == "FINISHED"
        assert points(run, "loss") == [(epoch, row["loss"]) for epoch, row in ROWS.items()]


OTHERS = """
import os, sqlite3, sys, time

def write(name):
    store = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
    for row in range(8):
        store.execute("begin immediate")
        store.execute("insert into others values (?, ?)", (name, row))
        time.sleep(0.02)  # the lock is held meanwhile
        store.execute("commit")

for name in range(19):
    if os.fork() == 0:
        write(name)
        os._exit(0)
print("started", flush=True)
sys.exit([os.wait()[1] for _ in range(19)] != [0] * 19)
"""


def test_of_20_processes_that_write_to_one_store_at_once_no_row_is_lost(work: Path) -> None:
    """The mirror is one of them; the others hold the lock in turn for three seconds."""
    database = work / paths.TRACKING_DATABASE
    with contextlib.closing(sqlite3.connect(database)) as store:
        store.execute("create table others (name integer, row integer)")
    [settings] = seeds(1)
    command = [sys.executable, "-c", OTHERS, str(database)]
    with (
        mirroring(settings) as companion,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as others,
    ):
        assert others.stdout is not None
        assert others.stdout.readline() == "started\n"
        tracker = open_tracker(settings, settings.spec.folder, "tiny")
        for epoch, row in ROWS.items():
            tracker.epoch(epoch, row)
        tracker.finish({"digest": settings.digest(), "recipe": 1, "top1_pct": 50.0})
        companion.close(60)
        assert others.wait(timeout=60) == 0
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert points(run, "loss") == [(epoch, row["loss"]) for epoch, row in ROWS.items()]
    with contextlib.closing(sqlite3.connect(database)) as store:
        assert store.execute("select count(*), count(distinct name) from others").fetchone() == (
            152,
            19,
        )


RUN = f"""
import os, sys
from microclip.cli.main import main

def run(out):
    return main(["run", "--settings", "run.yaml", "--out", out])

code = run("by-hand")
os.environ["{processes.MIRROR}"] = "workflow"
sys.exit(code or run("of-a-workflow") or "mlflow" in sys.modules)
"""


def test_a_run_imports_no_mlflow_and_is_shown_by_a_process_beside_it(work: Path) -> None:
    settings = settings_of("clip")
    prepare(settings)
    (work / "run.yaml").write_text(json.dumps(settings.as_dict()))
    subprocess.run([sys.executable, "-c", RUN], check=True)
    for out in ("by-hand", "of-a-workflow"):
        assert (work / out / paths.RUN_SCORES).is_file()
        assert (work / out / paths.RUN_MIRRORED).is_file() == (out == "by-hand")
    mlflow = mirror.connect()
    [run] = mlflow.search_runs([mlflow.get_experiment_by_name("runs").experiment_id])
    assert run.info.status == "FINISHED"


@pytest.mark.usefixtures("work")
def test_the_mirror_ends_when_the_process_that_started_it_is_killed() -> None:
    program = (
        "import os, signal, sys\n"
        "from microclip.processes import Companion\n"
        "companion = Companion('mirror')\n"
        "companion.send('{}')\n"
        "print(companion.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("work")
def test_epochs_that_a_killed_mirror_missed_come_before_the_next_one() -> None:
    settings = settings_of("microclip")
    folder = settings.spec.folder
    for epoch in (0, 1):
        open_tracker(settings, folder, "tiny").epoch(epoch, ROWS[epoch])
    follower = mirror.Follower(mirror.sizes([folder]))
    for epoch in (2, 3):
        open_tracker(settings, folder, "tiny").epoch(epoch, ROWS[epoch])
    assert follower.close()
    [run] = runs()
    assert points(run, "loss") == [(epoch, ROWS[epoch]["loss"]) for epoch in range(4)]
    assert [epoch for epoch, _ in points(run, "system/process_cpu_cores")] == [*range(4)]


def killed(settings: RunSettings) -> None:
    """Begin a run in a process that ends without a word."""
    pid = os.fork()
    if pid == 0:
        open_tracker(settings, settings.spec.folder, "tiny").epoch(0, ROWS[0])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.usefixtures("work")
def test_a_run_whose_process_was_killed_is_shown_as_killed() -> None:
    settings = settings_of("microclip")
    killed(settings)
    assert show(settings.spec.folder)
    [run] = runs()
    assert run.info.status == "KILLED"
    assert "killed, or out of memory" in run.data.tags["reason"]


@pytest.mark.usefixtures("work")
def test_a_run_that_was_killed_after_its_scores_is_shown_as_finished() -> None:
    settings = settings_of("microclip")
    killed(settings)
    finish(settings)
    assert show(settings.spec.folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["top1_pct"] == 50.0


@pytest.mark.usefixtures("work")
def test_what_the_store_missed_is_shown_once_it_answers_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = seeds(2)
    follower = mirror.Follower({str(one.spec.folder): 0 for one in (first, second)})
    with monkeypatch.context() as away, caplog.at_level(logging.WARNING, logger="microclip"):
        away.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
        trackers = [open_tracker(one, one.spec.folder, "tiny") for one in (first, second)]
        for epoch in (0, 1):
            trackers[0].epoch(epoch, ROWS[epoch])
            follower.look()
    assert [r.levelname for r in caplog.records if r.name.startswith("microclip")] == ["WARNING"]
    trackers[0].epoch(2, ROWS[2])
    assert follower.close()
    found = {run.info.run_name: run for run in runs()}
    assert points(found[title(first.spec)], "loss") == [(e, ROWS[e]["loss"]) for e in (0, 1, 2)]
    assert found.keys() == {title(first.spec), title(second.spec)}


@pytest.mark.usefixtures("work")
def test_a_run_that_the_store_refuses_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = seeds(2)
    follower = mirror.Follower({str(one.spec.folder): 0 for one in (first, second)})
    for one in (first, second):
        open_tracker(one, one.spec.folder, "tiny").epoch(0, ROWS[0])
    journal = first.spec.folder / paths.RUN_JOURNAL
    journal.write_text(journal.read_text().replace('"study": "tiny"', '"study": ""'))
    assert not follower.close()
    assert [run.info.run_name for run in runs()] == [title(second.spec)]


@pytest.mark.usefixtures("work")
def test_a_page_does_not_wait_for_a_mirror_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("clip")
    settings.spec.folder.mkdir(parents=True)
    finish(settings)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for value in ("", "workflow", "999999999"):
        monkeypatch.setenv(processes.MIRROR, value)
        mirror.wait([settings.spec.folder])
    assert not waited
    monkeypatch.setattr(mirror, "_LINKED_S", 0.05)
    for value in (str(os.getpid()), processes.ELSEWHERE):  # on a cluster's node nobody can ask
        monkeypatch.setenv(processes.MIRROR, value)
        mirror.wait([settings.spec.folder])
        assert waited
        waited.clear()


@pytest.mark.usefixtures("work")
def test_a_run_that_starts_again_before_the_mirror_looks_is_followed_on() -> None:
    """Its first process is dead by then, the second is not."""
    settings = settings_of("microclip")
    folder = settings.spec.folder
    first = open_tracker(settings, folder, "tiny")
    first.epoch(0, ROWS[0])
    journal = folder / paths.RUN_JOURNAL
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    text = journal.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {ended.pid}')
    assert str(ended.pid) in text
    journal.write_text(text)
    follower = mirror.Follower({str(folder): 0})
    follower._runs[0].read()
    second = open_tracker(settings, folder, "tiny")
    second.epoch(1, ROWS[1])
    follower.look()
    [run] = runs()
    assert run.info.status == "RUNNING"
    second.fail("FAILED", "loss is nan")
    assert follower.close()
    assert runs()[0].info.status == "FAILED"


@pytest.mark.usefixtures("work")
def test_a_journal_that_was_deleted_and_begun_again_is_read_from_its_start() -> None:
    settings = settings_of("microclip")
    folder = settings.spec.folder
    first = open_tracker(settings, folder, "tiny")
    for epoch in (0, 1):
        first.epoch(epoch, ROWS[epoch])
    follower = mirror.Follower(mirror.sizes([folder]))  # it has read nothing of this journal
    (folder / paths.RUN_JOURNAL).unlink()
    open_tracker(settings, folder, "tiny").epoch(0, ROWS[0])
    follower.look()
    assert [run.info.status for run in runs()] == ["RUNNING"]


@pytest.mark.usefixtures("work")
def test_half_a_line_in_a_journal_costs_nothing_but_itself() -> None:
    settings = settings_of("microclip")
    folder = settings.spec.folder
    tracker = open_tracker(settings, folder, "tiny")
    with (folder / paths.RUN_JOURNAL).open("a") as stream:
        stream.write('{"time": 1.0, "eve')  # the disk was full
    tracker.epoch(0, ROWS[0])
    follower = mirror.Follower({str(folder): 0})
    follower.look()
    assert points(runs()[0], "loss") == [(0, 10.0)]
    shutil.rmtree(folder)  # by a user, while it trains
    again = open_tracker(settings, folder, "tiny")
    again.epoch(0, ROWS[0])
    again.epoch(1, ROWS[1])
    assert follower.close()
    assert points(runs()[0], "loss") == [(0, 10.0), (1, 9.0)]


@pytest.mark.usefixtures("work")
def test_an_experiment_that_was_deleted_in_mlflow_is_restored() -> None:
    client = mirror.connect()
    where = mirror.experiment(client, "gone")
    client.delete_experiment(where)
    assert mirror.experiment(client, "gone") == where
    assert client.get_experiment(where).lifecycle_stage == "active"


@pytest.mark.usefixtures("work")
def test_values_longer_than_mlflow_allows_are_cut_there_and_whole_in_the_files(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of("microclip")
    tracker = open_tracker(settings, settings.spec.folder, "tiny")
    journal = settings.spec.folder / paths.RUN_JOURNAL
    line = json.loads(journal.read_text())
    long = {"templates": "x" * 7000, "k" * 260: "long key"}
    line["params"] = {**line["params"], **long}
    line["tags"] = {**line["tags"], "changed": "y" * 9000, "t" * 260: "long key"}
    journal.write_text(json.dumps(line) + "\n")
    finish(settings)
    tracker.finish({"digest": settings.digest(), "top1_pct": 50.0})
    assert show(settings.spec.folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["templates"].startswith("xxx")
    assert len(run.data.params["templates"]) <= 6000
    assert run.data.tags["changed"].startswith("yyy")
    assert "k" * 250 in run.data.params
    assert "t" * 250 in run.data.tags
    assert not caplog.text
