"""Ctrl-C, SIGTERM, kill -9 of everything or of the scheduler: the same command continues."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from microclip import paths, warm
from tests.workflow import folder
from tests.workflow.folder import MACHINE, RUN

pytestmark = pytest.mark.slow
N_EPOCHS = 7  # it is interrupted after the second
LONG = {"microclip": {"epochs": N_EPOCHS, "batch_size": 8, "n_crops": 2}}
ONE = {"runs": [{"methods": ["microclip"]}], "tables": [], "methods": LONG}
HERE = RUN / "microclip/default/seed-0"


def epochs(place: Path) -> list[int]:
    """The epochs in the run's history, none if there is no such file."""
    path = place / HERE / "history.csv"
    if not path.is_file():
        return []
    with path.open() as stream:
        return [int(float(row["epoch"])) for row in csv.DictReader(stream)]


@contextlib.contextmanager
def started(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Start Snakemake in its own session, as a terminal does, and wait until it trains."""
    with (place / "terminal.txt").open("a") as terminal:
        job = subprocess.Popen(
            folder.command(*MACHINE),
            cwd=place,
            env=folder.environment(),
            stdout=terminal,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            for _ in range(1800):
                if len(epochs(place)) > 2:
                    break
                assert job.poll() is None, (place / "terminal.txt").read_text()
                time.sleep(0.1)
            yield job
        finally:
            for process in members(job.pid):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            job.wait()


def members(session: int) -> list[psutil.Process]:
    """Processes that are alive in a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session:
                found.append(process)
    return found


def check_continued(place: Path, warm_process: str) -> None:
    """Run the same command again and check that nothing is trained or mirrored twice."""
    from mlflow import MlflowClient

    before = epochs(place)
    released = folder.microclip(place, "unlock")
    assert released.returncode == 0, released.stderr
    with pytest.MonkeyPatch.context() as patch:  # faster than one of its own
        patch.setenv(warm.VARIABLE, warm_process)
        done = folder.snakemake(place, *MACHINE)
    assert done.returncode == 0, done.stdout
    assert "resuming after epoch" in done.stdout
    assert f"epoch 1/{N_EPOCHS}:" not in done.stdout
    assert epochs(place) == list(range(N_EPOCHS + 1))
    assert len(before) > 2
    client = MlflowClient(f"sqlite:///{place / 'results/mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    [run] = client.search_runs([experiment], "tags.method = 'microclip'")
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(1, N_EPOCHS + 1))


@pytest.fixture(scope="module")
def prepared(warm_process: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything but the training is done."""
    place = folder.write(tmp_path_factory.mktemp("prepared") / "study", **ONE)
    inputs = (
        "results/data/tiny/store.json",
        "results/classifiers/icon-clip/shipped/tiny.safetensors",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(warm.VARIABLE, warm_process)
        assert folder.snakemake(place, *MACHINE, "--", *inputs).returncode == 0
    return place


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "study", symlinks=True))


def test_after_kill_9_of_everything_the_same_command_continues(
    place: Path, warm_process: str
) -> None:
    with started(place) as job:
        for process in members(job.pid):
            process.kill()
        job.wait()
    assert any((place / ".snakemake/locks").iterdir())
    check_continued(place, warm_process)


def test_after_ctrl_c_the_same_command_continues(place: Path, warm_process: str) -> None:
    with started(place) as job:
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(timeout=120) != 0
    said = (place / "terminal.txt").read_text()
    assert "microclip/default on tiny, seed 0: kept its checkpoint after epoch " in said
    assert not (place / HERE / "scores.json").exists()
    check_continued(place, warm_process)


def scores(place: Path) -> dict[str, Any]:
    """The run's scores without what it cost."""
    found = json.loads((place / HERE / "scores.json").read_text())
    return {key: value for key, value in found.items() if not re.search("seconds|_at|_mb|mib", key)}


def test_sigterm_with_a_grace_period_loses_nothing_and_ends_with_the_same_scores(
    place: Path, prepared: Path, tmp_path: Path, warm_process: str
) -> None:
    """A cluster's pre-emption: SIGTERM to all processes of the job, and SIGKILL after a while."""
    with started(place) as job:
        seen = epochs(place)
        os.killpg(job.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=120)  # a busy machine gets more
        left = [p for p in members(job.pid) if p.status() != psutil.STATUS_ZOMBIE]
        for process in left:
            process.kill()
        assert job.wait() != 0
    said = (place / "terminal.txt").read_text()
    assert not left, said  # each process ended within its grace period
    assert "Traceback" not in said
    assert "microclip/default on tiny, seed 0: kept its checkpoint after epoch " in said
    assert epochs(place)[: len(seen)] == seen
    check_continued(place, warm_process)
    whole = Path(shutil.copytree(prepared, tmp_path / "whole", symlinks=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(warm.VARIABLE, warm_process)
        assert folder.snakemake(whole, *MACHINE).returncode == 0
    assert scores(place) == scores(whole)
    for name in (paths.RUN_WEIGHTS, paths.RUN_PREDICTIONS):
        assert (place / HERE / name).read_bytes() == (whole / HERE / name).read_bytes()


def test_a_job_that_outlived_its_scheduler_is_stopped_first(place: Path, warm_process: str) -> None:
    with started(place) as job:
        job.kill()
        job.wait()
        orphans = [p for p in members(job.pid) if "microclip" in " ".join(p.cmdline())]
        assert orphans
        check_continued(place, warm_process)
        assert not any(p.is_running() and p.status() != "zombie" for p in orphans)


@pytest.mark.usefixtures("shared_warm")  # nothing here ends a process that a workflow starts
def test_a_second_workflow_in_the_folder_ends_at_once_and_harms_nothing(place: Path) -> None:
    methods = {"microclip": {**LONG["microclip"], "epochs": 3000}}  # longer than all that follows
    folder.write_study(place, **{**ONE, "methods": methods})
    with started(place):
        again = folder.microclip(place, "unlock")
        assert again.returncode != 0
        assert "is running in" in again.stderr
        second = folder.snakemake(place, *MACHINE)
        assert second.returncode != 0
        assert "locked" in second.stdout
        before = len(epochs(place))
        for _ in range(300):
            if len(epochs(place)) > before:
                break
            time.sleep(0.1)
        assert len(epochs(place)) > before
