"""A command that computes nothing imports neither torch nor torchvision nor MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import folder

HEAVY = ("torch", "torchvision", "mlflow", "timm", "open_clip", "scipy", "matplotlib")
VERBS = (  # in this order: the later ones read the plan
    "plan --no-calibration",
    "plan-overview",
    "status",
    "verify",
    "show",
    "unlock",
    "export-schema",
    "data list",
    "bundle",
    "describe --help",
    "adapt --help",
    "compare --help",
)
# One process for all verbs: what the first of them imports is there for the next, too.
PROGRAM = """
import contextlib, io, sys
from microclip.cli.main import main
heavy = set(sys.argv[1].split(","))
for verb in sys.argv[2:]:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = main(verb.split())
    found = sorted(heavy & set(sys.modules))
    if found:
        sys.exit(f"{verb}: imports {found}")
    if code not in (0, 3):  # 3: nothing was run yet, so there is no table
        sys.exit(f"{verb}: exit code {code}")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return folder.write(tmp_path / "project")


def run(place: Path, *words: str) -> str:
    """Run Python in a folder; return its standard error."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=folder.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_no_verb_that_computes_nothing_imports_what_computes(place: Path) -> None:
    run(place, "-c", PROGRAM, ",".join(HEAVY), *VERBS)


def test_the_help_builds_no_model_of_a_configuration_file(tmp_path: Path) -> None:
    program = (
        "import sys, microclip.cli.main;"
        "models = {'datasets', 'llms', 'reports', 'study', 'methods.microclip'};"
        "found = {name for name in models if f'microclip.settings.{name}' in sys.modules};"
        "sys.exit(str(found) if found else 0)"
    )
    run(tmp_path, "-c", program)


def test_a_dry_run_imports_nothing_that_computes(place: Path) -> None:
    listed = run(place, "-X", "importtime", *folder.command("-n", *folder.MACHINE)[1:])
    imported = {
        line.split("|")[2].strip().split(".")[0]
        for line in listed.splitlines()
        if line.startswith("import time:")
    }
    assert "microclip" in imported
    assert not imported & set(HEAVY)


def test_the_live_view_of_a_study_imports_nothing_that_computes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from snakemake_logger_plugin_microclip.progress import Journal;"
        "assert 'microclip' not in sys.modules;"  # Snakemake imports the plugin in all workflows
        "Journal(Path('run')).read();"
        f"found = set({HEAVY}) & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    run(tmp_path, "-c", program)


def test_a_run_on_frozen_embeddings_loads_torch_and_no_network(tmp_path: Path) -> None:
    """open_clip and timm import torchvision and torch._dynamo: as long as torch itself again."""
    program = (
        "import sys, microclip.runner; from microclip.methods.base import load_method;"
        "load_method('clip');"
        "heavy = {'torchvision', 'timm', 'open_clip', 'torch._dynamo', 'pandas', 'mlflow'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    run(tmp_path, "-c", program)
