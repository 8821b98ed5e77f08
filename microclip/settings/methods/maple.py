"""What MaPLe says of itself: the settings and their ranges."""

from __future__ import annotations

from pydantic import Field

from microclip.settings.declarations import Declaration, Supervision, Work
from microclip.settings.training import TrainingSettings


class MapleSettings(TrainingSettings):
    """Everything that can be set; values and sources in config/methods/maple.yaml."""

    shots: int = Field(1, ge=1, description="labelled images per class")
    n_context: int = Field(2, ge=1, description="prompt tokens in each tower")
    depth: int = Field(9, ge=1, description="blocks with prompts of their own, the first included")
    initial_words: str = Field(
        "a photo of a",
        description="words before the class name; the first n_context start the shallow prompt",
    )
    epochs: int = Field(5, ge=0, description="passes over the training images")
    batch_size: int = Field(4, ge=1, description="images per step")
    learning_rate: float = Field(0.0035, gt=0, description="peak of the schedule")


def work(settings: MapleSettings) -> Work:
    """Return what a training computes: one view per image and epoch, and all classes a step."""
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        trained=1,
        prompts=1,
        prompt_tokens=16,
    )


DECLARATION = Declaration(
    MapleSettings, supervision=Supervision.FEW_SHOT, reads="images", work=work
)
