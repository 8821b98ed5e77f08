"""Tests that need a GPU are skipped without one.

`MICROCLIP_GPU_TESTS=cpu` runs on the CPU those that mean something there, to try the tests
themselves; those marked `cuda` are skipped then.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from microclip import runtime

DEVICE = os.environ.get("MICROCLIP_GPU_TESTS", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip those that lack a GPU."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if DEVICE == "cuda" and not torch.cuda.is_available():
            reason = "needs a GPU, and torch finds none (MICROCLIP_GPU_TESTS=cpu tries it without)"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif DEVICE != "cuda" and item.get_closest_marker("cuda") is not None:
            reason = f"needs a GPU, and MICROCLIP_GPU_TESTS is {DEVICE}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _compile_of_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU machine may have a torch before 2.12, whose compile takes no `recompile_limit`."""
    compile_: Any = torch.compile
    if "recompile_limit" not in inspect.signature(compile_).parameters:

        def with_limit(*given: Any, recompile_limit: int, **options: Any) -> Any:
            del recompile_limit
            return compile_(*given, **options)

        # Also for functions that an earlier test has compiled, which are kept.
        monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 32)
        monkeypatch.setattr(torch, "compile", with_limit)


@pytest.fixture
def device() -> str:
    """Where the tests compute."""
    runtime.full_float32()
    return DEVICE
