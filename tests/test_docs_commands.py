"""Each command of the documentation runs: here if it costs seconds, else in the test named here.

`pytest -s tests/test_docs_commands.py` prints how many there are of each kind. That each can be
typed as it stands is tested in test_docs.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from microclip.cli import main
from tests.test_docs import PAGES, ROOT, commands

# What its output or its error says, by the start of a command that runs here, in a folder made by
# `microclip init` where nothing has run yet.
SAID = {
    "microclip data list": "0 of 13 public datasets are here",
    "microclip data get ucf101 --route local": "place it as said",
    "microclip data verify": "no public dataset is here",
    "microclip describe names.txt --llm gpt-4o .*--dry-run": "requests",
    "microclip doctor": "python 3",
    "microclip explain": "cupl",
    "microclip init": "my-study",
    "microclip passport": "store-images pets",
    "microclip plan --config config/six.yaml --card": "A100",
    "microclip plan-overview": "`paper`",
    "microclip retry --failed": "no run of study study has failed",
    "microclip show": "holds no table",
    "microclip status": "0 done",
    "microclip verify": "does not exist",
}
DRY = "snakemake -n "  # a dry run, also here

# The test that runs a command's verb with what it needs: weights, images, servers, a finished run.
ELSEWHERE = {
    "curl -s http://127.0.0.1:5001/invocations|(.* )?mlflow models serve": (
        "tests/export/test_mlflow_model.py"
    ),
    "kubectl|docker": "tests/test_image.py",  # their files; no real cluster was there
    "make run|snakemake --cores|snakemake --configfile": "tests/workflow/test_study.py",
    "make ui": "tests/cli/test_main.py",
    "microclip adapt|microclip predict": "tests/own_images/test_report.py",
    "microclip bundle": "tests/test_bundle.py",
    "microclip compare": "tests/measure/test_comparison.py",
    "microclip data get": "tests/cli/test_data.py",
    "microclip describe": "tests/cli/test_main.py",
    "microclip export .* mlflow": "tests/export/test_mlflow_model.py",
    "microclip export|python ./onnx/onnx_predict.py": "tests/export/test_onnx.py",
    "microclip fetch-weights": "tests/model/test_weights.py",
    "microclip plan": "tests/measure/test_forecast.py",
    "pip install .$|pip install 'microclip": "tests/test_wheel.py",
    "snakemake --workflow-profile workflow/profiles/kubernetes": (
        "tests/kubernetes/test_kubernetes.py"
    ),
    "pip install -e|snakemake --workflow-profile": "tests/slurm/test_slurm.py",
}
BY_CI = "make (setup|test|check|docs)"  # `.ci/run` types them, or what they do
# Of the shell and of make's formatter: nothing of this project's is in them.
PLAIN = r"\.|cat|cd|cp|export|git|mkdir|nvidia-smi|sed|sudo|make format"

LINES = sorted({" ".join(line.split("#")[0].split()) for p in PAGES for line in commands(p)})


def starts(pattern: str, line: str) -> bool:
    return re.match(rf"(?:{pattern})(?![\w-])", line) is not None


def kind(line: str) -> str:
    """How a command is run."""
    if line.startswith(DRY) or any(starts(pattern, line) for pattern in SAID):
        return "here"
    for pattern, test in ELSEWHERE.items():
        if starts(pattern, line):
            return test
    if starts(BY_CI, line):
        return "by CI"
    return "plain" if starts(PLAIN, line) else ""


def test_each_command_is_run_somewhere() -> None:
    kinds = {line: kind(line) for line in LINES}
    print("\n" + "\n".join(f"{n:3} {name}" for name, n in Counter(kinds.values()).most_common()))
    assert [line for line, found in kinds.items() if not found] == []
    assert all((ROOT / test).is_file() for test in ELSEWHERE.values())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder, as `microclip init` makes it."""
    folder = tmp_path_factory.mktemp("docs") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROCLIP_ROOT", str(ROOT))
        assert main.main(["init", str(folder)]) == 0
    (folder / "names.txt").write_text("heron\nplover\n")
    return folder


@pytest.mark.parametrize("line", [each for each in LINES if any(starts(p, each) for p in SAID)])
def test_a_command_of_seconds_runs(
    line: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "config/dtd.yaml" in line:
        text = (project / "config" / "pets.yaml").read_text()
        (project / "config" / "dtd.yaml").write_text(re.sub(r"\bpets\b", "dtd", text))
    monkeypatch.delenv("MICROCLIP_ROOT", raising=False)
    monkeypatch.chdir(project)
    code = main.main(shlex.split(line)[1:])
    said = "".join(capsys.readouterr())
    expected = next(text for pattern, text in SAID.items() if starts(pattern, line))
    assert re.search(expected, said), said
    assert "Traceback" not in said
    assert code in (0, 3)  # 3: what is not there yet, as the line says


@pytest.mark.parametrize("line", [each for each in LINES if each.startswith(DRY)])
def test_a_dry_run_of_the_docs_plans_jobs(line: str, project: Path) -> None:
    command = [sys.executable, "-m", "snakemake", *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "This was a dry-run" in done.stdout + done.stderr
