"""Atomic files, seeds by purpose, and locks that end with their process."""

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from microclip import runtime


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.json"
    runtime.write_json(target, {"b": 1, "a": "ü"})
    assert target.read_text(encoding="utf-8").endswith("}\n")
    assert list(json.loads(target.read_text(encoding="utf-8"))) == ["b", "a"]
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]


def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    runtime.write_text(target, "old")

    def fail() -> None:
        with runtime.atomic_path(target) as path:
            path.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_kill_during_writing_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    runtime.write_text(target, "old")
    program = (
        "import os, sys; from pathlib import Path; from microclip import runtime\n"
        "with runtime.atomic_path(Path(sys.argv[1])) as path:\n"
        "    path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"


def test_the_temporary_file_has_the_same_suffix_and_folder(tmp_path: Path) -> None:
    with runtime.atomic_path(tmp_path / "a.parquet") as path:
        assert path.suffix == ".parquet"
        assert path.parent == tmp_path


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        runtime.write_text(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_seeds_differ_by_purpose_and_fit_63_bits() -> None:
    seeds = {
        runtime.derive_seed(0),
        runtime.derive_seed(1),
        runtime.derive_seed(0, "crops"),
        runtime.derive_seed(0, "crops", 1),
        runtime.derive_seed(0, "crops", "1"),
        runtime.derive_seed(0, "crops", 1, 2),
        runtime.derive_seed(0, "crops", 12),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert runtime.derive_seed(0, "crops", 1) == runtime.derive_seed(0, "crops", 1)


def test_generators_for_one_purpose_draw_the_same() -> None:
    draws = [torch.rand(3, generator=runtime.generator(7, "views", 2)) for _ in range(2)]
    assert torch.equal(*draws)
    other = torch.rand(3, generator=runtime.generator(7, "views", 3))
    assert not torch.equal(draws[0], other)


def test_global_generators_are_seeded_and_restored() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with runtime.seeded_globals(11):
        inside = draw()
    assert draw() == expected
    with runtime.seeded_globals(11):
        assert draw() == inside


def test_seeding_the_global_generators_leaves_the_gpus_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with runtime.seeded_globals(11):
        pass
    assert not seeded


HOLD = """
import sys
from pathlib import Path
from microclip import runtime
with runtime.locked(Path(sys.argv[1]), on_busy=lambda: print("busy", flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_lock_is_waited_for_and_freed_by_a_kill(tmp_path: Path) -> None:
    first = hold(tmp_path / "folder" / ".lock")
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = hold(tmp_path / "folder" / ".lock")
    assert second.stdout is not None
    assert second.stdout.readline() == "busy\n"
    first.kill()
    assert second.stdout.readline() == "held\n"
    second.communicate("")
    first.communicate()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = []
    with runtime.locked(tmp_path / ".lock", on_busy=lambda: pytest.fail("the lock is free")):
        done.append(1)
    assert done
    assert "its file system has none of the locks" in caplog.text
    assert "start no other process that writes there" in caplog.text


def test_the_record_names_code_versions_and_machine() -> None:
    record = runtime.record()
    assert record["packages"]["torch"] == torch.__version__.partition("+")[0] or "+" in str(
        record["packages"]["torch"]
    )
    assert set(record) >= {"commit", "dirty", "python", "platform", "cpus", "gpu", "tf32"}
    assert runtime.peak_memory_mib() > 10


def test_peak_memory_is_reset_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [300 * 2**20]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: max(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.clear())
    runtime.reset_peak_memory()
    assert peaks  # CUDA is not in use: there is nothing to reset
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert runtime.peak_memory_mib() == 300
    runtime.reset_peak_memory()
    peaks.append(2**20)
    assert runtime.peak_memory_mib() == 1
