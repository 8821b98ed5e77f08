"""POUF: image embeddings are transported to the class vectors; no pseudo-labels.

Paper: Tanwisuth et al., ICML 2023, arXiv:2305.00350. Upstream: korawat-tanwisuth/POUF, by the
numbers recorded from it. Supervision: unlabelled training images. Departs: fidelity.md#pouf.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microclip.adaptation.losses import Losses, prediction_entropies, transport
from microclip.adaptation.schedules import OptimizerRecipe, cosine, inverse_power
from microclip.adaptation.teacher import Teacher, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewBatch, augmented
from microclip.methods.base import DeclaredMethod, Task, Tracker, ViewPlan, Views, Watching
from microclip.model.backbone import Backbone
from microclip.model.prompts import ClassPrompts, class_prompts, plain_prompts, word_embeddings
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import Remembered, TrainedModule
from microclip.settings.methods.pouf import DECLARATION, PoufSettings

_CONTEXT, _SCALE = "context", "logit_scale"


class AlignedTowers(TrainedModule):
    """CLIP's two towers: all of it is trained, or the context of its prompts and the scale."""

    def __init__(
        self, prompts: ClassPrompts, context: Float[Tensor, "vector width"] | None = None
    ) -> None:
        """Train `context`, which is copied, and the scale; without it, the whole backbone."""
        super().__init__()
        self.prompts = prompts
        device = prompts.backbone.device
        self.context = (
            None if context is None else nn.Parameter(context.detach().clone().float().to(device))
        )
        self.freeze_the_rest()

    @property
    def backbone(self) -> Backbone:
        """Both towers."""
        return self.prompts.backbone

    @property
    def scale(self) -> Float[Tensor, ""]:
        """Factor of cosines before a softmax; trained, and never clamped."""
        scale: Tensor = self._logit_scale.exp()
        return scale

    def class_vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the unit class vectors of the present weights."""
        if self.context is not None:
            return self.prompts.encode(self.context)
        return self.prompts.encode(torch.empty(0, self.prompts.width, device=self.backbone.device))

    def image_embeddings(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch embedding"]:
        """Return unit embeddings, without gradient where the image tower is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.context is None):
            return self.backbone.encode_global(images)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return context and scale, or all of CLIP."""
        if self.context is not None:
            return {_CONTEXT: self.context, _SCALE: self._logit_scale}
        return dict(self.backbone.model.named_parameters())

    @property
    def _logit_scale(self) -> nn.Parameter:
        found = self.backbone.model.logit_scale
        assert isinstance(found, nn.Parameter)
        return found


class AlignedClassifier:
    """The towers in their present state; class vectors are encoded again when they changed."""

    def __init__(self, network: AlignedTowers) -> None:
        """Classify by `network`; with a frozen image tower, embeddings are enough."""
        self.views = ViewPlan("image" if network.context is None else "embedding")
        self._network = network
        self._class_vectors = Remembered(network, network.class_vectors)

    @torch.no_grad()
    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosine similarities."""
        if self.views.kind == "image":
            embeddings = self._network.image_embeddings(views.needed_images())
        else:
            embeddings = views.needed_embeddings()
        return cosine_similarity(embeddings, self._class_vectors())

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return context and scale, or all of CLIP."""
        return self._network.trained_state()


class NoLabels(Teacher[ViewBatch]):
    """There is nothing to teach: the loss needs no labels."""

    def teach(self, batch: ViewBatch, generator: torch.Generator) -> Teaching:
        """Return nothing to learn."""
        del batch, generator
        return Teaching()


class AlignmentLosses(Losses[ViewBatch]):
    """Transport between images and classes, and their mutual information."""

    def __init__(self, network: AlignedTowers, settings: PoufSettings) -> None:
        """Train `network`."""
        self._network = network
        self._settings = settings

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms "transport" and "information" of a batch's one view."""
        del teaching, generator
        embeddings = self._network.image_embeddings(batch.weak)
        similarity = cosine_similarity(embeddings, self._network.class_vectors())
        return alignment_terms(similarity, self._network.scale, self._settings)


def alignment_terms(
    similarity: Float[Tensor, "batch classes"], scale: Float[Tensor, ""], settings: PoufSettings
) -> dict[str, Float[Tensor, ""]]:
    """Return POUF's loss of a batch of cosines, term by term, times their factors."""
    moved = transport(similarity, scale)
    own, mean = prediction_entropies(moved.to_classes)
    return {
        "transport": settings.transport * (moved.image_cost + moved.class_cost),
        "information": settings.information * (own - mean),
    }


class Pouf(DeclaredMethod[PoufSettings]):
    """POUF."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: PoufSettings, tracker: Tracker) -> AlignedClassifier:
        """Return the towers, aligned with the task's unlabelled images.

        Raises:
            SettingsError: a prompt does not fit the text tower's context.
        """
        if task.images is None:
            raise ValueError("pouf trains on images, got none; give the training images")
        network = untrained(task, settings)
        trainer = Trainer(
            network,
            NoLabels(),
            AlignmentLosses(network, settings),
            optimizer_recipe(settings),
            TrainingViews(
                task.images,
                augmented(task.seed, network.backbone, is_squashed=True),
                batch_size=settings.batch_size,
                device=task.device,
                drop_last=settings.drop_last,
                is_strong=False,
                steps_per_epoch=settings.steps_per_epoch,
            ),
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = AlignedClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: PoufSettings, state: Mapping[str, Tensor]
    ) -> AlignedClassifier:
        """Return the towers with trained tensors put back."""
        network = untrained(task, settings)
        network.load_trained_state(dict(state))
        return AlignedClassifier(network)


METHOD = Pouf()


def optimizer_recipe(settings: PoufSettings) -> OptimizerRecipe:
    """Return how the trained tensors move: the context by its own rate, all others by theirs."""
    is_prompt = settings.mode == "prompt"
    rate = settings.prompt_learning_rate if is_prompt else settings.learning_rate
    inverse = inverse_power(rate, gamma=settings.gamma, power=settings.power)
    return OptimizerRecipe(
        schedule=inverse if settings.schedule == "inverse" else cosine(rate),
        epochs=settings.epochs,
        kind=settings.optimizer,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=True,
        factors=((_SCALE, settings.learning_rate / rate),) if is_prompt else (),
    )


def untrained(task: Task, settings: PoufSettings) -> AlignedTowers:
    """Return the network before training. It changes the task's backbone in place.

    Raises:
        SettingsError: a prompt does not fit the text tower's context.
    """
    if task.backbone is None:
        raise ValueError("pouf trains the backbone, got none; give one to the task")
    if settings.mode == "model":
        sentences = [f"{settings.words} {name}" for name in task.class_names]
        return AlignedTowers(plain_prompts(task.backbone, sentences))
    own = word_embeddings(task.backbone, settings.words)
    prompts = class_prompts(
        task.backbone, task.class_names, n_vectors=len(own), words=settings.words
    )
    return AlignedTowers(prompts, own)
