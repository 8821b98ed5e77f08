"""What microCLIP says of itself. Its code, paper and departures: `methods/microclip.py`."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from pydantic import Field, model_validator

from microclip.settings.base import Frozen
from microclip.settings.declarations import Declaration, Supervision, Work
from microclip.settings.fusion import (
    FusionOptions,
    NCutOptions,
    Pooling,
    Query,
    SignRule,
    Threshold,
    TrainHead,
)

_NCUT = NCutOptions()


class MicroClipSettings(Frozen):
    """Settings of microCLIP.

    The defaults are what the released code ran, but for three: `ncut_sign`, `ncut_min_gap` and
    `test_view` (fidelity.md). The variant `released` has those as the code has them.
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
    initial_classifier: Literal["descriptions", "templates"] = Field(
        "descriptions", description="start of the trained class vectors (Table 5)"
    )
    weak_view: Literal["random", "center"] = Field(
        "random", description="square of the weak view: random (code), center (paper)"
    )
    test_view: Literal["center", "random"] = Field(
        "center", description="square of the test view; the released code draws at random"
    )
    train_head: TrainHead = Field(
        "fusion", description="what is trained and tested: TokenFusion, or [CLS] alone (Table 2)"
    )
    rho: float = Field(0.5, ge=0, le=1, description="share of the global logits, Eq. 8")
    legacy_swap: bool = Field(
        default=False,
        description="test with the two shares exchanged, as the released code (Table 7)",
    )
    query: Query = Field("ncut", description="query of the attention pooling (Table 3)")
    pooling: Pooling = Field(
        "attention", description="[FG] by attention, or the query itself (Table 3)"
    )
    learnable_empty: bool = Field(default=False, description="train the empty token")
    ncut_threshold: Threshold = Field(
        _NCUT.threshold,
        description="salient above this of the eigenvector: std (code), mean (paper)",
    )
    ncut_sign: SignRule = Field(
        _NCUT.sign, description="orient by the seed token first (ours), or the solver's sign (code)"
    )
    ncut_normalize: bool = Field(
        default=_NCUT.normalize, description="cosines instead of dot products (TokenCut)"
    )
    ncut_tau: float = Field(_NCUT.tau, description="similarity above which two patches are joined")
    ncut_eps: float = Field(_NCUT.eps, gt=0, lt=1, description="weight of all other edges")
    ncut_min_gap: float = Field(
        _NCUT.min_gap,
        ge=0,
        description="eigenvalue gap below which all patches are salient; 0: never",
    )
    fairness: Literal["official", "paper", "off"] = Field(
        "official", description="factor 2 on a running mean (code), the batch's mean, or none"
    )
    temperature: float = Field(100.0, gt=0, description="factor of cosines before a softmax")
    epochs: int = Field(15, ge=0, description="passes over the training images")
    batch_size: int = Field(64, ge=1, description="images per step; the last batch may be smaller")
    learning_rate: float = Field(1.0e-4, gt=0, description="peak of the cosine schedule")
    min_learning_rate: float = Field(
        1.0e-6, ge=0, description="half of the schedule's floor, which the code doubles"
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW, on every trained tensor")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW")
    gradient_clip: Literal["off", "l1"] = Field(
        "off", description="total L1 norm cut to 1, as the released code does under AMP"
    )

    @model_validator(mode="after")
    def _has_meaning(self) -> MicroClipSettings:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must rise within (0, 1], got {self.crop_scale}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.pseudo_label == "mix" and self.pseudo_label_head == "shared":
            raise ValueError("pseudo_label 'mix' has the fixed head; use 'multi' or 'single'")
        if self.pseudo_label == "mix" and self.train_head == "cls":
            raise ValueError(
                "pseudo_label 'mix' needs train_head 'fusion'; use 'multi' or 'single'"
            )
        if self.prior == "frozen" and self.pseudo_label_head == "shared":
            raise ValueError("prior 'frozen' caches logits of the fixed head; use prior 'online'")
        self.fusion_options()  # raises where its choices have no meaning together
        return self

    def fusion_options(self) -> FusionOptions:
        """Return what `TokenFusion` is built with."""
        return FusionOptions(
            query=self.query,
            pooling=self.pooling,
            global_weight=self.rho,
            train_head=self.train_head,
            learnable_empty=self.learnable_empty,
            legacy_swap=self.legacy_swap,
            ncut=NCutOptions(
                **{each.name: getattr(self, f"ncut_{each.name}") for each in fields(NCutOptions)}
            ),
        )


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
