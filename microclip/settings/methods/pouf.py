"""What POUF says of itself. Its code, paper and departures: `methods/pouf.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work


class PoufSettings(Frozen):
    """Settings of POUF."""

    mode: Literal["model", "prompt"] = Field(
        "model", description="train all of CLIP, or the vectors of the prompt's words"
    )
    words: str = Field(
        "a photo of a",
        min_length=1,
        description="words before a class name; mode prompt starts from their embeddings and ends "
        "with a full stop",
    )
    transport: float = Field(1.0, ge=0, description="factor of the transport cost")
    information: float = Field(
        0.3, ge=0, description="factor of minus the mutual information of images and classes"
    )
    epochs: int = Field(10, ge=0, description="each with a test at its end")
    steps_per_epoch: int | None = Field(
        500, ge=1, description="steps of an epoch, however many passes that is; null: one pass"
    )
    batch_size: int = Field(96, ge=1, description="images per step")
    drop_last: bool = Field(
        default=True,
        description="leave out a pass's last, smaller batch, unless it is the only one",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="SGD with Nesterov's momentum (code), or AdamW (microCLIP's protocol)"
    )
    schedule: Literal["inverse", "cosine"] = Field(
        "inverse", description="(1 + gamma * step) ** -power (code), or half a cosine"
    )
    learning_rate: float = Field(
        5.0e-7, gt=0, description="at the first step, of CLIP's own tensors; its scale is one"
    )
    prompt_learning_rate: float = Field(
        1.0e-3, gt=0, description="at the first step, of the vectors of mode prompt"
    )
    gamma: float = Field(2.0e-4, ge=0, description="schedule inverse")
    power: float = Field(0.75, ge=0, description="schedule inverse")
    weight_decay: float = Field(
        1.0e-3, ge=0, description="on every trained tensor; with SGD part of the gradient"
    )
    momentum: float = Field(0.9, gt=0, lt=1, description="SGD")


def work(settings: PoufSettings) -> Work:
    """Return what a training computes: one view per image, and all classes a step."""
    is_model, each = settings.mode == "model", settings.steps_per_epoch
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        steps=None if each is None else each * settings.epochs,
        encoded=int(not is_model),
        trained=int(is_model),
        prompts=1,
        prompt_tokens=16,
        tested=int(is_model),
    )


DECLARATION = Declaration(
    PoufSettings, supervision=Supervision.UNLABELLED, reads="images", work=work
)
