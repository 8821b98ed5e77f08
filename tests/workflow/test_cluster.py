"""Profiles for clusters: they name groups that exist, and a dry run takes them.

What a real Slurm does with them is in tests/slurm, and pods of Kubernetes are in tests/kubernetes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow import folder
from tests.workflow.folder import ROOT

PROFILES = ROOT / "workflow" / "profiles"
NAMES = ("slurm", "kubernetes")
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))


def profile(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROFILES / name / "profile.yaml").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_names_groups_that_exist_and_enough_cores(name: str) -> None:
    found = profile(name)
    groups = set(re.findall(r'together\("(\w+)"\)|return "(\w+)" if study', RULES))
    assert set(found["group-components"]) <= {one or other for one, other in groups}
    (needed,) = re.findall(r"^N_CORES = (\d+)", RULES, re.MULTILINE)
    assert int(needed) <= found["cores"]  # else Snakemake gives jobs fewer


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_repeats_a_job_as_the_default_one_does(name: str) -> None:
    kept = ("keep-going", "rerun-incomplete", "rerun-triggers")
    assert [profile(name)[key] for key in kept] == [profile("default")[key] for key in kept]
    assert profile(name)["set-resource-scopes"] == {"gpu": "local"}  # not one GPU for the queue


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_takes_a_profile(name: str, tmp_path: Path) -> None:
    if name == "slurm":
        pytest.importorskip("snakemake_executor_plugin_slurm", reason="pip install -e '.[cluster]'")
    place = folder.write(tmp_path / "study")
    options = ("--workflow-profile", f"workflow/profiles/{name}")
    counts = folder.planned(folder.snakemake(place, "-n", *options))
    assert counts == folder.dry(place)


def test_a_storage_plugin_is_refused_before_the_first_job(tmp_path: Path) -> None:
    plugin = "snakemake-storage-plugin-fs==1.1.3"
    pytest.importorskip(plugin.split("=")[0].replace("-", "_"), reason=f"pip install {plugin}")
    place = folder.write(tmp_path / "study")
    storage = ("--default-storage-provider", "fs", "--default-storage-prefix", str(place))
    usage = ("--shared-fs-usage", "sources", "software-deployment", "persistence", "source-cache")
    done = folder.snakemake(place, "--cores", "1", *storage, *usage)
    assert done.returncode != 0
    assert "storage plugin 'fs' gives files other names" in done.stdout
    assert not (place / "results").exists()
