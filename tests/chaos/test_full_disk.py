"""A small disk that is full: one line, exit code 4, nothing half-written, and then it goes on."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip import paths, runtime
from microclip.cli import main
from microclip.tracking.run import open_tracker
from tests.chaos.whole_studies import leftovers, values
from tests.fixtures.project import make_inputs, settings_of


def mount(*arguments: str) -> bool:
    with contextlib.suppress(OSError):
        done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
        return done.returncode == 0
    return False


@pytest.fixture
def disk(project: Path) -> Iterator[Path]:
    """Work on a disk of 64 KiB, which `mount -o remount,size=...` enlarges."""
    place = project / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64k", "none", str(place)):
        pytest.skip("this user cannot mount a small tmpfs; root can")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_inputs_and_a_run_survive_a_full_disk(
    disk: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of("microclip")
    with pytest.raises(runtime.ResourceError, match=r"the disk of .* is full \(.* MiB free"):
        make_inputs(settings)
    assert leftovers(disk) == []
    assert mount("-o", "remount,size=20m", str(disk))
    make_inputs(settings)
    monkeypatch.setenv("MICROCLIP_MIRROR", "workflow")
    monkeypatch.setenv("MICROCLIP_THREADS", "1")
    (disk / "run.json").write_text(json.dumps(settings.as_dict()))
    assert main.main(["run", "--settings", "run.json", "--out", str(project / "whole")]) == 0
    capsys.readouterr()
    filler = disk / "filler"
    filler.touch()
    command = ["run", "--settings", "run.json", "--out", "out"]
    for left in (0, 12 << 10, 60 << 10):  # no journal, no checkpoint, no weights
        fill(filler, left)
        assert main.main(command) == 4
        assert "the disk of" in capsys.readouterr().err.splitlines()[-1]
        assert leftovers(disk) == []
        assert not (disk / "out" / paths.RUN_SCORES).exists()
    filler.unlink()
    assert main.main(command) == 0
    for name in (paths.RUN_PREDICTIONS, paths.RUN_WEIGHTS):
        assert (disk / "out" / name).read_bytes() == (project / "whole" / name).read_bytes()
    for name in (paths.RUN_SCORES,):
        assert values(disk / "out" / name) == values(project / "whole" / name)


@pytest.mark.usefixtures("project")
def test_a_journal_that_cannot_be_written_at_the_end_fails_no_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of("clip")
    tracker = open_tracker(settings, settings.spec.folder, "tiny")
    journal = settings.spec.folder / paths.RUN_JOURNAL
    journal.unlink()
    journal.mkdir()
    tracker.finish({"digest": settings.digest()})
    assert "the run is complete, but its journal is not" in caplog.text


def fill(path: Path, left: int) -> None:
    """Let a file take the disk's space, but for `left` bytes."""
    import shutil

    free = shutil.disk_usage(path.parent).free + path.stat().st_size
    with path.open("wb") as stream:
        stream.write(b"\0" * max(0, free - left))
