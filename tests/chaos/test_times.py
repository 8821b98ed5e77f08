"""The profile's promise: contents repeat a job, times do not, however large the file."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.fixtures.warm import variables
from tests.workflow import folder

PROFILE = folder.ROOT / "workflow" / "profiles" / "default"
RULES = """
rule second:
    input: "first"
    output: "second"
    shell: "cp first second"

rule first:
    output: "first"
    shell: "head -c 2000000 /dev/zero > first"
"""


def snakemake(place: Path, *arguments: str) -> str:
    done = subprocess.run(
        folder.command("--workflow-profile", str(PROFILE), *arguments),
        cwd=place,
        env={**os.environ, **variables()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_newer_file_above_snakemakes_own_limit_repeats_nothing(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(RULES)
    assert "2 of 2 steps (100%) done" in snakemake(tmp_path)
    first = tmp_path / "first"
    later = time.time() + 86400
    os.utime(first, (later, later))
    assert "Nothing to be done" in snakemake(tmp_path, "--dry-run")
    first.write_bytes(first.read_bytes()[:-1] + b"1")
    os.utime(first, (later, later))
    assert "Updated input files: first" in snakemake(tmp_path, "--dry-run")
