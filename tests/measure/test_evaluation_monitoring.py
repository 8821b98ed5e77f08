"""The monitor counts pseudo-labels and gives the method nothing back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from microclip.measure.evaluation import LabelMonitor, is_measured
from microclip.methods.base import Views
from microclip.tracking.run import EpochReporter, RunClock, epoch_line, read_history, write_history
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


def test_the_first_and_the_last_state_are_always_measured() -> None:
    measured = [e for e in range(8) if is_measured(e, every=3, n_epochs=7)]
    assert measured == [0, 3, 6, 7]
    assert all(is_measured(e, every=3, n_epochs=None) for e in range(8))  # no last one is known


def test_columns_stay_in_the_history_when_the_last_epoch_lacks_them(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0.0, "test_fused_pct": 40.0},
        {"epoch": 1.0, "loss": 2.0, "test_fused_pct": 50.0},
        {"epoch": 2.0, "loss": 1.0},
    ]
    write_history(tmp_path, rows)
    assert read_history(tmp_path) == rows


class Counted(Halves):
    """Has a state, and counts its tests."""

    def __init__(self) -> None:
        self.tests, self.state = 0, torch.zeros(2)

    def heads(self, views: Views) -> dict[str, Tensor]:
        self.tests += 1
        return super().heads(views)

    def trained_state(self) -> dict[str, Tensor]:
        return {"state": self.state.clone()}


def test_an_epoch_that_is_not_measured_has_no_test_columns() -> None:
    watching = LabelMonitor(
        torch.tensor([0]),
        torch.tensor([0, 1, 1]),
        lambda _: [Views(embeddings=torch.eye(3))],
        is_measured=lambda epoch: epoch == 2,
    )
    classifier = Counted()
    watching.evaluate(classifier, 1)
    assert watching.take(1) == {}
    watching.evaluate(classifier, 2)
    assert set(watching.take(2)) == {"test_fused_pct", "test_global_pct"}
    assert classifier.tests == 1


def test_a_test_is_repeated_only_if_something_changed() -> None:
    watching, classifier = monitor(), Counted()
    expected = watching.heads(classifier)  # as after a resumption: nothing was tested yet
    watching.evaluate(classifier, 3)
    assert torch.equal(watching.heads(classifier)["fused"], expected["fused"])
    assert classifier.tests == 2
    classifier.state[0] = 1.0
    watching.heads(classifier)
    assert classifier.tests == 3
    assert watching.heads(Counted()).keys() == expected.keys()


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
