"""ReCLIP against its released code: graphs, labels, losses, gradients, states, predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microclip.adaptation.feature_bank import (
    GraphOptions,
    Propagation,
    class_centroids,
    propagate_labels,
    text_subspace,
)
from microclip.adaptation.teacher import Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import ViewBatch
from microclip.methods.base import Views
from microclip.methods.reclip import (
    CopiesClassifier,
    CopiesLosses,
    LabelPass,
    PropagationTeacher,
    TwoCopies,
    optimizer_recipe,
)
from microclip.settings.methods.reclip import ReclipSettings
from tests.parity.comparison import Comparison
from tests.parity.methods.networks import Recorded, backbone_of, decimal, images_of, norms
from tests.parity.vectors import MethodArrays

ARRAYS = MethodArrays("reclip")
RUNS = ("main", "strong")
STATES = {"main": 5e-6, "strong": 2e-5}  # absolute tolerances of trained tensors
COPIES = {"t": "text", "v": "visual"}
CASES = ("default", "cut", "wide", "widecut", "alpha", "unreached", "chain", "lost")


def pictures_of(run: str) -> Tensor:
    """Return the pictures that a run adapts to, as the network's input."""
    n = len(ARRAYS[f"{run}_epoch0_features_t"])
    return images_of(ARRAYS["images_u8"][:n])


@dataclass
class Steps(Recorded[ViewBatch]):
    """The pictures of the recorded steps."""

    pictures: Tensor = field(default_factory=lambda: torch.empty(0))

    def batch(self, indices: Tensor) -> ViewBatch:
        own = self.pictures[indices]
        return ViewBatch(indices, own, own[:, None][:, :0])


@dataclass
class Journal:
    """What a run of the production code computed."""

    passes: list[LabelPass] = field(default_factory=list)
    features: list[dict[str, Tensor]] = field(default_factory=list)
    scores: list[dict[str, Tensor]] = field(default_factory=list)  # 100 x cosines, by head
    test_scores: list[dict[str, Tensor]] = field(default_factory=list)
    steps: list[dict[str, Tensor] | None] = field(default_factory=list)  # None: skipped
    skipped: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # logits by step
    gradients: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    start: dict[str, Tensor] = field(default_factory=dict)
    final_text: Tensor = field(default_factory=lambda: torch.empty(0))


def scores(network: TwoCopies, pictures: Tensor) -> dict[str, Tensor]:
    heads = CopiesClassifier(network).heads(Views(images=pictures))
    names = {"fused": "c", "text": "t", "visual": "v"}
    return {names[name]: 100 * value for name, value in heads.items()}


class RecordingTeacher(PropagationTeacher):
    """The teacher, taking down label passes and labels."""

    def __init__(self, journal: Journal, network: TwoCopies, run: str, *rest: Any) -> None:
        super().__init__(network, *rest)
        self.journal, self.network, self.run = journal, network, run
        self.settings: ReclipSettings = rest[0]

    def start_epoch(self, epoch: int) -> None:
        self.journal.scores.append(scores(self.network, pictures_of(self.run)))
        self.journal.test_scores.append(scores(self.network, images_of(ARRAYS["test_u8"])))
        super().start_epoch(epoch)
        self.journal.passes.append(self.label_pass)

    def label(self, visual_features: Tensor) -> LabelPass:
        self.journal.features.append({"t": self.features, "v": visual_features})
        return super().label(visual_features)

    def teach(self, batch: ViewBatch, generator: Any = None) -> Teaching | None:
        if len(self.journal.steps) == 1:
            self.journal.states["after1"] = self.network.trained_state()
        teaching = super().teach(batch, generator)
        found = self.label_pass
        self.journal.steps.append(None if teaching is None else {})
        own = self.journal.steps[-1]
        if own is None:
            assert not found.is_agreed[batch.indices].any()
            # Nothing needs these; they are computed to be compared.
            losses = CopiesLosses(self.network, self.settings, self)
            self.journal.skipped[len(self.journal.steps) - 1] = losses.logits(batch)
            return None
        assert teaching is not None
        assert teaching.weights is not None
        own["mask"] = teaching.weights
        own["labels_t"], own["labels_v"] = teaching.parts["text"], teaching.parts["visual"]
        return teaching

    def end_epoch(self, epoch: int) -> None:
        super().end_epoch(epoch)
        self.journal.states[f"epoch{epoch - 1}_end"] = self.network.trained_state()


