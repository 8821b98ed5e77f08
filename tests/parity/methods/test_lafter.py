"""LaFTer against numbers recorded from its official code; see methods/README-pouf-lafter.md.

Both stages go through the trainer, with our losses, teacher, optimiser and classifier; only
batches, noise and first tensors are the recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from microclip.adaptation.losses import smoothed_cross_entropy
from microclip.adaptation.schedules import Position
from microclip.adaptation.teacher import FixedLabels, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import ViewBatch
from microclip.data.views import by_matrices, whole_window
from microclip.methods.base import Silence, Views
from microclip.methods.lafter import (
    HeadTeacher,
    PromptedClassifier,
    PromptedTower,
    SentenceBatch,
    SentenceLosses,
    Sentences,
    StudentLosses,
    TextHead,
    image_recipe,
    initial_prompt,
    labelled_sentences,
    prompt_bound,
    scores,
    smoothed_terms,
    text_recipe,
)
from microclip.model.backbone import Backbone
from microclip.settings import load_method_file
from microclip.settings.methods.lafter import LafterSettings
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, build_backbone, normalised

ARRAYS = MethodArrays("lafter")
RATES = {"": 5e-4, "fast_": 5e-3}
EPOCHS, STEPS = 2, 2
variants = pytest.mark.parametrize("variant", RATES)


def key(name: str) -> str:
    return ARRAYS.key(name)


def settings_of(variant: str) -> LafterSettings:
    """Return our settings of a recorded run: the official ones, but for the number of steps."""
    given = load_method_file("lafter").settings
    rate = RATES[variant]
    own = {"text_steps": 5, "epochs": EPOCHS, "text_learning_rate": rate, "learning_rate": rate}
    return LafterSettings.model_validate({**given, **own})


def name_of(ours: str) -> str:
    """Return the recorded name of a trained tensor."""
    return "prompt_embeddings" if ours == "prompt" else ours


@dataclass
class AfterSteps:
    """What each step left behind: gradients, weights, learning rate."""

    trained: dict[str, nn.Parameter]
    optimizer: Any = None
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def look(self) -> None:
        self.gradients.append(
            {n: p.grad.clone() for n, p in self.trained.items() if p.grad is not None}
        )
        self.weights.append({n: p.detach().clone() for n, p in self.trained.items()})
        rates = {group["lr"] for group in self.optimizer.param_groups}
        assert len(rates) == 1
        self.rates += rates


class RecordedSentences(Sentences):
    """All sentences at each step."""

    after: AfterSteps

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[SentenceBatch]:
        for batch in super().batches(first_epoch, last_epoch):
            yield batch
            self.after.look()
        yield batch


class TextLosses(SentenceLosses):
    """Our losses with the recorded noise; they also keep logits and loss."""

    def __init__(self, head: TextHead, settings: LafterSettings) -> None:
        super().__init__(head, settings)
        self.head = head
        self.loss: list[Tensor] = []
        self.logits: list[Tensor] = []

    def noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = ARRAYS["noise"][len(self.logits)]
        assert drawn.shape == like.shape
        return drawn

    def terms(self, batch: SentenceBatch, *others: Any) -> dict[str, Tensor]:
        noisy = batch.embeddings + ARRAYS["noise"][len(self.logits)]
        found = super().terms(batch, *others)
        self.logits.append(scores(noisy, self.head.weight).detach())
        self.loss.append(sum(found.values(), torch.zeros(())).detach())
        return found


@dataclass
class Images:
    """The recorded batches."""

    after: AfterSteps
    n_items: int = 13
    n_batches: int = STEPS
    seed: int = 0
    device: torch.device = torch.device("cpu")

    def identity(self) -> dict[str, object]:
        return {}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[ViewBatch]:
        assert (first_epoch, last_epoch) == (1, EPOCHS)
        for weak, strong in zip(ARRAYS["q_u8"], ARRAYS["k_u8"], strict=True):
            views = normalised(weak, "a"), normalised(strong, "a")
            yield ViewBatch(torch.arange(6), views[0], torch.empty(0), views[1])
            self.after.look()
        yield ViewBatch(torch.arange(6), views[0], torch.empty(0), views[1])


class Student(StudentLosses):
    """Our losses, which also keep what they saw."""

    def __init__(self, network: PromptedTower, settings: LafterSettings) -> None:
        super().__init__(network, settings)
        self.network = network
        self.labels: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.terms_seen: list[dict[str, Tensor]] = []

    def terms(self, batch: ViewBatch, teaching: Teaching, *others: Any) -> dict[str, Tensor]:
        assert teaching.labels is not None
        assert batch.strong is not None
        self.labels.append(teaching.labels)
        self.logits.append(self.network(batch.strong).detach())
        found = super().terms(batch, teaching, *others)
        self.terms_seen.append({name: term.detach() for name, term in found.items()})
        return found


class KeepingTeacher(HeadTeacher):
    """Our teacher, which also keeps its scores."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.seen: list[Tensor] = []

    def scores(self, images: Tensor) -> Tensor:
        found = super().scores(images)
        self.seen.append(found)
        return found


