"""The loop: equal to the written-out algorithm, resumable, and silent to its watcher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from microclip import runtime
from microclip.adaptation.first_batch import FirstBatch
from microclip.adaptation.training import NonFiniteLossError, Trainer
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewBatch, ViewRecipe
from microclip.methods.fusion import optimizer_recipe
from microclip.methods.microclip import (
    KnowledgeTeacher,
    MicroClipSettings,
    SelfTrainingLosses,
)
from microclip.model.token_fusion import TokenFusion
from tests.model.networks import tiny_backbone

C, N = 5, 11
RECIPE = ViewRecipe(seed=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3, n_crops=2)


class Noise(UnlabelledImages):
    """Images of noise."""

    __slots__ = ("_images",)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (N, 36, 41, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return N

    def pixels(self, index: int) -> np.ndarray:
        return self._images[index]


class Journal:
    """Remembers, and can stop the training."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.labels: list[dict[str, Tensor]] = []
        self.indices: list[int] = []
        self.first: list[FirstBatch] = []
        self._stop_after = stop_after

    def first_batch(self, found: FirstBatch) -> None:
        self.first.append(found)

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        if self._stop_after is not None and self._stop_after in self.rows:
            raise KeyboardInterrupt
        self.indices += indices.tolist()
        self.labels.append(guesses)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        self.rows[epoch] = row

    def message(self, text: str) -> None:
        pass


def trainer(**values: Any) -> Trainer[ViewBatch]:
    settings = MicroClipSettings(**{"epochs": 3, "batch_size": 4, **values})
    torch.manual_seed(0)
    fusion = TokenFusion(tiny_backbone(), torch.randn(C, 16), settings.fusion_options())
    knowledge = functional.normalize(torch.randn(C, 16), dim=-1)
    recipe = dataclasses.replace(RECIPE, n_crops=0) if settings.prior == "frozen" else RECIPE
    cached = torch.randn(N, C) if settings.prior == "frozen" else None
    views = TrainingViews(Noise(), recipe, batch_size=settings.batch_size)
    return assembled(fusion, KnowledgeTeacher(fusion, knowledge, settings, cached), views, settings)


def assembled(
    fusion: TokenFusion,
    teacher: KnowledgeTeacher,
    views: TrainingViews,
    settings: MicroClipSettings,
    precision: str = "fp32",
) -> Trainer[ViewBatch]:
    return Trainer(
        fusion,
        teacher,
        SelfTrainingLosses(fusion, settings),
        optimizer_recipe(settings),
        views,
        settings=settings.model_dump(mode="json"),
        precision=precision,
    )


def fusion_of(built: Trainer[ViewBatch]) -> TokenFusion:
    assert isinstance(built.model, TokenFusion)
    return built.model


