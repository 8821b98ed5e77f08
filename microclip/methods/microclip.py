"""microCLIP: coarse and fine tokens of an image, self-trained on mixed pseudo-labels.

Paper: Ali et al., WACV 2026, arXiv:2510.02270v1. Upstream read: sathiiii/microCLIP@977ad31.
Supervision: unlabelled training images. Departs: fidelity.md; every difference between paper and
released code is a field of `MicroClipSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip.adaptation.losses import (
    Losses,
    RunningMarginal,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)
from microclip.adaptation.multi_view import aggregate_views, begun_beside
from microclip.adaptation.pseudo_labels import (
    aggregate_knowledge,
    fused_similarity,
    mix_knowledge,
)
from microclip.adaptation.schedules import OptimizerRecipe
from microclip.adaptation.teacher import Look, Teacher, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewBatch, ViewRecipe
from microclip.methods.base import DeclaredMethod, Task, Tracker, Watching
from microclip.methods.fusion import (
    FusionClassifier,
    optimizer_recipe,
    restored,
    trained_similarity,
    untrained,
)
from microclip.model import frozen_linear
from microclip.model.backbone import Backbone
from microclip.model.saliency import Saliency
from microclip.model.token_fusion import (
    FusionOutput,
    TokenFusion,
    cosine_similarity,
)
from microclip.settings.fusion import DEFINED_GAP, NCutOptions
from microclip.settings.methods.microclip import DECLARATION, MicroClipSettings

_PRIOR_BATCH = 64
_ENOUGH_IMAGES = 16  # in a batch, before a share of them is worth a warning
_MOST_UNDEFINED = 0.5  # share of images without a defined cut
_FAIRNESS_FACTOR = {"official": 2.0, "paper": 1.0}


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
        self._backbone = fusion.backbone
        self._knowledge = knowledge
        self._settings = settings
        self._cached_prior = cached_prior

    @torch.no_grad()
    @frozen_linear.packed()
    def teach(self, batch: ViewBatch, generator: torch.Generator | None = None) -> Teaching:
        """Return the pseudo-labels of a batch."""
        if self._settings.pseudo_label != "mix":
            prior_logits = self._prior(batch, None)
            prior = prior_logits.argmax(dim=-1)
            look = partial(self._look, {"prior": prior_logits})
            return Teaching(prior, parts={"prior": prior}, look=look)
        # Begun first: on a GPU the cut waits, and the crops, most of the work, run meanwhile.
        has_crops = self._cached_prior is None and batch.crops.shape[1] > 0
        crops = begun_crops(self._backbone, batch) if has_crops else None
        seen = self._fusion(batch.weak, generator=generator)
        prior_logits = self._prior(batch, seen.global_embedding, crops)
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
        self,
        batch: ViewBatch,
        whole: Float[Tensor, "batch embedding"] | None,
        crops: Crops | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return the prior's cosines; `whole` and `crops` are embeddings if already known."""
        if self._cached_prior is not None:
            device = self._cached_prior.device
            return self._cached_prior[batch.indices.to(device, non_blocking=True)]
        is_shared = self._settings.pseudo_label_head == "shared"
        vectors = self._fusion.classifier if is_shared else self._knowledge
        return prior_logits(self._backbone, batch, vectors, whole=whole, crops=crops)


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
        logits = trained_similarity(self._fusion, batch.strong, generator)
        scale = self._settings.temperature
        ce, mean = self._fusion.backbone.fused(_compared)(scale, logits, teaching.labels)
        return {"ce": ce, "fairness": self._fairness(mean)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running marginal."""
        return self._marginal.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the running marginal."""
        self._marginal.load_state_dict(dict(state))

    def _fairness(self, mean: Float[Tensor, " classes"]) -> Float[Tensor, ""]:
        if self._settings.fairness == "off":
            return mean.new_zeros(())
        marginal = self._marginal.update(mean)
        return fairness_loss(marginal, _FAIRNESS_FACTOR[self._settings.fairness])


def _compared(
    scale: float, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " classes"]]:
    """Return the cross-entropy, and the mean probability of each class."""
    return self_training_loss(logits, labels, scale), mean_probabilities(logits, scale)