class Watch(Silence):
    """Classifies the test images after each epoch."""

    def __init__(self, network: PromptedTower, after: AfterSteps) -> None:
        self.network, self.after = network, after
        self.raw: list[Tensor] = []
        self.predicted: list[Tensor] = []

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        assert set(guesses) == {"mix"}

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        if epoch == 0:
            return
        if epoch == EPOCHS:
            self.after.look()  # no batch follows the last step
        images = normalised(ARRAYS["eval_u8"], "a")
        with torch.no_grad():
            self.raw.append(self.network(images))
        logits = PromptedClassifier(self.network).logits(Views(images=images))
        self.predicted.append(logits.argmax(dim=-1))


@dataclass
class Run:
    """Both stages, made again."""

    text: TextLosses
    text_after: AfterSteps
    head: Tensor
    network: PromptedTower
    teacher: KeepingTeacher
    student: Student
    after: AfterSteps
    watch: Watch


class TextWatch(Silence):
    """Looks at the last step of the head."""

    def __init__(self, after: AfterSteps) -> None:
        self.after = after

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        pass

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        if epoch:
            self.after.look()


def text_embeddings(backbone: Backbone) -> Tensor:
    return backbone.encode_tokens(ARRAYS["text_tokens"])


@cache
def run_of(variant: str) -> Run:
    """Make a recorded run again, through the trainer."""
    settings, backbone = settings_of(variant), build_backbone("a")
    head = TextHead(ARRAYS["classifier_init"])
    text = TextLosses(head, settings)
    batches = RecordedSentences(text_embeddings(backbone), n_steps=settings.text_steps, seed=0)
    batches.after = AfterSteps(head.trained_parameters())
    labels = FixedLabels(ARRAYS["text_labels"])
    first = Trainer(head, labels, text, text_recipe(settings), batches, settings={})
    batches.after.optimizer = first._optimizer
    first.train(TextWatch(batches.after))

    found = head.weight.detach()
    network = PromptedTower(backbone, ARRAYS["prompt_init"][0], found)
    teacher, student = KeepingTeacher(backbone, found), Student(network, settings)
    after = AfterSteps(network.trained_parameters())
    second = Trainer(network, teacher, student, image_recipe(settings), Images(after), settings={})
    after.optimizer = second._optimizer
    watch = Watch(network, after)
    second.train(watch)
    return Run(text, batches.after, found, network, teacher, student, after, watch)


def test_sentences_are_encoded_and_ordered_as_recorded(compare: Comparison) -> None:
    ours = text_embeddings(build_backbone("a"))
    compare.relative(key("text_embeddings"), ours, ARRAYS["text_embeddings"], 2e-5)
    source, classes = ARRAYS["text_source"], ARRAYS["text_labels"]
    parts = [
        [
            ["01"[kind]] * int(((source == kind) & (classes == label)).sum())
            for label in range(int(classes.max()) + 1)
        ]
        for kind in (0, 1)
    ]
    texts, labels = labelled_sentences(*parts)
    compare.exact(key("text_labels"), torch.tensor(labels), classes)
    compare.exact(key("text_source"), torch.tensor([int(text) for text in texts]), source)


