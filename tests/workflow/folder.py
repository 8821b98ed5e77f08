"""A separate folder for real Snakemake runs, with links to the project's files and a tiny study."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from microclip import warm
from tests.fixtures import snakemake as imported_snakemake
from tests.fixtures.project import METHODS, keep_three_methods
from tests.fixtures.warm import variables

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("Snakefile", "workflow", "resources", "environment.yml")
MACHINE = ("--cores", "1", "--resources", "gpu=1")
RUN = Path("results/runs/tiny/icon-clip/shipped")
DATASET = {
    "title": "Tiny",
    "source": {
        "kind": "icons",
        "drawings": "food",
        "classes": 4,
        "train_scenes": 4,
        "test_scenes": 4,
        "size_px": 64,
    },
    "templates": ["a picture of a {}"],
}
STUDY = {
    "study": "tiny",
    "datasets": ["tiny"],
    "backbones": ["icon-clip"],
    "descriptions": ["shipped"],
    "runs": [{"methods": list(METHODS)}],
    "methods": {"microclip": {"epochs": 2, "batch_size": 8, "n_crops": 4}},
    "tables": [{"name": "table1", "is_brief": True}],
    "device": "cpu",
}


def write(folder: Path, **changes: Any) -> Path:
    """Set up a folder with the tiny study, with some keys changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "config", folder / "config")
    keep_three_methods(folder / "config")
    (folder / "config" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(DATASET))
    write_study(folder, **changes)
    return folder


def write_study(folder: Path, **changes: Any) -> None:
    """Write the study, with some keys changed."""
    text = yaml.safe_dump({**STUDY, **changes})
    (folder / "config" / "config.yaml").write_text(text)


def environment() -> dict[str, str]:
    """This process's environment without variables that point elsewhere."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == warm.VARIABLE or not key.startswith(("MICROCLIP_", "MLFLOW_", "SNAKEMAKE_"))
    }
    return {**kept, **variables()}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", *arguments]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake as a user types it, standard output and error together."""
    return imported_snakemake.run(arguments, folder, environment(), timeout=900)


def microclip(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microclip", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def planned(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The number of jobs by rule that a dry run would start."""
    assert done.returncode == 0, done.stdout
    if "Nothing to be done" in done.stdout:
        return {}
    lines = done.stdout.split("Job stats:")[1].split("\n\n")[0].splitlines()[3:]
    counts = {line.split()[0]: int(line.split()[1]) for line in lines if line.strip()}
    del counts["total"]
    return counts


def dry(folder: Path, *arguments: str) -> dict[str, int]:
    return planned(snakemake(folder, "--dry-run", *MACHINE, *arguments))
