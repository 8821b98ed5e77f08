"""CLIP-LoRA: low-rank updates of attention in both towers, trained on a few labelled images.

Paper: Zanella and Ben Ayed, CVPR Workshops 2024. Upstream: MaxZanella/CLIP-LoRA@358f0d7, by the
numbers recorded from it. Supervision: few-shot. Departs: fidelity.md#clip-lora.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microclip import runtime
from microclip.adaptation.losses import CrossEntropy
from microclip.adaptation.schedules import OptimizerRecipe, cosine
from microclip.adaptation.teacher import FixedLabels
from microclip.adaptation.training import Rounds, Trainer
from microclip.data.loading import TrainingViews, augmented
from microclip.methods.base import (
    DeclaredMethod,
    Task,
    Tracker,
    ViewPlan,
    Views,
    Watching,
)
from microclip.methods.few_shot import labelled
from microclip.model.backbone import Backbone, unit_norm
from microclip.model.lora import InputDropout, LowRank, LowRankOptions, attach, placed_layers
from microclip.model.prompts import check_fit, check_text_tower, embed_tokens, encode_embedded
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import Remembered, TrainedModule
from microclip.settings.base import SettingsError
from microclip.settings.methods.clip_lora import DECLARATION, ClipLoraSettings
from microclip.text.prompts import fill


class LowRankClip(TrainedModule):
    """CLIP with low-rank updates in the attention of its towers, and the prompts of all classes."""

    tokens: Int[Tensor, "classes token"]

    def __init__(
        self,
        backbone: Backbone,
        tokens: Int[Tensor, "classes context"],
        settings: ClipLoraSettings,
        generator: torch.Generator,
    ) -> None:
        """Attach updates, which change nothing yet, to `backbone` itself.

        Raises:
            SettingsError: no block of a tower is at the chosen position.
            ValueError: the text tower is not CLIP's own.
        """
        super().__init__()
        check_text_tower(backbone)
        self.backbone = backbone
        self.encoder = settings.encoder
        # The tower is causal: what follows the last end-of-text token cannot change a class.
        length = int(tokens.argmax(dim=-1).max()) + 1
        self.register_buffer("tokens", tokens[:, :length].to(backbone.device), persistent=False)
        self.dropout = InputDropout(settings.dropout)
        self._trained: dict[str, nn.Parameter] = {}
        for tower, blocks in self._towers().items():
            self._attach(tower, blocks, settings, generator)
        self.freeze_the_rest()
        self._class_vectors = Remembered(self, self.class_vectors)

    def class_vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the unit vectors of the classes' prompts, by the text tower as it is now."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder != "vision"):
            embedded = embed_tokens(self.backbone, self.tokens)
            ends = self.tokens.argmax(dim=-1)
            return unit_norm(encode_embedded(self.backbone, embedded, ends))

    def similarity(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the cosines of normalised images with all classes."""
        vectors = self.class_vectors()  # first, as in the official code: dropout draws in order
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder != "text"):
            embeddings = self.backbone.encode_global(images)
        return cosine_similarity(embeddings, vectors)

    @torch.no_grad()
    def predict(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the cosines for a test; the prompts are encoded once for each state."""
        self.eval()
        return cosine_similarity(self.backbone.encode_global(images), self._class_vectors())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the matrix pairs of all updates, as "text.0.q.down" and "text.0.q.up"."""
        return self._trained

    def _towers(self) -> dict[str, Sequence[Any]]:
        """The blocks of the towers with updates; the text tower is the first."""
        model: Any = self.backbone.model
        towers = {
            "text": model.transformer.resblocks,
            "visual": self.backbone.visual.transformer.resblocks,
        }
        left_out = {"vision": "text", "text": "visual"}.get(self.encoder)
        return {name: list(blocks) for name, blocks in towers.items() if name != left_out}

    def _attach(
        self,
        tower: str,
        blocks: Sequence[Any],
        settings: ClipLoraSettings,
        generator: torch.Generator,
    ) -> None:
        try:
            layers = placed_layers(settings.position, len(blocks))
        except ValueError as error:
            raise SettingsError(f"the {tower} tower: {error}") from error
        options = LowRankOptions(
            rank=settings.rank,
            alpha=settings.alpha,
            scaling=settings.scaling,
            dropout=settings.dropout,
            maps=settings.maps,
        )
        for layer in layers:
            attention = blocks[layer].attn
            width = attention.in_proj_weight.shape[1]
            update = LowRank(width, options, self.dropout, generator).to(self.backbone.device)
            attach(attention, update)
            for name in settings.maps:
                self._trained[f"{tower}.{layer}.{name}.down"] = update.down[name]
                self._trained[f"{tower}.{layer}.{name}.up"] = update.up[name]


class LowRankClassifier:
    """A LowRankClip in its present state, on whole images."""

    views = ViewPlan("image")

    def __init__(self, network: LowRankClip) -> None:
        """Classify by `network`."""
        self._network = network

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return cosine similarities."""
        return self._network.predict(views.needed_images())

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the matrix pairs."""
        return self._network.trained_state()


class AdaptedCrossEntropy(CrossEntropy):
    """Cross-entropy on the training view, with dropout masks that depend on seed and epoch."""

    def __init__(self, network: LowRankClip, settings: ClipLoraSettings, seed: int) -> None:
        """Train `network`."""
        super().__init__(network.similarity, settings.temperature)
        self._network = network
        self._seed = seed

    def start_epoch(self, epoch: int) -> None:
        """Seed the masks, so that a resumed run draws the same ones."""
        device = self._network.backbone.device
        generator = runtime.generator(self._seed, "dropout", epoch, device=str(device))
        self._network.dropout.generator = generator


class ClipLora(DeclaredMethod[ClipLoraSettings]):
    """CLIP-LoRA."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: ClipLoraSettings, tracker: Tracker) -> LowRankClassifier:
        """Return CLIP with updates that were trained on the task's labelled images.

        Raises:
            SettingsError: no block of a tower is at the chosen position.
        """
        images, labels = labelled(task, settings.shots, tracker)
        network = _network(task, settings)
        views = TrainingViews(
            images,
            augmented(task.seed, network.backbone),
            batch_size=settings.batch_size,
            device=task.device,
            is_strong=False,
        )
        trainer = Trainer(
            network,
            FixedLabels(labels),
            AdaptedCrossEntropy(network, settings, task.seed),
            optimizer_recipe(settings),
            views if settings.steps is None else Rounds.of(views, settings.steps, settings.rounds),
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = LowRankClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: ClipLoraSettings, state: Mapping[str, Tensor]
    ) -> LowRankClassifier:
        """Return CLIP with trained updates put back."""
        network = _network(task, settings)
        network.load_trained_state(dict(state))
        return LowRankClassifier(network)


METHOD = ClipLora()


def optimizer_recipe(settings: ClipLoraSettings) -> OptimizerRecipe:
    """Return how the updates are trained."""
    return OptimizerRecipe(
        schedule=cosine(settings.learning_rate, settings.min_learning_rate),
        epochs=settings.epochs or 0,
        steps=settings.steps,
        weight_decay=settings.weight_decay,
    )


def _network(task: Task, settings: ClipLoraSettings) -> LowRankClip:
    """Return the network before training. It changes the task's backbone in place."""
    if task.backbone is None:
        raise ValueError("clip_lora trains the backbone, got none; give one to the task")
    prompts = [own[0] for own in fill([settings.template], task.class_names)]
    check_fit(task.backbone, prompts, "template")
    tokens = task.backbone.tokenize(prompts)
    generator = runtime.generator(task.seed, "low-rank")
    return LowRankClip(task.backbone, tokens, settings, generator)
