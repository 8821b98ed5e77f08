"""The live view of a study, its lines where there is no terminal, and what Ctrl-C leaves."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from tests.fixtures.warm import PLUGINS, ROOT
from tests.workflow import terminal

sys.path.insert(0, str(PLUGINS))
from snakemake_logger_plugin_microclip import LogHandler, screen  # noqa: E402
from snakemake_logger_plugin_microclip.progress import Job, Journal, Progress  # noqa: E402

FOLDER = Path("results/runs/food/icon-clip/shipped/microclip/default/seed-0")
NAMES = {"dataset": "food", "method": "microclip", "variant": "default", "seed": "0"}
TEXT = "microclip/default on food, seed 0"
STARTED = {
    **{"event": "started", "time": 1.0, "host": "here", "pid": 1},
    **{"study": "tiny", "name": "a run", "digest": "a"},
    **{"params": {"epochs": "30"}, "tags": {}, "files": []},
}


def epoch(number: int, **more: float) -> dict[str, Any]:
    row = {"event": "epoch", "epoch": number, "loss": 3.25, "seconds": 4.0, "time": time.time()}
    return {**row, **more}


def write(*lines: dict[str, Any], folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "journal.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def info(number: int, rule: str, **more: Any) -> dict[str, Any]:
    """What Snakemake says of a job that it starts."""
    values = {
        "rule_msg": f"{rule} food",
        "log": [f"logs/{rule}.log"],
        "output": [],
        "wildcards": {},
    }
    return {"event": LogEvent.JOB_INFO, "jobid": number, "rule_name": rule, **values, **more}


def adapt(number: int = 2) -> dict[str, Any]:
    return info(number, "adapt", output=[str(FOLDER / "scores.json")], wildcards=NAMES)


def done(number: int) -> dict[str, Any]:
    return {"event": LogEvent.JOB_FINISHED, "job_id": number}


def failed(number: int) -> dict[str, Any]:
    return {"event": LogEvent.JOB_ERROR, "jobid": number}


STATS = {"event": LogEvent.RUN_INFO, "stats": {"store_images": 1, "adapt": 2, "plot": 1, "all": 1}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICROCLIP_STUDY", "tiny")
    return tmp_path


def handler(**changed: bool) -> LogHandler:
    """The handler as Snakemake makes it."""
    usual = dict.fromkeys(("dryrun", "printshellcmds", "quiet", "debug_dag", "verbose"), False)
    made = LogHandler(SimpleNamespace(stdout=False, **{**usual, **changed}), None)
    made.setFormatter(logging.Formatter())
    return made


def lines(*records: dict[str, Any] | str) -> list[str]:
    """What people read where there is no terminal; times are left out."""
    made = handler()
    made._shown = screen.Lines(made._progress, stream := io.StringIO())
    for one in records:
        values = {"msg": one} if isinstance(one, str) else {"msg": "", **one}
        if values.get("event") == LogEvent.RUN_INFO:
            made.open(values["stats"])
        made.emit(logging.makeLogRecord({"levelno": logging.INFO, **values}))
    made.close()
    return [line[10:] if line[2:3] == ":" else line for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_and_snakemakes_own_work_is_none(place: Path) -> None:
    assert lines(
        *("Building DAG of jobs...", "public datasets: 1 of 2 here", STATS, "Select jobs"),
        *(info(1, "store_images"), done(1), "Execute 2 jobs...", adapt(), done(2)),
        *(info(0, "all"), done(0), "took 3 s"),
    ) == [
        "public datasets: 1 of 2 here",
        "4 jobs: images 1, runs 2, tables and figures 1",
        "start  store_images food",
        "done   store_images food (1 of 4 jobs)",
        f"start  run {TEXT}",
        f"done   run {TEXT} (2 of 4 jobs, time left not known yet)",
        "took 3 s",
    ]  # fmt: skip


def test_a_failed_job_says_why_and_where_its_log_is(place: Path) -> None:
    Path("logs").mkdir()
    Path("logs/plot.log").write_text("reading\nmicroclip: no scores; run them\n\n")
    shown = lines(STATS, info(3, "plot"), failed(3))
    assert shown[2:] == [
        "FAILED plot food: microclip: no scores; run them (log: logs/plot.log)",
        "1 failed, 0 of 4 jobs are done and kept",
        "the same command continues",
    ]
    again = lines(STATS, info(3, "plot"), failed(3), info(3, "plot"), done(3))  # a second attempt
    assert again[-1] == "done   plot food (1 of 4 jobs)"


@pytest.mark.parametrize("comes_first", [True, False])
def test_an_interruption_says_what_is_kept(place: Path, *, comes_first: bool) -> None:
    """The job may end before Snakemake says that it was interrupted."""
    write(STARTED, epoch(1), epoch(2))
    (FOLDER / "checkpoint").mkdir()
    (FOLDER / "checkpoint/last.safetensors").touch()
    Path("logs").mkdir()
    Path("logs/adapt.log").write_text("microclip: interrupted; the same command continues\n")
    said = "Terminating processes on user request, this might take some time."
    end = (said, failed(2)) if comes_first else (failed(2), said)
    shown = lines(STATS, info(1, "store_images"), done(1), adapt(), *end)
    assert shown[-4:] == [
        "interrupted: waiting for the jobs to end",
        "interrupted: 1 of 4 jobs are done and kept",
        f"  {TEXT}: kept its checkpoint after epoch 2 of 30",
        "the same command continues",
    ]


def test_a_run_without_a_checkpoint_keeps_nothing(place: Path) -> None:
    shown = lines(STATS, adapt(), "Terminating processes on user request")
    assert f"  {TEXT}: kept nothing yet" in shown


def test_dry_and_verbose_runs_are_left_to_snakemake(place: Path) -> None:
    for option in ("dryrun", "printshellcmds", "quiet", "debug_dag", "verbose"):
        assert not handler(**{option: True}).writes_to_stream
    assert handler().writes_to_stream


def test_a_journal_is_read_as_it_grows(place: Path) -> None:
    journal = Journal(FOLDER)
    journal.read()
    assert (journal.epoch, journal.accuracy_pct, journal.left_s(0.0)) == (None, None, None)
    write(STARTED, epoch(0, test_fused_pct=50.0), epoch(1, time=100.0))
    with (FOLDER / "journal.jsonl").open("a") as stream:
        stream.write('{"time": 105.0, "event": "epo')
    journal.read()
    assert (journal.epoch, journal.n_epochs, journal.accuracy_pct) == (1, 30, 50.0)
    assert journal.left_s(101.0) == 29 * 4 - 1
    with (FOLDER / "journal.jsonl").open("a") as stream:
        stream.write('ch", "epoch": 2}\n')
    write(STARTED)  # resumed: what it had stays
    journal.read()
    assert (journal.epoch, journal.accuracy_pct) == (2, 50.0)
    write({**STARTED, "digest": "b"})  # other settings begin again
    journal.read()
    assert journal.epoch is None


def test_time_left_is_by_done_runs_of_the_method_and_by_the_epochs_of_running_ones(
    place: Path,
) -> None:
    from microclip.study import Plan, PlannedRun, RunSpec

    specs = [RunSpec("food", "icon-clip", "shipped", "microclip", seed=seed) for seed in range(4)]
    runs = tuple(PlannedRun(spec, f"d{spec.seed}", 1) for spec in specs)
    Plan("tiny", "Tiny", runs, (), {}, {}).write()
    progress = Progress()
    progress.plan({"adapt": 3})
    assert progress.time_left() is None

    def finish(number: int) -> None:
        scores = {"digest": f"d{number}", "recipe": 1, "seconds": 60}
        specs[number].folder.mkdir(parents=True, exist_ok=True)
        (specs[number].folder / "scores.json").write_text(json.dumps(scores))

    finish(0)
    for number in (1, 2):
        job = Job("adapt", "", (), time.time(), specs[number].folder, Journal(specs[number].folder))
        progress.start(number, job)
    left = progress.time_left()  # three runs of a minute, two at a time
    assert left is not None
    assert left.is_whole
    assert left.seconds == pytest.approx(90, abs=1)
    write(STARTED, epoch(29), folder=specs[1].folder)  # another 4 seconds, says its journal
    progress.read()
    left = progress.time_left()
    assert left is not None
    assert left.seconds == pytest.approx(62, abs=1)
    for number in (1, 2):
        finish(number)
        progress.finish(number)
    left = progress.time_left()
    assert left is not None
    assert left.seconds == pytest.approx(60)


# A study as Snakemake tells it, in a process of its own, whose standard output goes elsewhere.
VIEW = f"""
import json, logging, os, subprocess, sys, time
sys.path[:0] = {[str(PLUGINS), str(ROOT)]!r}
from tests.workflow.test_screen import *
made = handler()
def say(**values):
    made.emit(logging.makeLogRecord({{"msg": "", "levelno": logging.INFO, **values}}))
