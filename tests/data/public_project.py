"""A project with small copies of public datasets and class lists that match them."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from microclip import settings
from microclip.data import datasets, passport, store
from microclip.data.public import splits

ROOT = Path(__file__).resolve().parents[2]
COPIES = tuple(  # of which there is a fixture named as the file of config/datasets
    path.stem
    for path in sorted((ROOT / "tests/data/layouts").glob("[a-z]*.py"))
    if (ROOT / "config/datasets" / path.name).with_suffix(".yaml").is_file()
)


def copy_of(name: str) -> ModuleType:
    return importlib.import_module(f"tests.data.layouts.{name}")


def lay_out(root: Path, *names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put cards, class lists and files of small copies into a project."""
    monkeypatch.setenv("MICROCLIP_DATA", str(root / "data"))
    monkeypatch.setenv(splits.COUNTS, "warn")  # the cards count the whole datasets
    for name in names:
        copy = copy_of(name)
        target = root / "config/datasets" / f"{name}.yaml"
        shutil.copy(ROOT / "config/datasets" / target.name, target)
        listed = root / "resources/classes" / f"{name}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(copy.CLASSES) + "\n", encoding="utf-8")
        copy.build(root / "data" / name)


def bring(name: str) -> Path:
    """Fetch and store a dataset as the commands do, and return its passport."""
    declared = settings.load_dataset(name)
    datasets.fetch(declared)
    store.build(name)
    return passport.issue(declared)
