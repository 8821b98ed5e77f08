"""How long each parser is tried: briefly and always alike in the suite, at length in `make fuzz`.

MICROCLIP_FUZZ names the number of examples of a long run, which draws other ones each time and
keeps what failed outside the repository, in the folder of temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz import judge

_HOME = Path(tempfile.gettempdir()) / f"microclip-hypothesis-{os.getuid()}"
set_hypothesis_home_dir(_HOME)

_COMMON = {
    "deadline": None,  # a busy machine is no fault; what hangs is stopped by `judge`
    "suppress_health_check": list(hypothesis.HealthCheck),
    "print_blob": True,
}
hypothesis.settings.register_profile(
    "suite", max_examples=25, derandomize=True, database=None, **_COMMON
)
hypothesis.settings.register_profile(
    "long",
    max_examples=int(os.environ.get("MICROCLIP_FUZZ") or 5000),
    database=DirectoryBasedExampleDatabase(_HOME / "examples"),
    **_COMMON,
)
hypothesis.settings.load_profile("long" if os.environ.get("MICROCLIP_FUZZ") else "suite")


@pytest.fixture(autouse=True, scope="package")
def unsynced() -> Iterator[None]:
    """Leave files to the system: what survives a power cut is tested elsewhere, and costs time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if judge.COUNTS and os.environ.get("MICROCLIP_FUZZ"):
        terminalreporter.section("examples by parser")
        for line in judge.table():
            terminalreporter.write_line(line)