made.open(STATS["stats"])
subprocess.run("echo a line of a job; echo WARNING: 3 images are grey >&2", shell=True)
for values in (info(1, "store_images"), done(1), adapt()):
    say(**values)
write(STARTED, epoch(1, test_fused_pct=61.7))
time.sleep(1.2)
say(**done(2))
say(**adapt(4))
say(**done(4))
say(**info(3, "plot"))
say(**done(3))
say(msg="took 3 s")
made.close()
print("the end")
"""


def test_on_a_terminal_one_view_shows_stages_and_running_runs(place: Path) -> None:
    given = {**os.environ, "MICROCLIP_STUDY": "tiny"}
    code, drawn = terminal.watch([sys.executable, "-c", VIEW], place, given)
    assert code == 0, drawn
    shown = [
        " ".join(re.sub("[\u2501\u2578\u257a]", "", line).split()) for line in drawn.splitlines()
    ]
    assert any("study tiny: 1 of 4 jobs, " in line for line in shown), drawn
    for line in (
        "images 1/1",
        "runs 0/2",
        "tables and figures 0/1",
        "running epoch loss test left",
    ):
        assert any(line in one for one in shown), line
    assert any(one.startswith(f"{TEXT} 1/30 3.250 61.7 % 1 min 5") for one in shown), drawn
    assert "WARNING: 3 images are grey" in drawn
    assert "a line of a job" not in drawn
    assert shown[-2:] == ["took 3 s", "the end"]  # the terminal is the program's again
    [output] = (place / ".snakemake/log").iterdir()
    assert "a line of a job" in output.read_text()
