"""What the oracle says of itself. Its code: `methods/oracle.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from microclip.settings.declarations import Declaration, Supervision, Work
from microclip.settings.fusion import FusionSettings


class OracleSettings(FusionSettings):
    """Settings of the oracle: microCLIP's, but for those of its pseudo-labels."""

    trained_view: Literal["strong", "mild", "none"] = Field(
        "strong", description="views that are learned: RandAugment, a plain crop, the center square"
    )
    mild_scale: tuple[float, float] = Field(
        (0.8, 1.0), description="least and greatest side of a mild crop, share of the shorter side"
    )

    @model_validator(mode="after")
    def _has_meaning(self) -> OracleSettings:
        low, high = self.mild_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"mild_scale must rise within (0, 1], got {self.mild_scale}")
        return self


def work(settings: OracleSettings) -> Work:
    """Return what a training computes: the views of the student, for there is no teacher."""
    reads_patches = settings.train_head == "fusion"
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        trained=1,
        reads_patches=reads_patches,
        is_cut=reads_patches and settings.query == "ncut",
    )


DECLARATION = Declaration(
    OracleSettings,
    supervision=Supervision.LABELS,
    reads="images",
    evaluation_fields=frozenset({"legacy_swap", "test_view"}),
    work=work,
    follows="microclip",
)
