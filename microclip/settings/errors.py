"""What is raised for settings that cannot be used; apart from the models, which import pydantic."""

from __future__ import annotations


class SettingsError(ValueError):
    """A setting that cannot be used; the message says what is wrong, where, and how to fix it."""


class MissingFileError(SettingsError, FileNotFoundError):
    """A file that a setting or a command names is missing; exit code 3 as for all missing files."""


class ResourceError(RuntimeError):
    """The machine lacks something: a GPU, memory, disk."""
