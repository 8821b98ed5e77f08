"""The command line: fast help, one line per error, an exit code for each kind of error."""

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from microclip import paths, processes, runtime, warm
from microclip.cli import failures, main
from microclip.cli.verbs import VERBS
from microclip.settings import SettingsError
from tests.fixtures.project import CLASSES, SENTENCES, draw, prepare, settings_of
from tests.fixtures.warm import variables

ROOT = Path(__file__).resolve().parents[2]
VERBS_OF_DESIGN = {
    "fetch-dataset", "store-images", "describe", "embed-descriptions",
    "encode-images", "run", "collect-scores", "tabulate", "adapt", "predict", "doctor", "status",
    "sync", "ui", "export-schema", "show", "unlock", "verify", "fetch-weights",
    "init", "retry", "explain",
}  # fmt: skip


def verbs() -> set[str]:
    return set(VERBS)


def test_every_verb_of_the_design_exists() -> None:
    assert verbs() >= VERBS_OF_DESIGN


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from microclip.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'mlflow', 'open_clip', 'pandas', 'numpy', 'PIL', 'requests'}"
        " & set(sys.modules);"
        "sys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("verb", sorted(VERBS_OF_DESIGN))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


def test_every_command_named_in_a_message_exists() -> None:
    named: set[str] = set()
    for path in (*(ROOT / "microclip").rglob("*.py"), ROOT / "README.md"):
        named |= set(re.findall(r"`microclip ([a-z]+(?:-[a-z]+)*)", path.read_text()))
    assert named <= verbs()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x"), 2),
        (ValueError("x"), 2),
        (runtime.MissingDataError("x"), 3),
        (runtime.ResourceError("x"), 4),
        (runtime.ServiceError("x"), 5),
        (runtime.VerificationError("x"), 6),
        (RuntimeError("x"), 1),
        (KeyboardInterrupt(), 130),
        (processes.Terminated(), 143),
    ],
)
def test_each_kind_of_error_is_one_line_with_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("microclip.settings.load_dataset", fail)
    assert main.main(["fetch-dataset", "x"]) == code
    said = capsys.readouterr().err
    assert said.startswith("microclip: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--config", "gone.yaml"],
        ["adapt", "photos", "--classes", "gone.txt", "--out", "out"],
        ["describe", "gone.json", "--check"],
        ["predict", "adapted", "gone.png"],
        ["passport", "shapes"],
    ],
)
@pytest.mark.usefixtures("own_project")
def test_a_missing_file_has_one_exit_code_whatever_it_is(arguments: list[str], capsys: Any) -> None:
    Path("photos").mkdir()
    assert main.main(arguments) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_readme_lists_the_exit_codes() -> None:
    listed = (ROOT / "README.md").read_text()
    for code in {0, 1, *(code for _, code in failures.EXIT_CODES)}:
        assert f"| {code} | " in listed
    assert "`microclip doctor`" in listed


def test_both_lists_of_exit_codes_say_the_same() -> None:
    def meanings(name: str) -> dict[str, str]:
        rows = (line.split(" | ") for line in (ROOT / name).read_text().splitlines())
        return {row[0]: row[1].strip(" |") for row in rows if re.match(r"\| \d+\b", row[0])}

    listed, explained = meanings("README.md"), meanings("docs/reliability.md")
    assert len(listed) >= 8
    for code, meaning in listed.items():
        assert meaning.startswith(explained[code])


