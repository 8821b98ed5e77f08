"""CuPL: description vectors on frozen embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microclip.methods.base import Task, Views, load_method
from microclip.model.embeddings import TextClassifiers
from tests.fixtures.project import Journal
from tests.methods.test_clip import VECTORS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "uniform"),
        ({"weighting": "similarity"}, "similarity"),
    ],
)
def test_the_settings_choose_the_vectors(settings: dict[str, Any], expected: str) -> None:
    chosen = load_method("cupl")
    task = Task(("a", "b"), TextClassifiers(**VECTORS), seed=0, device="cpu", precision="fp32")
    classifier = chosen.adapt(task, chosen.Settings(**settings), Journal())
    assert torch.equal(classifier.logits(Views(embeddings=torch.eye(4))).T, VECTORS[expected])
    assert classifier.trained_state() == {}
