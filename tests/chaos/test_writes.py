"""A run that is killed at a write, or whose disk is full there, ends as one that was not broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microclip import paths, processes
from tests.chaos import broken_writes
from tests.chaos.whole_studies import leftovers, values
from tests.fixtures.project import prepare, settings_of, write_project
from tests.fixtures.warm import variables

SAMPLE = (2, 7, 12, 19)  # settings.yaml's rename, history, checkpoint, the last files
BYTES = (paths.RUN_PREDICTIONS, paths.RUN_WEIGHTS)
VALUES = (paths.RUN_SCORES, paths.RUN_HISTORY)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all inputs of a run of two epochs, and its settings."""
    place = tmp_path_factory.mktemp("writes")
    write_project(place / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROCLIP_ROOT", str(place / "project"))
        patch.chdir(place)
        settings = settings_of("microclip")
        prepare(settings)
        for split in ("train", "test"):  # from here on the store has them
            shutil.rmtree(place / "project" / "images" / split)
    (place / "run.json").write_text(json.dumps(settings.as_dict()))
    return place


def broken(root: Path, *faults: str) -> list[dict[str, Any]]:
    """What the broken runs and those after them said."""
    done = subprocess.run(
        [sys.executable, broken_writes.__file__, str(root), *faults],
        env={**os.environ, **variables(), "MICROCLIP_ROOT": str(root / "project")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(root: Path, found: list[dict[str, Any]]) -> None:
    """Each broken run said so, and the one after it has the files of the run "none-0"."""
    whole = root / "none-0" / "out"
    for one in found:
        place = root / one["folder"] / "out"
        fault = one["folder"].partition("-")[0]
        code, said, _ = one["first"]
        if fault == "full":
            assert code == 4, said
            assert "the disk of " in said
            assert "MiB free)" in said
            assert "which continues" in said
            assert len(said.strip().splitlines()[-1:]) == 1
            assert "Traceback" not in said
            assert one["left"] == []
        elif fault == "kill":
            assert code == -9
        assert one["second"][0] == 0, one["second"][1]
        for name in BYTES:
            assert (place / name).read_bytes() == (whole / name).read_bytes(), one["folder"]
        for name in VALUES:
            assert values(place / name) == values(whole / name), one["folder"]
        assert leftovers(place) == []
        assert not (place / paths.RUN_CHECKPOINT).exists()


def test_a_run_broken_at_some_of_its_writes_ends_like_a_whole_one(root: Path) -> None:
    killed = [part for n in SAMPLE for part in ("kill", str(n))]
    found = broken(root, "none", "0", *killed, "full", "7", "full", "19")
    check(root, found)
    n_flushes = found[0]["first"][2]
    assert max(SAMPLE) <= n_flushes


def test_unlock_removes_temporary_files_that_are_a_day_old(tmp_path: Path) -> None:
    results = tmp_path / "results" / "data"
    results.mkdir(parents=True)
    old, new = results / ".pixels-abcd1234.bin", results / ".pixels-abcd1235.bin"
    for path in (old, new, results / ".store.lock"):
        path.touch()
        os.utime(path, None if path == new else (1.0, 1.0))
    assert processes.release(tmp_path) == ["removed 1 temporary files of killed processes"]
    assert not old.exists()
    assert len(list(results.iterdir())) == 2


@pytest.mark.chaos
def test_a_run_broken_at_any_of_its_writes_ends_like_a_whole_one(root: Path) -> None:
    if not (root / "none-0").is_dir():
        broken(root, "none", "0")
    n_flushes = int((root / "none-0" / "count.txt").read_text())
    known = {path.name for path in root.iterdir()}
    rest = [n for n in range(1, n_flushes + 1) if f"kill-{n}" not in known]
    found = broken(root, *[part for n in rest for part in ("kill", str(n), "full", str(n))])
    check(root, found)
    sys.__stdout__.write(f"writes: {len(found)} of {n_flushes} writes broken, 0 losses\n")  # type: ignore[union-attr]
