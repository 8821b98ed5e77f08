"""MaPLe against numbers recorded from the authors' own program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.adaptation.losses import CrossEntropy, self_training_loss
from microclip.adaptation.schedules import recipe_of
from microclip.methods.base import Task, Views
from microclip.methods.maple import CoupledClassifier, CoupledPrompts, untrained
from microclip.model.backbone import Backbone
from microclip.model.prompts import encode_embedded
from microclip.settings.methods.maple import MapleSettings
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, build_backbone

from . import trajectories
from .trajectories import names, pixels_of

ARRAYS = MethodArrays("maple")
KEY = ARRAYS.key
VARIANTS = [name.removesuffix(".ctx") for name in ARRAYS if name.endswith(".ctx")]
PRESCRIBED = [
    name for name in VARIANTS if name.startswith(("depth", "init")) and "grad" not in name
]


def backbone() -> Backbone:
    return build_backbone("c", trajectories.tokenizer(ARRAYS["depth1_tokens"].shape[1]))


def class_names() -> list[str]:
    tokens = ARRAYS["depth1_tokens"]  # start a photo of a NAME . end
    return names(tokens, tokens.argmax(dim=-1) - 6, 5)


def our_name(reference: str) -> str:
    """Our name of a trained tensor."""
    if reference == "ctx" or reference.startswith("deep_prompt"):
        return reference.replace("ctx", "context")
    stem, kind = reference.rsplit("_", 1)
    stem = stem.replace("deep_proj", "deep_coupling").replace("proj", "coupling")
    return f"{stem}.{kind}"


def state(variant: str) -> dict[str, Tensor]:
    """The tensors of a variant under our names, in the reference's order of `grad_l2`."""
    prefix = f"{variant}."
    found = {
        our_name(name.removeprefix(prefix)): ARRAYS[name]
        for name in ARRAYS
        if name.startswith(prefix)
    }
    order = sorted(found, key=lambda name: ("deep" in name, "deep_coupling" in name))
    return {name: found[name] for name in order}


def network(variant: str) -> CoupledPrompts:
    """Prompts with these tensors on a fresh network, made from names by the production code."""
    tensors = state(variant)
    settings = MapleSettings(
        n_context=len(tensors["context"]),
        depth=1 + sum(name.startswith("deep_prompt") for name in tensors),
    )
    task = Task(
        class_names=class_names(),
        texts=None,  # type: ignore[arg-type]
        seed=0,
        device="cpu",
        precision="fp32",
        backbone=backbone(),
    )
    found = untrained(task, settings)
    assert list(found.trained_parameters()) == list(tensors)
    found.load_trained_state(tensors)
    return found


def reference_name(ours: str) -> str:
    return next(name for name in _reference_names() if our_name(name) == ours)


def _reference_names() -> list[str]:
    return [name.removeprefix("depth3.") for name in ARRAYS if name.startswith("depth3.")]


@pytest.mark.parametrize("variant", PRESCRIBED)
def test_prescribed_prompts(variant: str, compare: Comparison) -> None:
    coupled = network(variant)
    tower = coupled.prompts.backbone
    compare.exact(KEY(f"{variant}_tokens"), coupled.prompts.tokens, ARRAYS[f"{variant}_tokens"])
    views, labels = pixels_of(tower, ARRAYS["batch_u8"]), ARRAYS["batch_labels"]
    similarity = coupled.similarity(views)
    loss = self_training_loss(similarity, labels, tower.logit_scale)
    loss.backward()
    tested = CoupledClassifier(coupled).logits(Views(images=views))
    for name, ours in (
        ("text_features", coupled.class_vectors()),
        ("image_features", coupled.encode_image(views)),
        ("logits", tower.logit_scale * tested),
        ("loss", loss),
    ):
        key = f"{variant}_{name}"
        compare.relative(KEY(key), ours, ARRAYS[key], 2e-5)
    gradients = {name: p.grad for name, p in coupled.trained_parameters().items()}
    assert all(gradient is not None for gradient in gradients.values())
    found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    norms = torch.stack([gradient.norm() for gradient in found.values()])
    theirs = ARRAYS[f"{variant}_grad_l2"]
    trajectories.compare_norms(KEY(f"{variant}_grad_l2"), norms, theirs, compare, 1e-4)
    for name, gradient in found.items():
        key = f"{variant}_grad.{reference_name(name)}"
        if key in ARRAYS:
            compare.relative(KEY(key), gradient, ARRAYS[key], 1e-4)
    others = {n for n, p in coupled.named_parameters() if p.grad is not None}
    assert len(others) == len(found)


def inputs_of(blocks: Any) -> list[Tensor]:
    """A list that gets the hidden states as they enter each block."""
    seen: list[Tensor] = []
    for block in blocks:
        block.ln_1.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    return seen


