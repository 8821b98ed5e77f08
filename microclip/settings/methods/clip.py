"""What CLIP zero-shot says of itself. Its code and sources: `methods/clip.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision


class ClipSettings(Frozen):
    """Settings of CLIP zero-shot."""

    text_norm: Literal["per_sentence", "joint"] = Field(
        "per_sentence", description="templates normalised one by one, or a class's together"
    )


DECLARATION = Declaration(ClipSettings, supervision=Supervision.NONE, reads="embeddings")
