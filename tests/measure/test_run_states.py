"""Where runs stand, by their scores and journals, and what about a run differs from today."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from microclip import paths
from microclip.measure import run_states
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from microclip.study import Plan, PlannedRun
from microclip.tracking.run import RunTracker, open_tracker
from tests.fixtures.project import Journal, load_study, prepare, settings_of


def planned() -> Plan:
    return load_study().plan()


def begun(method: str = "microclip") -> tuple[PlannedRun, RunTracker]:
    """A run of the study that this process has started."""
    declared = load_study()
    [run] = [run for run in declared.plan().runs if run.spec.method == method]
    return run, open_tracker(declared.resolve(run.spec), run.spec.folder, "tiny")


def rewrite(run: PlannedRun, **values: Any) -> None:
    """Change the journal's first line."""
    path = run.spec.folder / paths.RUN_JOURNAL
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **values}), *rest, ""]))


@pytest.mark.usefixtures("project")
def test_a_run_is_pending_then_running_then_failed_then_done() -> None:
    assert {one.state for one in run_states.states(planned())} == {"pending"}
    run, tracker = begun()
    tracker.epoch(0, {"test_fused_pct": 1.0})
    state = run_states.state_of(run)
    assert (state.state, state.note) == ("running", f"process {os.getpid()}")
    tracker.fail("KILLED", "interrupted")
    state = run_states.state_of(run)
    assert (state.state, state.note[:11]) == ("pending", "interrupted")
    tracker.fail("FAILED", "loss is nan")
    state = run_states.state_of(run)
    assert (state.state, state.note) == ("failed", "loss is nan")
    scores = {"digest": run.digest, "recipe": run.recipe}
    tracker.finish(scores)
    state = run_states.state_of(run)
    assert (state.state, state.note) == ("pending", "it was complete; its scores are gone")
    (run.spec.folder / paths.RUN_SCORES).write_text(json.dumps(scores))
    assert run_states.state_of(run).state == "done"


@pytest.mark.usefixtures("project")
def test_a_run_whose_process_is_gone_is_pending_and_one_elsewhere_runs() -> None:
    run, _ = begun()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    rewrite(run, pid=ended.pid)
    assert run_states.state_of(run).state == "pending"
    # A process of this number that began after the journal was written is another one.
    rewrite(run, pid=os.getpid(), time=1.0)
    assert run_states.state_of(run).state == "pending"
    rewrite(run, host="node7", pid=1)
    state = run_states.state_of(run)
    assert (state.state, state.note) == ("running", "on node7, as its journal says")


@pytest.mark.usefixtures("project")
def test_what_the_machine_did_changes_no_state_though_it_is_the_last_line() -> None:
    run, tracker = begun()
    machine = json.dumps({"time": 1.0, "event": "machine", "epoch": 0}) + "\n"
    journal = run.spec.folder / paths.RUN_JOURNAL

    def state() -> str:
        with journal.open("a") as stream:
            stream.write(machine)
        return run_states.state_of(run).state

    assert state() == "running"
    tracker.fail("FAILED", "loss is nan")
    assert state() == "failed"


@pytest.mark.usefixtures("project")
def test_other_settings_half_a_line_and_damaged_scores_count_as_nothing() -> None:
    run, tracker = begun()
    tracker.fail("FAILED", "loss is nan")
    rewrite(run, digest="another")
    assert run_states.state_of(run).state == "pending"
    rewrite(run, digest=run.digest)
    with (run.spec.folder / paths.RUN_JOURNAL).open("a") as stream:
        stream.write('{"event": "epo')
    (run.spec.folder / paths.RUN_SCORES).write_text('{"digest":')
    assert run_states.state_of(run).state == "failed"


@pytest.mark.usefixtures("project")
def test_a_run_is_found_by_its_name_its_folder_or_a_part_that_no_other_has() -> None:
    plan = planned()
    run = next(run for run in plan.runs if run.spec.method == "cupl")
    folder = run.spec.folder
    for named in (run.name, str(folder), f"./{folder}/", f"{folder}/scores.json", "cupl"):
        assert run_states.find(plan, named) == run
    assert run_states.find(plan, str(Path.cwd() / folder)) == run
    with pytest.raises(SettingsError, match="names 3 runs of study tiny"):
        run_states.find(plan, "shapes")
    with pytest.raises(SettingsError, match="names no run of study tiny; .*`microclip status`"):
        run_states.find(plan, "cup")


def test_nested_settings_differ_by_their_keys_and_the_device_does_not_count() -> None:
    then = {"method": {"gamma": 0.5, "betas": (0.9, 0.99)}, "device": "cpu", "old": 1}
    now = {"method": {"gamma": 0.3, "betas": [0.9, 0.99]}, "device": "cuda"}
    assert list(run_states.differences(then, now)) == [
        "method.gamma was 0.5, is 0.3",
        "old was 1, is not there",
    ]


def test_a_finished_run_says_which_setting_code_or_file_differs(own_project: Path) -> None:
    from microclip import runner

    settings = settings_of("cupl")
    prepare(settings)
    open_tracker(settings, settings.spec.folder, "tiny")
    runner.run(settings, settings.spec.folder, Journal())
    assert run_states.explain(settings) == []
    path = settings.spec.folder / paths.RUN_SETTINGS
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "precision": "bf16"}))
    scores = settings.spec.folder / paths.RUN_SCORES
    scores.write_text(json.dumps({**json.loads(scores.read_text()), "recipe": 0}))
    manifest = Path(paths.MANIFEST.format(dataset="shapes"))
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], *reversed(lines[1:]), ""]))
    vectors = Path("results/classifiers/tiny/shipped/shapes.safetensors")
    vectors.unlink()
    (own_project / "resources/tiny/tiny.json").write_text("{}")
    found = run_states.explain(settings)
    assert [line.split(":")[0] for line in found] == [
        *("settings", "code", "images", "backbone", "class_vectors")
    ]
    assert "precision was 'bf16', is 'fp32'" in found[0]
    assert f"recipe was 0, is {settings.recipe}" in found[1]
    assert "manifest.csv is" in found[2]
    scores.unlink()
    assert run_states.explain(settings) == [f"no {scores}; run `snakemake`"]


@pytest.mark.usefixtures("project")
def test_without_a_workflow_nothing_is_asked_or_run() -> None:
    with pytest.raises(MissingDataError, match="has no Snakefile"):
        run_states.snakemake([Path("results/x")])


def test_a_dry_runs_jobs_have_a_reason_without_long_parameters() -> None:
    said = (
        "Job 3: adapt clip/default to tiny, seed 0\n"
        "Reason: Params have changed since last execution: Union of exclusive params before: 'x'\n"
        "Job stats:\njob count\n\nReasons:\n    (check individual jobs above for details)\n"
    )
    expected = "adapt clip/default to tiny, seed 0: params have changed since last execution"
    assert list(run_states.jobs(said)) == [expected]
