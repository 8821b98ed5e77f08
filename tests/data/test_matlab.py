"""The process that reads MATLAB files: one for all files, and never one of another process."""

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy.io import savemat

from microclip import runtime
from microclip.data.layouts.matlab import matlab_variables


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    savemat(tmp_path / "labels.mat", {"labels": [3, 1, 2]})
    return tmp_path / "labels.mat"


def readers() -> list[int]:
    """Process ids of this process's readers."""
    children = psutil.Process().children()
    return [child.pid for child in children if "loadmat" in " ".join(child.cmdline())]


def test_one_process_reads_all_files_and_outlives_a_crash(labels: Path) -> None:
    assert matlab_variables(labels, "labels") == {"labels": [3, 1, 2]}
    [first] = readers()
    bad = labels.with_name("bad.mat")
    savemat(bad, {"names": np.array([["one", "two"]], dtype=object)})
    crashing = bytearray(bad.read_bytes())
    crashing[144] = 14  # the variable claims to hold a matrix where its sizes should be
    bad.write_bytes(crashing)
    with pytest.raises(runtime.MissingDataError, match=r"bad\.mat is damaged .*exit code -11"):
        matlab_variables(bad, "names")
    assert matlab_variables(labels, "labels") == {"labels": [3, 1, 2]}
    assert readers() == [first]


def test_after_it_was_killed_the_next_file_gets_another(labels: Path) -> None:
    matlab_variables(labels, "labels")
    [first] = readers()
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)], timeout=10)
    with pytest.raises(runtime.MissingDataError, match="the process that read it was ended"):
        matlab_variables(labels, "labels")
    assert matlab_variables(labels, "labels") == {"labels": [3, 1, 2]}


def test_a_fork_has_a_reader_of_its_own(labels: Path) -> None:
    matlab_variables(labels, "labels")
    if not (child := os.fork()):
        found = matlab_variables(labels, "labels") == {"labels": [3, 1, 2]}
        os._exit(0 if found and len(readers()) == 1 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert matlab_variables(labels, "labels") == {"labels": [3, 1, 2]}
