"""What WCA says of itself. Its code, paper and departures: `methods/wca.py`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work


class WcaSettings(Frozen):
    """Settings of WCA; the defaults are those of microCLIP's own runs of it ("WCA*")."""

    n_crops: int = Field(100, ge=1, description="square crops encoded per test image")
    n_drawn: int = Field(
        8, ge=1, description="crops of a prediction, drawn with replacement, alike for all images"
    )
    n_repeats: int = Field(20, ge=1, description="draws of crops; the accuracy is their mean")
    crop_scale: tuple[float, float] = Field(
        (0.5, 0.9), description="least and greatest crop side, share of the shorter side"
    )
    image_log_scale: float = Field(
        4.0, description="logarithm of the factor of cosines with the whole image, before a softmax"
    )
    text_log_scale: float = Field(
        2.0, description="logarithm of the factor of cosines with the anchor, before a softmax"
    )
    anchor: str = Field(
        "a photo of a {}.", description="the text that a class's sentences are compared with"
    )
    sums: Literal["normalised", "plain"] = Field(
        "normalised", description="weighted crops and sentences: normalised (code), or not (paper)"
    )

    @model_validator(mode="after")
    def _has_meaning(self) -> WcaSettings:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must rise within (0, 1], got {self.crop_scale}")
        if self.anchor.count("{}") != 1:
            raise ValueError(f"anchor must contain {{}} once, got {self.anchor!r}")
        return self

    @property
    def image_scale(self) -> float:
        """Factor of an image's cosines with its crops."""
        return math.exp(self.image_log_scale)

    @property
    def text_scale(self) -> float:
        """Factor of an anchor's cosines with its sentences."""
        return math.exp(self.text_log_scale)


def work(settings: WcaSettings) -> Work:
    """Return what testing computes; there is no training."""
    return Work(tested=settings.n_crops + 1)


DECLARATION = Declaration(WcaSettings, supervision=Supervision.NONE, reads="images", work=work)
