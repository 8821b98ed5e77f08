"""Sums, the guard, time left."""

from __future__ import annotations

import pytest
import torch

from microclip import runtime
from microclip.adaptation import training
from microclip.adaptation.training import (
    EpochTotals,
    FiniteGuard,
    NonFiniteLossError,
    Progress,
)


def test_the_guard_names_term_epoch_and_first_step() -> None:
    guard = FiniteGuard(epoch=4)
    for step, value in enumerate((1.0, float("nan"), float("inf"), 2.0)):
        terms = {"ce": torch.tensor(1.0), "fairness": torch.tensor(value)}
        guard.note(step, terms, torch.tensor([2 * step, 2 * step + 1]))
    named = r"in loss_fairness at epoch 4, step 2 \(images 2, 3 of their set"
    with pytest.raises(NonFiniteLossError, match=named):
        guard.check()


def test_the_guard_looks_every_few_steps() -> None:
    guard = FiniteGuard(epoch=1)
    for step in range(training.CHECK_EVERY - 1):
        guard.note(step, {"ce": torch.tensor(float("nan"))})
    with pytest.raises(NonFiniteLossError, match="step 1;"):
        guard.note(training.CHECK_EVERY - 1, {"ce": torch.tensor(1.0)})


def test_finite_losses_pass() -> None:
    guard = FiniteGuard(epoch=1)
    guard.note(0, {"ce": torch.tensor(3.0)})
    guard.check()


def test_means_are_over_images_not_batches() -> None:
    totals = EpochTotals()
    measures = {
        "salient_patches": torch.tensor([1.0, 2.0, 1.0]),
        "degenerate_rate": torch.tensor([0.0, 1.0, 0.0]),
        "edge_density": torch.tensor([0.5, 1.0, 0.0]),
    }
    one, two = torch.tensor(1.0), torch.tensor(5.0)
    totals.add(3, {"ce": one, "fairness": two}, measures)
    totals.add(1, {"ce": two, "fairness": one}, {})
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
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    progress = Progress(n_epochs=4, n_steps=10, first_epoch=3)
    now[0] = 1.0
    assert progress.line(3, 0) is None
    now[0] = 50.0
    assert progress.line(3, 4) == "epoch 3/4, step 5/10, 2 min 30 s left"


def test_durations_read_well() -> None:
    assert [runtime.duration(s) for s in (0.0, 59.4, 60.0, 200.0)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 20 s",
    ]
