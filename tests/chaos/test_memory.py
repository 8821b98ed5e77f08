"""A GPU whose memory is short: smaller parts, the same batch; simulated where tensors are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microclip import runtime
from microclip.model.backbone import Backbone
from tests.adaptation.test_training import Journal, fusion_of, trainer


class Lines(Journal):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def small_memory(patch: pytest.MonkeyPatch, n_images: int) -> list[int]:
    """Let the tower hold the activations of `n_images` at most; return the sizes that it took."""
    plain, taken = Backbone._tokens, list[int]()

    def tokens(self: Backbone, images: Tensor, **given: Any) -> Tensor:
        if torch.is_grad_enabled():
            if len(images) > n_images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            taken.append(len(images))
        return plain(self, images, **given)

    patch.setattr(Backbone, "_tokens", tokens)
    return taken


def state(built: Any) -> dict[str, Tensor]:
    return dict(fusion_of(built).trained_state())


def test_a_batch_that_does_not_fit_is_learned_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, expected = trainer(), Journal()
    whole.train(expected)
    taken = small_memory(monkeypatch, 2)
    built, journal = trainer(), Lines()
    built.train(journal)
    assert max(taken) == 2
    [said] = [line for line in journal.lines if "memory is short" in line]
    assert "in 2 parts" in said
    for name, value in state(built).items():
        torch.testing.assert_close(value, state(whole)[name], atol=1e-6, rtol=0)
    assert journal.indices == expected.indices  # each image taught once an epoch
    for epoch in (1, 2, 3):
        row, other = journal.rows[epoch], expected.rows[epoch]
        assert row["loss_fairness"] == pytest.approx(other["loss_fairness"], rel=1e-5)


def test_a_resumed_process_finds_its_parts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 1)
    whole = trainer()
    whole.train(Journal())
    with pytest.raises(KeyboardInterrupt):
        trainer().train(Journal(stop_after=1), tmp_path)
    resumed, journal = trainer(), Lines()
    resumed.train(journal, tmp_path)
    assert 1 not in journal.rows
    for name, value in state(resumed).items():
        assert torch.equal(value, state(whole)[name]), name


def test_where_not_even_one_image_fits_the_run_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_memory(monkeypatch, 0)
    with pytest.raises(runtime.ResourceError, match=r"a step of 4 images .* in epoch 1; lower"):
        trainer().train(Journal())
