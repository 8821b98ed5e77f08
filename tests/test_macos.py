"""`adapt`, `predict` and `snakemake -n` need nothing that Linux alone has."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from microclip import runtime
from microclip.data import loading
from tests.fixtures import macos
from tests.own_images.folder import SHORT, place
from tests.workflow import folder

__all__ = ["place"]

OWN_IMAGES = """
import multiprocessing, os, sys
from pathlib import Path
assert sys.platform == "darwin"
assert not hasattr(os, "sched_getaffinity")
assert multiprocessing.get_start_method() == "spawn"
from microclip.cli.main import main
from microclip.data.decoding import decode_all
photos = sorted(Path("photos").rglob("*.png"))
assert all(len(image.pixels) for image in decode_all(photos, n_processes=2))
command = ["adapt", "photos", "--classes", "names.txt", "--out", "adapted", "--backbone", "tiny"]
assert main([*command, *sys.argv[1:]]) == 0
assert main(["unlock"]) == 0
sys.exit(main(["predict", "adapted", "photos", "--json-lines"]))
"""


def test_a_mac_adapts_and_predicts(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_IMAGES, *SHORT],
        env={**os.environ, **macos.environment(place / "mac")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 15


def test_a_mac_plans_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = folder.write(tmp_path / "copy", device="auto")
    for name, value in macos.environment(tmp_path / "mac").items():
        monkeypatch.setenv(name, value)
    assert folder.dry(copy)["adapt"] == 3


@pytest.fixture
def darwin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")


def test_a_mac_computes_on_all_its_cpus(darwin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICROCLIP_THREADS", raising=False)
    assert runtime.n_cpus() == os.cpu_count()
    monkeypatch.setenv("MICROCLIP_THREADS", "3")
    assert runtime.n_cpus() == 3


def test_a_mac_draws_views_in_one_process(darwin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROCLIP_WORKERS", "2")  # forked ones may crash in its own libraries
    assert loading.default_workers(torch.device("cpu")) == 0


def test_a_mac_counts_memory_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    on_linux = runtime.peak_memory_mib()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.peak_memory_mib() == pytest.approx(on_linux / 1024, rel=0.1)


def test_a_disk_that_cannot_flush_a_folder_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    runtime.write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
