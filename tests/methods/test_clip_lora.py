"""CLIP-LoRA: its updates, its number of steps, resuming, and what it refuses."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from microclip import runner
from microclip.adaptation.schedules import Position
from microclip.adaptation.training import Rounds
from microclip.data.shots import draw_shots, separate_shots
from microclip.methods import clip_lora
from microclip.methods.base import Task, Views
from microclip.methods.clip_lora import (
    METHOD,
    LowRankClassifier,
    LowRankClip,
    optimizer_recipe,
)
from microclip.model.lora import InputDropout, LowRank, LowRankOptions, placed_layers
from microclip.model.prompts import encode_embedded
from microclip.model.token_fusion import cosine_similarity
from microclip.own_images.record import resolve
from microclip.runtime import generator
from microclip.settings.base import SettingsError
from microclip.settings.methods.clip_lora import ClipLoraSettings, work
from tests.fixtures import project as fixture
from tests.methods import tasks
from tests.model.networks import images, tiny_backbone

TOKENS = torch.tensor([[62, 5, 63, 0, 0, 0, 0, 0], [62, 7, 9, 63, 0, 0, 0, 0]])


def options(**values: Any) -> ClipLoraSettings:
    return ClipLoraSettings(**{"steps_per_shot": 3, "batch_size": 2, "rounds": 2, **values})


def network(**values: Any) -> LowRankClip:
    return LowRankClip(tiny_backbone(), TOKENS, options(**values), generator(0, "low-rank"))


def moved(clip: LowRankClip) -> LowRankClip:
    """A network whose updates change something."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in clip.trained_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return clip


@pytest.mark.parametrize(
    ("rank", "down", "up", "expected"),
    [
        (1, [[3.0, 4.0]], [[1.0], [2.0]], [7.0, 14.0]),
        (2, [[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]], [math.sqrt(2), 0.0]),
    ],
)
def test_an_update_by_hand(
    rank: int, down: list[list[float]], up: list[list[float]], expected: list[float]
) -> None:
    chosen = LowRankOptions(rank=rank, maps=("q",))
    update = LowRank(2, chosen, InputDropout(0.0), torch.Generator())
    with torch.no_grad():
        update.down["q"].copy_(torch.tensor(down))
        update.up["q"].copy_(torch.tensor(up))
    inputs = torch.ones(1, 2)
    found = update("q", inputs)
    assert found is not None
    torch.testing.assert_close(found[0], torch.tensor(expected))
    torch.testing.assert_close(inputs @ update.weight("q").T, found)
    assert update("k", inputs) is None


def test_before_training_it_is_clip_even_while_inputs_are_dropped() -> None:
    clip, given = network(), images(3)
    clip.train()
    plain = tiny_backbone()
    expected = cosine_similarity(plain.encode_global(given), plain.encode_tokens(TOKENS))
    torch.testing.assert_close(clip.similarity(given), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(clip.predict(given), expected, rtol=0, atol=1e-6)


def test_the_first_gradient_reaches_up_alone_and_nothing_that_is_frozen() -> None:
    clip = network(dropout=0.0)
    clip.train()
    torch.autograd.backward([clip.similarity(images(3)).sum()])
    trained = clip.trained_parameters()
    for name, parameter in trained.items():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) is name.endswith("up"), name
    mine = {id(parameter) for parameter in trained.values()}
    assert all(
        p.grad is None and not p.requires_grad for p in clip.parameters() if id(p) not in mine
    )


def test_down_starts_within_the_bound_of_its_width() -> None:
    update = LowRank(64, LowRankOptions(rank=50), InputDropout(0.0), generator(0, "low-rank"))
    for drawn in update.down.values():
        assert 0.95 / 8 < float(drawn.detach().abs().max()) <= 1 / 8
        assert abs(float(drawn.detach().mean())) < 0.01
    assert all(not up.any() for up in update.up.values())


