"""A process keeps one GPU, which no other run gets, and an unusable device is never replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from microclip import runtime
from microclip.runtime import ResourceError
from microclip.settings import SettingsError
from tests.fixtures.gpus import PROLOGUE, environment, gpus, said, start

__all__ = ["gpus"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHOW = "print(choose(), os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)\n"
HOLD = SHOW + "sys.stdin.read()\n"


def test_cuda_without_a_gpu_is_an_error_not_a_cpu(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "")
    with pytest.raises(ResourceError, match=r"\(CUDA_VISIBLE_DEVICES is ''\); set device: cpu"):
        runtime.choose_device("cuda")
    assert runtime.choose_device("auto") == "cpu"
    assert runtime.choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("mps", "no parity test has run on it; write 'cpu'"),
        ("mps:0", "Apple's GPU"),
        ("cuda:1", "CUDA_VISIBLE_DEVICES=1, and write 'cuda'"),
        ("gpu", "must be 'auto', 'cpu' or 'cuda'"),
        ("CUDA", "must be 'auto', 'cpu' or 'cuda'"),
        ("", "must be 'auto', 'cpu' or 'cuda'"),
        (torch.device("cuda"), "must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_any_other_device_is_refused_by_name(name: str, remedy: str) -> None:
    with pytest.raises(SettingsError) as caught:
        runtime.choose_device(name)
    assert remedy in str(caught.value)
    assert f"(got {name!r})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_device_is_refused_too() -> None:
    with pytest.raises(SettingsError, match="must be 'auto', 'cpu' or 'cuda'; it has no value"):
        runtime.choose_device(None)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("2, 3", ["2", "3"]),
        ("GPU-8932f937-d72c,1", ["GPU-8932f937-d72c", "1"]),
        ("MIG-GPU-8932f937/1/0", ["MIG-GPU-8932f937/1/0"]),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: list[str]
) -> None:
    monkeypatch.setenv(VISIBLE, named)
    assert runtime.visible_gpus() == expected


@pytest.mark.parametrize("before", [None, "0"])
def test_a_gpu_that_torch_cannot_use_is_an_error_and_stays_free(
    gpus: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    before: str | None,
) -> None:
    gpus(1)
    if before is not None:
        monkeypatch.setenv(VISIBLE, before)

    def refuse() -> None:
        raise RuntimeError("Found no NVIDIA driver\non your system.")

    with monkeypatch.context() as broken:
        broken.setattr(torch.cuda, "init", refuse)
        for _ in range(2):
            with pytest.raises(ResourceError, match=r"cannot use it \(Found no NVIDIA driver on"):
                runtime.choose_device("auto")
            assert os.environ.get(VISIBLE) == before
    assert runtime.choose_device("auto") == "cuda"


def test_a_process_keeps_its_gpu(gpus: Callable[[int], None]) -> None:
    gpus(2)
    assert runtime.choose_device("cpu") == "cpu"
    assert VISIBLE not in os.environ
    for name in ("auto", "cuda", "cpu", "auto"):
        assert runtime.choose_device(name) == ("cpu" if name == "cpu" else "cuda")
    assert os.environ[VISIBLE] == "0"
    assert runtime._lease is not None
    lock = runtime._lease.lock
    runtime.choose_device("cuda")
    assert runtime._lease.lock is lock


def test_a_gpu_computes_float32_in_full(gpus: Callable[[int], None]) -> None:
    gpus(1)
    for _ in range(2):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        assert runtime.choose_device("auto") == "cuda"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert runtime.record()["tf32"] is None  # nothing ran on a GPU


@pytest.mark.parametrize("name", ["GPU-8932f937-d72c", "MIG-GPU-8932f937/1/0"])
def test_a_gpu_may_be_named_by_its_id(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(VISIBLE, name)
    assert [runtime.choose_device("cuda") for _ in range(2)] == ["cuda", "cuda"]
    assert os.environ[VISIBLE] == name


def test_threads_share_the_gpu(gpus: Callable[[int], None]) -> None:
    gpus(8)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(runtime.choose_device("auto")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["cuda"] * 8
    assert os.environ[VISIBLE] == "0"


class Started:
    """CUDA once something has asked it: it sees all GPUs, whatever the variable says later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, n: int, current: int | None) -> None:
        self.current = current or 0
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: current is not None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_device", self.set)

    def set(self, index: int) -> None:
        self.current = index


