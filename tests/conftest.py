"""Fixtures of all tests."""

import signal

from tests.browser import browser
from tests.fixtures.project import own_project, project, project_source
from tests.fixtures.tracking import empty_database, work

__all__ = ["browser", "empty_database", "own_project", "project", "project_source", "work"]

# A shell that starts the suite in the background makes it, and all it starts, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