class RecordingLosses(CopiesLosses):
    """The losses, taking down what they are made of."""

    def __init__(self, journal: Journal, *rest: Any) -> None:
        super().__init__(*rest)
        self.journal = journal

    def terms(self, batch: ViewBatch, teaching: Teaching, generator: Any = None) -> dict[str, Any]:
        terms = super().terms(batch, teaching, generator)
        own = self.journal.steps[-1]
        assert own is not None
        own["loss_t"], own["loss_v"] = terms["text"].detach(), terms["visual"].detach()
        return terms

    def logits(self, batch: ViewBatch) -> tuple[Tensor, Tensor]:
        found = super().logits(batch)
        own = self.journal.steps[-1]
        assert own is not None
        own["logits_t"], own["logits_v"] = (each.detach() for each in found)
        return found

    def cross_entropies(self, batch: ViewBatch, teaching: Teaching) -> tuple[Tensor, Tensor]:
        found = super().cross_entropies(batch, teaching)
        own = self.journal.steps[-1]
        assert own is not None
        own["ce_t"], own["ce_v"] = (each.detach() for each in found)
        return found


class Watcher:
    """Takes nothing down."""

    def pseudo_labels(self, *_: Any) -> None: ...
    def first_batch(self, *_: Any) -> None: ...
    def epoch(self, *_: Any) -> None: ...
    def message(self, *_: Any) -> None: ...


def settings_of(run: str) -> ReclipSettings:
    rates = ARRAYS[f"{run}_lr"]
    return ReclipSettings(
        neighbours=int(ARRAYS[f"{run}_neighbours"]),
        alpha=decimal(ARRAYS[f"{run}_alpha"]),
        cut=int(ARRAYS[f"{run}_cut"]),
        batch_size=int(ARRAYS[f"{run}_batch_size"]),
        text_learning_rate=decimal(rates[0]),
        visual_learning_rate=decimal(rates[1]),
    )


@cache
def trained(run: str) -> Journal:
    """Run the production code on the recorded pictures, in the recorded order."""
    torch.set_num_threads(1)
    journal, settings, pictures = Journal(), settings_of(run), pictures_of(run)
    network = TwoCopies(backbone_of(ARRAYS), ARRAYS["prompt_tokens"])
    journal.start = {"T0": network.text_matrix().T, "Tshort0": network.known_class_vectors().T}
    index = ARRAYS[f"{run}_step_index"]
    recipe = optimizer_recipe(settings, len(pictures))
    steps = Steps(index, recipe.epochs, pictures=pictures)
    teacher = RecordingTeacher(
        journal, network, run, settings, lambda: pictures.split(settings.batch_size)
    )
    losses = RecordingLosses(journal, network, settings, teacher)
    trainer = Trainer(network, teacher, losses, recipe, steps, settings={})

    def note(*_: Any) -> None:
        own = network.trained_parameters()
        journal.gradients[len(journal.steps) - 1] = {
            name: value.grad.clone() for name, value in own.items() if value.grad is not None
        }

    trainer._optimizer.register_step_pre_hook(note)
    trainer.train(Watcher())
    journal.states["final"] = network.trained_state()
    journal.scores.append(scores(network, pictures))
    journal.test_scores.append(scores(network, images_of(ARRAYS["test_u8"])))
    journal.final_text = network.text_matrix().T
    return journal


def test_text_matrices(compare: Comparison) -> None:
    for name, ours in trained("main").start.items():
        key = f"main_{name}"
        compare.relative(ARRAYS.key(key), ours, ARRAYS[key], 5e-5)
    for run in RUNS:
        key = f"{run}_final_T"
        compare.relative(ARRAYS.key(key), trained(run).final_text, ARRAYS[key], 5e-5)


def compare_graph(
    stem: str, suffix: str, found: Propagation, projection: Tensor, compare: Comparison
) -> None:
    """Compare a propagation; the arrays of the rounded projection are those of the exact one."""
    graph = torch.from_numpy(found.graph.toarray())
    for name, ours, tolerance in (
        ("P", projection, 5e-5),
        ("P_p16", projection, 5e-4),
        ("S", graph, 5e-5),
        ("F", found.scores, 5e-5),
    ):
        key = f"{stem}{name}{suffix}"
        compare.relative(ARRAYS.key(key), ours.float(), ARRAYS[key].float(), tolerance)
    key = f"{stem}node_labels{suffix}"
    compare.exact(ARRAYS.key(key), found.node_labels, ARRAYS[key])
    unreached = (ARRAYS[f"{stem}F{suffix}"] == 0).all(dim=1)
    assert torch.equal((found.scores == 0).all(dim=1), unreached)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_label_passes(run: str, epoch: int, compare: Comparison) -> None:
    journal, settings = trained(run), settings_of(run)
    found, stem = journal.passes[epoch], f"{run}_epoch{epoch}_"
    for short, texts, own in (
        ("t", found.texts, found.text),
        ("v", journal.start["T0"].T, found.visual),
    ):
        key = f"{stem}features_{short}"
        compare.relative(ARRAYS.key(key), journal.features[epoch][short], ARRAYS[key], 5e-5)
        key = f"{stem}text_nodes_{short}"
        compare.relative(ARRAYS.key(key), texts, ARRAYS[key], 5e-5)
        compare_graph(stem, f"_{short}", own, text_subspace(texts, settings.cut), compare)
        key = f"{stem}labels_{short}"
        compare.exact(ARRAYS.key(key), own.labels, ARRAYS[key])
    key = f"{stem}K"
    compare.relative(ARRAYS.key(key), found.centroids.T, ARRAYS[key], 5e-5)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("head", ["t", "v", "c"])