@variants
def test_the_head_is_trained_as_recorded(variant: str, compare: Comparison) -> None:
    run = run_of(variant)
    heads = torch.stack([weights["classifier"] for weights in run.text_after.weights])
    gradients = torch.stack([found["classifier"] for found in run.text_after.gradients])
    for name, ours, tolerance in (
        ("s1_logits", torch.stack(run.text.logits), 2e-5),
        ("s1_loss", torch.stack(run.text.loss), 1e-5),
        ("s1_grad", gradients, 1e-4),
        ("s1_lr", torch.tensor(run.text_after.rates), 1e-6),
    ):
        compare.relative(key(variant + name), ours, ARRAYS[variant + name], tolerance)
    name = variant + "s1_classifier"
    compare.absolute(key(name), heads, ARRAYS[name], 1e-6)
    name = variant + "teacher_head"
    compare.absolute(key(name), run.teacher._head, ARRAYS[name], 1e-6)


@variants
def test_the_teacher_gives_the_recorded_labels(variant: str, compare: Comparison) -> None:
    run = run_of(variant)
    name = variant + "pseudo_logits"
    compare.relative(key(name), torch.stack(run.teacher.seen), ARRAYS[name], 2e-5)
    name = variant + "pseudo_labels"
    compare.exact(key(name), torch.stack(run.student.labels), ARRAYS[name])
    # For contrast: the same head on the tower as it was before the training.
    frozen = HeadTeacher(build_backbone("a"), run.head)
    ours = torch.stack([frozen.scores(normalised(own, "a")) for own in ARRAYS["q_u8"]])
    name = variant + "frozen_encoder_pseudo_logits"
    compare.relative(key(name), ours, ARRAYS[name], 2e-5)


@variants
def test_the_students_steps_are_the_recorded_ones(variant: str, compare: Comparison) -> None:
    run = run_of(variant)
    name = variant + "student_logits"
    compare.relative(key(name), torch.stack(run.student.logits), ARRAYS[name], 2e-5)
    seen, share = run.student.terms_seen, settings_of(variant).label_smoothing
    for name, ours in (
        ("nll", [terms["nll"] / (1 - share) for terms in seen]),
        ("smooth", [terms["smooth"] / share for terms in seen]),
        ("loss", [terms["nll"] + terms["smooth"] for terms in seen]),
        ("lr", [torch.tensor(rate) for rate in run.after.rates]),
    ):
        compare.relative(key(variant + name), torch.stack(ours), ARRAYS[variant + name], 1e-5)
    trained = list(run.network.trained_parameters())
    theirs = ARRAYS[variant + "grad_l2"]
    for step, gradients in enumerate(run.after.gradients):
        ratio = torch.stack([gradients[each].norm() for each in trained]) / theirs[step]
        compare.absolute(key(variant + "grad_l2"), ratio, torch.ones_like(ratio), 1e-4)
    heads = torch.stack([weights["classifier"] for weights in run.after.weights])
    name = variant + "classifier_steps"
    compare.absolute(key(name), heads, ARRAYS[name], 1e-6)


@variants
def test_all_tensors_end_as_recorded(variant: str, compare: Comparison) -> None:
    run = run_of(variant)
    for ours, value in run.after.weights[-1].items():
        name = f"{variant}final.{name_of(ours)}"
        if ours == "prompt":
            own = {"": 1e-6, "fast_": 2e-5}[variant]
            compare.absolute(key(name), value[None], ARRAYS[name], own)
        else:
            own = 1e-6 if ours == "classifier" else 3e-6
            compare.absolute(key(name), value, ARRAYS[name], own)
    start = build_backbone("a").state_dict()
    for name, value in run.network.backbone.state_dict().items():
        is_trained = name.removeprefix("model.") in run.network.trained_parameters()
        assert is_trained or torch.equal(value, start[name]), name


def test_the_first_gradients_are_the_recorded_ones(compare: Comparison) -> None:
    run = run_of("")
    for ours, value in run.after.gradients[0].items():
        name = f"grad0.{name_of(ours)}"
        theirs = ARRAYS[name]
        compare.relative(key(name), value[None] if ours == "prompt" else value, theirs, 1e-4)
    n_trained = torch.tensor(sum(p.numel() for p in run.network.parameters() if p.requires_grad))
    compare.exact(key("trainable_scalars"), n_trained, ARRAYS["trainable_scalars"])


