"""The monitor counts pseudo-labels and gives the method nothing back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from microclip.measure.evaluation import LabelMonitor
from microclip.methods.base import Views
from microclip.tracking.run import EpochReporter, RunClock, epoch_line, write_history
from tests.fixtures.project import Journal
from tests.measure.test_evaluation import Halves


def monitor() -> LabelMonitor:
    images = torch.eye(3)
    return LabelMonitor(
        train_labels=torch.tensor([2, 1, 0, 2]),
        test_labels=torch.tensor([0, 1, 1]),
        test_batches=lambda _: [Views(embeddings=images)],
    )


def test_guesses_are_counted_by_image_index_and_kind() -> None:
    watching = monitor()
    nothing = watching.pseudo_labels(
        torch.tensor([3, 0]), {"prior": torch.tensor([2, 1]), "mix": torch.tensor([2, 2])}
    )
    watching.pseudo_labels(
        torch.tensor([1, 2]), {"prior": torch.tensor([0, 0]), "mix": torch.tensor([1, 1])}
    )
    assert nothing is None
    assert watching.take(1) == {"pseudo_prior_pct": 50.0, "pseudo_mix_pct": 75.0}
    assert watching.take(1) == {}


def test_images_of_unknown_class_do_not_count() -> None:
    guesses = {"mix": torch.tensor([2, 2, 2])}
    for known, expected in (([2, -1, 0], {"pseudo_mix_pct": 50.0}), ([-1, -1, -1], {})):
        watching = LabelMonitor(torch.tensor(known), torch.tensor([0]), lambda _: [])
        watching.pseudo_labels(torch.tensor([0, 1, 2]), guesses)
        assert watching.take(1) == expected


def test_every_head_is_tested() -> None:
    watching = monitor()
    assert watching.evaluate(Halves()) is None
    measured = watching.take(1)
    assert measured["test_fused_pct"] == pytest.approx(200 / 3)
    assert measured["test_global_pct"] == 0.0


def test_the_tracker_gets_the_rows_and_the_method_does_not(tmp_path: Path) -> None:
    journal, watching = Journal(), monitor()
    tracker = EpochReporter(journal, watching, RunClock(tmp_path), n_epochs=4)
    watching.evaluate(Halves())
    row = {"loss": 1.5, "seconds": 2.0}
    assert tracker.epoch(3, row) is None
    assert row == {"loss": 1.5, "seconds": 2.0}
    assert journal.rows[3]["test_fused_pct"] == pytest.approx(200 / 3)
    assert journal.lines == ["epoch 3/4: loss 1.500, test 66.7 %, global 0.0, about 2 s left"]


def test_before_training_only_the_test_is_measured() -> None:
    shown = {"test_fused_pct": "test {:.1f} %"}
    row = {"test_fused_pct": 40.0, "seconds": 3.0}
    assert epoch_line(0, 2, row, shown) == "epoch 0/2: test 40.0 %, about 6 s left"


def test_a_resumed_run_counts_the_seconds_of_its_earlier_process(tmp_path: Path) -> None:
    write_history(tmp_path, [{"epoch": e, "elapsed_s": 100.0 * e} for e in range(4)])
    resumed, restarted = RunClock(tmp_path), RunClock(tmp_path)
    assert 200.0 <= resumed.at(3) < 250.0  # epochs 1 and 2 were done, 3 is made again
    assert 200.0 <= resumed.at(4) < 250.0
    assert 200.0 <= resumed.seconds() < 250.0
    assert restarted.at(0) < 50.0  # epoch 0 is the beginning: nothing is counted twice
