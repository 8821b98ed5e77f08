"""CoOp against numbers recorded from the authors' own program."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.adaptation.losses import CrossEntropy, self_training_loss
from microclip.adaptation.schedules import recipe_of
from microclip.data.shots import k_shot
from microclip.methods.base import Views
from microclip.methods.linear import PromptClassifier
from microclip.model.backbone import Backbone
from microclip.model.prompts import ContextPrompts, prompt_order
from microclip.settings.methods.coop import CoopSettings
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, build_backbone

from . import trajectories
from .trajectories import names, pixels_of

ARRAYS = MethodArrays("coop")
KEY = ARRAYS.key
POSITIONS = ("end", "middle", "front")
VARIANTS = [name.removesuffix("_ctx") for name in ARRAYS if name.endswith("_ctx")]
TRAJECTORIES = {"traj": "end", "traj_csc": "middle"}


def backbone() -> Backbone:
    return build_backbone("c", trajectories.tokenizer(ARRAYS["end16_tokens"].shape[1]))


def class_names() -> list[str]:
    return names(ARRAYS["end16_tokens"], ARRAYS["name_len"], 1 + len(ARRAYS["end16_ctx"]))


def network(context: Tensor, position: str, words: str = "") -> ContextPrompts:
    """Prompts with this context on a fresh network, made from names by the production code."""
    settings = CoopSettings(
        n_context=context.shape[-2],
        name_position=position,  # type: ignore[arg-type]
        class_specific=context.ndim == 3,
        initial_words=words,
    )
    found = ContextPrompts.untrained(backbone(), class_names(), settings, torch.Generator())
    if words:
        torch.testing.assert_close(found.trained_state()["context"], context, rtol=0, atol=0)
    found.load_trained_state({"context": context})
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prescribed_context(variant: str, compare: Comparison) -> None:
    words = "a photo of a" if variant == "words" else ""
    position = next((each for each in POSITIONS if each in variant), "end")
    prompted = network(ARRAYS[f"{variant}_ctx"], position, words)
    tower = prompted.prompts.backbone
    compare.exact(KEY(f"{variant}_tokens"), prompted.prompts.tokens, ARRAYS[f"{variant}_tokens"])
    views, labels = pixels_of(tower, ARRAYS["batch_u8"]), ARRAYS["batch_labels"]
    theirs = ARRAYS["batch_image_features"]
    compare.relative(KEY("batch_image_features"), tower.encode_global(views), theirs, 2e-5)
    similarity = prompted.similarity(views)
    loss = self_training_loss(similarity, labels, tower.logit_scale)
    loss.backward()
    for name, ours in (
        ("text_features", prompted.class_vectors()),
        ("logits", tower.logit_scale * similarity),
        ("loss", loss),
    ):
        key = f"{variant}_{name}"
        compare.relative(KEY(key), ours, ARRAYS[key], 2e-5)
    gradient = prompted.context.grad
    assert gradient is not None
    compare.relative(KEY(f"{variant}_grad"), gradient, ARRAYS[f"{variant}_grad"], 1e-4)
    norm = ARRAYS[f"{variant}_grad_l2"]
    trajectories.compare_norms(KEY(f"{variant}_grad_l2"), gradient.norm(), norm, compare, 1e-4)
    assert [n for n, p in prompted.named_parameters() if p.grad is not None] == ["context"]


def test_words_are_the_zero_shot_classifier(compare: Comparison) -> None:
    tower = backbone()
    found = tower.encode_text([f"a photo of a {name}." for name in class_names()])
    key = "words_zero_shot_text_features"
    compare.relative(KEY(key), found, ARRAYS[key], 2e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("n_vectors", [4, 5])
def test_what_stands_where(position: Any, n_vectors: int, compare: Comparison) -> None:
    key = f"layout_{position}{n_vectors}"
    theirs = ARRAYS[key]
    zeros = torch.zeros(n_vectors, ARRAYS["end16_ctx"].shape[-1])
    prompts = network(zeros, "end").prompts
    rows = []
    for tokens, length in zip(prompts.tokens, ARRAYS["name_len"].tolist(), strict=True):
        order = prompt_order(
            len(tokens), n_vectors=n_vectors, name_length=length, position=position
        )
        rows.append([-o if 1 <= o <= n_vectors else int(tokens[o]) for o in order])
    compare.exact(KEY(key), torch.tensor(rows), theirs)
    own = network(zeros, position).prompts
    compare.exact(KEY("name_len"), (own.ends - n_vectors - 2), ARRAYS["name_len"])


def run(name: str, **choices: Any) -> tuple[ContextPrompts, trajectories.Trajectory]:
    """Train on the recorded batches with the official settings."""
    prompted = network(ARRAYS[f"{name}_ctx_init"], TRAJECTORIES[name])
    rates = ARRAYS[f"{name}_lr"]
    n_batches = trajectories.steps_per_epoch(rates)
    indices = ARRAYS[f"{name}_index"]
    batches = trajectories.Recorded(ARRAYS[f"{name}_u8"], indices, n_batches)
    settings = CoopSettings(epochs=len(rates) // n_batches, **choices)
    labels = trajectories.labels_by_image(indices, ARRAYS[f"{name}_labels"])
    scale = prompted.prompts.backbone.logit_scale
    losses = CrossEntropy(prompted.similarity, scale)
    found = trajectories.train(
        prompted, prompted.similarity, losses, recipe_of(settings), labels, batches
    )
    return prompted, found


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_official_training(name: str, compare: Comparison) -> None:
    prompted, found = run(name)
    compare.exact(KEY(f"{name}_tokens"), prompted.prompts.tokens, ARRAYS[f"{name}_tokens"])
    tower = prompted.prompts.backbone
    compare.absolute(KEY(f"{name}_lr"), torch.tensor(found.rates), ARRAYS[f"{name}_lr"], 1e-9)
    logits = tower.logit_scale * torch.stack(found.logits)
    compare.relative(KEY(f"{name}_logits"), logits, ARRAYS[f"{name}_logits"], 2e-4)
    compare.relative(KEY(f"{name}_loss"), torch.stack(found.losses), ARRAYS[f"{name}_loss"], 2e-4)
    gradients = torch.stack([step["context"] for step in found.gradients])
    theirs = ARRAYS[f"{name}_ctx_grad"]
    compare.relative(KEY(f"{name}_ctx_grad"), gradients[:1], theirs[:1], 1e-4)
    compare.relative(KEY(f"{name}_ctx_grad"), gradients, theirs, 5e-4)
    norms, key = ARRAYS[f"{name}_grad_l2"], KEY(f"{name}_grad_l2")
    trajectories.compare_norms(key, found.norms()[:, 0], norms, compare, 5e-4)
    states = torch.stack([step["context"] for step in found.states])
    compare.absolute(KEY(f"{name}_ctx_after"), states, ARRAYS[f"{name}_ctx_after"], 1e-5)
    embeddings = tower.encode_global(pixels_of(tower, ARRAYS["test_u8"])).detach()
    tested = tower.logit_scale * PromptClassifier(prompted).logits(Views(embeddings=embeddings))
    compare.relative(KEY(f"{name}_test_logits"), tested, ARRAYS[f"{name}_test_logits"], 2e-4)


def test_where_weight_decay_acts(compare: Comparison) -> None:
    _, found = run("traj", weight_decay=0.5)
    states = torch.stack([step["context"] for step in found.states])
    compare.absolute(KEY("traj_wd05_ctx_after"), states, ARRAYS["traj_wd05_ctx_after"], 1e-5)


@pytest.mark.parametrize("shots", [1, 2, 4, 8])
def test_the_few_shot_draw(shots: int, compare: Comparison) -> None:
    seed = int(ARRAYS["fewshot_seed"])
    rng = random.Random(seed)
    labels = ARRAYS["fewshot_train_labels"].tolist()
    train = k_shot(labels, shots, rng)
    assert train == k_shot(labels, shots, seed)
    val = k_shot(ARRAYS["fewshot_val_labels"].tolist(), min(shots, 4), rng)
    for split, ours in (("train", train), ("val", val)):
        key = f"fewshot_{split}_index_{shots}shot"
        compare.exact(KEY(key), torch.tensor(ours), ARRAYS[key])


def test_schedule_optimiser_and_batches(compare: Comparison) -> None:
    recipe = recipe_of(CoopSettings())
    for name in ("lr_50", "lr_100", "lr_200"):
        trajectories.compare_rates(ARRAYS, compare, name, recipe)
    trajectories.compare_optimizer(ARRAYS, compare, recipe)
    trajectories.compare_iterations(ARRAYS, compare)
    trajectories.compare_views(ARRAYS, compare, "view_crop_u8", "center")