class MicroClip(DeclaredMethod[MicroClipSettings]):
    """microCLIP."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: MicroClipSettings, tracker: Tracker) -> FusionClassifier:
        """Return TokenFusion, trained on the task's unlabelled images."""
        if task.images is None:
            raise ValueError("microclip trains on images, got none; give the training images")
        fusion = untrained(task, settings)
        trainer = trainer_of(
            task,
            settings,
            fusion,
            SelfTrainingLosses(fusion, settings),
            optimizer_recipe(settings),
            say=tracker.message,
        )
        classifier = FusionClassifier(fusion, settings, task.seed)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: MicroClipSettings, state: Mapping[str, Tensor]
    ) -> FusionClassifier:
        """Return TokenFusion with trained tensors put back."""
        return restored(task, settings, state)


METHOD = MicroClip()


def trainer_of(  # noqa: PLR0913  the parts of a training
    task: Task,
    settings: MicroClipSettings,
    fusion: TokenFusion,
    losses: Losses[ViewBatch],
    optimizer: OptimizerRecipe,
    *,
    say: Callable[[str], None],
) -> Trainer[ViewBatch]:
    """Return what trains `fusion` on the task's images by microCLIP's views and pseudo-labels.

    `say` is told of what takes long before training.
    """
    assert task.images is not None
    knowledge = _knowledge(task, settings)
    recipe = replace(
        ViewRecipe.of(fusion.backbone, task.seed),
        weak=settings.weak_view,
        n_crops=0 if settings.pseudo_label == "single" else settings.n_crops,
        crop_scale=settings.crop_scale,
    )
    cached_prior = None
    if settings.prior == "frozen":
        say(f"encoding the frozen prior of {len(task.images)} images")
        cached_prior = _frozen_prior(task, fusion, recipe, knowledge)
        recipe = replace(recipe, n_crops=0)
    return Trainer(
        fusion,
        KnowledgeTeacher(fusion, knowledge, settings, cached_prior),
        losses,
        optimizer,
        TrainingViews(task.images, recipe, batch_size=settings.batch_size, device=task.device),
        settings=settings.model_dump(mode="json"),
        precision=task.precision,
    )


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
    return encode_prior(fusion.backbone, views.in_order(_PRIOR_BATCH), knowledge)


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


Crops = Callable[[], Float[Tensor, "batch view embedding"]]


def begun_crops(backbone: Backbone, batch: ViewBatch) -> Crops:
    """Begin to encode a batch's crops, on a GPU beside what follows; the result waits for it."""
    own = batch.crops
    return begun_beside(
        own.device, lambda: _encoded(backbone, own.flatten(0, 1)).reshape(*own.shape[:2], -1)
    )


def prior_logits(
    backbone: Backbone,
    batch: ViewBatch,
    knowledge: Float[Tensor, "classes embedding"],
    *,
    whole: Float[Tensor, "batch embedding"] | None = None,
    crops: Crops | None = None,
) -> Float[Tensor, "batch classes"]:
    """Return cosines of the crops' aggregate, or of the weak view if there are no crops."""
    if whole is None:
        whole = backbone.encode_global(batch.weak)
    if batch.crops.shape[1] == 0:
        return cosine_similarity(whole, knowledge)
    views = (crops or begun_crops(backbone, batch))()
    return cosine_similarity(aggregate_views(whole, views), knowledge)


def _encoded(
    backbone: Backbone, views: Float[Tensor, "view 3 rows columns"]
) -> Float[Tensor, "view embedding"]:
    """Return the embeddings of views, by halves and halves of halves if a GPU's memory is short."""
    try:
        return backbone.encode_global(views)
    except torch.OutOfMemoryError:
        if len(views) == 1:
            raise
    # Outside `except`, whose traceback keeps what the failed pass had allocated.
    middle = len(views) // 2
    return torch.cat([_encoded(backbone, views[:middle]), _encoded(backbone, views[middle:])])


@torch.no_grad()
@frozen_linear.packed()
def encode_prior(
    backbone: Backbone,
    batches: Iterable[ViewBatch],
    knowledge: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "image classes"]:
    """Return the frozen prior of all images, in order, on the backbone's device.

    Source: section 3.3 of the paper ("fixed CLIP prior"); one draw of crops per image.
    """
    return torch.cat([prior_logits(backbone, batch, knowledge) for batch in batches])
