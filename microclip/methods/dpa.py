"""DPA: textual and image prototypes of each class label the images together.

Paper: Ali, Silva and Khan, WACV 2025, arXiv:2408.08855. Upstream: Externalhappy/DPA, by the numbers
recorded from it. Supervision: unlabelled training images. Departs: fidelity.md#dpa.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from microclip.adaptation.feature_bank import FeatureBank
from microclip.adaptation.losses import (
    Losses,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)
from microclip.adaptation.schedules import OptimizerRecipe, cosine
from microclip.adaptation.teacher import Look, Teacher, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewBatch, ViewRecipe
from microclip.methods.base import DeclaredMethod, Task, Tracker, ViewPlan, Views, Watching
from microclip.model import frozen_linear
from microclip.model.backbone import unit_norm
from microclip.model.token_fusion import TokenFusion, cosine_similarity
from microclip.settings.methods.dpa import DECLARATION, DpaSettings

_BANK_BATCH = 64
_RANK_EPS = 1e-7  # of the released code's weights

Probabilities = Float[Tensor, "batch classes"]


class PrototypeClassifier:
    """Textual prototypes on the trained image tower; image prototypes only serve the training."""

    views = ViewPlan("image")

    def __init__(self, network: TokenFusion) -> None:
        """Classify by `network`."""
        self._network = network

    @torch.no_grad()
    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosines with the textual prototypes."""
        self._network.eval()
        return self._network.global_similarity(views.needed_images())

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return LayerNorms and textual prototypes."""
        return self._network.trained_state()


@dataclass(frozen=True, eq=False)
class DualLabels:
    """Pseudo-labels of a batch, and what they were made from.

    Attributes:
        text: probabilities by the textual prototypes.
        aligned: the same, divided by their running mean, rows summing to one.
        image: probabilities by the image prototypes.
        mix: of `aligned` and `image`; its arg max is the label.
        text_weight: probability of the label over the largest one, in `text`.
        image_weight: the same in `image`.
    """

    text: Probabilities
    aligned: Probabilities
    image: Probabilities
    mix: Probabilities
    labels: Int[Tensor, " batch"]
    text_weight: Float[Tensor, " batch"]
    image_weight: Float[Tensor, " batch"]

    @property
    def weights(self) -> Float[Tensor, " batch"]:
        """How much each label counts: 1 if both kinds of prototype rank it first."""
        return self.text_weight * self.image_weight


def dual_labels(
    text: Probabilities,
    image: Probabilities,
    *,
    mean: Float[Tensor, " classes"],
    image_share: float,
) -> DualLabels:
    """Label a batch by both kinds of prototype; `mean` is the running mean of `text`.

    Source: Externalhappy/DPA. The weights are ranks in the probabilities before the alignment.
    """
    # Where the mean has rounded to zero so has the batch that is part of it: zero, not 0 / 0.
    divided = text / mean.clamp_min(torch.finfo(mean.dtype).tiny)
    aligned = divided / divided.sum(dim=-1, keepdim=True)
    mix = image_share * image + (1 - image_share) * aligned
    labels = mix.argmax(dim=-1)
    return DualLabels(
        text=text,
        aligned=aligned,
        image=image,
        mix=mix,
        labels=labels,
        text_weight=_rank_weight(text, labels),
        image_weight=_rank_weight(image, labels),
    )


def _rank_weight(
    probabilities: Probabilities, labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    own = probabilities.gather(1, labels[:, None])[:, 0]
    return own / (probabilities.amax(dim=-1) + _RANK_EPS)


class RunningMean:
    """The mean of the last few batch means; it lasts over epochs."""

    def __init__(self, size: int) -> None:
        """Keep `size` batches."""
        self._size = size
        self._window: Tensor | None = None

    def update(self, probabilities: Probabilities) -> Float[Tensor, " classes"]:
        """Add a batch, which counts as much as any other, and return the mean."""
        own = probabilities.mean(dim=0, keepdim=True)
        known = own if self._window is None else torch.cat([self._window, own])
        self._window = known[-self._size :]
        return self._window.mean(dim=0)

    def __len__(self) -> int:
        """Return the number of batches in the window."""
        return 0 if self._window is None else len(self._window)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the window; empty before the first batch."""
        return {} if self._window is None else {"window": self._window.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        self._window = state.get("window")


class PrototypeTeacher(Teacher[ViewBatch]):
    """Labels weak views by both kinds of prototype, and keeps features and labels in a bank."""

    def __init__(
        self,
        network: TokenFusion,
        settings: DpaSettings,
        weak_views: Callable[[], Iterable[ViewBatch]],
    ) -> None:
        """Teach with `network` itself; `weak_views` gives all images once, in order."""
        self._network = network
        self._settings = settings
        self._weak_views = weak_views
        self._window = RunningMean(settings.window)
        self._bank: FeatureBank | None = None
        self._prototypes: Tensor | None = None

    @property
    def bank(self) -> FeatureBank:
        """The features and labels last seen of each image."""
        assert self._bank is not None, "the bank is filled before the first epoch"
        return self._bank

    @property
    def prototypes(self) -> Float[Tensor, "classes embedding"]:
        """The image prototypes of this epoch, of unit length."""
        assert self._prototypes is not None, "the prototypes are made before the first epoch"
        return self._prototypes

    def start_epoch(self, epoch: int) -> None:
        """Fill the bank before the first epoch, by views of their own; a resumed run has it."""
        del epoch
        if self._bank is None:
            self._bank = self._filled()
            self._prototypes = self._bank.centroids(self._network.classifier.detach())

    @torch.no_grad()
    @frozen_linear.packed()
    def _filled(self) -> FeatureBank:
        """Return the bank of the untrained network; labels are those of the textual prototypes."""
        self._network.eval()
        features = torch.cat(
            [self._network.backbone.encode_global(batch.weak) for batch in self._weak_views()]
        )
        labels = cosine_similarity(features, self._network.classifier).argmax(dim=-1)
        return FeatureBank(features, labels)

    @torch.no_grad()
    @frozen_linear.packed()
    def teach(self, batch: ViewBatch, generator: torch.Generator | None = None) -> Teaching:
        """Return labels and weights of a batch, and write both to the bank."""
        del generator
        features = self._network.backbone.encode_global(batch.weak)
        found = self.label(features)
        # Before the step: the bank holds the features that the labels were made from.
        self.bank.write(batch.indices, features, found.labels)
        return Teaching(
            found.labels,
            weights=found.weights,
            parts={"text": found.text.argmax(dim=-1), "image": found.image.argmax(dim=-1)},
            measures={"label_weight": found.weights},
            look=lambda: Look(
                {
                    "confidence_text": found.text.amax(dim=-1),
                    "confidence_image": found.image.amax(dim=-1),
                    "confidence_mix": found.mix.amax(dim=-1),
                }
            ),
        )

    def label(self, features: Float[Tensor, "batch embedding"]) -> DualLabels:
        """Label a batch; this moves the running mean."""
        text = self._probabilities(features, self._network.classifier)
        return dual_labels(
            text,
            self._probabilities(features, self.prototypes),
            mean=self._window.update(text),
            image_share=self._settings.image_share,
        )

    def _probabilities(
        self, features: Float[Tensor, "batch embedding"], vectors: Float[Tensor, "classes e"]
    ) -> Probabilities:
        logits = self._settings.temperature * cosine_similarity(features, vectors).float()
        return logits.softmax(dim=-1)

    def end_epoch(self, epoch: int) -> None:
        """Take new image prototypes from the bank."""
        del epoch
        self._prototypes = self.bank.centroids(self._network.classifier.detach())

    def state_dict(self) -> dict[str, Tensor]:
        """Return bank, prototypes and running mean."""
        bank = {f"bank_{name}": value for name, value in self.bank.state_dict().items()}
        return {**bank, "prototypes": self.prototypes, **self._window.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        self._bank = FeatureBank(state["bank_features"], state["bank_labels"])
        self._prototypes = state["prototypes"]
        self._window.load_state_dict(state)


class PrototypeLosses(Losses[ViewBatch]):
    """Weighted cross-entropy and class balance on strong views, and alignment of the prototypes.

    Source: Externalhappy/DPA.
    """

    def __init__(
        self, network: TokenFusion, settings: DpaSettings, teacher: PrototypeTeacher
    ) -> None:
        """Train `network`; the image prototypes are the teacher's."""
        self._network = network
        self._settings = settings
        self._teacher = teacher

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms "ce", "fairness" and "align", each times its factor."""
        del generator
        assert batch.strong is not None
        assert teaching.labels is not None
        settings, network = self._settings, self._network
        logits = network.global_similarity(batch.strong)
        mean = mean_probabilities(logits, settings.temperature)
        align = alignment_loss(
            self._teacher.prototypes, network.classifier, settings.alignment_scale
        )
        return {
            "ce": self_training_loss(
                logits, teaching.labels, settings.temperature, weights=teaching.weights
            ),
            "fairness": settings.balance * fairness_loss(mean, factor=1),
            "align": settings.alignment * align,
        }


def alignment_loss(
    images: Float[Tensor, "classes embedding"],
    texts: Float[Tensor, "classes embedding"],
    scale: float,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of telling each image prototype's class by the textual ones.

    `images` have unit length and no gradient; `texts` are normalised here.

    Source: Externalhappy/DPA.
    """
    # Float32 under autocast: for a large scale the loss is a difference of nearly equal numbers.
    with torch.autocast(device_type=images.device.type, enabled=False):
        cosines = images.float() @ unit_norm(texts).T
        own = torch.arange(len(images), device=images.device)
        return functional.cross_entropy(scale * cosines, own)


class Dpa(DeclaredMethod[DpaSettings]):
    """DPA."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: DpaSettings, tracker: Tracker) -> PrototypeClassifier:
        """Return the classifier, trained on the task's unlabelled images."""
        if task.images is None:
            raise ValueError("dpa trains on images, got none; give the training images")
        network = _network(task, settings)
        recipe = ViewRecipe.of(network.backbone, task.seed)
        views = TrainingViews(
            task.images, recipe, batch_size=settings.batch_size, device=task.device
        )
        teacher = PrototypeTeacher(network, settings, lambda: views.in_order(_BANK_BATCH))
        trainer = Trainer(
            network,
            teacher,
            PrototypeLosses(network, settings, teacher),
            optimizer_recipe(settings),
            views,
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = PrototypeClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: DpaSettings, state: Mapping[str, Tensor]
    ) -> PrototypeClassifier:
        """Return the classifier with trained tensors put back."""
        network = _network(task, settings)
        network.load_trained_state(dict(state))
        return PrototypeClassifier(network)


METHOD = Dpa()


def optimizer_recipe(settings: DpaSettings) -> OptimizerRecipe:
    """Return how the trained tensors move; with a rate below the floor the schedule rises."""
    floor = 2 * settings.min_learning_rate  # the released code doubles it
    return OptimizerRecipe(
        schedule=cosine(settings.learning_rate, floor),
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        decay="weights",
    )


def _network(task: Task, settings: DpaSettings) -> TokenFusion:
    """Return the network before training. It changes the task's backbone in place."""
    if task.backbone is None:
        raise ValueError("dpa trains the backbone, got none; give one to the task")
    is_described = settings.initial_classifier == "descriptions"
    start = task.texts.uniform if is_described else task.texts.templates
    return TokenFusion(task.backbone, start, train_head="cls")