def test_the_maps_of_a_block_drop_different_inputs_and_rescale_the_rest() -> None:
    drop = InputDropout(0.25)
    drop.generator = generator(0, "dropout")
    first, second = drop(torch.ones(40, 50)), drop(torch.ones(40, 50))
    assert not torch.equal(first, second)
    for found in (first, second):
        torch.testing.assert_close(found.unique(), torch.tensor([0.0, 1 / 0.75]))
        assert 0.7 < float((found > 0).float().mean()) < 0.8
    drop.eval()
    assert torch.equal(drop(torch.ones(2, 2)), torch.ones(2, 2))


@pytest.mark.parametrize(("encoder", "moves"), [("both", "ti"), ("text", "t"), ("vision", "i")])
def test_only_the_chosen_towers_change(encoder: str, moves: str) -> None:
    clip, plain, given = moved(network(encoder=encoder)), tiny_backbone(), images(2)
    clip.eval()
    with torch.no_grad():
        texts = (clip.class_vectors() - plain.encode_tokens(TOKENS)).abs().max()
        pictures = (clip.backbone.encode_global(given) - plain.encode_global(given)).abs().max()
    assert (float(texts) > 1e-3) is ("t" in moves)
    assert (float(pictures) > 1e-3) is ("i" in moves)
    assert {name.split(".")[0] for name in clip.trained_parameters()} == {
        {"t": "text", "i": "visual"}[letter] for letter in moves
    }


def test_prompts_are_encoded_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, calls = network(), []

    def counted(*given: Any) -> torch.Tensor:
        calls.append(1)
        return encode_embedded(*given)

    monkeypatch.setattr(clip_lora, "encode_embedded", counted)
    first = clip.predict(images(1))
    assert torch.equal(clip.predict(images(1)), first)
    assert len(calls) == 1
    moved(clip)
    assert not torch.equal(clip.predict(images(1)), first)
    assert len(calls) == 2


def test_steps_do_not_depend_on_the_number_of_images_and_rounds_join_passes() -> None:
    settings = ClipLoraSettings()
    assert settings.steps == 500
    assert ClipLoraSettings(shots=2).steps == 1000
    assert work(settings).steps == 500
    assert ClipLoraSettings(epochs=15).steps is None

    class Pets:
        n_batches, seed = 2, 0  # one shot of 37 classes, batches of 32
        device = torch.device("cpu")

        def identity(self) -> dict[str, object]:
            return {"pets": 37}

        def batches(self, first: int, last: int) -> list[int]:
            return list(range(first, last + 1))

    joined = Rounds.of(Pets(), 500, 10)  # type: ignore[type-var,arg-type]
    assert (joined.passes, joined.n_batches) == (25, 50)
    assert list(joined.batches(2, 3)) == list(range(26, 76))  # 250 passes in all
    assert joined.identity() == {"pets": 37, "passes": 25}


def task(shots: int = 1, **changes: Any) -> Task:
    return tasks.task(shots=shots, **changes)


@pytest.mark.usefixtures("project")
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    settings, journal = options(shots=2, steps_per_shot=4, rounds=4), fixture.Journal()
    whole = METHOD.adapt(task(shots=2, checkpoints=tmp_path / "whole"), settings, journal)
    assert list(journal.rows) == [0, 1, 2, 3]  # 8 steps in passes of 3, the last one cut short

    class StoppedError(Exception):
        pass

    class Stopping(fixture.Journal):
        def epoch(self, epoch: int, row: dict[str, float]) -> None:
            if epoch == 2:
                raise StoppedError
            super().epoch(epoch, row)

    place = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        METHOD.adapt(task(shots=2, checkpoints=place), settings, Stopping())
    torch.manual_seed(99)  # what the global generator holds must not matter
    resumed = METHOD.adapt(task(shots=2, checkpoints=place), settings, fixture.Journal())
    expected = whole.trained_state()
    assert all(torch.equal(value, expected[n]) for n, value in resumed.trained_state().items())
    other = METHOD.adapt(task(seed=1, shots=2), settings, fixture.Journal()).trained_state()
    assert not torch.equal(other["text.0.q.down"], expected["text.0.q.down"])


