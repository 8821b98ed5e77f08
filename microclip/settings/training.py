"""Settings that several methods share: how long and how fast they train."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from microclip.settings.base import Frozen


class TrainingSettings(Frozen):
    """Epochs, batches and optimiser of a training."""

    epochs: int = Field(50, ge=0, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per step")
    drop_last: bool = Field(
        default=True, description="leave out a last, smaller batch, unless it is the only one"
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="SGD with momentum (official code), or AdamW (microCLIP's protocol)"
    )
    schedule: Literal["warm-up", "cosine"] = Field(
        "warm-up",
        description="by epoch, the first one at 1e-5 (official code), or by step from the start",
    )
    learning_rate: float = Field(0.002, gt=0, description="peak of the schedule")
    weight_decay: float = Field(
        5.0e-4, ge=0, description="of every trained tensor; with SGD part of the gradient"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD")


class PromptSettings(TrainingSettings):
    """Settings of methods that learn context vectors before the class names (CoOp, UPL)."""

    n_context: int = Field(16, ge=1, description="context vectors of a prompt")
    name_position: Literal["end", "middle", "front"] = Field(
        "end", description="where the class name stands among the context vectors"
    )
    class_specific: bool = Field(
        default=False, description="each class has context vectors of its own"
    )
    initial_words: str = Field(
        "", description="words whose embeddings the context starts from, one vector each"
    )

    @model_validator(mode="after")
    def _starts_one_way(self) -> Self:
        if self.initial_words and self.class_specific:
            raise ValueError("initial_words start one context for all classes; drop class_specific")
        return self
