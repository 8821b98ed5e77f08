"""Sums, the guard, time left."""

from __future__ import annotations

import pytest
import torch

from microclip.adaptation import bookkeeping
from microclip.adaptation.bookkeeping import (
    EpochTotals,
    FiniteGuard,
    NonFiniteLossError,
    Progress,
    duration,
)
from microclip.model.saliency import Saliency


def test_the_guard_names_term_epoch_and_first_step() -> None:
    guard = FiniteGuard(epoch=4)
    for step, value in enumerate((1.0, float("nan"), float("inf"), 2.0)):
        guard.note(step, cross_entropy=torch.tensor(1.0), fairness=torch.tensor(value))
    with pytest.raises(NonFiniteLossError, match="in fairness at epoch 4, step 2"):
        guard.check()


def test_the_guard_looks_every_few_steps() -> None:
    guard = FiniteGuard(epoch=1)
    for step in range(bookkeeping.CHECK_EVERY - 1):
        guard.note(step, cross_entropy=torch.tensor(float("nan")))
    with pytest.raises(NonFiniteLossError, match="step 1;"):
        guard.note(bookkeeping.CHECK_EVERY - 1, cross_entropy=torch.tensor(1.0))


def test_finite_losses_pass() -> None:
    guard = FiniteGuard(epoch=1)
    guard.note(0, cross_entropy=torch.tensor(3.0))
    guard.check()


def test_means_are_over_images_not_batches() -> None:
    totals = EpochTotals()
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    cut = Saliency(
        mask,
        torch.zeros(3, 2),
        degenerate=torch.tensor([False, True, False]),
        density=torch.tensor([0.5, 1.0, 0.0]),
    )
    one, two = torch.tensor(1.0), torch.tensor(5.0)
    totals.add(3, cross_entropy=one, fairness=two, saliency=cut)
    totals.add(1, cross_entropy=two, fairness=one, saliency=None)
    assert totals.row() == pytest.approx(
        {
            "loss": 6.0,
            "loss_ce": 2.0,
            "loss_fairness": 4.0,
            "salient_patches": 4 / 3,
            "degenerate_rate": 1 / 3,
            "edge_density": 0.5,
        }
    )


def test_time_left_counts_from_the_epoch_that_was_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(bookkeeping.time, "monotonic", lambda: now[0])
    progress = Progress(n_epochs=4, n_steps=10, first_epoch=3)
    now[0] = 1.0
    assert progress.line(3, 0) is None
    now[0] = 50.0
    assert progress.line(3, 4) == "epoch 3/4, step 5/10, 2 min 30 s left"


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.0, 59.4, 60.0, 200.0)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 20 s",
    ]