def test_predictions(run: str, head: str, compare: Comparison) -> None:
    journal = trained(run)
    for moment, stem in enumerate(("epoch0", "epoch1", "final")):
        for name, found in (("logits", journal.scores), ("test_logits", journal.test_scores)):
            key = f"{run}_{stem}_{name}_{head}"
            compare.relative(ARRAYS.key(key), found[moment][head], ARRAYS[key], 5e-5)


RULES: dict[str, tuple[str, float]] = {
    "mask": ("exact", 0),
    "logits": ("relative", 5e-5),
    "ce": ("relative", 1e-4),
    "loss": ("relative", 1e-4),
}


@pytest.mark.parametrize("run", RUNS)
def test_steps_that_are_taken(run: str, compare: Comparison) -> None:
    ours = torch.tensor([found is not None for found in trained(run).steps])
    name = f"{run}_step_taken"
    compare.exact(ARRAYS.key(name), ours, ARRAYS[name])
    per_epoch = len(ours) // 2
    assert ARRAYS[f"{run}_step_epoch"].tolist() == [0] * per_epoch + [1] * per_epoch


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "name", ["mask", *(f"{n}_{w}" for n in ("logits", "ce", "loss") for w in COPIES)]
)
def test_steps(run: str, name: str, compare: Comparison) -> None:
    theirs = ARRAYS[f"{run}_step_{name}"]
    sizes = ARRAYS[f"{run}_step_size"].tolist()
    ours = torch.zeros_like(theirs)
    is_whole = name.startswith("loss")
    for step, (found, size) in enumerate(zip(trained(run).steps, sizes, strict=True)):
        if found is None:
            if name.startswith("logits"):
                text, visual = trained(run).skipped[step]
                ours[step, :size] = text if name.endswith("t") else visual
        elif is_whole:
            ours[step] = found[name]
        else:
            assert len(found[name]) == size
            ours[step, :size] = found[name].to(ours.dtype)
    rule, tolerance = RULES[name.split("_")[0]]
    compare.under(rule, ARRAYS.key(f"{run}_step_{name}"), ours, theirs, tolerance)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("short", COPIES)
def test_labels_of_steps(run: str, short: str, compare: Comparison) -> None:
    name = f"{run}_step_labels_{short}"
    index, epochs = ARRAYS[f"{run}_step_index"], ARRAYS[f"{run}_step_epoch"].tolist()
    ours = torch.full_like(ARRAYS[name], -1)
    for step, epoch in enumerate(epochs):
        own = index[step][index[step] >= 0]
        labels = getattr(trained(run).passes[epoch], COPIES[short]).labels[own]
        taught = trained(run).steps[step]
        if taught is not None:
            assert torch.equal(taught[f"labels_{short}"], labels)
        ours[step, : len(own)] = labels
    compare.exact(ARRAYS.key(name), ours, ARRAYS[name])