def written_out(built: Trainer[ViewBatch], n_steps: int) -> list[float]:
    """Section 5 of the method's card, without the project's losses, schedule and loop."""
    fusion, total = fusion_of(built), 3 * 3
    parameters = list(fusion.trained_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    losses, marginal = [], None
    for step, batch in enumerate(built.views.batches(1, 3)):
        if step == n_steps:
            break
        taught = built._teacher.teach(batch, torch.Generator())
        assert taught is not None
        assert taught.labels is not None
        logits = 100 * fusion(batch.strong).logits
        mean = logits.softmax(-1).mean(0)
        marginal = mean if step % 3 == 0 else 0.5 * (marginal.detach() + mean)
        loss = functional.cross_entropy(logits, taught.labels) - 2 / C * marginal.log().sum()
        for group in optimizer.param_groups:
            group["lr"] = 2e-6 + 0.5 * (1e-4 - 2e-6) * (1 + np.cos(np.pi * step / total))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_loop_is_the_algorithm_of_the_card() -> None:
    ours, reference = trainer(), trainer()
    losses = written_out(reference, 9)
    journal = Journal()
    ours.train(journal)
    for name, value in fusion_of(ours).trained_state().items():
        torch.testing.assert_close(
            value, fusion_of(reference).trained_state()[name], atol=1e-6, rtol=0
        )
    sizes = [4, 4, 3]
    for epoch in (1, 2, 3):
        mine = losses[3 * epoch - 3 : 3 * epoch]
        expected = sum(loss * size for loss, size in zip(mine, sizes, strict=True)) / N
        assert journal.rows[epoch]["loss"] == pytest.approx(expected, rel=1e-4)


def test_only_what_is_trained_moves() -> None:
    built = trainer(epochs=1)
    before = {name: value.clone() for name, value in fusion_of(built).state_dict().items()}
    built.train(Journal())
    after = fusion_of(built).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {id(p) for p in fusion_of(built).trained_parameters().values()}
    assert moved == {name for name, p in fusion_of(built).named_parameters() if id(p) in trained}


def test_a_row_an_epoch_and_every_image_taught_once_an_epoch() -> None:
    journal = Journal()
    trainer(epochs=2).train(journal)
    assert list(journal.rows) == [0, 1, 2]
    assert journal.rows[0] == {}
    assert set(journal.rows[2]) == {
        "loss",
        "loss_ce",
        "loss_fairness",
        "salient_patches",
        "degenerate_rate",
        "edge_density",
        "learning_rate",
        "images_per_s",
        "seconds",
        "peak_memory_mib",
    }
    assert sorted(journal.indices) == sorted([*range(N), *range(N)])
    assert set(journal.labels[0]) == {"prior", "fusion", "mix"}
    assert journal.rows[2]["learning_rate"] < journal.rows[1]["learning_rate"] < 1e-4


@pytest.mark.parametrize(
    "values", [{}, {"query": "random"}, {"prior": "frozen"}, {"fairness": "paper"}]
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, values: dict[str, Any]) -> None:
    unbroken = trainer(**values)
    unbroken.train(Journal())
    with pytest.raises(KeyboardInterrupt):
        trainer(**values).train(Journal(stop_after=1), tmp_path)
    resumed, journal = trainer(**values), Journal()
    resumed.train(journal, tmp_path)
    assert list(journal.rows) == [2, 3]
    for name, value in fusion_of(resumed).trained_state().items():
        assert torch.equal(value, fusion_of(unbroken).trained_state()[name]), name


def test_a_checkpoint_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    trainer(epochs=1).train(Journal(), tmp_path)
    journal = Journal()
    trainer(epochs=1, gamma=0.4).train(journal, tmp_path)
    assert list(journal.rows) == [0, 1]


def test_a_complete_checkpoint_trains_no_more(tmp_path: Path) -> None:
    first = trainer(epochs=1)
    first.train(Journal(), tmp_path)
    again, journal = trainer(epochs=1), Journal()
    again.train(journal, tmp_path)
    assert journal.rows == {}
    assert torch.equal(fusion_of(again).classifier, fusion_of(first).classifier)


def test_a_loss_that_is_no_number_keeps_the_checkpoint_before_it(tmp_path: Path) -> None:
    class Spoiler(Journal):
        def __init__(self, built: Trainer[ViewBatch], spoilt_step: int) -> None:
            super().__init__()
            self._built, self._spoilt_step = built, spoilt_step

        def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
            super().pseudo_labels(indices, guesses)
            if len(self.labels) == self._spoilt_step:
                with torch.no_grad():
                    fusion_of(self._built).classifier.fill_(float("nan"))

    for spoilt_step, word in ((4, "loss_ce at epoch 2, step 2"), (6, "weights, .* epoch 2")):
        built = trainer()
        with pytest.raises(NonFiniteLossError, match=word):
            built.train(Spoiler(built, spoilt_step), tmp_path)
        with safe_open(tmp_path / "last.safetensors", framework="pt") as opened:
            assert json.loads(opened.metadata()["microclip"])["epoch"] == 1
            assert opened.get_tensor("weights/classifier").isfinite().all()
        (tmp_path / "last.safetensors").unlink()


@pytest.mark.parametrize(
    "values",
    [
        {"fairness": "off"},
        {"gradient_clip": "l1"},
        {"pseudo_label": "single", "train_head": "cls"},
        {"pseudo_label": "multi", "pseudo_label_head": "shared"},
        {"pooling": "query-average", "query": "mean"},
        {"rho": 0.0},
        {"learnable_empty": True},
    ],
)
def test_every_switch_trains(values: dict[str, Any]) -> None:
    built, plain = trainer(epochs=1, **values), trainer(epochs=1)
    journal = Journal()
    built.train(journal)
    plain.train(Journal())
    assert np.isfinite(journal.rows[1]["loss"])
    assert not torch.equal(fusion_of(built).classifier, fusion_of(plain).classifier)


def test_no_epoch_leaves_the_network_as_it_was() -> None:
    built = trainer(epochs=0)
    before = fusion_of(built).trained_state()
    built.train(Journal())
    assert all(torch.equal(before[k], v) for k, v in fusion_of(built).trained_state().items())


def test_each_epoch_measures_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(runtime, "reset_peak_memory", lambda: events.append("reset"))
    monkeypatch.setattr(runtime, "peak_memory_mib", lambda: events.append("read") or 1.0)
    journal = Journal()
    monkeypatch.setattr(journal, "epoch", lambda epoch, row: events.append(f"test {epoch}"))
    trainer(epochs=2).train(journal)
    assert events == ["test 0", "reset", "read", "test 1", "reset", "read", "test 2"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_bf16_runs_on_a_gpu() -> None:
    settings = MicroClipSettings(epochs=1, batch_size=4)
    fusion = TokenFusion(tiny_backbone().to("cuda"), torch.randn(C, 16))
    knowledge = functional.normalize(torch.randn(C, 16), dim=-1).cuda()
    views = TrainingViews(Noise(), RECIPE, batch_size=4, device="cuda")
    journal = Journal()
    teacher = KnowledgeTeacher(fusion, knowledge, settings)
    assembled(fusion, teacher, views, settings, "bf16").train(journal)
    assert np.isfinite(journal.rows[1]["loss"])


def test_a_gpu_without_memory_ends_the_run_in_a_line_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = trainer()
    unbroken.train(Journal())
    built, plain, n_steps = trainer(), Trainer._step, 0

    def full(self: Any, *given: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps > built.views.n_batches:  # in epoch 2
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\n...")
        return plain(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", full)
        with pytest.raises(runtime.ResourceError, match=r"of 4 images .* epoch 2; lower"):
            built.train(Journal(), tmp_path)
    resumed, journal = trainer(), Journal()
    resumed.train(journal, tmp_path)
    assert 1 not in journal.rows
    expected = unbroken.model.trained_state()
    for name, value in resumed.model.trained_state().items():
        assert torch.equal(value, expected[name]), name