def test_debug_raises_the_original_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SettingsError("x")

    monkeypatch.setattr("microclip.settings.load_dataset", fail)
    with pytest.raises(SettingsError):
        main.main(["--debug", "fetch-dataset", "x"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fetch-dataset", "dtd"], 2, "unknown dataset 'dtd'"),
        (["store-images", "shapes"], 3, "run `microclip fetch-dataset shapes`"),
        (["describe", "shapes", "--descriptions", "gpt"], 2, "unknown llm 'gpt'"),
        (["embed-descriptions", "shapes", "--backbone", "RN50"], 2, "unknown backbone 'RN50'"),
        (["run", "--settings", "{", "--out", "x"], 2, "--settings is not JSON"),
        (["run", "--settings", "none.yaml", "--out", "x"], 3, "none.yaml does not exist"),
        (["run", "--settings", "{}", "--out", "x"], 2, "lack 'spec'"),
        (["collect-scores", "--study", "s", "--out", "x"], 3, "plan.json does not exist"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["export", "adapted", "--out", "x"], 2, "'--format'. Choose from: onnx, mlflow"),
        (["run"], 2, "Missing option '--settings'"),
        (["adapt", "photos", "--classes", "none.txt", "--out", "x"], 3, "none.txt is not a file"),
        (["adapt", "photos", "--labels", "none.csv", "--out", "x"], 3, "none.csv does not exist"),
        (["ui", "--port", "x"], 2, "'--port': must be a whole number"),
        (["adapt", ".", "--out", "x", "--seed", "-1"], 2, "'--seed': must be at least 0"),
        (
            ["predict", "nothing", "a.png"],
            3,
            "holds no complete classifier (nothing/adapted.json: No such",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(
    project: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def environment(project: Path) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project}/tracking.db"}


def as_a_job(warm_process: str = "off") -> dict[str, str]:
    """As in a workflow, whose mirror shows the run: to import MLflow takes longer than the test."""
    own = {processes.MIRROR: "workflow", warm.VARIABLE: warm_process}
    return {**os.environ, **variables(), **own}


@pytest.fixture
def mirrored(
    project: Path, empty_database: Path, warm_process: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Work in a folder with MLflow's tables, where a command's mirror is soon ready."""
    (project / "results").mkdir()
    shutil.copy(empty_database, project / paths.TRACKING_DATABASE)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in {**variables(), warm.VARIABLE: warm_process}.items():
        monkeypatch.setenv(name, value)
    return project


def test_a_run_can_be_started_by_hand(mirrored: Path) -> None:
    settings = settings_of("cupl")
    prepare(settings)
    (mirrored / "run.json").write_text(json.dumps(settings.as_dict()))
    text = (mirrored / "run.json").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "microclip", "run", "--settings", text, "--out", "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "shapes/tiny/shipped/cupl/default/seed-0: " in done.stderr
    assert json.loads(Path("out/scores.json").read_text())["digest"] == settings.digest()
    assert Path("out/settings.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "is_warm"),
    [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True), (signal.SIGHUP, 129, True)],
)
def test_a_run_that_receives_a_signal_says_so_and_resumes_later(
    project: Path, warm_process: str, sent: signal.Signals, code: int, *, is_warm: bool
) -> None:
    """By itself, or by a child of a workflow's warm process."""
    environment = as_a_job(warm_process) if is_warm else as_a_job()
    settings = settings_of("microclip", epochs=400)
    prepare(settings)
    (project / "run.yaml").write_text(json.dumps(settings.as_dict()))
    command = [sys.executable, "-m", "microclip", "run", "--settings", "run.yaml", "--out", "out"]
    history = project / "out" / "history.csv"
    job = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        if history.is_file() and len(history.read_text().splitlines()) > 4:
            break
        assert job.poll() is None
        time.sleep(0.1)
    os.killpg(job.pid, sent)
    _, said = job.communicate(timeout=60)
    assert job.returncode == code
    assert "interrupted; the same command continues" in said
    assert "Traceback" not in said
    assert not (project / "out" / "scores.json").exists()
    last = json.loads((project / "out" / "journal.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "killed"
    again = subprocess.Popen(  # by a child in each case: the files are the same, and it is faster
        command,
        env=as_a_job(warm_process),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert again.stderr is not None
    assert any("resuming after epoch" in line for line in again.stderr)
    os.killpg(again.pid, signal.SIGKILL)
    again.communicate()


@pytest.mark.slow
def test_two_processes_cannot_write_one_run(project: Path, warm_process: str) -> None:
    settings = settings_of("microclip", epochs=400)
    prepare(settings)
    (project / "run.yaml").write_text(json.dumps(settings.as_dict()))
    command = [sys.executable, "-m", "microclip", "run", "--settings", "run.yaml", "--out", "out"]
    first = subprocess.Popen(command, env=as_a_job(warm_process), stderr=subprocess.PIPE)
    for _ in range(600):
        if (project / "out" / "history.csv").is_file():
            break
        time.sleep(0.1)
    second = subprocess.run(
        command, env=as_a_job(warm_process), capture_output=True, text=True, check=False
    )
    assert second.returncode in (2, 4)
    assert "another process is writing out" in second.stderr
    first.kill()
    first.communicate()


def test_adapt_then_predict_on_your_own_images(
    mirrored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirrored / "photos").mkdir()
    for label in range(3):
        for number in range(3):
            draw(label, number).save(mirrored / "photos" / f"{label}-{number}.png")
    names = [name.replace("_", " ") for name in CLASSES]
    (mirrored / "names.txt").write_text("\n".join(names) + "\n")
    (mirrored / "texts.json").write_text(json.dumps({"descriptions": SENTENCES}))
    arguments = ["adapt", "photos", "--classes", "names.txt", "--out", "mine"]
    arguments += ["--descriptions", "texts.json", "--backbone", "tiny"]
    arguments += ["--set", "epochs=1", "--set", "batch_size=4", "--set", "device=cpu"]
    assert main.main(arguments) == 0, capsys.readouterr().err
    assert "wrote mine" in capsys.readouterr().err
    assert main.main(["predict", "mine", "photos"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 9
    assert {row["class"] for row in rows} <= set(names)
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)


def test_a_misspelt_setting_of_adapt_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "names.txt").write_text("a\nb\n")
    arguments = ["adapt", ".", "--classes", "names.txt", "--out", "x", "--set"]
    assert main.main([*arguments, "gama=0.3"]) == 2
    assert "did you mean 'gamma'" in capsys.readouterr().err
    assert main.main([*arguments, "gamma"]) == 2
    assert "write it as key=value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["adapt", "photos", "--out", "out"],
        ["predict", "adapted", "photos"],
        ["run", "--settings", "{}", "--out", "out"],
        ["encode-images", "icons-food"],
        ["check-zero-shot", "icons-food"],
    ],
)
@pytest.mark.parametrize("is_variable", [False, True])
def test_every_verb_refuses_an_unknown_device_first(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    is_variable: bool,
) -> None:
    if is_variable:
        monkeypatch.setenv("MICROCLIP_DEVICE", "cuda:1")
    assert main.main([*command, *([] if is_variable else ["--device", "cuda:1"])]) == 2
    assert capsys.readouterr().err == (
        "microclip: device in --device, or MICROCLIP_DEVICE: choose a GPU by its number in "
        "CUDA_VISIBLE_DEVICES=1, and write 'cuda' (got 'cuda:1')\n"
    )
    assert list(project.iterdir()) == []


def test_unlock_is_silent_if_there_is_nothing_to_clean_up(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["unlock"]) == 0
    assert capsys.readouterr().err == ""


def test_unlock_releases_a_lock_whose_process_is_gone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = project / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert main.main(["unlock"]) == 0
    assert "released the lock" in capsys.readouterr().err
    assert not lock.exists()


def test_unlock_does_not_touch_a_running_workflow(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = project / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    program = project / "snakemake"
    program.write_text("import time; time.sleep(60)")
    living = subprocess.Popen([sys.executable, str(program)])
    try:
        time.sleep(0.5)
        assert main.main(["unlock"]) != 0
        assert f"process {living.pid}" in capsys.readouterr().err
        assert lock.exists()
    finally:
        living.kill()
        living.wait()


def test_unlock_ends_orphaned_jobs_but_not_commands_of_the_user(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "microclip.py").write_text("import time; time.sleep(60)")  # stands in for both
    jobs = {
        verb: subprocess.Popen([sys.executable, "-m", "microclip", verb], cwd=project)
        for verb in ("run", "adapt")
    }
    try:
        time.sleep(0.5)
        assert main.main(["unlock"]) == 0
        jobs["run"].wait(timeout=40)
        assert jobs["adapt"].poll() is None
        assert f"ended job {jobs['run'].pid}" in capsys.readouterr().err
    finally:
        for job in jobs.values():
            job.kill()
            job.wait()


def test_a_full_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
    assert main._explain(error) == 4
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "memory is full outside a training step" in said
    assert "bug" not in said


def test_a_gpu_that_fails_and_a_full_disk_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    gone = torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with ...")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error, said in ((gone, "the GPU failed (CUDA error: unspecified"), (full, "the disk of ")):
        assert main._explain(error) == 4
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"microclip: {said}")


def test_an_error_of_the_system_is_a_sentence_and_no_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, folder = tmp_path / "none.txt", tmp_path
    for path, code, said in (
        (missing, 3, f"{missing} does not exist; make it, or name another"),
        (folder, 2, f"{folder} cannot be used (Is a directory); mend its permissions, or name"),
    ):
        with pytest.raises(OSError, match="Errno") as caught:
            path.read_text()
        assert main._explain(caught.value) == code
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"microclip: {said}")
