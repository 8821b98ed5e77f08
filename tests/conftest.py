"""Fixtures for all tests."""

import gc
import importlib
import signal

import pytest

from tests.browser import browser
from tests.fixtures.warm import start_shared

__all__ = ["browser"]

# A shell that starts the suite in the background makes it, and all its children, ignore the first
# two; `nohup` makes them ignore the third.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_FIXTURES = ("project", "tracking", "warm")
_LONG = ("workflow", "export", "own_images", "chaos")  # folders whose files start whole processes


def pytest_configure(config: pytest.Config) -> None:
    """Import fixtures, and with them torch, where tests run; start what workers share elsewhere."""
    if config.getoption("numprocesses", None):
        config.add_cleanup(start_shared())
        return
    gc.disable()  # until all is imported: to pass over libraries again takes a tenth of the time
    for name in _FIXTURES:
        config.pluginmanager.register(importlib.import_module(f"tests.fixtures.{name}"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not set(_LONG) & set(item.path.parts))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over the libraries and tests, which stay to the end."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Hand them back: at the end of the process nanobind complains of what was not collected."""
    gc.unfreeze()
