"""What UPL says of itself: the settings and their ranges."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from microclip.settings.declarations import Declaration, Supervision, Work
from microclip.settings.training import PromptSettings


class UplSettings(PromptSettings):
    """Everything that can be set; values and sources in config/methods/upl.yaml."""

    per_class: int = Field(16, ge=1, description="surest images per predicted class, K")
    ensemble: int = Field(1, ge=1, description="prompts with seeds of their own; logits averaged")
    template: str = Field(
        "", description="sentence that labels the images, with one {}; empty: the dataset's own"
    )
    voters: tuple[str, ...] = Field(
        (), description="further backbones, whose probabilities are averaged in (UPL*)"
    )
    image_shape: Literal["crop", "squash"] = Field(
        "crop", description="short side and center square, or squashed (Dassl before October 2021)"
    )

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, value: str) -> str:
        if value and value.count("{}") != 1:
            raise ValueError("write a sentence with one {} for the class name")
        return value

    @model_validator(mode="after")
    def _voters_read_a_template(self) -> Self:
        if self.voters and not self.template:
            raise ValueError("voters read the template, got none; set template")
        return self


def work(settings: UplSettings) -> Work:
    """Return what a training computes: a frozen view per image and epoch, all classes a step."""
    # All images are encoded once to choose from; how many are trained on is not known before.
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        encoded_once=1,
        encoded=settings.ensemble,
        prompts=settings.ensemble,
        prompt_tokens=settings.n_context + 8,  # a name has about five, and three are fixed
        tested=int(settings.image_shape == "squash"),
    )


def voters(settings: UplSettings) -> tuple[str, ...]:
    """Return the further backbones that label the images."""
    return settings.voters


DECLARATION = Declaration(
    UplSettings,
    supervision=Supervision.UNLABELLED,
    reads="images",
    work=work,
    also_loads=voters,
)
