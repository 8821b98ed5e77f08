"""`make chaos`: kill -9 at random moments of a whole small study, and the same command again.

Twenty kills by seed (MICROCLIP_CHAOS_KILLS, MICROCLIP_CHAOS_SEED): of all processes at once as when
the power fails, of the scheduler alone, or of one process below it. After each, the same command
runs again; a study that ends must have the bytes of one that was never broken and, after `microclip
sync`, each run once in MLflow.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.chaos.whole_studies import differences
from tests.workflow import folder

pytestmark = pytest.mark.chaos
N_KILLS = int(os.environ.get("MICROCLIP_CHAOS_KILLS", "20"))
SEED = int(os.environ.get("MICROCLIP_CHAOS_SEED", "0"))
COMMAND = ("--cores", "2", "--resources", "gpu=1")
EPOCHS = 6
CHANGES = {
    "methods": {"microclip": {"epochs": EPOCHS, "batch_size": 8}},
    "figures": ["figure4"],
}
KINDS = ("all", "scheduler", "one below it")
LONGEST_S = 1800


def start(place: Path) -> subprocess.Popen[bytes]:
    """What `make run` does: clean up after an interrupted workflow, then run the study."""
    released = folder.microclip(place, "unlock")
    assert released.returncode == 0, released.stderr
    with (place / "terminal.txt").open("ab") as terminal:
        terminal.write(released.stderr.encode())
        terminal.flush()
        return subprocess.Popen(
            folder.command(*COMMAND),
            cwd=place,
            env=folder.environment(),
            stdout=terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(scheduler: subprocess.Popen[bytes], kind: str, draw: random.Random) -> str:
    """Kill -9 some of a workflow's processes, and return their command lines."""
    top = psutil.Process(scheduler.pid)
    below = sorted(top.children(recursive=True), key=lambda process: process.pid)
    match kind:
        case "all":
            victims = [top, *below]
            draw.shuffle(victims)
        case "scheduler":
            victims = [top]
        case _:
            victims = [draw.choice(below)] if below else [top]
    names = []
    for process in victims:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline()[1:4])[:40])
            process.kill()
    if kind != "one below it":
        scheduler.wait()
    return ", ".join(names)


def in_mlflow(place: Path) -> list[str]:
    """What is wrong with the study's runs in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'results/mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    runs = [run for run in found if run.data.tags.get("kind") == "run"]
    counts = Counter(run.data.tags["method"] for run in runs)
    wrong = [] if counts == Counter(["clip", "cupl", "microclip"]) else [f"runs: {dict(counts)}"]
    for run in runs:
        name = run.data.tags["method"]
        if run.info.status != "FINISHED" or run.data.tags.get("complete") != "true":
            wrong.append(f"{name} is {run.info.status}, {run.data.tags.get('artifacts')}")
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        if steps != (list(range(1, EPOCHS + 1)) if name == "microclip" else []):
            wrong.append(f"{name} has the losses of epochs {steps}")
    return wrong


@dataclass
class Chaos:
    """Kills, what they hit, and what was lost."""

    draw: random.Random
    took_s: float  # by a study that was not broken
    kinds: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    n_starts: int = 0
    has_ended_in_order: bool = True  # no job of the workflow that runs was killed

    def say(self, text: str) -> None:
        """Show a line at once, whatever pytest captures."""
        sys.__stdout__.write(f"{text}\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]

    def run(self, place: Path) -> int:
        """Start the study again and again until it ends; return the last exit code."""
        scheduler = None
        while True:
            if scheduler is None:
                self.n_starts += 1
                scheduler = start(place)
            if self.kinds.total() == N_KILLS:
                code = scheduler.wait(LONGEST_S)
                if code == 0 or self.has_ended_in_order:
                    return code
                # A job was killed below it, so it says that one failed: the same command again.
                self.has_ended_in_order, scheduler = True, None
                continue
            try:
                code = scheduler.wait(self.draw.uniform(0.05, 0.35) * self.took_s)
            except subprocess.TimeoutExpired:
                kind = self.draw.choice(KINDS)
                killed = kill(scheduler, kind, self.draw)
                self.kinds[kind] += 1
                self.has_ended_in_order = kind != "one below it"
                self.say(f"kill {self.kinds.total()} in {place.name}: {kind} ({killed[:120]})")
                scheduler = scheduler if kind == "one below it" else None
                continue
            if code == 0 or self.has_ended_in_order:
                return code
            self.has_ended_in_order, scheduler = True, None

    def summary(self, n_studies: int) -> str:
        """One line: injections and losses."""
        shown = ", ".join(f"{kind} {n}" for kind, n in sorted(self.kinds.items()))
        return (
            f"chaos: {self.kinds.total()} kills ({shown}) in {n_studies} studies with "
            f"{self.n_starts} starts, seed {SEED}: {len(self.losses)} losses"
        )


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    whole = folder.write(tmp_path / "unbroken", **CHANGES)
    began = time.monotonic()
    assert start(whole).wait(LONGEST_S) == 0, (whole / "terminal.txt").read_text()
    chaos = Chaos(random.Random(SEED), time.monotonic() - began)
    assert in_mlflow(whole) == []
    chaos.say(f"unbroken: {chaos.took_s:.0f} s")
    n_studies = 0
    while chaos.kinds.total() < N_KILLS:
        n_studies += 1
        place = folder.write(tmp_path / f"study-{n_studies}", **CHANGES)
        code = chaos.run(place)
        wrong = [] if code == 0 else [f"the same command ended with {code}"]
        assert folder.microclip(place, "sync").returncode == 0  # what a killed mirror missed
        wrong += differences(whole / "results", place / "results") + in_mlflow(place)
        if folder.planned(folder.snakemake(place, "--dry-run", *COMMAND)):
            wrong.append("a further start would do something")
        chaos.losses += [f"{place.name}: {one}" for one in wrong]
        chaos.say(f"{place.name}: {wrong or 'whole'}")
    chaos.say(chaos.summary(n_studies))
    assert not chaos.losses, "\n".join(chaos.losses)
