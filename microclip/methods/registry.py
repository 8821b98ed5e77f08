"""Methods by name: the file name is the key; nothing registers itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from microclip.settings import SettingsError

_NOT_METHODS = {"__init__", "base", "registry"}


def known_methods() -> list[str]:
    """Return the names of all methods: one file of this folder each."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_METHODS)


def load_method(name: str) -> Any:
    """Return the `METHOD` of `microclip.methods.<name>`. Raises SettingsError if unknown."""
    if name not in known_methods():
        raise SettingsError(f"unknown method {name!r}; known: {', '.join(known_methods())}")
    return importlib.import_module(f"microclip.methods.{name}").METHOD


def settings_of(name: str) -> type[BaseModel]:
    """Return the settings model of a method."""
    model: type[BaseModel] = load_method(name).Settings
    return model


def recipe_of(name: str) -> int:
    """Return the method's RECIPE: raised whenever the same settings mean other numbers."""
    return int(load_method(name).RECIPE)


def reads_of(name: str) -> str:
    """Return what a method looks at: "images", or cached "embeddings"."""
    return str(load_method(name).reads)


def evaluation_fields(name: str) -> frozenset[str]:
    """Return the settings that only change how a trained method is tested."""
    return frozenset(getattr(load_method(name), "EVALUATION_FIELDS", ()))
