"""Fixtures of all tests."""

from tests.fixtures.project import own_project, project, project_source

__all__ = ["own_project", "project", "project_source"]