@variants
def test_classification_after_each_epoch_is_the_recorded_one(
    variant: str, compare: Comparison
) -> None:
    watch = run_of(variant).watch
    name = variant + "eval_logits"
    compare.relative(key(name), torch.stack(watch.raw), ARRAYS[name], 2e-5)
    labels = ARRAYS[variant + "eval_labels"]
    accuracy = torch.stack([100 * (own == labels).float().mean() for own in watch.predicted])
    name = variant + "epoch_accuracy"
    compare.absolute(key(name), accuracy, ARRAYS[name], 1e-3)
    name = variant + "reported_accuracy"  # the official report is the best epoch's
    compare.absolute(key(name), accuracy.max(), ARRAYS[name], 1e-3)


def test_the_rate_never_falls(compare: Comparison) -> None:
    recipe = image_recipe(settings_of(""))
    ours = [recipe.schedule(Position(step, step + 1, 60, 60)) for step in range(60)]
    compare.relative(key("schedule_60"), torch.tensor(ours), ARRAYS["schedule_60"], 1e-6)


def test_the_smoothed_loss_is_the_recorded_one(compare: Comparison) -> None:
    settings = settings_of("")
    logits = ARRAYS["smooth_logits"].clone().requires_grad_()
    targets = ARRAYS["smooth_targets"]
    own, smooth = smoothed_cross_entropy(logits, targets)
    share = settings.label_smoothing
    each = (1 - share) * own + share * smooth
    terms = smoothed_terms(logits, Teaching(targets), settings)
    mean = terms["nll"] + terms["smooth"]
    compare.relative(key("smooth_loss_each"), each, ARRAYS["smooth_loss_each"], 1e-5)
    compare.relative(key("smooth_loss_mean"), mean, ARRAYS["smooth_loss_mean"], 1e-5)
    (gradient,) = torch.autograd.grad(mean, logits)
    compare.relative(key("smooth_grad"), gradient, ARRAYS["smooth_grad"], 1e-4)


@torch.no_grad()
def test_prompt_tokens_enter_behind_the_first_layer_norm(compare: Comparison) -> None:
    backbone = build_backbone("b")
    network = PromptedTower(backbone, ARRAYS["b_prompt_init"][0], ARRAYS["b_classifier_init"])
    images = normalised(ARRAYS["b_images_u8"], "b")
    seen: list[Tensor] = []
    first = backbone.visual.transformer.resblocks[0].ln_1
    hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    prompted = network.embeddings(images)
    plain = backbone.project(backbone.encode_image(images).cls)
    hook.remove()
    n_prompts = len(network.prompt)
    n_plain = seen[1].shape[1]
    # Theirs stand between class token and patches, ours at the end, which changes nothing else.
    order = [0, *range(n_plain, n_plain + n_prompts), *range(1, n_plain)]
    for name, ours in (
        ("b_tokens_in_l2", seen[0][:, order].norm(dim=-1)),
        ("b_tokens_after_ln_pre_l2", seen[1].norm(dim=-1)),
        ("b_prompted_embedding", prompted),
        ("b_plain_embedding", plain),
        ("b_student_logits", network(images)),
    ):
        compare.relative(key(name), ours, ARRAYS[name], 2e-5)
    name = "b_prompt_bound"
    compare.relative(key(name), torch.tensor(prompt_bound(backbone.width)), ARRAYS[name], 1e-6)
    drawn = initial_prompt(backbone.width, 50, generator=torch.Generator().manual_seed(0))
    assert 0.98 * ARRAYS[name] < drawn.abs().max() <= ARRAYS[name]


def test_a_test_view_is_the_recorded_one(compare: Comparison) -> None:
    picture = np.ascontiguousarray(ARRAYS["view_in_u8"].permute(1, 2, 0).numpy())
    window = whole_window((picture.shape[0], picture.shape[1]), 224, "center")
    # As on a GPU. A CPU resizes bytes, and was seen to round a pixel in 3,000 by 2 levels.
    view = by_matrices([picture], [[window]], 224, device="cpu")[0, 0] * 255
    name = "view_out_every7_u8"
    compare.absolute(key(name), view[:, 3::7, 3::7].round(), ARRAYS[name].float(), 1.0)
