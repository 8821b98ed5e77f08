"""DPA against its released code: bank, labels, weights, losses, gradients, states, tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microclip.adaptation.feature_bank import class_centroids
from microclip.adaptation.schedules import Position
from microclip.adaptation.teacher import Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import ViewBatch
from microclip.methods.base import Views
from microclip.methods.dpa import (
    DualLabels,
    PrototypeClassifier,
    PrototypeLosses,
    PrototypeTeacher,
    optimizer_recipe,
)
from microclip.model.token_fusion import TokenFusion
from microclip.settings.methods.dpa import DpaSettings
from microclip.text.classifier import template_classifier
from tests.parity.comparison import Comparison
from tests.parity.methods.networks import Recorded, backbone_of, decimal, images_of, norms
from tests.parity.vectors import MethodArrays

ARRAYS = MethodArrays("dpa")
RUNS = ("main", "flat")
STATES = {"main": 1e-5, "flat": 2e-6}  # absolute tolerances of trained tensors


def reference_name(name: str) -> str:
    return "visual.classifier" if name == "classifier" else name


def in_order(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the trained tensors in the reference's order: text prototypes, then by depth."""
    names = ["classifier", "visual.ln_pre.weight", "visual.ln_pre.bias"]
    for block in range(2):
        for norm in ("ln_1", "ln_2"):
            stem = f"visual.transformer.resblocks.{block}.{norm}"
            names += [f"{stem}.weight", f"{stem}.bias"]
    names += ["visual.ln_post.weight", "visual.ln_post.bias"]
    assert set(names) == set(parameters)
    return {name: parameters[name] for name in names}


@dataclass
class Steps(Recorded[ViewBatch]):
    """The weak and strong views of the recorded steps."""

    def batch(self, indices: Tensor) -> ViewBatch:
        weak, strong = (images_of(ARRAYS[f"{view}_u8"])[indices] for view in ("weak", "strong"))
        return ViewBatch(indices, weak, weak[:, None][:, :0], strong)


@dataclass
class Journal:
    """What a run of the production code computed, under the names of the reference."""

    steps: dict[str, list[Tensor]] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    epochs: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.steps.setdefault(name, []).append(value.detach().clone())


class RecordingTeacher(PrototypeTeacher):
    """The teacher, taking down labels and what they were made from."""

    def __init__(self, journal: Journal, network: TokenFusion, *rest: Any) -> None:
        super().__init__(network, *rest)
        self.journal, self.network = journal, network

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        if epoch == 1:
            self.journal.epochs.append({**self.state_dict()})

    def label(self, features: Tensor) -> DualLabels:
        found = super().label(features)
        self.journal.add(
            weak_features=features,
            prob_text=found.text,
            window_mean=self._window.state_dict()["window"].mean(dim=0),
            window_length=torch.tensor(len(self._window)),
            prob_text_aligned=found.aligned,
            prob_image=found.image,
            prob_mix=found.mix,
            labels=found.labels,
            weight_text=found.text_weight,
            weight_image=found.image_weight,
            omega=found.weights,
        )
        return found

    def end_epoch(self, epoch: int) -> None:
        super().end_epoch(epoch)
        test = images_of(ARRAYS["test_u8"])
        logits = 100 * PrototypeClassifier(self.network).logits(Views(images=test))
        trained = self.network.trained_state()
        self.journal.states[f"epoch{epoch - 1}_end"] = trained
        self.journal.epochs.append({**self.state_dict(), "test_logits": logits})


