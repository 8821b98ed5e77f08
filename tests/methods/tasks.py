"""What the tests of trained methods share: tasks on the tiny project, and runs that die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.data import loading
from microclip.data.loading import Examples
from microclip.data.shots import k_shot
from microclip.methods.base import Method, Task
from microclip.model import embeddings
from microclip.model.backbone import Backbone, load_backbone
from tests.fixtures import project as fixture


def task(*, shots: int | None = None, seed: int = 0, **values: Any) -> Task:
    """A task with unlabelled images, or with labelled ones if there are shots."""
    settings = fixture.settings_of("clip")
    fixture.prepare(settings)
    train = loading.load(settings.dataset)["train"]
    drawn = [] if shots is None else k_shot(train.labels.tolist(), shots, seed)
    examples = Examples(train.labels[drawn], images=train.images.part(drawn))
    given: dict[str, Any] = {
        "class_names": fixture.CLASSES,
        "texts": embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions),
        "seed": seed,
        "device": "cpu",
        "precision": "fp32",
        "backbone": load_backbone("tiny"),
        "templates": settings.dataset.templates,
        "images": train.images if shots is None else None,
        "examples": None if shots is None else examples,
    }
    return Task(**{**given, **values})


def check_needs(method: Method[Any], given: Task, options: Any, *needed: str) -> None:
    """A task without one of these parts is refused."""
    for missing in needed:
        incomplete = Task(**{**vars(given), missing: None})
        with pytest.raises(ValueError, match="got none"):
            method.adapt(incomplete, options, fixture.Journal())


def frozen_of(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of all tensors of a network."""
    return {name: value.detach().clone() for name, value in backbone.state_dict().items()}


class KilledError(RuntimeError):
    """Stands for a process that was killed."""


class Interrupting(fixture.Journal):
    """A tracker under which the process dies after some epoch was saved."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        super().epoch(epoch, row)
        if epoch == self._after + 1:
            raise KilledError


def states_of_resumed_and_whole(
    method: Any, options: Any, folder: Path, **given: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained state of a run that died in its second-last epoch, and of one that did not."""
    whole = method.adapt(task(**given), options, fixture.Journal()).trained_state()
    interrupted = task(**given, checkpoints=folder)
    try:
        method.adapt(interrupted, options, Interrupting(options.epochs - 2))
    except KilledError:
        pass
    else:
        raise AssertionError("the run was not interrupted")
    torch.manual_seed(5)  # a new process has another random state
    journal = fixture.Journal()
    resumed = method.adapt(task(**given, checkpoints=folder), options, journal).trained_state()
    assert any(line.startswith("resuming after epoch") for line in journal.lines)
    assert 0 not in journal.rows
    return resumed, whole
