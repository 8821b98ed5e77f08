"""Runs that `benchmarks/many_runs.py` makes in a few processes count as done for Snakemake."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.workflow.folder import ROOT, RUN, STUDY, dry, environment, write

CHANGES = {
    "tables": [],
    "figures": [{"name": "figure8", "values": [1.0e-2, 1.0e-4]}],
    "runs": [  # what only tests comes before the run whose weights it needs
        {"methods": ["clip"]},
        {"methods": ["microclip"], "variants": ["global-only-swapped", "global-only"]},
    ],
}
INPUTS = ("results/data", "results/descriptions", "results/classifiers", "results/features")


def many_runs(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script where neither Snakemake nor MLflow can be imported."""
    without = folder / "without"
    for name in ("snakemake", "mlflow"):
        (without / name).mkdir(parents=True, exist_ok=True)
        (without / name / "__init__.py").write_text(f"raise ImportError('no {name} here')\n")
    script = str(ROOT / "benchmarks" / "many_runs.py")
    return subprocess.run(
        [sys.executable, script, "config/config.yaml", "--device", "cpu", *arguments],
        cwd=folder,
        env={**environment(), "PYTHONPATH": f"{without}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything is made that runs read."""
    folder = write(tmp_path_factory.mktemp("there"), **CHANGES)
    stopped = many_runs(folder, "--until", "0", "--choose", "figure8")
    assert stopped.returncode == 0, stopped.stdout
    assert "0 done, 2 left, 0 failed" in stopped.stdout
    return folder


def test_a_run_that_fails_is_named_and_so_is_the_exit_code(there: Path) -> None:
    vectors = next(there.glob("results/classifiers/**/tiny.safetensors"))
    whole = vectors.read_bytes()
    vectors.write_bytes(b"damaged")
    failed = many_runs(there, "--processes", "1")
    vectors.write_bytes(whole)
    assert failed.returncode == 1
    assert "FAILED tiny/icon-clip/shipped/clip/default/seed-0: " in failed.stdout
    assert "0 done, 1 left, 4 failed" in failed.stdout  # one waits for a run that failed


def test_a_figure_without_a_sweep_chooses_nothing(there: Path) -> None:
    refused = many_runs(there, "--choose", "figure5")
    assert refused.returncode == 1
    assert "--choose figure5: the study's sweeps are figure8; name one of them" in refused.stdout


def test_runs_made_elsewhere_are_done_for_snakemake_once_they_are_unpacked(
    there: Path, tmp_path: Path
) -> None:
    done = many_runs(there, "--processes", "2", "--choose", "figure8", "--pack", "runs.tar.gz")
    assert done.returncode == 0, done.stdout
    assert "5 done, 0 left, 0 failed" in done.stdout
    found = re.findall(r"^learning_rate (\S+) on tiny: (\S+) %$", done.stdout, re.MULTILINE)
    means = {float(value): float(mean) for value, mean in found}
    best = max(means, key=means.__getitem__)
    assert f"chosen: methods: {{microclip: {{learning_rate: {best:g}}}}}" in done.stdout
    record = json.loads((there / RUN / "microclip/global-only/seed-0/run.json").read_text())
    assert record["settings"]["method"]["learning_rate"] == best

    with tarfile.open(there / "runs.tar.gz") as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"predictions.parquet", "history.csv", "run.json", "scores.json"} <= names
    assert not {"adapted.safetensors", "checkpoint", ".lock"} & names
    own = {**STUDY["methods"]["microclip"], "learning_rate": best}
    here = write(tmp_path, **CHANGES, methods={"microclip": own})
    for folder in INPUTS:
        shutil.copytree(there / folder, here / folder)  # newer than the runs
    subprocess.run(["tar", "-xmf", there / "runs.tar.gz"], cwd=here, check=True)
    jobs = dry(here)
    assert jobs["collect_scores"] == 1
    assert not {"adapt", "fetch_dataset", "encode_images"} & jobs.keys()
