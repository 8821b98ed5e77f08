"""What LaFTer says of itself. Its code, paper and departures: `methods/lafter.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work


class LafterSettings(Frozen):
    """Settings of LaFTer: first a head is trained on sentences, then it teaches on images."""

    texts: Literal["all", "names", "photo"] = Field(
        "all",
        description="what the head is trained on: descriptions and filled templates, bare class "
        "names, or 'a photo of a' each",
    )
    text_steps: int = Field(500, ge=1, description="steps of the head, each on all sentences")
    text_noise: float = Field(
        0.1, ge=0, description="deviation of the noise on each number of a sentence's embedding"
    )
    text_learning_rate: float = Field(5.0e-4, gt=0, description="of the head on sentences")
    n_prompts: int = Field(50, ge=1, description="prompt tokens of the image tower")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of the target that all classes have, in both stages"
    )
    epochs: int = Field(50, ge=0, description="passes over the training images")
    batch_size: int = Field(50, ge=1, description="images per step")
    drop_last: bool = Field(
        default=True, description="leave out a last, smaller batch, unless it is the only one"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the rate on images; the code's own never takes effect"
    )
    learning_rate: float = Field(5.0e-4, gt=0, description="on images, at the first step")
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW, in both stages, of all tensors but the LayerNorms' biases"
    )


def work(settings: LafterSettings) -> Work:
    """Return what a training computes: the teacher's view and the student's; texts are extra."""
    # With 49 patches, as ViT-B/32 has, 50 prompt tokens double what the student's view costs.
    return Work(epochs=settings.epochs, batch_size=settings.batch_size, encoded=1, trained=2)


DECLARATION = Declaration(
    LafterSettings, supervision=Supervision.UNLABELLED, reads="images", work=work
)
