"""The loss terms by hand, and a marginal that survives a resume."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from microclip.adaptation.losses import (
    RunningMarginal,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)

FIRST = torch.tensor([0.7, 0.1, 0.1, 0.1])
SECOND = torch.tensor([0.1, 0.7, 0.1, 0.1])


def test_cross_entropy_applies_the_temperature() -> None:
    """Cosines 0.02 and 0.01 at temperature 100 are logits 2 and 1: loss log(1 + e^-1)."""
    loss = self_training_loss(torch.tensor([[0.02, 0.01]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    plain = self_training_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([0]), scale=1)
    assert plain.item() == pytest.approx(loss.item(), rel=1e-6)


def test_mean_probabilities_average_the_softmax() -> None:
    cosines = torch.tensor([[0.02, 0.01], [0.01, 0.02]])
    torch.testing.assert_close(mean_probabilities(cosines), torch.tensor([0.5, 0.5]))


def test_fairness_of_a_uniform_marginal_is_the_minimum() -> None:
    """2 ln 4 = 2.772589, and 2 ln 102 = 9.249945 for Flowers."""
    assert fairness_loss(torch.full((4,), 0.25)).item() == pytest.approx(2.772589, abs=1e-6)
    assert fairness_loss(torch.full((102,), 1 / 102)).item() == pytest.approx(9.24995, abs=1e-5)
    assert fairness_loss(torch.full((4,), 0.25), factor=1).item() == pytest.approx(
        math.log(4), abs=1e-6
    )


def test_fairness_of_two_batches_by_hand() -> None:
    """First -0.5 (ln 0.7 + 3 ln 0.1); then the marginal is (0.4, 0.4, 0.1, 0.1)."""
    marginal = RunningMarginal()
    assert fairness_loss(marginal.update(FIRST)).item() == pytest.approx(3.632215, abs=1e-6)
    assert fairness_loss(marginal.update(SECOND)).item() == pytest.approx(3.218876, abs=1e-6)
    plain = RunningMarginal(mode="batch")
    plain.update(FIRST)
    loss = fairness_loss(plain.update(SECOND), factor=1)
    assert loss.item() == pytest.approx(1.816108, abs=1e-6)


def test_gradient_of_the_second_batch_is_minus_one_over_c_m() -> None:
    """Factor 2 and the batch's half cancel: -1 / (4 m) with m = (0.4, 0.4, 0.1, 0.1)."""
    marginal = RunningMarginal()
    first = FIRST.clone().requires_grad_()
    marginal.update(first)
    second = SECOND.clone().requires_grad_()
    fairness_loss(marginal.update(second)).backward()
    expected = torch.tensor([-0.625, -0.625, -2.5, -2.5])
    torch.testing.assert_close(second.grad, expected)
    assert first.grad is None


def test_reset_starts_the_epoch_anew() -> None:
    marginal = RunningMarginal()
    marginal.update(FIRST)
    marginal.reset()
    assert torch.equal(marginal.update(SECOND), SECOND)


def test_resumed_marginal_continues_exactly() -> None:
    unbroken, before, after = RunningMarginal(), RunningMarginal(), RunningMarginal()
    unbroken.update(FIRST)
    before.update(FIRST)
    after.load_state_dict(before.state_dict())
    assert torch.equal(unbroken.update(SECOND), after.update(SECOND))
    fresh = RunningMarginal()
    fresh.load_state_dict(RunningMarginal().state_dict())
    assert torch.equal(fresh.update(FIRST), FIRST)


def test_vanished_probability_keeps_loss_and_gradient_finite() -> None:
    cosines = torch.tensor([[1.0, -1.0, 0.9]], requires_grad=True)
    loss = fairness_loss(mean_probabilities(cosines))
    loss.backward()
    assert loss.isfinite()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()


def test_unknown_mode_is_refused() -> None:
    mode: Any = "epoch"
    with pytest.raises(Exception, match="mode"):
        RunningMarginal(mode=mode)