class RecordingLosses(PrototypeLosses):
    """The losses, taking down terms without factors, and gradients after the step before."""

    def __init__(self, journal: Journal, *rest: Any) -> None:
        super().__init__(*rest)
        self.journal = journal

    def terms(self, batch: ViewBatch, teaching: Teaching, generator: Any = None) -> dict[str, Any]:
        self.journal.steps.setdefault("count", []).append(torch.ones(()))
        done = len(self.journal.steps["count"]) - 1
        if done in (1, 4):
            self.journal.states[f"after{done}"] = self._network.trained_state()
        terms = super().terms(batch, teaching, generator)
        assert batch.strong is not None
        assert teaching.labels is not None
        logits = 100 * self._network.global_similarity(batch.strong)
        self.journal.add(
            strong_logits=logits,
            ce=nn.functional.cross_entropy(logits, teaching.labels, reduction="none"),
            loss_self=terms["ce"],
            loss_balance=terms["fairness"] / self._settings.balance,
            loss_align=terms["align"] / self._settings.alignment,
            loss=terms["ce"] + terms["fairness"] + terms["align"],
        )
        return terms


class Watcher:
    """Takes nothing down."""

    def pseudo_labels(self, *_: Any) -> None: ...
    def first_batch(self, *_: Any) -> None: ...
    def epoch(self, *_: Any) -> None: ...
    def message(self, *_: Any) -> None: ...


def settings_of(run: str) -> DpaSettings:
    given = {name: decimal(ARRAYS[f"{run}_{name}"]) for name in ("a", "w", "reg", "align", "lr")}
    return DpaSettings(
        image_share=given["a"],
        alignment_scale=given["w"],
        balance=given["reg"],
        alignment=given["align"],
        learning_rate=given["lr"],
        batch_size=int(ARRAYS[f"{run}_batch_size"]),
        epochs=int(ARRAYS[f"{run}_epochs"]),
    )


@cache
def trained(run: str) -> Journal:
    """Run the production code on the recorded views, in the recorded order."""
    torch.set_num_threads(1)
    journal, settings = Journal(), settings_of(run)
    network = TokenFusion(backbone_of(ARRAYS), ARRAYS["Z0"], train_head="cls")
    steps = Steps(ARRAYS[f"{run}_step_index"], settings.epochs)

    def weak_views() -> Iterator[ViewBatch]:
        yield from map(steps.batch, torch.arange(len(ARRAYS["weak_u8"])).split(16))

    teacher = RecordingTeacher(journal, network, settings, weak_views)
    losses = RecordingLosses(journal, network, settings, teacher)
    recipe = optimizer_recipe(settings)
    trainer = Trainer(network, teacher, losses, recipe, steps, settings={})
    keep_gradients(trainer, network, journal)
    trainer.train(Watcher())
    return journal


def keep_gradients(trainer: Any, network: TokenFusion, journal: Journal) -> None:
    """Take down gradients and rate of each step, before the update."""

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        own = in_order(network.trained_parameters())
        journal.gradients.append({n: p.grad.clone() for n, p in own.items() if p.grad is not None})
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        journal.add(lr=torch.tensor(rate, dtype=torch.float64))

    trainer._optimizer.register_step_pre_hook(note)


def test_prompts_and_bank(compare: Comparison) -> None:
    backbone = backbone_of(ARRAYS)
    tokens = ARRAYS["prompt_tokens"]
    texts = template_classifier([backbone.encode_tokens(own) for own in tokens])
    compare.relative(ARRAYS.key("Z0"), texts, ARRAYS["Z0"], 5e-5)
    for run in RUNS:
        start = trained(run).epochs[0]
        for name, part in (("bank", "bank_features"), ("prototypes", "prototypes")):
            compare.relative(ARRAYS.key(f"init_{name}"), start[part], ARRAYS[f"init_{name}"], 5e-5)
        compare.exact(ARRAYS.key("init_labels"), start["bank_labels"], ARRAYS["init_labels"])


