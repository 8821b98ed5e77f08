"""What a method is: it sees what its supervision allows, and leaves a classifier behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor

from microclip.methods.registry import known_methods, load_method

if TYPE_CHECKING:
    from microclip.data.datasets import UnlabelledImages
    from microclip.model.backbone import Backbone
    from microclip.text.embedding import TextClassifiers

__all__ = [
    "Classifier",
    "Method",
    "Monitor",
    "Supervision",
    "Task",
    "Tracker",
    "ViewPlan",
    "Views",
    "known_methods",
    "load_method",
]

SHARED_RECIPE = 1  # raise when data, views, backbone or text stages change what they mean


class Supervision(StrEnum):
    """What a method may see of the dataset besides class names and descriptions."""

    NONE = "none"
    UNLABELLED = "unlabelled"
    TRANSDUCTIVE = "transductive"
    FEW_SHOT = "few-shot"


@runtime_checkable
class Tracker(Protocol):
    """Where a run reports: a row an epoch, and lines for people."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record one row of history; the same epoch written again replaces the row."""

    def message(self, text: str) -> None:
        """Show one line to whoever watches."""


@dataclass(frozen=True)
class ViewPlan:
    """What a classifier must be given of a test image."""

    kind: Literal["embedding", "image"]
    crop: Literal["center", "random"] = "center"


@dataclass(frozen=True)
class Views:
    """A batch as a ViewPlan asks for it: one of the two is set."""

    embeddings: Float[Tensor, "batch embedding"] | None = None  # frozen [CLS], unit norm
    images: Float[Tensor, "batch 3 height width"] | None = None  # normalised


@runtime_checkable
class Monitor(Protocol):
    """Measures a method from outside; it takes guesses and a classifier, and gives nothing back."""

    def pseudo_labels(
        self, indices: Int[Tensor, " batch"], guesses: Mapping[str, Int[Tensor, " batch"]]
    ) -> None:
        """Take the labels that were guessed for training images, by kind of guess."""

    def evaluate(self, classifier: Classifier) -> None:
        """Test the classifier as it stands."""


@dataclass(frozen=True)
class Task:
    """What the runner hands to a method. No label is reachable from here unless allowed."""

    class_names: Sequence[str]
    texts: TextClassifiers  # W_LLM (uniform and similarity weighting) and anchors, [C, e] each
    seed: int
    device: str
    precision: str
    backbone: Backbone | None = None  # set if the method reads images
    images: UnlabelledImages | None = None  # if it reads images and its supervision allows it
    embeddings: Float[Tensor, "image embedding"] | None = None  # frozen [CLS], likewise
    checkpoints: Path | None = None  # folder for epoch checkpoints; None: keep none
    monitor: Monitor | None = None  # None: nobody measures


@runtime_checkable
class Classifier(Protocol):
    """An adapted classifier: the one path of prediction."""

    views: ViewPlan

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosine similarities; the arg max is the prediction."""

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return `logits` as "fused", and the predictions that it is made of, by name."""

    def trained_state(self) -> dict[str, Tensor]:
        """Return only what was trained, by name."""


@dataclass(frozen=True, eq=False)
class Watching:
    """What a trainer reports to: the task's monitor measures, then the tracker records."""

    task: Task
    tracker: Tracker
    classifier: Classifier

    def pseudo_labels(self, indices: Int[Tensor, " batch"], guesses: dict[str, Tensor]) -> None:
        """Pass on the labels guessed for some images."""
        if self.task.monitor is not None:
            self.task.monitor.pseudo_labels(indices, guesses)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Have the classifier measured as it stands, and record the row."""
        if self.task.monitor is not None:
            self.task.monitor.evaluate(self.classifier)
        self.tracker.epoch(epoch, row)

    def message(self, text: str) -> None:
        """Show a line."""
        self.tracker.message(text)


@runtime_checkable
class Method(Protocol):
    """A method: one file, one `METHOD` object."""

    supervision: ClassVar[Supervision]
    reads: ClassVar[Literal["embeddings", "images"]]  # frozen [CLS] alone, or images and backbone
    Settings: ClassVar[type[BaseModel]]
    RECIPE: ClassVar[int]

    def adapt(self, task: Task, settings: Any, tracker: Tracker) -> Classifier:
        """Return the adapted classifier."""

    def restore(self, task: Task, settings: Any, state: Mapping[str, Tensor]) -> Classifier:
        """Return the classifier whose `trained_state` is `state`, without training."""
