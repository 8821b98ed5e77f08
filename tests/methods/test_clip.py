"""CLIP zero-shot: template vectors on frozen embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microclip.methods.base import Task, Views, load_method
from microclip.model.embeddings import TextClassifiers
from tests.fixtures.project import Journal

VECTORS = {
    name: torch.eye(4)[[k, (k + 1) % 4]]
    for k, name in enumerate(("uniform", "similarity", "templates", "anchors"))
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "templates"),
        ({"text_norm": "joint"}, "anchors"),
    ],
)
def test_the_settings_choose_the_vectors(settings: dict[str, Any], expected: str) -> None:
    chosen = load_method("clip")
    task = Task(("a", "b"), TextClassifiers(**VECTORS), seed=0, device="cpu", precision="fp32")
    classifier = chosen.adapt(task, chosen.Settings(**settings), Journal())
    assert torch.equal(classifier.logits(Views(embeddings=torch.eye(4))).T, VECTORS[expected])
    assert classifier.trained_state() == {}
