"""LaFTer: a head trained on sentences labels images for a tower with prompt tokens.

Paper: Mirza et al., NeurIPS 2023, arXiv:2305.18287. Upstream: jmiemirza/LaFTer, by the numbers
recorded from it. Supervision: unlabelled training images. Departs: fidelity.md#lafter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microclip import runtime
from microclip.adaptation.checkpoint import state_hash
from microclip.adaptation.losses import Losses, smoothed_cross_entropy
from microclip.adaptation.schedules import OptimizerRecipe, constant, cosine
from microclip.adaptation.teacher import FixedLabels, Teacher, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, ViewBatch, ViewRecipe
from microclip.methods.base import (
    DeclaredMethod,
    Silence,
    Task,
    Tracker,
    ViewPlan,
    Views,
    Watching,
)
from microclip.model import frozen_linear, sentences
from microclip.model.backbone import Backbone, unit_norm
from microclip.model.prompts import encode_prompted_images
from microclip.model.trained import TrainedModule
from microclip.settings.base import SettingsError
from microclip.settings.methods.lafter import DECLARATION, LafterSettings
from microclip.text.prompts import fill

_BOUND_PATCH = 16  # px; in the bound of the first prompt tokens, whatever the tower's patch is
_TEXT_FOLDER = "text"  # of the head's checkpoint, below that of the images


def scores(
    embeddings: Float[Tensor, "batch embedding"], head: Float[Tensor, "classes embedding"]
) -> Float[Tensor, "batch classes"]:
    """Return dot products with the rows of a head, in float32 under autocast too."""
    with torch.autocast(device_type=embeddings.device.type, enabled=False):
        return functional.linear(embeddings, head)


class TextHead(TrainedModule):
    """A linear head without bias; it is trained on sentences, and then teaches as it is."""

    def __init__(self, weight: Float[Tensor, "classes embedding"]) -> None:
        """Start from `weight`, which is copied."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the head."""
        return {"classifier": self.weight}


