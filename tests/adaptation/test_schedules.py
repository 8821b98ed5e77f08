"""The schedule's values, who decays, and the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from microclip.adaptation.schedules import (
    OptimizerRecipe,
    Position,
    clip_total_l1,
    constant,
    cosine,
    cosine_rate,
    set_learning_rate,
)
from microclip.model.token_fusion import TokenFusion
from tests.model.networks import images, tiny_backbone


def parameters() -> dict[str, nn.Parameter]:
    return {"norm": nn.Parameter(torch.ones(3)), "map": nn.Parameter(torch.ones(2, 2))}


def build(tensors: Mapping[str, nn.Parameter], rate: float = 1e-4, **choices: Any) -> Optimizer:
    """An optimiser whose rate is set, decay 0.1 unless told otherwise."""
    recipe = OptimizerRecipe(constant(rate), **{"weight_decay": 0.1, **choices})
    optimizer = recipe.build(tensors)
    set_learning_rate(optimizer, rate)
    return optimizer


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 1e-4), (240, 8.564823e-5), (480, 5.1e-5), (959, 2.000262e-6)]
)
def test_rate_follows_half_a_cosine(step: int, rate: float) -> None:
    """A quarter of the way: 2e-6 + 0.5 * 98e-6 * (1 + cos 45 degrees) = 8.564823e-5."""
    assert cosine_rate(step, 960, 1e-4) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 1e-6), (240, 1.146447e-6), (480, 1.5e-6), (959, 1.9999973e-6)]
)
def test_small_peak_rises_to_the_floor(step: int, rate: float) -> None:
    assert cosine_rate(step, 960, 1e-6) == pytest.approx(rate, rel=1e-6)
    assert cosine_rate(step, 960, 1e-6, floor=0) <= 1e-6


@pytest.mark.parametrize("step", [-1, 960])
def test_step_outside_the_schedule_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=r"\[0, 960\)"):
        cosine_rate(step, 960, 1e-4)


def test_every_tensor_decays_by_default() -> None:
    """Without gradient AdamW multiplies by 1 - rate * decay = 0.99."""
    tensors = parameters()
    optimizer = build(tensors, 0.1)
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    for tensor in tensors.values():
        torch.testing.assert_close(tensor.detach(), torch.full_like(tensor, 0.99))


def test_norms_can_be_exempt() -> None:
    tensors = parameters()
    optimizer = build(tensors, 0.1, decay="matrices")
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    assert torch.equal(tensors["norm"].detach(), torch.ones(3))
    torch.testing.assert_close(tensors["map"].detach(), torch.full((2, 2), 0.99))


def test_settings_reach_the_optimiser() -> None:
    (group,) = build(parameters(), 3e-4).param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-4, 0.1)
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_rate_is_given_to_all_groups() -> None:
    optimizer = build(parameters(), decay="matrices")
    set_learning_rate(optimizer, 5e-5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 5e-5]


def test_frozen_or_missing_tensors_are_refused() -> None:
    frozen = {"norm": nn.Parameter(torch.ones(3), requires_grad=False)}
    with pytest.raises(ValueError, match=r"frozen: \['norm'\]"):
        build(frozen)
    with pytest.raises(ValueError, match="got 0"):
        build({})


def test_clip_bounds_the_sum_of_absolute_gradients() -> None:
    """1 + 1 + 2 + 1 = 5 before, 1 after."""
    tensors = parameters()
    tensors["norm"].grad = torch.tensor([1.0, -1.0, 0.0])
    tensors["map"].grad = torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    total = clip_total_l1(tensors.values())
    assert total.item() == pytest.approx(5)
    gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
    assert sum(g.abs().sum().item() for g in gradients) == pytest.approx(1, rel=1e-5)
    again = clip_total_l1(tensors.values(), max_norm=10)
    assert again.item() == pytest.approx(1, rel=1e-5)


def test_frozen_tensors_stay_bit_identical() -> None:
    fusion = TokenFusion(tiny_backbone(), torch.randn(5, 16))
    before = {name: tensor.clone() for name, tensor in fusion.named_parameters()}
    optimizer = build(fusion.trained_parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        fusion(images(2)).logits.square().sum().backward()
        optimizer.step()
    for name, tensor in fusion.named_parameters():
        assert torch.equal(tensor, before[name]) != tensor.requires_grad, name


def test_biases_can_be_exempt_by_name() -> None:
    tensors = {"a.bias": nn.Parameter(torch.ones(1)), "a.weight": nn.Parameter(torch.ones(1))}
    groups = build(tensors, decay="weights").param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]


def test_a_group_moves_by_its_own_share_of_the_rate() -> None:
    """Plain gradient descent: rate 0.5 times a gradient of 1, and a tenth of that."""
    tensors = {"text.a": nn.Parameter(torch.zeros(1)), "visual.a": nn.Parameter(torch.zeros(1))}
    optimizer = build(
        tensors, 0.5, kind="sgd", weight_decay=0.0, momentum=0.0, factors=(("visual.", 0.1),)
    )
    for tensor in tensors.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    assert [tensor.item() for tensor in tensors.values()] == pytest.approx([-0.5, -0.05])


def test_a_budget_of_steps_cuts_the_last_pass_short() -> None:
    by_steps, by_epochs = OptimizerRecipe(constant(1.0), steps=7), OptimizerRecipe(cosine(1.0), 2)
    assert (by_steps.n_epochs(3), by_steps.n_steps(3)) == (3, 7)
    assert (by_epochs.n_epochs(3), by_epochs.n_steps(3)) == (2, 6)
    assert by_epochs.schedule(Position(5, 2, 6, 2)) == cosine_rate(5, 6, 1.0)