PADDING = {"labels": -1}
RULES: dict[str, tuple[str, float]] = {
    "weak_features": ("relative", 5e-5),
    "prob_text": ("absolute", 1e-4),
    "window_mean": ("absolute", 1e-4),
    "window_length": ("exact", 0),
    "prob_text_aligned": ("absolute", 1e-4),
    "prob_image": ("absolute", 1e-4),
    "prob_mix": ("absolute", 1e-4),
    "labels": ("exact", 0),
    "weight_text": ("absolute", 1e-4),
    "weight_image": ("absolute", 1e-4),
    "omega": ("absolute", 1e-4),
    "strong_logits": ("relative", 5e-5),
    "ce": ("relative", 1e-4),
    "loss_self": ("relative", 1e-4),
    "loss_balance": ("relative", 1e-4),
    "loss_align": ("relative", 1e-4),
    "loss": ("relative", 1e-4),
    "lr": ("relative", 1e-6),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", RULES)
def test_steps(run: str, name: str, compare: Comparison) -> None:
    theirs = ARRAYS[f"{run}_step_{name}"]
    sizes = ARRAYS[f"{run}_step_size"].tolist()
    ours = torch.full_like(theirs, PADDING.get(name, 0))
    assert len(trained(run).steps[name]) == len(sizes)
    for step, (value, size) in enumerate(zip(trained(run).steps[name], sizes, strict=True)):
        if value.ndim and name != "window_mean":
            assert len(value) == size
            ours[step, :size] = value
        else:
            ours[step] = value
    rule, tolerance = RULES[name]
    compare.under(rule, ARRAYS.key(f"{run}_step_{name}"), ours, theirs, tolerance)


@pytest.mark.parametrize("run", RUNS)
def test_gradients(run: str, compare: Comparison) -> None:
    gradients = trained(run).gradients
    name = f"{run}_step_grad_l2"
    compare.relative(ARRAYS.key(name), norms(gradients), ARRAYS[name], 1e-4)
    for own, ours in gradients[0].items():
        name = f"{run}_grad0.{reference_name(own)}"
        compare.relative(ARRAYS.key(name), ours, ARRAYS[name], 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_trained_tensors(run: str, compare: Comparison) -> None:
    journal = trained(run)
    assert {"after1", "after4"} < journal.states.keys()
    for moment, state in journal.states.items():
        for own, ours in state.items():
            name = f"{run}_{moment}.{reference_name(own)}"
            compare.absolute(ARRAYS.key(name), ours, ARRAYS[name], STATES[run])


@pytest.mark.parametrize("run", RUNS)
def test_ends_of_epochs(run: str, compare: Comparison) -> None:
    for epoch, found in enumerate(trained(run).epochs[1:]):
        stem = f"{run}_epoch{epoch}_"
        for name, part in (
            ("bank", "bank_features"),
            ("prototypes", "prototypes"),
            ("test_logits", "test_logits"),
        ):
            theirs = ARRAYS[stem + name]
            compare.relative(ARRAYS.key(stem + name), found[part], theirs, 5e-5)
        name = stem + "labels"
        compare.exact(ARRAYS.key(name), found["bank_labels"], ARRAYS[name])


def test_prototypes_alone(compare: Comparison) -> None:
    given = (ARRAYS[f"proto_{name}"] for name in ("features", "labels", "text"))
    name = "proto_prototypes"
    compare.relative(ARRAYS.key(name), class_centroids(*given), ARRAYS[name], 5e-5)


@pytest.mark.parametrize(
    ("name", "rate", "epochs"), [("high", 1e-4, 15), ("low", 1e-6, 15), ("fgvc", 3e-6, 10)]
)
def test_schedules(name: str, rate: float, epochs: int, compare: Comparison) -> None:
    theirs = ARRAYS[f"schedule_{name}"]
    n_steps = len(theirs)
    recipe = optimizer_recipe(DpaSettings(learning_rate=rate, epochs=epochs))
    per_epoch = n_steps // epochs
    assert recipe.n_steps(per_epoch) == n_steps
    ours = [
        recipe.schedule(Position(step, 1 + step // per_epoch, n_steps, epochs))
        for step in range(n_steps)
    ]
    compare.relative(ARRAYS.key(f"schedule_{name}"), torch.tensor(ours), theirs, 1e-6)
