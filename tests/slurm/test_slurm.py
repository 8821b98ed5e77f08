"""A study through a real Slurm: the same bytes, a time limit, a drained node, a lost controller."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fixtures.waiting import waited
from tests.slurm import daemons
from tests.slurm.daemons import Slurm
from tests.workflow import folder, submitted
from tests.workflow.folder import ROOT

ASKED = "MICROCLIP_SLURM_TESTS"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ASKED not in os.environ, reason="takes minutes: `make test-slurm`"),
]
PROFILE = (
    *("--workflow-profile", str(ROOT / "workflow" / "profiles" / "slurm")),
    # What this Slurm lacks: accounts, a database, cores.
    *("--slurm-no-account", "--slurm-status-command", "squeue"),
    *("--set-threads", "adapt=1", "encode_images=1", "store_images=1"),
    *("--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10"),
    *("--logger", "snakemake"),  # the live view has no lines about Slurm
)
ON_GPU = "adapt:gpu=1"  # it computes nothing: jobs wait for it in turn


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if why := daemons.lacking():
        pytest.skip(why)
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="pip install -e '.[cluster]'")
    place = Path(tempfile.mkdtemp(prefix="slurm-"))
    place.chmod(0o755)  # munge's user goes through it
    started = Slurm(place)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(place)


@dataclass
class Submitted:
    """Snakemake on the login node of a cluster, with a study in a folder."""

    place: Path
    slurm: Slurm
    more: tuple[str, ...] = ()
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        with (self.place / "terminal.txt").open("w") as terminal:
            self.process = subprocess.Popen(
                folder.command(*PROFILE, *self.more),
                cwd=self.place,
                env=folder.environment(),
                stdout=terminal,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def said(self) -> str:
        return (self.place / "terminal.txt").read_text()

    def sees(self, *words: str) -> bool:
        """Whether a line of the queue has all these words."""
        assert self.process.poll() is None, self.said()
        return any(all(w in line for w in words) for line in self.slurm.table().splitlines())

    def end(self) -> str:
        """Wait for the end, show Slurm's table, and return what Snakemake wrote."""
        try:
            self.process.wait(2400)
        finally:
            self.process.kill()
            print(f"\n{self.slurm.table()}")
        assert self.process.returncode == 0, self.said()
        return self.said()


@dataclass
class Both:
    """The same study, run here and on the cluster."""

    local: Path
    cluster: Path
    said: str


@pytest.fixture(scope="module")
def both(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Run the study twice; on the way, drain the node, and lose the controller."""
    base = tmp_path_factory.mktemp("both")
    local, cluster = (folder.write(base / name, seeds=[0, 1]) for name in ("local", "cluster"))
    job = Submitted(cluster, slurm, ("--set-resources", ON_GPU))
    try:
        assert waited(lambda: job.sees("RUNNING", "texts"), 600), job.said()
        slurm.drain(is_drained=True)
        assert waited(lambda: slurm.node() == "drained", 600), slurm.node()
        assert waited(lambda: job.sees("PENDING"), 600), slurm.table()
        print(f"\n{slurm.said('sinfo')}\n{slurm.table()}")
        slurm.drain(is_drained=False)
        assert waited(lambda: job.sees("RUNNING", "gres:gpu:1", "rule_adapt"), 900), job.said()
        slurm.stop_controller()
        assert slurm.node() == ""
        slurm.start_controller()
        said = job.end()
    finally:
        job.process.kill()
        if slurm.node().startswith("drain"):  # else the next test waits for ever
            slurm.drain(is_drained=False)
    done = folder.snakemake(local, "--cores", "2", "--resources", "gpu=1")
    assert done.returncode == 0, done.stdout
    return Both(local, cluster, said)


@submitted.SAME_BYTES
def test_tables_and_weights_have_the_bytes_of_a_local_run(
    both: Both, pattern: str, least: int
) -> None:
    submitted.check_bytes(both.local, both.cluster, pattern, least)


def test_all_scores_are_those_of_a_local_run(both: Both) -> None:
    submitted.check_scores(both.local, both.cluster)


def test_jobs_that_train_nothing_went_together(both: Both) -> None:
    logs = both.cluster / "logs" / "slurm"
    submitted = re.findall(r"submitted with SLURM jobid (\d+) \(log: (\S+)\)", both.said)
    folders = [Path(log).relative_to(logs).parts[0] for _, log in submitted]
    folders = ["group_report" if name.startswith("group_report_") else name for name in folders]
    assert sorted(folders) == [
        "group_frozen_adapt",
        "group_images_encode_images_store_images",
        "group_report",
        "group_texts_embed_descriptions",
        "rule_adapt",
        "rule_adapt",
    ]


def test_a_groups_runs_are_forked_on_its_node_and_others_run_by_themselves(both: Both) -> None:
    """A job that only waits for a fork has not imported torch."""
    for method, has_imported in (("clip", False), ("cupl", False), ("microclip", True)):
        name = f"tiny.icon-clip.shipped.{method}.default.seed-0.tsv"
        with (both.cluster / "logs" / "adapt" / name).open(newline="") as stream:
            (row,) = csv.DictReader(stream, delimiter="\t")
        assert (float(row["max_vms"]) > 1000) == has_imported, method


def test_mlflow_has_all_runs_and_the_page_links_to_them(both: Both) -> None:
    runs = submitted.check_mirrored(both.cluster)
    page = (both.cluster / "results/tiny/index.html").read_text()
    assert all(run in page for run in runs)


def test_a_run_that_its_time_limit_killed_resumes_and_ctrl_c_cancels_it(
    slurm: Slurm, tmp_path: Path
) -> None:
    place = folder.write(tmp_path / "study", **submitted.LONG)
    job = Submitted(place, slurm, ("--set-resources", ON_GPU))

    try:
        assert waited(lambda: submitted.n_epochs(place) > 3, 1200), job.said()
        slurm.limit("rule_adapt", minutes=1)  # which are over by now, or soon
        assert waited(lambda: job.sees("TIMEOUT", "rule_adapt"), 300), slurm.table()
        before = submitted.n_epochs(place)
        assert waited(lambda: submitted.ends(place).count("started") == 2, 1200), job.said()
        assert waited(lambda: submitted.n_epochs(place) > before + 1, 1200), job.said()
        print(f"\n{slurm.table()}")
        job.process.send_signal(signal.SIGINT)
        job.process.wait(300)
        assert waited(lambda: not slurm.said("squeue", "--noheader")), slurm.table()
    finally:
        job.process.kill()
    assert "SLURM status is: 'TIMEOUT'" in job.said()
    log = next(place.glob("logs/adapt/*.log")).read_text()
    resumed = re.search(r"resuming after epoch (\d+)", log)
    assert resumed is not None, log
    assert int(resumed[1]) >= before - 2  # epoch 0 is the network before training
    assert "epoch 1/3000:" not in log
    submitted.check_history(place)
    assert submitted.ends(place)[:3] == ["started", "killed", "started"]
