"""A study of one pod a job: real kubectl, an imitation of the cluster whose pods are processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.waiting import waited
from tests.kubernetes import cluster
from tests.kubernetes.cluster import Cluster, Pod
from tests.workflow import folder, submitted
from tests.workflow.folder import ROOT

ASKED = "MICROCLIP_KUBERNETES_TESTS"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ASKED not in os.environ, reason="takes minutes: `make test-kubernetes`"),
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl; `make kubernetes`"),
]
PROFILE = ROOT / "workflow" / "profiles" / "kubernetes"
OPTIONS = (
    *("--workflow-profile", str(PROFILE)),
    *("--seconds-between-status-checks", "2", "--latency-wait", "10"),
    *("--set-resources", "adapt:gpu=1"),  # it computes nothing: jobs wait for it in turn
    *("--logger", "snakemake"),
)


@dataclass
class Here:
    """A cluster, and the file by which kubectl finds it; the claim is a folder."""

    state: Cluster
    config: Path
    study: Path

    def template(self, **changes: Any) -> str:
        """The profile's Job, filled in, in a file; its path."""
        job = yaml.safe_load((PROFILE / "job.yaml").read_text())
        job["metadata"]["namespace"] = changes.get("namespace", "default")
        pod = job["spec"]["template"]["spec"]
        pod["containers"][0]["image"] = changes.get("image", "icons/microclip:1")
        pod["containers"][0]["volumeMounts"][0]["mountPath"] = str(changes.get("at", self.study))
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = changes.get("claim", "microclip")
        path = self.config.with_name("job.yaml")
        path.write_text(yaml.safe_dump(job))
        return str(path)

    def environment(self) -> dict[str, str]:
        return {**folder.environment(), "KUBECONFIG": str(self.config)}

    def snakemake(self, *more: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end."""
        return subprocess.run(
            folder.command(*OPTIONS, "--microclip-pods-template", self.template(**changes), *more),
            cwd=self.study,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=2400,
        )


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    study = folder.write(tmp_path / "study", **submitted.LONG)
    place = tmp_path / "cluster"
    place.mkdir()
    with cluster.running(place, {"microclip": study}) as (state, config):
        yield Here(state, config, study)


@dataclass
class Submitted:
    """Snakemake where the volume is mounted."""

    here: Here
    more: tuple[str, ...] = ("--set-threads", "adapt=1", "encode_images=1", "store_images=1")
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        with (self.here.study / "terminal.txt").open("w") as terminal:
            self.process = subprocess.Popen(
                folder.command(
                    *(*OPTIONS, *self.more, "--microclip-pods-template", self.here.template())
                ),
                cwd=self.here.study,
                env=self.here.environment(),
                stdout=terminal,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def said(self) -> str:
        return (self.here.study / "terminal.txt").read_text()

    def pod(self, words: str, seconds: float = 600) -> Pod:
        """Wait for the running pod of a job."""
        running = self.here.state.running
        waited(lambda: running(words) is not None or self.process.poll() is not None, seconds)
        found = running(words)
        assert found is not None, self.said()
        return found


@dataclass
class Both:
    """The same study, run here and in pods."""

    local: Path
    pods: Path
    said: str
    state: Cluster


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Run the study twice; on the way, the API server is away for a while."""
    base = tmp_path_factory.mktemp("both")
    local, there = (folder.write(base / name, seeds=[0, 1]) for name in ("local", "pods"))
    place = base / "cluster"
    place.mkdir()
    with cluster.running(place, {"microclip": there}) as (state, config):
        job = Submitted(Here(state, config, there))
        try:
            job.pod("frozen")
            state.is_away = True
            assert waited(lambda: sum(state.refused.values()) > 2, 120), job.said()
            assert waited(lambda: state.running("frozen") is None, 600), job.said()
            state.is_away = False
            job.process.wait(2400)
        finally:
            job.process.kill()
        assert job.process.returncode == 0, job.said()
        done = folder.snakemake(local, "--cores", "2", "--resources", "gpu=1")
        assert done.returncode == 0, done.stdout
        yield Both(local, there, job.said(), state)


@submitted.SAME_BYTES
def test_tables_and_weights_have_the_bytes_of_a_local_run(
    both: Both, pattern: str, least: int
) -> None:
    submitted.check_bytes(both.local, both.pods, pattern, least)


def test_all_scores_are_those_of_a_local_run(both: Both) -> None:
    submitted.check_scores(both.local, both.pods)


def test_jobs_are_as_large_as_the_work_and_none_is_left(both: Both) -> None:
    found = {}
    for job in both.state.history:
        container = job["spec"]["template"]["spec"]["containers"][0]
        title = job["metadata"]["annotations"]["microclip/job"]
        found[title] = (container["resources"], job["spec"]["template"]["spec"])
        print(f"{job['metadata']['name']:62} {container['resources']}")
    groups = {re.sub(r"^(report)_.*", r"\1", title) for title in found}
    assert groups == {
        "texts_embed_descriptions",
        "images_encode_images_store_images",
        "frozen_adapt",
        "adapt tiny icon-clip shipped microclip default 0",
        "adapt tiny icon-clip shipped microclip default 1",
        "report",
    }
    assert len(both.state.history) == len(groups)
    resources, pod = found["adapt tiny icon-clip shipped microclip default 0"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert pod["activeDeadlineSeconds"] >= 600
    assert "nvidia.com/gpu" not in found["texts_embed_descriptions"][0]["limits"]
    assert both.state.jobs == both.state.pods == {}


def test_a_server_that_is_away_for_a_while_fails_no_job(both: Both) -> None:
    assert "the cluster does not answer, its jobs go on" in both.said
    assert "the cluster answers again" in both.said
    assert "failed" not in both.said.lower().replace("0 failed", "")


def test_mlflow_has_all_runs(both: Both) -> None:
    submitted.check_mirrored(both.pods)


def test_a_run_resumes_after_an_eviction_and_a_time_limit_and_ctrl_c_deletes_it(
    here: Here,
) -> None:
    job = Submitted(here, ("--cores", "2"))

    def n_epochs() -> int:
        return submitted.n_epochs(here.study)

    def n_starts() -> int:
        return submitted.ends(here.study).count("started")

    try:
        first = job.pod("adapt")
        assert waited(lambda: n_epochs() > 3, 600), job.said()
        assert first.spec["containers"][0]["resources"]["requests"]["cpu"] == "2"
        assert first.variables("MICROCLIP_THREADS") == {"2"}  # it computes with what it asked for
        here.state.evict(first)
        evicted_at = n_epochs()
        assert waited(lambda: n_starts() == 2 and n_epochs() > evicted_at + 2, 600), job.said()
        here.state.limit(job.pod("adapt"), 1)  # which is over by now
        late_at = n_epochs()
        assert waited(lambda: n_starts() == 3 and n_epochs() > late_at + 2, 600), job.said()
        third = job.pod("adapt")
        job.process.send_signal(signal.SIGINT)
        job.process.wait(300)
        assert waited(lambda: not here.state.jobs and not here.state.pods, 60), job.said()
    finally:
        job.process.kill()
    assert third.process is not None
    assert third.process.poll() is not None
    for words in ("Evicted: The node was low on resource: memory.", "DeadlineExceeded: Pod was"):
        assert words in job.said()
    kept = sorted(here.study.glob("logs/kubernetes/adapt-*.log"))
    assert len(kept) == 2
    assert all("adapt tiny icon-clip shipped microclip default 0: " in k.read_text() for k in kept)
    log = next(here.study.glob("logs/adapt/*.log")).read_text()
    resumed = [int(n) for n in re.findall(r"resuming after epoch (\d+)", log)]
    assert resumed, log
    assert resumed[-1] >= late_at - 2
    submitted.check_history(here.study)
    # A time limit and the end of a Job leave time for a last word, an eviction like this does not.
    assert submitted.ends(here.study) == ["started", "started", "killed", "started", "killed"]


def test_the_next_start_ends_what_a_killed_one_has_left(here: Here) -> None:
    job = Submitted(here)
    left = job.pod("adapt")
    job.process.kill()
    job.process.wait()
    # `microclip unlock` would see the pod's process, which on a cluster is out of its sight.
    assert folder.snakemake(here.study, "--unlock").returncode == 0
    second = Submitted(here)
    try:
        said = "ending the pods that an earlier start of this study has left"
        assert waited(lambda: said in second.said(), 120), second.said()
        assert waited(lambda: here.state.running("adapt") not in (None, left), 300), second.said()
        assert left.process is not None
        assert left.process.poll() is not None
        assert left.ends_as == ("Deleted", "")
    finally:
        second.process.send_signal(signal.SIGINT)
        second.process.wait(120)


@pytest.mark.parametrize(
    ("changes", "broken", "said"),
    [
        ({"claim": ""}, {}, r"job\.yaml: no volume claim is filled in \(claimName\)"),
        ({"image": ""}, {}, r"job\.yaml: no image is filled in"),
        ({"at": "/study"}, {}, r"study is not on the volume that \S+ mounts at /study"),
        ({"namespace": "icons"}, {}, r"in namespace icons \(NotFound\): namespaces \"icons\""),
        ({}, {"forbidden": {("POST", "jobs")}}, r"\(Forbidden\): jobs is forbidden: User"),
        ({}, {"forbidden": {("DELETE", "jobs")}}, r"\(Forbidden\): .*cannot DELETE"),
        ({}, {"is_away": True}, r"the cluster does not answer kubectl: .*must work here"),
    ],
)
def test_what_would_fail_every_job_stops_before_the_first_in_one_line(
    here: Here, changes: dict[str, Any], broken: dict[str, Any], said: str
) -> None:
    for name, value in broken.items():
        setattr(here.state, name, value)
    done = here.snakemake(**changes)
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("microclip: ")]
    print(f"\n{line}")
    assert re.search(said, line)
    assert not here.state.history
