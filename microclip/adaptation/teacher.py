"""What a training learns from: labels for each batch, without gradient, and a teacher's state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Batch(Protocol):
    """What the trainer must know about a batch; the teacher and the losses know the rest."""

    @property
    def indices(self) -> Int[Tensor, " batch"]:
        """Numbers of the batch's items in their set, on the CPU."""


BatchT = TypeVar("BatchT", bound=Batch)
BatchIn = TypeVar("BatchIn", bound=Batch, contravariant=True)
BatchOut = TypeVar("BatchOut", bound=Batch, covariant=True)


@dataclass(frozen=True, eq=False)
class Look:
    """What a teacher can show of the batch it taught: measurements of any shape, and warnings."""

    measures: Mapping[str, Tensor] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Teaching:
    """What the teacher says about a batch.

    Attributes:
        labels: the classes to learn; None for a loss that needs none (POUF).
        weights: how much each label counts, in [0, 1]; None: all the same.
        parts: the labels that `labels` were mixed from, by their names in the history.
        measures: one number per image, by column of the history, which shows their means.
        look: measures the batch more closely, for `first_batch.json`; draws nothing. The trainer
            drops it before the losses run, because it may hold on to activations.
    """

    labels: Int[Tensor, " batch"] | None = None
    weights: Float[Tensor, " batch"] | None = None
    parts: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    measures: Mapping[str, Float[Tensor, " batch"]] = field(default_factory=dict)
    look: Callable[[], Look] | None = None

    def guesses(self) -> dict[str, Int[Tensor, " batch"]]:
        """All labels by the name that history gives them; "mix" is what is learned."""
        learned = {} if self.labels is None else {"mix": self.labels}
        return {**self.parts, **learned}


class Part:
    """A part of a training that the trainer calls at each epoch and saves with the weights."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare epoch `epoch`, counted from 1."""

    def end_epoch(self, epoch: int) -> None:
        """Finish an epoch, after its last step and before it is saved."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs at the start of an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            TypeError: there is a state, and this part does not say how to restore it.
        """
        if state:
            raise TypeError(
                f"{type(self).__name__} saves {sorted(state)} and cannot restore it; write its "
                "load_state_dict, or a resumed run would differ"
            )


class Teacher(Part, ABC, Generic[BatchIn]):
    """Labels a batch, without gradient, under the trainer's autocast."""

    @abstractmethod
    def teach(self, batch: BatchIn, generator: torch.Generator) -> Teaching | None:
        """Return what to learn from a batch, or None to skip it.

        After None nothing moves: no weight, momentum or decay (ReCLIP, if its copies never agree).
        `generator` belongs to the epoch; the losses draw from it after the teacher.
        """


class FixedLabels(Teacher[Batch]):
    """Labels known before the training: few-shot examples, or pseudo-labels chosen once."""

    def __init__(self, labels: Int[Tensor, " item"]) -> None:
        """Teach `labels`, by number of item."""
        self._labels = labels

    def teach(self, batch: Batch, generator: torch.Generator) -> Teaching:
        """Return the labels of the batch's items."""
        del generator
        return Teaching(self._labels[batch.indices.to(self._labels.device)])
