"""What microCLIP says of itself. Its code, paper and departures: `methods/microclip.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from microclip.settings.declarations import Declaration, Supervision, Work
from microclip.settings.fusion import FusionSettings


class MicroClipSettings(FusionSettings):
    """Settings of microCLIP: of its pseudo-labels, beside those of the network it trains.

    The variant `released` has the cut and the test view as the released code has them.
    """

    gamma: float = Field(0.5, ge=0, le=1, description="share of the prior in the mix, Eq. 13")
    pseudo_label: Literal["mix", "multi", "single"] = Field(
        "mix", description="prior and fusion, the multi-view prior alone, or one view alone"
    )
    pseudo_label_head: Literal["fixed", "shared"] = Field(
        "fixed", description="class vectors of the prior: W_LLM, or the trained ones (Table 2)"
    )
    pseudo_label_fusion: Literal["features", "logits"] = Field(
        "features", description="average features and normalise (code), or logits (paper)"
    )
    prior: Literal["online", "frozen"] = Field(
        "online", description="encoder of the prior: as adapted (code), or CLIP's, cached (paper)"
    )
    n_crops: int = Field(8, ge=1, description="square crops of an image and epoch")
    crop_scale: tuple[float, float] = Field(
        (0.5, 0.9), description="least and greatest crop side, share of the shorter side"
    )
    text_weighting: Literal["similarity", "uniform", "templates"] = Field(
        "similarity", description="W_LLM: by cosine with the anchor (code), mean (paper), anchors"
    )
    weak_view: Literal["random", "center"] = Field(
        "random", description="square of the weak view: random (code), center (paper)"
    )
    fairness: Literal["official", "paper", "off"] = Field(
        "official", description="factor 2 on a running mean (code), the batch's mean, or none"
    )

    @model_validator(mode="after")
    def _has_meaning(self) -> MicroClipSettings:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must rise within (0, 1], got {self.crop_scale}")
        if self.pseudo_label == "mix" and self.pseudo_label_head == "shared":
            raise ValueError("pseudo_label 'mix' has the fixed head; use 'multi' or 'single'")
        if self.pseudo_label == "mix" and self.train_head == "cls":
            raise ValueError(
                "pseudo_label 'mix' needs train_head 'fusion'; use 'multi' or 'single'"
            )
        if self.prior == "frozen" and self.pseudo_label_head == "shared":
            raise ValueError("prior 'frozen' caches logits of the fixed head; use prior 'online'")
        return self


def work(settings: MicroClipSettings) -> Work:
    """Return what a training computes: the views of teacher and student."""
    is_mix, is_cached = settings.pseudo_label == "mix", settings.prior == "frozen"
    crops = 0 if settings.pseudo_label == "single" else settings.n_crops
    reads_patches = settings.train_head == "fusion"
    return Work(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        encoded_once=crops + 1 if is_cached else 0,
        # The prior's weak view is the fused one, if there is one.
        encoded=0 if is_cached else crops + (not is_mix),
        fused=int(is_mix),
        trained=1,
        reads_patches=reads_patches,
        is_cut=reads_patches and settings.query == "ncut",
    )


DECLARATION = Declaration(
    MicroClipSettings,
    supervision=Supervision.UNLABELLED,
    reads="images",
    revised={"ncut_sign": "as-computed"},  # the solver changed
    evaluation_fields=frozenset({"legacy_swap", "test_view"}),
    work=work,
)
