"""Fixtures for all tests."""

import gc
import signal

import pytest

from tests.browser import browser
from tests.fixtures.project import own_project, project, project_source
from tests.fixtures.tracking import empty_database, work
from tests.fixtures.warm import shared_warm, warm_process

__all__ = ["browser", "empty_database", "own_project", "project", "project_source", "shared_warm"]
__all__ += ["warm_process", "work"]

# A shell that starts the suite in the background makes it, and all its children, ignore the first
# two; `nohup` makes them ignore the third.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_LONG = ("workflow", "export", "own_images", "chaos")  # folders whose files start whole processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not set(_LONG) & set(item.path.parts))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over the libraries and tests, which stay to the end."""
    gc.collect()
    gc.freeze()
    gc.enable()  # `tests/fixtures` switched it off


def pytest_sessionfinish() -> None:
    """Hand them back: at the end of the process nanobind complains of what was not collected."""
    gc.unfreeze()
