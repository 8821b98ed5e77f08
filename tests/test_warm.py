"""A job that a warm process forks is what a fresh process would be, and ends as one would."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from microclip import processes, runtime, warm
from microclip.data import store
from microclip.study import RunSettings
from tests.fixtures.project import prepare, settings_of
from tests.fixtures.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a warm process on Linux")
IDENTICAL = ("adapted.safetensors", "predictions.parquet")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def started() -> Iterator[tuple[processes.Companion, str]]:
    """A warm process and its folder, with this process's environment restored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(warm.VARIABLE, "")
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        companion = warm.start()
        assert companion is not None
        folder = os.environ[warm.VARIABLE]
    yield companion, folder
    companion.close(60)
    assert not is_alive(companion.pid)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[processes.Companion, str]]:
    """One for the tests that leave it alive: to import torch takes longer than they do."""
    with started() as found:
        yield found
    assert not Path(found[1]).exists()


@pytest.fixture
def server(
    shared: tuple[processes.Companion, str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> processes.Companion:
    """A warm process that jobs find, in a folder with the tiny project as root."""
    monkeypatch.setenv(processes.MIRROR, "workflow")
    monkeypatch.setenv(warm.VARIABLE, shared[1])
    return shared[0]


@pytest.fixture
def doomed(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[processes.Companion]:
    """One that the test kills."""
    monkeypatch.setenv(processes.MIRROR, "workflow")
    with started() as (companion, folder):
        monkeypatch.setenv(warm.VARIABLE, folder)
        yield companion


def environment(**variables: str) -> dict[str, str]:
    """A job's variables; pytest's own, which changes, is none of them."""
    found = {**os.environ, **warm._THREADS, **variables}
    found.pop("PYTEST_CURRENT_TEST", None)
    return found


def job(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start a verb as a workflow's job does."""
    return subprocess.Popen(
        [sys.executable, "-m", "microclip", *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(*arguments: str, **variables: str) -> tuple[int, str, str]:
    process = job(*arguments, **variables)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def write_settings(settings: RunSettings, name: str = "run.yaml") -> list[str]:
    """Write a run's settings; return the verb that makes the run in a folder of this name."""
    Path(name).write_text(json.dumps(settings.as_dict()))
    return ["run", "--settings", name, "--out", Path(name).stem]


def endless() -> list[str]:
    settings = settings_of("microclip", epochs=3000)
    prepare(settings)
    return write_settings(settings)


def n_epochs(folder: str = "run") -> int:
    history = Path(folder, "history.csv")
    return len(history.read_text().splitlines()) - 1 if history.is_file() else 0


def children(server: processes.Companion) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


def events(folder: str = "run") -> list[str]:
    lines = Path(folder, "journal.jsonl").read_text().splitlines()
    found = [json.loads(line)["event"] for line in lines]
    return [event for event in found if event != "machine"]  # what the machine did, each epoch


def test_one_that_is_just_starting_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = socket.socket.listen

    def late(self: socket.socket) -> None:
        warm._remove_dead()  # as another workflow's start does
        listen(self)

    monkeypatch.setattr(socket.socket, "listen", late)
    with started() as (_, folder):
        assert warm._lives(folder)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["tabulate", "missing", "--study", "tiny"], ["no-such-verb"], ["show"]],
)
def test_a_verb_says_and_returns_what_it_does_by_itself(
    server: processes.Companion, arguments: Sequence[str]
) -> None:
    assert done(*arguments) == done(*arguments, MICROCLIP_WARM="off")


@pytest.mark.slow
def test_weights_and_predictions_have_the_same_bytes_whatever_the_process(
    server: processes.Companion,
) -> None:
    settings = settings_of("microclip")
    prepare(settings)
    off = {warm.VARIABLE: "off"}
    for name, variables in {"plain": off, "first": {}, "second": {}}.items():
        code, _, err = done(*write_settings(settings, f"{name}.yaml"), **variables)
        assert code == 0, err
    for file in IDENTICAL:
        assert len({Path(name, file).read_bytes() for name in ("plain", "first", "second")}) == 1
    found = [json.loads(Path(n, "scores.json").read_text()) for n in ("plain", "first", "second")]
    assert len({json.dumps({**scores, "seconds": 0}) for scores in found}) == 1


PRELOADED = """
import os, sys, warnings
warnings.simplefilter("error")
from microclip import warm
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
warnings.simplefilter("default")
for verb in sorted(warm._NEEDED, key="mirror".__eq__):  # the mirror's alone imports MLflow
    assert "mlflow" not in sys.modules
    assert warm._preload([verb]), verb
warnings.simplefilter("error")  # of a fork with threads, from Python 3.12 on
import torch
assert not torch.cuda.is_initialized()
assert torch.cuda._cached_device_count is None  # asking for it would start CUDA
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_what_is_imported_starts_neither_threads_nor_cuda() -> None:
    subprocess.run([sys.executable, "-c", PRELOADED], check=True, env=environment(), timeout=300)


def test_a_job_imports_only_the_standard_library_while_it_waits(
    server: processes.Companion,
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "microclip", "--help"]
    listed = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "Usage" in listed.stdout
    names = {line.split("|")[-1].strip().split(".")[0] for line in listed.stderr.splitlines()}
    assert "selectors" in names
    assert not names & {"typer", "pydantic", "yaml", "numpy", "torch", "psutil"}


@pytest.mark.parametrize(
    "variables", [{"PYTHONHASHSEED": "1"}, {"OMP_NUM_THREADS": "2"}, {"MICROCLIP_WARM": "off"}]
)
def test_a_job_with_another_environment_runs_by_itself(
    server: processes.Companion, variables: dict[str, str]
) -> None:
    program = "from microclip import warm; print(warm.ask(['--help']))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "None\n"


def test_a_folder_that_others_may_use_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(warm.VARIABLE, str(tmp_path))
    tmp_path.chmod(0o755)
    assert warm.note("sha256", "x") is None
    tmp_path.chmod(0o700)
    assert warm.note("sha256", "x") is not None


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_a_signal_ends_the_job_and_its_child_in_order(
    server: processes.Companion, sent: signal.Signals, code: int
) -> None:
    running = job(*endless())
    until(lambda: n_epochs() > 2)
    running.send_signal(sent)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert "interrupted; the same command continues" in err
    assert events()[-1] == "killed"
    assert not children(server)


@pytest.mark.slow
def test_kill_9_of_a_job_ends_its_child_and_the_same_command_continues(
    server: processes.Companion,
) -> None:
    command = endless()
    first = job(*command)
    until(lambda: n_epochs() > 2)
    until(lambda: len(children(server)) == 1)
    [child] = children(server)
    refused = done(*command)
    assert refused[0] == 2
    assert "another process is writing" in refused[2]
    first.kill()
    until(lambda: not is_alive(child.pid))
    before = n_epochs()
    again = job(*command)
    until(lambda: n_epochs() > before)
    again.terminate()
    assert "resuming after epoch" in again.communicate(timeout=60)[1]


@pytest.mark.slow
def test_kill_9_of_a_child_leaves_the_others(server: processes.Companion) -> None:
    command = endless()
    other = settings_of("clip")
    killed = job(*command)
    until(lambda: n_epochs() > 2)
    [child] = children(server)
    child.kill()
    assert killed.wait(60) == 137
    assert done(*write_settings(other, "other.yaml"))[0] == 0


@pytest.mark.slow
def test_kill_9_of_the_warm_process_is_survived(doomed: processes.Companion) -> None:
    settings = settings_of("microclip", epochs=24)
    prepare(settings)
    first = job(*write_settings(settings, "first.yaml"))
    until(lambda: n_epochs("first") > 2)
    [child] = children(doomed)
    second = job(*write_settings(settings, "second.yaml"))
    until(lambda: n_epochs("second") > 2)
    os.kill(doomed.pid, signal.SIGKILL)
    child.kill()
    for process, name in ((first, "first"), (second, "second")):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        # A job whose child is gone, too, goes on by itself; the other child ends as it would have.
        assert ("warm process was killed; starting again" in err) == (name == "first")
        assert ("resuming after epoch" in err) == (name == "first")
        assert n_epochs(name) == 25
    assert events("second") == ["started", *["epoch"] * 25, "finished"]
    assert done("--help")[0] == 0


def test_the_warm_process_ends_with_the_workflow_and_leaves_nothing() -> None:
    program = (
        "import os, signal\n"
        "from microclip import warm\n"
        "print(warm.start().pid, os.environ[warm.VARIABLE], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
    )
    pid, folder = found.stdout.split()
    until(lambda: not is_alive(int(pid)))
    assert not Path(folder).exists()


def test_workflows_may_share_a_warm_process(
    server: processes.Companion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    folder = os.environ[warm.VARIABLE]
    assert warm.start() is None
    assert os.environ[warm.VARIABLE] == folder
    monkeypatch.setenv(warm.VARIABLE, str(tmp_path))  # of one that is gone
    own = warm.start()
    assert own is not None
    assert os.environ[warm.VARIABLE] not in (folder, str(tmp_path))
    own.close(60)


def test_a_folder_left_by_a_killed_warm_process_is_removed(doomed: processes.Companion) -> None:
    left = os.environ[warm.VARIABLE]
    assert done("--help")[0] == 0
    os.kill(doomed.pid, signal.SIGKILL)
    until(lambda: not is_alive(doomed.pid))
    with started():
        assert not Path(left).exists()


def test_a_store_is_hashed_once_a_workflow(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("clip")
    prepare(settings)
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    monkeypatch.setenv(warm.VARIABLE, str(shared))
    hashed: list[Path] = []

    def sha256(path: Path, original: Callable[[Path], str] = runtime.sha256) -> str:
        hashed.append(path)
        return original(path)

    monkeypatch.setattr(runtime, "sha256", sha256)
    folder = Path("results/data/shapes")
    for _ in range(2):
        monkeypatch.setattr(store, "_verified", set())  # as in a new process
        store.open_store(folder)
    assert len(hashed) == 2  # pixels and index
    pixels = folder / "pixels.bin"
    pixels.write_bytes(bytes(len(pixels.read_bytes())))
    monkeypatch.setattr(store, "_verified", set())
    with pytest.raises(store.SettingsError, match="is damaged"):
        store.open_store(folder)
