"""What CLIP-LoRA says of itself. Its code, paper and departures: `methods/clip_lora.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work

Map = Literal["q", "k", "v", "o"]


class ClipLoraSettings(Frozen):
    """Settings of CLIP-LoRA; the defaults are those of the official code."""

    shots: int = Field(1, ge=1, description="labelled images per class")
    draw: Literal["once", "repeated", "separate"] = Field(
        "repeated",
        description="a class with too few images gives all it has, or some of them again; "
        "separate: drawn together with validation images (ImageNet)",
    )
    steps_per_shot: int = Field(500, ge=1, description="training steps for each shot")
    epochs: int | None = Field(
        None, ge=0, description="passes over the images instead of a number of steps"
    )
    rounds: int = Field(10, ge=1, description="tests and checkpoints in a number of steps")
    batch_size: int = Field(32, ge=1, description="images per step; the last batch may be smaller")
    learning_rate: float = Field(2.0e-4, gt=0, description="start of the cosine, step by step")
    min_learning_rate: float = Field(1.0e-6, ge=0, description="end of the cosine")
    weight_decay: float = Field(0.01, ge=0, description="AdamW")
    rank: int = Field(2, ge=1, description="rank of the updates")
    alpha: float = Field(1.0, gt=0, description="factor of the updates")
    scaling: Literal["sqrt", "linear"] = Field(
        "sqrt", description="updates are divided by the root of the rank (code), or by the rank"
    )
    dropout: float = Field(0.25, ge=0, lt=1, description="of the updates' inputs, map by map")
    encoder: Literal["both", "text", "vision"] = Field("both", description="towers with updates")
    maps: tuple[Map, ...] = Field(
        ("q", "k", "v"), min_length=1, description="maps of each attention with updates"
    )
    position: Literal["all", "bottom", "mid", "up", "half-up", "half-bottom", "top3"] = Field(
        "all", description="blocks with updates"
    )
    template: str = Field("a photo of a {}.", description="the prompt of every class")
    temperature: float = Field(100.0, gt=0, description="factor of cosines before the softmax")

    @model_validator(mode="after")
    def _has_meaning(self) -> ClipLoraSettings:
        if self.template.count("{}") != 1:
            raise ValueError(f"template must contain {{}} once, got {self.template!r}")
        if len(set(self.maps)) != len(self.maps):
            raise ValueError(f"maps must differ, got {self.maps}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate must not exceed learning_rate, got {self.min_learning_rate} "
                f"and {self.learning_rate}"
            )
        return self

    @property
    def steps(self) -> int | None:
        """The number of training steps; None if `epochs` says how long to train."""
        return None if self.epochs is not None else self.steps_per_shot * self.shots


def work(settings: ClipLoraSettings) -> Work:
    """Return what a training computes: one view per image, and all classes a step."""
    return Work(
        epochs=settings.rounds if settings.epochs is None else settings.epochs,
        steps=settings.steps,
        batch_size=settings.batch_size,
        trained=1,
        prompts=int(settings.encoder != "vision"),
        prompt_tokens=16,
    )


DECLARATION = Declaration(
    ClipLoraSettings, supervision=Supervision.FEW_SHOT, reads="images", work=work
)
