"""The choices of TokenFusion and of the cut that finds its salient patches, and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from microclip.settings.base import Frozen

Threshold = Literal["std", "mean"]
SignRule = Literal["seed", "as-computed"]
Query = Literal["ncut", "mean", "random", "cls"]
Pooling = Literal["attention", "query-average"]
TrainHead = Literal["fusion", "cls"]

DEFINED_GAP = 1e-3  # below this gap, masks of float32 and float64 solvers start to disagree


@dataclass(frozen=True)
class NCutOptions:
    """How a patch graph is built and cut; released defaults but for `sign` and `min_gap`.

    Attributes:
        tau: similarity above which two patches are joined: of dot products, or of cosines in
            [-1, 1] if `normalize`.
        eps: weight of all other edges, the bridges that keep the graph connected.
        threshold: salient above the deviation (N-1 divisor) or the mean of the Fiedler vector.
        normalize: cosines instead of dot products (TokenCut).
        sign: "seed" orients the vector so that its largest entry is positive, then thresholds it;
            "as-computed" solves as the released code does, in float32 and without the shift,
            thresholds that vector and complements a mask without its largest entry.
        min_gap: eigenvalue gap below which the Fiedler vector is one of many and all patches are
            salient; 0 turns the rule off.
    """

    tau: float | int = 0.2
    eps: float = 1e-6
    threshold: Threshold = "std"
    normalize: bool = False
    sign: SignRule = "seed"
    min_gap: float | int = DEFINED_GAP

    def __post_init__(self) -> None:
        """Refuse unknown words."""
        refuse_unknown_words(self, threshold=Threshold, sign=SignRule)


def refuse_unknown_words(options: object, **words: Any) -> None:
    """Raise ValueError if an attribute of `options` is not one of its Literal's words."""
    for name, literal in words.items():
        if (word := getattr(options, name)) not in get_args(literal):
            raise ValueError(f"{name} must be one of {get_args(literal)}, got {word!r}")


@dataclass(frozen=True)
class FusionOptions:
    """Choices of TokenFusion; defaults as in the released code, except for two of the cut's.

    Attributes:
        query: the mean of the salient patches, of all patches, one random patch (a new draw for
            each image and call) or the class token.
        pooling: attention over all patches, or the query itself (no attention, no maps).
        global_weight: share of the global similarity in the fused one, in [0, 1].
        train_head: which prediction is trained: the fused one, or the class token's alone.
        learnable_empty: train the empty token of the attention.
        legacy_swap: in evaluation mode give the two shares to the wrong heads, as the released
            evaluation does (only visible if `global_weight` is not 0.5).
        ncut: how the salient patches of query "ncut" are cut out.
    """

    query: Query = "ncut"
    pooling: Pooling = "attention"
    global_weight: float | int = 0.5
    train_head: TrainHead = "fusion"
    learnable_empty: bool = False
    legacy_swap: bool = False
    ncut: NCutOptions = field(default_factory=NCutOptions)

    def __post_init__(self) -> None:
        """Refuse unknown words and meaningless combinations."""
        refuse_unknown_words(self, query=Query, pooling=Pooling, train_head=TrainHead)
        if not 0 <= self.global_weight <= 1:
            raise ValueError(f"global_weight must lie in [0, 1], got {self.global_weight}")
        if self.pooling == "query-average" and self.query == "cls":
            raise ValueError(
                "pooling 'query-average' of query 'cls' is the global embedding itself; "
                "use train_head 'cls', or another query"
            )

    @classmethod
    def of(cls, **choices: Any) -> FusionOptions:
        """Return options from one flat set of choices: those of the fusion, and of its cut.

        Raises:
            ValueError: unknown name, word or combination.
        """
        own = [each.name for each in fields(cls) if each.name != "ncut"]
        cut = [each.name for each in fields(NCutOptions)]
        unknown = sorted(set(choices) - {*own, *cut})
        if unknown:
            raise ValueError(f"TokenFusion knows the options {[*own, *cut]}, got {unknown}")
        return cls(
            **{name: choices[name] for name in own if name in choices},
            ncut=NCutOptions(**{name: choices[name] for name in cut if name in choices}),
        )


_NCUT = NCutOptions()


class FusionSettings(Frozen):
    """Settings of every method that trains TokenFusion, whatever labels it learns.

    The defaults are what microCLIP's released code ran, but for three: `ncut_sign`, `ncut_min_gap`
    and `test_view` (fidelity.md).
    """

    initial_classifier: Literal["descriptions", "templates"] = Field(
        "descriptions", description="start of the trained class vectors (Table 5)"
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
    def _can_be_trained(self) -> FusionSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
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