def test_what_enters_each_block(compare: Comparison) -> None:
    coupled = network("depth3")
    tower: Any = coupled.prompts.backbone
    text = inputs_of(tower.model.transformer.resblocks)
    # With the padding, which the production code leaves out.
    prompts = coupled.prompts
    deep = list(coupled.deep_prompts)
    encode_embedded(tower, prompts.insert(coupled.context), prompts.ends, deep)
    ours = torch.stack([each[0] for each in text])
    key = "depth3_text_block_inputs"
    compare.relative(KEY(key), ours, ARRAYS[key], 2e-5)
    image = inputs_of(tower.visual.transformer.resblocks)
    coupled.encode_image(pixels_of(tower, ARRAYS["batch_u8"]))
    key = "depth3_vision_block_inputs"
    compare.relative(KEY(key), torch.stack([each[0] for each in image]), ARRAYS[key], 2e-5)
    rounded = ARRAYS["depth3_halfround_logits"]  # the official rounding, which is not imitated
    assert 0 < (rounded - ARRAYS["depth3_logits"]).abs().max() < 0.05


def test_the_drawn_start_is_like_the_official_one(compare: Comparison) -> None:
    official = state("init3")
    ours = network("init3")
    drawn = untrained(
        Task(class_names(), None, seed=1, device="cpu", precision="fp32", backbone=backbone()),  # type: ignore[arg-type]
        MapleSettings(depth=3),
    ).trained_state()
    compare.absolute(KEY("init3.ctx"), drawn["context"], official["context"], 0)
    for found in (official, drawn):
        for kind in ("weight", "bias"):
            one, two = (found[f"deep_coupling_{k}.{kind}"] for k in (1, 2))
            assert torch.equal(one, two)
            bound = ours.prompts.width**-0.5
            assert 0.9 * bound < found[f"coupling.{kind}"].abs().max() <= bound
        assert 0.01 < found["deep_prompt_1"].std() < 0.03


def run(**choices: Any) -> tuple[CoupledPrompts, trajectories.Trajectory]:
    """Train on the recorded batches with the official settings."""
    coupled = network("traj_init")
    rates = ARRAYS["traj_lr"]
    n_batches = trajectories.steps_per_epoch(rates)
    batches = trajectories.Recorded(ARRAYS["traj_u8"], ARRAYS["traj_index"], n_batches)
    labels = trajectories.labels_by_image(ARRAYS["traj_index"], ARRAYS["traj_labels"])
    settings = MapleSettings(epochs=len(rates) // n_batches, **choices)
    losses = CrossEntropy(coupled.similarity, coupled.prompts.backbone.logit_scale)
    found = trajectories.train(
        coupled, coupled.similarity, losses, recipe_of(settings), labels, batches
    )
    return coupled, found


def compare_state(
    name: str, ours: dict[str, Tensor], compare: Comparison, tolerance: float
) -> None:
    for reference in _reference_names():
        key = f"{name}.{reference}"
        compare.absolute(KEY(key), ours[our_name(reference)], ARRAYS[key], tolerance)


def test_the_official_training(compare: Comparison) -> None:
    coupled, found = run()
    tower = coupled.prompts.backbone
    compare.exact(KEY("traj_tokens"), coupled.prompts.tokens, ARRAYS["traj_tokens"])
    compare.absolute(KEY("traj_lr"), torch.tensor(found.rates), ARRAYS["traj_lr"], 1e-9)
    logits = tower.logit_scale * torch.stack(found.logits)
    compare.relative(KEY("traj_logits"), logits, ARRAYS["traj_logits"], 2e-4)
    compare.relative(KEY("traj_loss"), torch.stack(found.losses), ARRAYS["traj_loss"], 2e-4)
    norms = ARRAYS["traj_grad_l2"]
    trajectories.compare_norms(KEY("traj_grad_l2"), found.norms(), norms, compare, 5e-4)
    compare_state("traj_after4", found.states[3], compare, 1e-5)
    compare_state("traj_after9", found.states[8], compare, 5e-5)
    views = pixels_of(tower, ARRAYS["test_u8"])
    tested = tower.logit_scale * CoupledClassifier(coupled).logits(Views(images=views))
    compare.relative(KEY("traj_test_logits"), tested, ARRAYS["traj_test_logits"], 2e-4)
    fresh = dict(backbone().named_parameters())
    frozen = dict(tower.named_parameters())
    assert all(torch.equal(frozen[name], value) for name, value in fresh.items())


def test_where_weight_decay_acts(compare: Comparison) -> None:
    _, found = run(weight_decay=0.5)
    compare_state("traj_wd05_after4", found.states[3], compare, 1e-5)


def test_schedule_optimiser_and_batches(compare: Comparison) -> None:
    recipe = recipe_of(MapleSettings())
    trajectories.compare_rates(ARRAYS, compare, "lr_5", recipe)
    trajectories.compare_rates(ARRAYS, compare, "lr_50", recipe)
    across = recipe_of(MapleSettings(learning_rate=0.0026))
    trajectories.compare_rates(ARRAYS, compare, "lr_cross_2", across)
    trajectories.compare_optimizer(ARRAYS, compare, recipe)
    trajectories.compare_iterations(ARRAYS, compare)
