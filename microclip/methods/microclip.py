"""microCLIP: coarse and fine tokens of an image, self-trained on mixed pseudo-labels.

Paper: Ali et al., WACV 2026, arXiv:2510.02270v1. Upstream read: sathiiii/microCLIP@977ad31.
Supervision: unlabelled training images. Departs: fidelity.md; every difference between paper and
released code is a field of `MicroClipSettings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from microclip import runtime
from microclip.adaptation.losses import (
    Losses,
    RunningMarginal,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)
from microclip.adaptation.multi_view import aggregate_views
from microclip.adaptation.pseudo_labels import (
    aggregate_knowledge,
    fused_similarity,
    mix_knowledge,
)
from microclip.adaptation.schedules import OptimizerRecipe, cosine
from microclip.adaptation.teacher import Look, Teacher, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewBatch, ViewRecipe
from microclip.methods.base import (
    Supervision,
    Task,
    Tracker,
    ViewPlan,
    Views,
    Watching,
    Work,
)
from microclip.model.backbone import Backbone
from microclip.model.saliency import DEFINED_GAP, NCutOptions, Saliency, SignRule, Threshold
from microclip.model.token_fusion import (
    FusionOptions,
    FusionOutput,
    Pooling,
    Query,
    TokenFusion,
    TrainHead,
    cosine_similarity,
)
from microclip.settings.base import Frozen

_PRIOR_BATCH = 64
_ENOUGH_IMAGES = 16  # in a batch, before a share of them is worth a warning
_MOST_UNDEFINED = 0.5  # share of images without a defined cut
_FAIRNESS_FACTOR = {"official": 2.0, "paper": 1.0}
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

    def optimizer_recipe(self) -> OptimizerRecipe:
        """Return how the trained tensors move."""
        floor = 2 * self.min_learning_rate  # the released code doubles it
        return OptimizerRecipe(
            schedule=cosine(self.learning_rate, floor),
            epochs=self.epochs,
            weight_decay=self.weight_decay,
            betas=self.betas,
            gradient_clip=self.gradient_clip,
        )


class FusionClassifier:
    """A TokenFusion in evaluation mode."""

    def __init__(self, fusion: TokenFusion, settings: MicroClipSettings, seed: int) -> None:
        """Classify by `fusion`; `seed` serves query "random" alone."""
        self.views = ViewPlan("image", settings.test_view)
        self._fusion = fusion
        self._seed = seed

    @property
    def fusion(self) -> TokenFusion:
        """The network, for figures that look at its tokens."""
        return self._fusion

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the trained head's cosine similarities."""
        return self.heads(views)["fused"]

    @torch.no_grad()
    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the fused, global and local similarities."""
        if views.images is None:
            raise ValueError("this classifier reads images, got embeddings; follow its ViewPlan")
        self._fusion.eval()
        if self._fusion.options.train_head == "cls":
            return {"fused": self._fusion.global_similarity(views.images)}
        seen = self._fusion(views.images, generator=runtime.generator(self._seed, "test-query"))
        return {"fused": seen.logits, "global": seen.global_logits, "local": seen.local_logits}

    def trained_state(self) -> dict[str, Tensor]:
        """Return LayerNorms, class vectors and pooling maps."""
        return self._fusion.trained_state()


class KnowledgeTeacher(Teacher[ViewBatch]):
    """Pseudo-labels by the settings: the prior, the network's own view, or their mix.

    Source: Eq. 10 to 13, arXiv:2510.02270v1. Departs: fidelity.md#prior-encoder.
    """

    def __init__(
        self,
        fusion: TokenFusion,
        knowledge: Float[Tensor, "classes embedding"],
        settings: MicroClipSettings,
        cached_prior: Float[Tensor, "image classes"] | None = None,
    ) -> None:
        """Teach with the network `fusion` itself and the fixed class vectors `knowledge`."""
        self._fusion = fusion
        self._knowledge = knowledge
        self._settings = settings
        self._cached_prior = cached_prior

    @torch.no_grad()
    def teach(self, batch: ViewBatch, generator: torch.Generator | None = None) -> Teaching:
        """Return the pseudo-labels of a batch."""
        if self._settings.pseudo_label != "mix":
            prior_logits = self._prior(batch, None)
            prior = prior_logits.argmax(dim=-1)
            look = partial(self._look, {"prior": prior_logits})
            return Teaching(prior, parts={"prior": prior}, look=look)
        seen = self._fusion(batch.weak, generator=generator)
        prior_logits = self._prior(batch, seen.global_embedding)
        own_logits = fused_similarity(
            seen.global_embedding,
            seen.local_embedding,
            self._fusion.classifier,
            mode=self._settings.pseudo_label_fusion,
        )
        return Teaching(
            aggregate_knowledge(prior_logits, own_logits, self._settings.gamma).labels,
            parts={"prior": prior_logits.argmax(dim=-1), "fusion": own_logits.argmax(dim=-1)},
            measures=_measures(seen.saliency),
            look=partial(self._look, {"prior": prior_logits, "fusion": own_logits}, seen),
        )

    def _look(self, logits: dict[str, Tensor], seen: FusionOutput | None = None) -> Look:
        """Return confidences and, if the teacher made them, the patch tokens and their cuts."""
        if seen is not None:
            gamma = self._settings.gamma
            logits = {**logits, "mix": mix_knowledge(logits["prior"], logits["fusion"], gamma)}
        scale = self._settings.temperature
        measures = {
            f"confidence_{name}": (scale * each.float()).softmax(dim=-1).amax(dim=-1)
            for name, each in logits.items()
        }
        if seen is None:
            return Look(measures)
        patches = seen.patches.float()
        measures["patch_norm"] = patches.norm(dim=-1)
        # The mean dot product of an image's patches: what ncut_tau is compared with.
        measures["patch_similarity"] = patches.mean(dim=1).square().sum(dim=-1)
        if seen.saliency.gap is not None:
            measures["eigenvalue_gap"] = seen.saliency.gap
        return Look(measures, _undefined_cuts(seen.saliency, measures, self._fusion.options.ncut))

    def _prior(
        self, batch: ViewBatch, whole: Float[Tensor, "batch embedding"] | None
    ) -> Float[Tensor, "batch classes"]:
        """Return the prior's cosines; `whole` is the weak view's embedding if already known."""
        if self._cached_prior is not None:
            return self._cached_prior[batch.indices.to(self._cached_prior.device)]
        is_shared = self._settings.pseudo_label_head == "shared"
        vectors = self._fusion.classifier if is_shared else self._knowledge
        return prior_logits(self._fusion.backbone, batch, vectors, whole=whole)


class SelfTrainingLosses(Losses[ViewBatch]):
    """Cross-entropy on the strong view, and the fairness loss on its mean prediction.

    Source: section 5.7 of the paper; Departs: fidelity.md#fairness-loss.
    """

    def __init__(self, fusion: TokenFusion, settings: MicroClipSettings) -> None:
        """Train `fusion`."""
        self._fusion = fusion
        self._settings = settings
        self._marginal = RunningMarginal("batch" if settings.fairness == "paper" else "running")

    def start_epoch(self, epoch: int) -> None:
        """Forget the last epoch's marginal, as the released code does."""
        del epoch
        self._marginal.reset()

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms "ce" and "fairness" of a batch's strong view."""
        assert batch.strong is not None
        assert teaching.labels is not None
        if self._settings.train_head == "cls":
            logits = self._fusion.global_similarity(batch.strong)
        else:
            logits = self._fusion(batch.strong, generator=generator).logits
        scale = self._settings.temperature
        return {
            "ce": self_training_loss(logits, teaching.labels, scale),
            "fairness": self._fairness(logits, scale),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running marginal."""
        return self._marginal.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the running marginal."""
        self._marginal.load_state_dict(dict(state))

    def _fairness(self, logits: Float[Tensor, "batch classes"], scale: float) -> Float[Tensor, ""]:
        if self._settings.fairness == "off":
            return logits.new_zeros((), dtype=torch.float32)
        marginal = self._marginal.update(mean_probabilities(logits, scale))
        return fairness_loss(marginal, _FAIRNESS_FACTOR[self._settings.fairness])


class MicroClip:
    """microCLIP."""

    supervision: ClassVar[Supervision] = Supervision.UNLABELLED
    reads: ClassVar[Literal["embeddings", "images"]] = "images"
    Settings: ClassVar[type[MicroClipSettings]] = MicroClipSettings
    RECIPE: ClassVar[int] = 1
    REVISED: ClassVar[Mapping[str, str]] = {"ncut_sign": "as-computed"}  # the solver changed
    EVALUATION_FIELDS: ClassVar[frozenset[str]] = frozenset({"legacy_swap", "test_view"})

    def adapt(self, task: Task, settings: MicroClipSettings, tracker: Tracker) -> FusionClassifier:
        """Return TokenFusion, trained on the task's unlabelled images."""
        if task.images is None:
            raise ValueError("microclip trains on images, got none; give the training images")
        fusion = _fusion(task, settings)
        knowledge = _knowledge(task, settings)
        recipe = ViewRecipe(
            seed=task.seed,
            size=fusion.backbone.image_size,
            mean=fusion.backbone.mean,
            std=fusion.backbone.std,
            weak=settings.weak_view,
            n_crops=0 if settings.pseudo_label == "single" else settings.n_crops,
            crop_scale=settings.crop_scale,
        )
        cached_prior = None
        if settings.prior == "frozen":
            tracker.message(f"encoding the frozen prior of {len(task.images)} images")
            cached_prior = _frozen_prior(task, fusion, recipe, knowledge)
            recipe = replace(recipe, n_crops=0)
        trainer = Trainer(
            fusion,
            KnowledgeTeacher(fusion, knowledge, settings, cached_prior),
            SelfTrainingLosses(fusion, settings),
            settings.optimizer_recipe(),
            TrainingViews(task.images, recipe, batch_size=settings.batch_size, device=task.device),
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = FusionClassifier(fusion, settings, task.seed)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: MicroClipSettings, state: Mapping[str, Tensor]
    ) -> FusionClassifier:
        """Return TokenFusion with trained tensors put back."""
        fusion = _fusion(task, settings)
        fusion.load_trained_state(dict(state))
        return FusionClassifier(fusion, settings, task.seed)

    def work(self, settings: MicroClipSettings) -> Work:
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


METHOD = MicroClip()


def _fusion(task: Task, settings: MicroClipSettings) -> TokenFusion:
    """Return the network before training. It changes the task's backbone in place."""
    if task.backbone is None:
        raise ValueError("microclip trains the backbone, got none; give one to the task")
    is_described = settings.initial_classifier == "descriptions"
    start = task.texts.uniform if is_described else task.texts.anchors
    return TokenFusion(task.backbone, start, settings.fusion_options())


def _knowledge(task: Task, settings: MicroClipSettings) -> Float[Tensor, "classes embedding"]:
    """Return the prior's fixed class vectors, W_LLM."""
    texts = task.texts
    choices = {
        "similarity": texts.similarity,
        "uniform": texts.uniform,
        "templates": texts.anchors,
    }
    return choices[settings.text_weighting].to(task.device)


def _frozen_prior(
    task: Task,
    fusion: TokenFusion,
    recipe: ViewRecipe,
    knowledge: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "image classes"]:
    """Return the untrained encoder's prior of all training images, from one draw of crops."""
    assert task.images is not None
    views = TrainingViews(
        task.images,
        replace(recipe, weak="center"),
        batch_size=_PRIOR_BATCH,
        device=task.device,
        n_workers=0,
    )
    indices = list(range(len(task.images)))
    chunks = [indices[i : i + _PRIOR_BATCH] for i in range(0, len(indices), _PRIOR_BATCH)]
    batches = (views.weak_and_crops(0, chunk) for chunk in chunks)
    return encode_prior(fusion.backbone, batches, knowledge)


def _measures(saliency: Saliency) -> dict[str, Float[Tensor, " batch"]]:
    """What history shows of a batch's cuts, one entry per image."""
    found = {"salient_patches": saliency.mask.sum(dim=-1).float()}
    if saliency.degenerate is not None:
        found["degenerate_rate"] = saliency.degenerate.float()
    if saliency.density is not None:
        found["edge_density"] = saliency.density
    return found


def _undefined_cuts(
    saliency: Saliency, measures: Mapping[str, Tensor], options: NCutOptions
) -> tuple[str, ...]:
    """Return a warning if most images of a batch have no defined cut."""
    if saliency.degenerate is None or len(saliency.degenerate) < _ENOUGH_IMAGES:
        return ()
    n, of = int(saliency.degenerate.sum()), len(saliency.degenerate)
    if n <= _MOST_UNDEFINED * of:
        return ()
    typical = float(measures["patch_similarity"].median())
    what = (
        "all their patches count as salient" if options.min_gap else "rounding decides their masks"
    )
    return (
        f"{n} of {of} images of the first batch have no defined cut (eigenvalue gap below "
        f"{max(options.min_gap, DEFINED_GAP):g}), so {what}; check ncut_tau, which joins patches "
        f"above a dot product of {options.tau:g}, against the scale of the patch tokens (mean dot "
        f"product {typical:.3g}), and the backbone's weights",
    )


def prior_logits(
    backbone: Backbone,
    batch: ViewBatch,
    knowledge: Float[Tensor, "classes embedding"],
    *,
    whole: Float[Tensor, "batch embedding"] | None = None,
) -> Float[Tensor, "batch classes"]:
    """Return cosines of the crops' aggregate, or of the weak view if there are no crops."""
    if whole is None:
        whole = backbone.encode_global(batch.weak)
    if batch.crops.shape[1] == 0:
        return cosine_similarity(whole, knowledge)
    crops = backbone.encode_global(batch.crops.flatten(0, 1))
    per_image = crops.reshape(*batch.crops.shape[:2], -1)
    return cosine_similarity(aggregate_views(whole, per_image), knowledge)


@torch.no_grad()
def encode_prior(
    backbone: Backbone,
    batches: Iterable[ViewBatch],
    knowledge: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "image classes"]:
    """Return the frozen prior of all images, in order, on the backbone's device.

    Source: section 3.3 of the paper ("fixed CLIP prior"); one draw of crops per image.
    """
    return torch.cat([prior_logits(backbone, batch, knowledge) for batch in batches])
