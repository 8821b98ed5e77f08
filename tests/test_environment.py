"""One set of versions, whatever people install with."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+")


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_conda_users_get_the_versions_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert [pin for pin in listed if pin != "-e ."] == project()["dependencies"]


def test_every_dependency_is_pinned_exactly() -> None:
    extras = project()["optional-dependencies"].values()
    for pin in [*project()["dependencies"], *(pin for extra in extras for pin in extra)]:
        assert PIN.fullmatch(pin.partition(";")[0]), pin


def test_the_conda_python_is_one_of_the_declared() -> None:
    assert project()["requires-python"] == ">=3.11,<3.14"
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "python=3.11" in environment["dependencies"]


@pytest.mark.parametrize("pin", project()["dependencies"])
def test_the_installed_version_is_the_pinned_one(pin: str) -> None:
    name, _, version = pin.partition("==")
    assert importlib.metadata.version(name).partition("+")[0] == version


def test_torch_solves_a_batch_of_eigenproblems_at_once() -> None:
    """Older ones are reported to loop over a batch on a GPU; 2.15 calls cusolverDnXsyevBatched."""
    pin = next(pin for pin in project()["dependencies"] if pin.startswith("torch=="))
    major, minor = (int(part) for part in pin.removeprefix("torch==").split(".")[:2])
    assert (major, minor) >= (2, 12)


def test_no_registry_is_named_anywhere() -> None:
    named = re.compile(r"index-url|extra-index|registry=|\[\[tool\.uv\.index")
    for name in ("pyproject.toml", "environment.yml", "Makefile", ".ci/run"):
        assert not named.search((ROOT / name).read_text()), name
