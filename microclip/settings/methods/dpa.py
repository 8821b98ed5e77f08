"""What DPA says of itself. Its code, paper and departures: `methods/dpa.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work


class DpaSettings(Frozen):
    """Settings of DPA."""

    initial_classifier: Literal["templates", "descriptions"] = Field(
        "templates", description="start of the textual prototypes: templates (code), or sentences"
    )
    image_share: float = Field(
        0.5, ge=0, le=1, description="a: share of the image prototypes in the pseudo-label"
    )
    window: int = Field(32, ge=1, description="batches whose mean prediction aligns the classes")
    balance: float = Field(1.0, ge=0, description="factor of the class-balance term")
    alignment: float = Field(1.0, ge=0, description="factor of the term that aligns prototypes")
    alignment_scale: float = Field(
        100.0, gt=0, description="w: factor of cosines between prototypes before their softmax"
    )
    temperature: float = Field(100.0, gt=0, description="factor of cosines before a softmax")
    epochs: int = Field(15, ge=0, description="passes over the training images")
    batch_size: int = Field(64, ge=1, description="images per step; the last batch may be smaller")
    learning_rate: float = Field(1.0e-4, gt=0, description="start of the cosine schedule")
    min_learning_rate: float = Field(
        1.0e-6, ge=0, description="half of the schedule's floor, which the code doubles"
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW, on all tensors but biases")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW")


def work(settings: DpaSettings) -> Work:
    """Return what a training computes: the bank, then a weak and a strong view an epoch."""
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        encoded_once=1,
        encoded=1,
        trained=1,
    )


DECLARATION = Declaration(
    DpaSettings, supervision=Supervision.UNLABELLED, reads="images", work=work
)