def copies(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each copy under the reference's names, in its order."""
    text = {n.removeprefix("text."): t for n, t in tensors.items() if n.startswith("text.")}
    visual = {n: t for n, t in tensors.items() if n.startswith("visual.")}
    order = ["visual.ln_pre", *(n for n in visual if "resblocks" in n), "visual.ln_post"]
    names = [n for stem in order for n in visual if n == stem or n.startswith(f"{stem}.")]
    return {"t": text, "v": {name: visual[name] for name in names}}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("short", COPIES)
def test_gradients(run: str, short: str, compare: Comparison) -> None:
    journal, name = trained(run), f"{run}_step_grad_l2_{short}"
    ours = torch.zeros_like(ARRAYS[name])
    for step, found in journal.gradients.items():
        ours[step] = norms([copies(found)[short]])[0]
    assert [step for step, found in enumerate(journal.steps) if found is not None] == list(
        journal.gradients
    )
    compare.relative(ARRAYS.key(name), ours, ARRAYS[name], 1e-4)
    for own, gradient in copies(journal.gradients[0])[short].items():
        key = f"{run}_grad0_{short}.{own}"
        compare.relative(ARRAYS.key(key), gradient, ARRAYS[key], 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_trained_tensors(run: str, compare: Comparison) -> None:
    for moment in ("after1", "epoch0_end", "final"):
        for short, own in copies(trained(run).states[moment]).items():
            for name, ours in own.items():
                key = f"{run}_{moment}_{short}.{name}"
                compare.absolute(ARRAYS.key(key), ours, ARRAYS[key], STATES[run])


@pytest.mark.parametrize("case", CASES)
def test_propagation_alone(case: str, compare: Comparison) -> None:
    stem = f"lp_{case}_"
    texts, order = ARRAYS[f"{stem}text"].T, ARRAYS[f"{stem}order"]
    features = ARRAYS[f"{stem}features"][order]
    options = GraphOptions(
        neighbours=int(ARRAYS[f"{stem}neighbours"]), alpha=decimal(ARRAYS[f"{stem}alpha"])
    )
    projection = text_subspace(texts, int(ARRAYS[f"{stem}cut"]))
    found = propagate_labels(texts, features, projection, options)
    compare_graph(stem, "", found, projection, compare)
    labels = torch.empty_like(ARRAYS[f"{stem}image_labels"])
    labels[order] = found.labels
    compare.exact(ARRAYS.key(f"{stem}image_labels"), labels, ARRAYS[f"{stem}image_labels"])
    ours = class_centroids(torch.cat([texts, features]), found.node_labels, texts)
    theirs = ARRAYS[f"{stem}K"].T
    is_lost = theirs.isnan().any(dim=1)
    assert bool(is_lost.any()) == (case == "lost")
    assert torch.allclose(ours[is_lost], texts[is_lost])
    compare.relative(ARRAYS.key(f"{stem}K"), ours[~is_lost], theirs[~is_lost], 5e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_rounded_projection(case: str, compare: Comparison) -> None:
    stem = f"lp_{case}_"
    texts = ARRAYS[f"{stem}text"].T
    features = ARRAYS[f"{stem}features"][ARRAYS[f"{stem}order"]]
    options = GraphOptions(
        neighbours=int(ARRAYS[f"{stem}neighbours"]), alpha=decimal(ARRAYS[f"{stem}alpha"])
    )
    found = propagate_labels(texts, features, ARRAYS[f"{stem}P_p16"].float(), options)
    compare.relative(ARRAYS.key(f"{stem}F_p16"), found.scores, ARRAYS[f"{stem}F_p16"], 5e-5)
    name = f"{stem}node_labels_p16"
    compare.exact(ARRAYS.key(name), found.node_labels, ARRAYS[name])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("short", COPIES)
def test_the_rounded_projection_of_a_run(run: str, short: str, compare: Comparison) -> None:
    settings = settings_of(run)
    options = GraphOptions(neighbours=settings.neighbours, alpha=settings.alpha)
    for epoch in (0, 1):
        stem = f"{run}_epoch{epoch}_"
        found = propagate_labels(
            ARRAYS[f"{stem}text_nodes_{short}"],
            ARRAYS[f"{stem}features_{short}"],
            ARRAYS[f"{stem}P_p16_{short}"].float(),
            options,
        )
        key = f"{stem}F_p16_{short}"
        compare.relative(ARRAYS.key(key), found.scores, ARRAYS[key], 5e-5)


def test_twenty_iterations_are_not_the_exact_solution(compare: Comparison) -> None:
    texts = ARRAYS["lp_chain_text"].T
    features = ARRAYS["lp_chain_features"][ARRAYS["lp_chain_order"]]
    found = propagate_labels(
        texts,
        features,
        text_subspace(texts),
        GraphOptions(neighbours=2, n_iterations=100_000),
    )
    name = "lp_chain_exact_labels"
    own = found.scores.numpy()
    assert np.count_nonzero(own.any(axis=1)) > 0
    compare.exact(ARRAYS.key(name), found.node_labels, ARRAYS[name])


def test_epochs_by_size(compare: Comparison) -> None:
    rule = ReclipSettings()
    ours = torch.tensor([rule.n_epochs(n) for n in ARRAYS["epoch_rule_images"].tolist()])
    compare.exact(ARRAYS.key("epoch_rule_epochs"), ours, ARRAYS["epoch_rule_epochs"])
