"""What ReCLIP says of itself. Its code, paper and departures: `methods/reclip.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from microclip.settings.base import Frozen, without_defaults
from microclip.settings.declarations import Declaration, Supervision, Work


class ReclipSettings(Frozen):
    """Settings of ReCLIP."""

    adapt_to: Literal["train", "test"] = Field(
        "train", description="images that it sees: training images, or those it is tested on (code)"
    )
    first_template: str = Field(
        "",
        description="template before the dataset's own: the text copy's classifier, with one {}; "
        "empty: the dataset's first",
    )
    neighbours: int = Field(20, ge=1, description="edges that each node of the graph chooses")
    alpha: float = Field(
        0.99, gt=0, lt=1, description="share of a node's score that comes from its neighbours"
    )
    iterations: int = Field(20, ge=1, description="conjugate-gradient steps of a propagation")
    cut: int = Field(
        768, ge=2, description="last singular direction of the class vectors that is kept"
    )
    visual_loss: Literal["as-coded", "mean"] = Field(
        "as-coded", description="of the visual copy: mean over the batch once more (code), or not"
    )
    temperature: float = Field(100.0, gt=0, description="factor of cosines before a softmax")
    epochs: int | None = Field(
        None, ge=0, description="passes over the images; null: by their number, 2 to 100 (code)"
    )
    batch_size: int = Field(64, ge=1, description="images per step; the last batch may be smaller")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="of both copies")
    text_learning_rate: float = Field(1.0e-3, gt=0, description="of the text copy, constant")
    visual_learning_rate: float = Field(1.0e-3, gt=0, description="of the visual copy, constant")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD")
    weight_decay: float = Field(1.0e-4, ge=0, description="on every trained tensor")

    @field_validator("first_template")
    @classmethod
    def _has_one_place(cls, value: str) -> str:
        if value and value.count("{}") != 1:
            raise ValueError("write a sentence with one {} for the class name")
        return value

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, dump, "first_template")

    def n_epochs(self, n_images: int) -> int:
        """Return the passes over some images, by the code's rule if none are set."""
        return min(100, n_images // 5000 + 2) if self.epochs is None else self.epochs


def supervision(settings: ReclipSettings) -> Supervision:
    """Return what it sees with these settings."""
    is_transductive = settings.adapt_to == "test"
    return Supervision.TRANSDUCTIVE if is_transductive else Supervision.UNLABELLED


def work(settings: ReclipSettings) -> Work:
    """Return what a training computes: the images once, then two views of each an epoch."""
    return Work(
        epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        encoded_once=1,
        encoded=1,
        trained=1,
    )


DECLARATION = Declaration(
    ReclipSettings,
    supervision=Supervision.UNLABELLED,
    reads="images",
    supervision_with=supervision,
    work=work,
)
