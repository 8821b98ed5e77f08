"""What CuPL says of itself. Its code and sources: `methods/cupl.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision


class CuplSettings(Frozen):
    """Settings of CuPL."""

    weighting: Literal["uniform", "similarity"] = Field(
        "uniform", description="mean of the sentences, or by cosine with the template vector"
    )


DECLARATION = Declaration(CuplSettings, supervision=Supervision.NONE, reads="embeddings")
