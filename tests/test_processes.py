"""A signal takes effect even where Python drops what its handler raises."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from microclip import processes, warm


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in warm.ENDING}
    processes.listen(warm.ENDING)
    yield
    processes.listen(warm.ENDING)
    for number, handler in before.items():
        signal.signal(number, handler)


class Dropping:
    """Its finaliser receives the signal, and Python drops what is raised there."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, processes.Terminated), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_dropped_in_a_finaliser_is_raised_at_the_next_step(
    number: signal.Signals, error: type[BaseException]
) -> None:
    processes.raise_pending()
    Dropping(number)
    with pytest.raises(error):
        processes.raise_pending()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # as by `&` and by nohup
def test_a_process_that_ignores_a_signal_still_ignores_it(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    processes.listen(warm.ENDING)
    os.kill(os.getpid(), number)
    processes.raise_pending()
    assert signal.getsignal(number) is signal.SIG_IGN


WAITING = """
import sys, time
from microclip.cli import main, app

@app.command()
def wait() -> None:
    print("waiting", flush=True)
    for _ in range(600):
        time.sleep(0.1)

sys.exit(main.main(["wait"]))
"""


@pytest.mark.parametrize("number", [n for n in warm.ENDING if n != signal.SIGINT])
def test_every_ending_signal_ends_a_verb_in_order(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as verb:
        assert verb.stdout is not None
        assert verb.stdout.readline() == "waiting\n"
        verb.send_signal(number)
        _, said = verb.communicate(timeout=60)
    assert verb.returncode == 128 + number
    assert said == "microclip: interrupted; the same command continues\n"


ENDING = """
import atexit, os, runpy, sys
from microclip.cli import main

class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken apart")

def verb(arguments):
    print("verb")
    atexit.register(print, "exit function")
    return 7

kept = Kept()
main.main = verb
sys.argv[1:] = ["verb"]
runpy.run_module("microclip", run_name="__main__")
"""


def end(stdout: int | IO[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Run a verb that returns 7."""
    command = [sys.executable, "-c", ENDING]
    environment = {**os.environ, "MICROCLIP_WARM": "off"}
    environment.pop("PYTHONUNBUFFERED", None)  # what is printed is written at the end
    return subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False
    )


def test_a_process_ends_in_order_but_is_not_taken_apart() -> None:
    ended = end(subprocess.PIPE)
    assert ended.stdout == b"verb\nexit function\n"
    assert ended.stderr == b""
    assert ended.returncode == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = end(full)
    assert ended.returncode == 120  # Python's own
    assert b"No space left on device" in ended.stderr


def test_unlock_ends_a_job_without_a_workflow_but_not_what_a_typed_command_started(
    tmp_path: Path,
) -> None:
    (tmp_path / "microclip").mkdir()
    (tmp_path / "microclip" / "__main__.py").write_text("import time; time.sleep(600)")
    started = f"[{sys.executable!r}, '-m', 'microclip', 'mirror']"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "microclip"  # as a person types it
    script.write_text(
        f"import subprocess\nchild = subprocess.Popen({started})\n"
        "print(child.pid, flush=True)\nchild.wait()"
    )
    job = [sys.executable, "-m", "microclip", "run"]
    with (
        subprocess.Popen(
            [sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as typed,
        subprocess.Popen(job, cwd=tmp_path) as left,
    ):
        assert typed.stdout is not None
        mirror = psutil.Process(int(typed.stdout.readline()))
        try:
            assert processes.release(tmp_path) == [
                f"ended job {left.pid}, left by an earlier workflow"
            ]
            left.wait(60)
            assert mirror.is_running()
        finally:
            mirror.kill()
            left.kill()


CLAIM = """
import fcntl, os, sys
from pathlib import Path
from microclip import processes
def refuse(*_):
    raise OSError(37, "No locks available")
fcntl.flock = refuse
processes._WATCH_S = 0.05
with processes.exclusive(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
print("done", flush=True)
"""


def claim(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_without_locks_the_process_that_started_last_has_the_folder(tmp_path: Path) -> None:
    """As where a scheduler lost sight of a job that goes on, and starts it again elsewhere."""
    first = claim(tmp_path / "run")
    second = claim(tmp_path / "run")
    assert first.wait(60) == 128 + signal.SIGTERM  # `communicate` would close its input at once
    said = first.communicate()[1]
    assert f"process {second.pid} on" in said
    assert "this one ends" in said
    assert second.communicate("", timeout=60)[0] == "done\n"
    assert second.returncode == 0
