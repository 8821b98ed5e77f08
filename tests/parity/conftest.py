"""Compares with the reference and prints the largest deviation of every array."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
import torch

from . import vectors
from .comparison import Comparison
from .vectors import FOLDER, METHODS

# Reference arrays that are inputs, or describe the reference run instead of a result.
INPUTS = [
    "features_*.images_u8",
    "features_*.text_tokens",
    "ncut_planted.*_tokens",
    "ncut_degenerate.*_tokens",
    "params_*.*",
    "pool_*.fixed_index",
    "pool_*.mask",
    "multiview.global_feature",
    "multiview.crop_features",
    "classifier_random.*_name_embeddings",
    "classifier_random.*_raw",
    "classifier_random.*_desc_class",
    "classifier_text_*.*_tokens",
    "classifier_text_*.desc_class",
    "step_*.batch?_u8",
    "step_*.batch?_true_labels",
    "step_*.fixed_classifier",
    "step_*.mean_classifier",
    "step_*.batch?_*_mask",
    "traj_a.inputs_u8",
    "traj_a.official_*_mask",
    "traj_a.*_min_*",
    "ncut_degenerate.*_official_*_sample",
    "wca.*_raw",
    "wca.*_class",
    "wca.*_labels",
    "wca.*_scale",
    "wca.*_index",
    "wca.*_text_weights",  # seen in the class weights
]
# Belong to another method: TokenCut's generalised problem, box and component.
ELSEWHERE = ["*tokencut_*", "*ref_cos_*_gen"]
READ = "parity read"


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Comparison:
    return Comparison(request.node)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks run fastest so, and the order of additions stays the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _reads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pass on which arrays of a method were looked at, from a worker process too."""
    vectors.read.clear()
    yield
    request.node.user_properties.append((READ, sorted(vectors.read)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print array, rule, tolerance and largest deviation, and the arrays nobody compared."""
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for name, rule, tolerance, deviation in _recorded(terminalreporter, "parity"):
        before = worst.get((name, rule), (0.0, 0.0))[1]
        worst[name, rule] = (tolerance, max(before, deviation))
    read = {name for names in _recorded(terminalreporter, READ) for name in names}
    if not worst:
        return
    terminalreporter.section(f"largest deviations from {FOLDER.name}")
    for (name, rule), (tolerance, deviation) in sorted(worst.items()):
        terminalreporter.line(f"{name:<66}{rule:<14}{tolerance:>8.0e}  {deviation:.1e}")
    compared = {name for name, _ in worst}
    missing = [name for name in _reference_names() if name not in compared]
    terminalreporter.line(f"{len(compared)} arrays compared, {len(missing)} not: {missing[:20]}")
    for method in sorted({name.split(".")[0].removeprefix("methods/") for name in read}):
        _summarise(terminalreporter, vectors.MethodArrays(method), compared, read)


def _recorded(terminalreporter: pytest.TerminalReporter, kind: str) -> Iterator[Any]:
    """Yield what the tests recorded under this name."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == kind:
                    yield value


def _summarise(
    terminalreporter: pytest.TerminalReporter,
    arrays: vectors.MethodArrays,
    compared: set[str],
    read: set[str],
) -> None:
    """Print how many arrays of a method are results, inputs, or unused, and name the last two."""
    names = {arrays.key(name): name for name in arrays}
    results = names.keys() & compared
    inputs = [names[key] for key in names if key in read - compared]
    unused = [names[key] for key in names if key not in read | compared]
    terminalreporter.line(
        f"{arrays.method} in {METHODS.name}: {len(results)} arrays compared, {len(inputs)} are "
        f"inputs {inputs}, {len(unused)} are not looked at {unused}"
    )


def _reference_names() -> list[str]:
    """Return every result array of the reference that concerns this package's core."""
    names = []
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path) as opened:
            names += [f"{path.stem}.{name}" for name in opened.files]
    return [n for n in names if not any(fnmatchcase(n, p) for p in (*INPUTS, *ELSEWHERE))]
