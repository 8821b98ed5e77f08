"""What the linear probe says of itself. Its code: `methods/linear_probe.py`."""

from __future__ import annotations

from pydantic import Field, model_validator

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work


class LinearProbeSettings(Frozen):
    """Settings of the linear probe."""

    l2: tuple[float, ...] = Field(
        (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
        min_length=1,
        description="strengths to choose from: half of this times the squared weights is added to "
        "the mean loss",
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of the training images that chooses the strength"
    )
    max_iterations: int = Field(1000, ge=1, description="of L-BFGS, for each strength")

    @model_validator(mode="after")
    def _has_meaning(self) -> LinearProbeSettings:
        if not all(0 < strength < float("inf") for strength in self.l2):
            raise ValueError(f"l2 must be positive numbers, got {self.l2}")
        return self


def work(settings: LinearProbeSettings) -> Work:
    """Return that no image is read: the embeddings are cached."""
    del settings
    return Work()


DECLARATION = Declaration(
    LinearProbeSettings, supervision=Supervision.LABELS, reads="embeddings", work=work
)
