"""Fixtures of all tests."""

import signal

from tests.browser import browser
from tests.fixtures.project import own_project, project, project_source

__all__ = ["browser", "own_project", "project", "project_source"]

# A shell that starts the suite in the background makes it, and all it starts, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