def test_cuda_that_was_only_asked_moves_to_the_leased_gpu(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus(2)
    other = start(HOLD, tmp_path, environment(tmp_path, 2))
    assert other.stdout is not None
    assert other.stdout.readline() == "cuda 0\n"
    cuda = Started(monkeypatch, n=2, current=None)
    assert runtime.choose_device("auto") == "cuda"
    assert (os.environ[VISIBLE], cuda.current) == ("1", 1)
    cuda.current = 0  # as in a new thread
    runtime.choose_device("auto")
    assert cuda.current == 1
    other.communicate("")


def test_cuda_that_computes_already_keeps_its_gpu(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus(4)
    cuda = Started(monkeypatch, n=4, current=2)
    assert runtime.choose_device("auto") == "cuda"
    assert (os.environ[VISIBLE], cuda.current) == ("2", 2)


def test_each_job_gets_its_own_gpu_and_a_kill_frees_it(tmp_path: Path) -> None:
    given = {**environment(tmp_path), VISIBLE: "3,5"}
    jobs = [start(HOLD, tmp_path, given) for _ in range(2)]
    lines = [job.stdout.readline().strip() for job in jobs if job.stdout]
    assert sorted(lines) == ["cuda 3", "cuda 5"]
    (third,) = said("print(choose())", tmp_path, given)
    assert third.startswith("all 2 GPUs are in use by other runs (GPU 3 by process ")
    assert all(str(job.pid) in third for job in jobs)
    jobs[0].kill()
    jobs[0].wait()
    assert said(SHOW, tmp_path, given) == [lines[0]]
    for job in jobs:
        job.communicate("")


def test_a_schedulers_jobs_on_one_node_do_not_take_each_others_gpu(tmp_path: Path) -> None:
    """Each job sees only its own GPUs, and counts them from 0; within a job they are shared out."""
    given = {**environment(tmp_path), VISIBLE: "0"}
    jobs = [start(HOLD, tmp_path, {**given, "SLURM_JOB_ID": job}) for job in ("7", "8")]
    assert [job.stdout.readline() for job in jobs if job.stdout] == ["cuda 0\n"] * 2
    (third,) = said("print(choose())", tmp_path, {**given, "SLURM_JOB_ID": "8"})
    assert third.startswith(f"all 1 GPUs are in use by other runs (GPU 0 by process {jobs[1].pid})")
    for job in jobs:
        job.communicate("")


NEAR = """
from pathlib import Path
runtime._PCI = Path(sys.argv[1], "pci")
before = sorted(os.sched_getaffinity(0))
print(choose(), before == sorted(os.sched_getaffinity(0)), sorted(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds processes")
@pytest.mark.parametrize(
    ("more", "cpus", "is_bound"),
    [
        ({"MICROCLIP_JOBS": "4"}, "{first}", True),
        ({"MICROCLIP_JOBS": "4"}, "{first}-{first},9998-9999", True),
        ({"MICROCLIP_JOBS": "4"}, "9998-9999", False),  # none that this process may use
        ({"MICROCLIP_JOBS": "4"}, "", False),
        ({"MICROCLIP_JOBS": "4", "SLURM_JOB_ID": "7"}, "{first}", False),
        ({"MICROCLIP_JOBS": "1"}, "{first}", False),
        ({}, "{first}", False),
    ],
)
def test_runs_that_share_a_machine_stay_near_their_gpus(
    tmp_path: Path, more: dict[str, str], cpus: str, is_bound: bool
) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one CPU: nothing to choose")
    given = environment(tmp_path)
    (tmp_path / "bin" / "nvidia-smi").write_text(
        '#!/bin/sh\ncase "$*" in *bus_id*) echo 00000000:3B:00.0;; *) echo 0;; esac\n'
    )
    node = tmp_path / "pci" / "0000:3b:00.0"
    node.mkdir(parents=True)
    (node / "local_cpulist").write_text(cpus.format(first=allowed[0]) + "\n")
    kept = {k: v for k, v in given.items() if k not in ("MICROCLIP_JOBS", "SLURM_JOB_ID")}
    (line,) = said(NEAR, tmp_path, {**kept, **more})
    expected = allowed[:1] if is_bound else allowed
    assert line == f"cuda {not is_bound} {expected}"


FORK = """
print(choose(), flush=True)
child = os.fork()
if not child:
    print("child", choose(), flush=True)
    {then}
_, code = os.waitpid(child, 0) if {waits} else (0, 0)
print("parent", choose(), code, flush=True)
sys.stdin.read()
"""


def test_a_forked_child_uses_its_parents_gpu_and_does_not_free_it(tmp_path: Path) -> None:
    given = environment(tmp_path)
    parent = start(FORK.format(then="sys.exit()", waits=True), tmp_path, given)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(3)] == [
        "cuda\n",
        "child cuda\n",
        "parent cuda 0\n",
    ]
    (other,) = said("print(choose())", tmp_path, given)
    assert other.startswith(f"all 1 GPUs are in use by other runs (GPU 0 by process {parent.pid})")
    parent.communicate("")
    assert said(SHOW, tmp_path, given) == ["cuda 0"]


def test_a_child_that_outlives_its_killed_parent_does_not_hold_its_gpu(tmp_path: Path) -> None:
    """As a data-loading worker does, for some seconds, after `kill -9`."""
    given = environment(tmp_path)
    parent = start(FORK.format(then="sys.stdin.read(); sys.exit()", waits=False), tmp_path, given)
    assert parent.stdout is not None
    assert sorted(parent.stdout.readline() for _ in range(3))[0] == "child cuda\n"
    parent.kill()
    assert said(SHOW, tmp_path, given) == ["cuda 0"]
    parent.communicate("")


def test_a_forked_child_cannot_use_cuda_that_its_parent_started(tmp_path: Path) -> None:
    poison = """
def refuse():
    raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. Use 'spawn'")
os.register_at_fork(after_in_child=lambda: setattr(torch.cuda, "init", refuse))
"""
    program = poison + FORK.format(then="sys.exit()", waits=True)
    lines = said(program, tmp_path, environment(tmp_path))
    assert lines[1].startswith("child a GPU is listed, but torch cannot use it (Cannot re-init")
    assert lines[2] == "parent cuda 0"


SUBPROCESS = """
import subprocess
print(choose(), flush=True)
if len(sys.argv) < 3:
    program = open(sys.argv[1] + "/program.py").read()
    more = {"CUDA_VISIBLE_DEVICES": "0,1"} if "two" in os.environ else {}
    command = [sys.executable, "-c", program, sys.argv[1], "again"]
    print(subprocess.check_output(command, text=True, env={**os.environ, **more}), end="")
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""


def test_a_process_that_we_start_shares_our_gpu_unless_another_is_free(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROLOGUE + SUBPROCESS)
    given = environment(tmp_path)
    assert said(SUBPROCESS, tmp_path, given) == ["cuda", "cuda", "0", "0"]
    assert said(SUBPROCESS, tmp_path, {**given, "two": "1"}) == ["cuda", "cuda", "1", "0"]