class PromptedTower(TrainedModule):
    """The student: a CLIP image tower with prompt tokens, trained LayerNorms and a trained head."""

    def __init__(
        self,
        backbone: Backbone,
        prompt: Float[Tensor, "prompt width"],
        head: Float[Tensor, "classes embedding"],
    ) -> None:
        """Start from `prompt` and `head`, which are copied; the backbone is changed in place."""
        super().__init__()
        self.backbone = backbone
        self.prompt = nn.Parameter(prompt.detach().clone().to(backbone.device))
        self.head = nn.Parameter(head.detach().clone().to(backbone.device))
        self.freeze_the_rest()

    def embeddings(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch embedding"]:
        """Return projected class tokens, not normalised."""
        return encode_prompted_images(self.backbone, images, [self.prompt], is_normed=False)

    def forward(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the head's scores, without a scale."""
        return scores(self.embeddings(images), self.head)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return prompt tokens, LayerNorms of the image tower, and head."""
        norms = {f"visual.{name}": each for name, each in self.backbone.layer_norms().items()}
        return {"prompt": self.prompt, **norms, "classifier": self.head}


class PromptedClassifier:
    """The student in its present state."""

    views = ViewPlan("image")

    def __init__(self, network: PromptedTower) -> None:
        """Classify by `network`."""
        self._network = network

    @torch.no_grad()
    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return the scores of unit embeddings over the longest row of the head.

        This changes no prediction: it makes the scores at most 1, and cosines if all rows have one
        length.
        """
        images, head = views.needed_images(), self._network.head
        longest = head.norm(dim=-1).max().clamp_min(torch.finfo(head.dtype).tiny)
        return scores(unit_norm(self._network.embeddings(images)), head / longest)

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return prompt tokens, LayerNorms and head."""
        return self._network.trained_state()


@dataclass(frozen=True, eq=False)
class SentenceBatch:
    """All sentences."""

    indices: Int[Tensor, " sentence"]  # on the CPU
    embeddings: Float[Tensor, "sentence embedding"]  # unit norm


class Sentences:
    """Batches for the head: one epoch of steps, each with all sentences."""

    def __init__(
        self, embeddings: Float[Tensor, "sentence embedding"], *, n_steps: int, seed: int
    ) -> None:
        """Show `embeddings`, of unit norm, `n_steps` times."""
        self._batch = SentenceBatch(torch.arange(len(embeddings)), embeddings)
        self.n_batches = n_steps
        self.seed = seed

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self._batch.embeddings.device

    def identity(self) -> dict[str, object]:
        """Return the sentences' hash and the number of steps."""
        own = state_hash({"embeddings": self._batch.embeddings})
        return {"sentences": own, "n_steps": self.n_batches}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[SentenceBatch]:
        """Yield the steps of some epochs."""
        for _ in range((last_epoch - first_epoch + 1) * self.n_batches):
            yield self._batch


class SentenceLosses(Losses[SentenceBatch]):
    """Smoothed cross-entropy of noisy sentences."""

    def __init__(self, head: TextHead, settings: LafterSettings) -> None:
        """Train `head`."""
        self._head = head
        self._settings = settings

    def noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the noise of a step; what it is added to is not normalised afterwards."""
        drawn = torch.randn(like.shape, generator=generator)
        return (self._settings.text_noise * drawn).to(like.device)

    def terms(
        self, batch: SentenceBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms "nll" and "smooth"."""
        noisy = batch.embeddings + self.noise(batch.embeddings, generator)
        return smoothed_terms(scores(noisy, self._head.weight), teaching, self._settings)


class HeadTeacher(Teacher[ViewBatch]):
    """The head as trained on sentences, on the tower without prompt tokens.

    The tower is the student's: its LayerNorms change while the student is trained.
    """

    def __init__(self, backbone: Backbone, head: Float[Tensor, "classes embedding"]) -> None:
        """Teach with a copy of `head`."""
        self._backbone = backbone
        self._head = head.detach().clone().to(backbone.device)

    @torch.no_grad()
    @frozen_linear.packed()
    def scores(self, images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch _"]:
        """Return the head's scores of unit embeddings."""
        return scores(self._backbone.encode_global(images), self._head)

    def teach(self, batch: ViewBatch, generator: torch.Generator) -> Teaching:
        """Return the arg max for the center view."""
        del generator
        return Teaching(self.scores(batch.weak).argmax(dim=-1))


class StudentLosses(Losses[ViewBatch]):
    """Smoothed cross-entropy of the strong view."""

    def __init__(self, network: PromptedTower, settings: LafterSettings) -> None:
        """Train `network`."""
        self._network = network
        self._settings = settings

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms "nll" and "smooth"."""
        del generator
        assert batch.strong is not None
        return smoothed_terms(self._network(batch.strong), teaching, self._settings)


def smoothed_terms(
    logits: Float[Tensor, "batch classes"], teaching: Teaching, settings: LafterSettings
) -> dict[str, Float[Tensor, ""]]:
    """Return the two parts of the smoothed cross-entropy, times their shares."""
    assert teaching.labels is not None
    own, smooth = smoothed_cross_entropy(logits, teaching.labels)
    share = settings.label_smoothing
    return {"nll": (1 - share) * own.mean(), "smooth": share * smooth.mean()}


class TextWatcher(Silence):
    """Shows lines of the head's training, which has no row in the history."""

    def __init__(self, tracker: Tracker) -> None:
        """Show them by `tracker`."""
        self._tracker = tracker

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        """Nothing is guessed: a sentence's class is known."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Show the loss."""
        if epoch:
            self._tracker.message(f"text head trained, mean loss {row['loss']:.3f}")


class Lafter(DeclaredMethod[LafterSettings]):
    """LaFTer."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: LafterSettings, tracker: Tracker) -> PromptedClassifier:
        """Return the student, trained on the task's unlabelled images.

        Raises:
            SettingsError: a class has no sentence.
            ValueError: the task has no images or no backbone.
        """
        if task.images is None:
            raise ValueError("lafter trains on images, got none; give the training images")
        head = trained_head(task, settings, tracker)
        network = _student(task, settings, head)
        backbone = network.backbone
        recipe = replace(ViewRecipe.of(backbone, task.seed), weak="center", strong="simsiam")
        trainer = Trainer(
            network,
            HeadTeacher(backbone, head),
            StudentLosses(network, settings),
            image_recipe(settings),
            TrainingViews(
                task.images,
                recipe,
                batch_size=settings.batch_size,
                device=task.device,
                drop_last=settings.drop_last,
            ),
            settings=settings.model_dump(mode="json"),
            precision=task.precision,
        )
        classifier = PromptedClassifier(network)
        trainer.train(Watching(task, tracker, classifier), task.checkpoints)
        return classifier

    def restore(
        self, task: Task, settings: LafterSettings, state: Mapping[str, Tensor]
    ) -> PromptedClassifier:
        """Return the student with trained tensors put back."""
        network = _student(task, settings, initial_head(task))
        network.load_trained_state(dict(state))
        return PromptedClassifier(network)


METHOD = Lafter()


def text_recipe(settings: LafterSettings) -> OptimizerRecipe:
    """Return how the head moves on sentences."""
    return _recipe(settings, epochs=1, rate=settings.text_learning_rate)


def image_recipe(settings: LafterSettings) -> OptimizerRecipe:
    """Return how the student moves on images."""
    rate, is_cosine = settings.learning_rate, settings.schedule == "cosine"
    return _recipe(settings, epochs=settings.epochs, rate=rate, is_cosine=is_cosine)


def _recipe(
    settings: LafterSettings, *, epochs: int, rate: float, is_cosine: bool = False
) -> OptimizerRecipe:
    return OptimizerRecipe(
        schedule=cosine(rate) if is_cosine else constant(rate),
        epochs=epochs,
        weight_decay=settings.weight_decay,
        decay="weights",
    )


def labelled_sentences(
    descriptions: Sequence[Sequence[str]], filled: Sequence[Sequence[str]]
) -> tuple[list[str], list[int]]:
    """Return all sentences and their classes: descriptions class by class, then templates.

    Source: jmiemirza/LaFTer.
    """
    pairs = [
        (text, label)
        for part in (descriptions, filled)
        for label, own in enumerate(part)
        for text in own
    ]
    return [text for text, _ in pairs], [label for _, label in pairs]


def trained_head(
    task: Task, settings: LafterSettings, tracker: Tracker
) -> Float[Tensor, "classes embedding"]:
    """Return the head, trained on the task's sentences.

    Raises:
        SettingsError: a class has no sentence.
        ValueError: the task has no backbone.
    """
    backbone = _backbone(task)
    texts, labels = _texts(task, settings)
    empty = sorted(set(range(len(task.class_names))) - set(labels))
    if empty:
        raise SettingsError(
            f"expected a sentence for each class, got none for {task.class_names[empty[0]]!r} "
            f"({len(empty)} such classes); give descriptions or templates"
        )
    tracker.message(f"training the text head on {len(texts)} sentences")
    encoded = sentences.encode(backbone, texts, task.sentence_store)
    embeddings = unit_norm(encoded.raw).to(task.device)
    head = TextHead(initial_head(task).to(task.device))
    trainer = Trainer(
        head,
        FixedLabels(torch.tensor(labels, device=task.device)),
        SentenceLosses(head, settings),
        text_recipe(settings),
        Sentences(embeddings, n_steps=settings.text_steps, seed=task.seed),
        settings={**settings.model_dump(mode="json"), "labels": labels},
    )
    folder: Path | None = None if task.checkpoints is None else task.checkpoints / _TEXT_FOLDER
    trainer.train(TextWatcher(tracker), folder)
    return head.weight.detach()


def _texts(task: Task, settings: LafterSettings) -> tuple[list[str], list[int]]:
    """Return what the head is trained on."""
    names = task.class_names
    match settings.texts:
        case "all":
            return labelled_sentences(task.sentences, fill(task.templates, names))
        case "names":
            return labelled_sentences((), fill(("{}",), names))
        case "photo":
            return labelled_sentences((), fill(("a photo of a {}",), names))


def initial_head(task: Task) -> Float[Tensor, "classes embedding"]:
    """Draw a head as torch draws a linear layer's: evenly within 1 / sqrt(embedding)."""
    size = _backbone(task).embedding_dim
    return _even(
        (len(task.class_names), size), 1 / math.sqrt(size), runtime.generator(task.seed, "head")
    )


def initial_prompt(
    width: int, n_prompts: int, *, generator: torch.Generator
) -> Float[Tensor, "prompt width"]:
    """Draw prompt tokens, evenly within sqrt(6 / (3 * 16 * 16 + width)).

    Source: jmiemirza/LaFTer, which has 16 there for all patches.
    """
    return _even((n_prompts, width), prompt_bound(width), generator)


def prompt_bound(width: int) -> float:
    """Return the largest absolute value of a first prompt token."""
    return math.sqrt(6 / (3 * _BOUND_PATCH**2 + width))


def _even(shape: tuple[int, int], bound: float, generator: torch.Generator) -> Tensor:
    return bound * (2 * torch.rand(shape, generator=generator) - 1)


def _student(
    task: Task, settings: LafterSettings, head: Float[Tensor, "classes embedding"]
) -> PromptedTower:
    """Return the student before training. It changes the task's backbone in place."""
    backbone, generator = _backbone(task), runtime.generator(task.seed, "prompt")
    prompt = initial_prompt(backbone.width, settings.n_prompts, generator=generator)
    return PromptedTower(backbone, prompt, head)


def _backbone(task: Task) -> Backbone:
    if task.backbone is None:
        raise ValueError("lafter trains the backbone, got none; give one to the task")
    return task.backbone
