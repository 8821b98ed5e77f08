"""What CoOp says of itself: the settings and their ranges."""

from __future__ import annotations

from pydantic import Field

from microclip.settings.declarations import Declaration, Supervision, Work
from microclip.settings.training import PromptSettings


class CoopSettings(PromptSettings):
    """Everything that can be set; values and sources in config/methods/coop.yaml."""

    shots: int = Field(1, ge=1, description="labelled images per class")


def work(settings: CoopSettings) -> Work:
    """Return what a training computes: a frozen view per image and epoch, all classes a step."""
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        encoded=1,
        prompts=1,
        prompt_tokens=settings.n_context + 8,  # a name has about five, and three are fixed
        tested=0,
    )


DECLARATION = Declaration(CoopSettings, supervision=Supervision.FEW_SHOT, reads="images", work=work)