@pytest.mark.usefixtures("project")
def test_frozen_tensors_stay_as_they_were_and_training_moves_the_rest() -> None:
    given = task()
    assert given.backbone is not None
    before = {n: p.clone() for n, p in given.backbone.named_parameters()}
    classifier = METHOD.adapt(given, options(learning_rate=0.1), fixture.Journal())
    after = dict(given.backbone.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(value.any() for n, value in classifier.trained_state().items() if n.endswith("up"))


@pytest.mark.usefixtures("project")
def test_a_whole_run_in_both_settings() -> None:
    for name, changes in {
        "official": {"steps_per_shot": 2, "shots": 2},
        "protocol": {"epochs": 1, "batch_size": 64, "shots": 2},
    }.items():
        settings = fixture.settings_of("clip_lora", **changes)
        fixture.prepare(settings)
        journal = fixture.Journal()
        scores = runner.run(settings, Path(name), journal)
        assert 0 <= scores.top1_pct <= 100
        assert journal.rows[0]["test_fused_pct"] >= 0
        assert len((Path(name) / "shots.csv").read_text().splitlines()) == 1 + 2 * 3


def test_a_small_class_repeats_images_or_is_refused() -> None:
    labels = [4, 4, 4, 1, -1, 4]
    drawn = draw_shots(labels, 3, 0, "repeated")
    assert [labels[index] for index in drawn] == [4, 4, 4, 1, 1, 1]
    assert len(set(drawn[:3])) == 3
    assert draw_shots(labels, 3, 0, "once")[-1] == 3
    with pytest.raises(ValueError, match="class 4 has 4 training images, 3 shots"):
        draw_shots(labels, 3, 0, "separate")
    training, validation = separate_shots([0] * 6 + [1] * 4, 2, random.Random(3))
    assert not set(training) & set(validation)
    with pytest.raises(ValueError, match="at least 1 shot"):
        draw_shots(labels, 0, 0, "repeated")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "a photo"}, r"template must contain \{\} once"),
        ({"maps": ("q", "q")}, "maps must differ"),
        ({"maps": ()}, "maps"),
        ({"min_learning_rate": 1.0}, "must not exceed learning_rate"),
        ({"dropout": 1.0}, "dropout"),
        ({"shots": 0}, "shots"),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        resolve("clip_lora", values, "the options of adapt")
    assert "\n" not in str(raised.value)


def test_blocks_above_the_tower_are_refused() -> None:
    with pytest.raises(SettingsError, match="text tower: position 'up' has no block in a tower of"):
        network(position="up")
    assert placed_layers("bottom", 2) == (0, 1)
    assert placed_layers("all", 30) == tuple(range(30))


@pytest.mark.usefixtures("project")
def test_prompts_that_fill_the_context_and_missing_parts_are_refused() -> None:
    long = options(template="a photo of one of the many kinds of a small {} on a table.")
    with pytest.raises(SettingsError, match="shorten 'template' or the class names"):
        METHOD.adapt(task(), long, fixture.Journal())
    with pytest.raises(ValueError, match="got none"):
        METHOD.adapt(task(backbone=None), options(), fixture.Journal())
    with pytest.raises(ValueError, match="labelled images, got none"):
        METHOD.adapt(task(examples=None), options(), fixture.Journal())


def test_a_classifier_reads_images() -> None:
    with pytest.raises(ValueError, match="follow its ViewPlan"):
        LowRankClassifier(network()).logits(Views())


def test_the_official_rates() -> None:
    schedule = optimizer_recipe(ClipLoraSettings()).schedule
    found = [schedule(Position(step, 1, 500, 10)) for step in (0, 250, 499)]
    assert found == pytest.approx([2e-4, 1.005e-4, 1.001964e-6], rel=1e-6)
