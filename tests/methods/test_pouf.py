"""POUF: the card's checks, what is trained, exact resume, and settings that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.adaptation.losses import prediction_entropies, transport
from microclip.adaptation.schedules import Position
from microclip.methods.base import Classifier, Views
from microclip.methods.pouf import METHOD, alignment_terms, optimizer_recipe, untrained
from microclip.model.backbone import Backbone
from microclip.settings import SettingsError
from microclip.settings.methods.pouf import PoufSettings
from tests.fixtures.project import CLASSES, Journal
from tests.methods.tasks import Interrupting, KilledError, frozen_of, task

MODES = pytest.mark.parametrize("mode", ["model", "prompt"])
in_project = pytest.mark.usefixtures("project")


def options(**values: Any) -> PoufSettings:
    short = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "learning_rate": 1e-3}
    return PoufSettings.model_validate({**short, **values})


def loss_of(similarity: Tensor, scale: float = 10.0) -> Tensor:
    terms = alignment_terms(similarity, torch.tensor(scale), PoufSettings())
    return terms["transport"] + terms["information"]


def cosines(n_images: int = 6, n_classes: int = 4) -> Tensor:
    return torch.rand(n_images, n_classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n_classes", "information"), [(2, -1.80e-5), (5, -4.51e-5)])
def test_equal_cosines_cost_one_minus_the_cosine_twice(n_classes: int, information: float) -> None:
    moved = transport(torch.full((8, n_classes), 0.25), 10.0)
    assert moved.image_cost + moved.class_cost == pytest.approx(1.5, abs=1e-6)
    own, mean = prediction_entropies(moved.to_classes)
    assert own - mean == pytest.approx(information, abs=5e-7)


def test_plans_sum_to_one_and_the_order_of_images_and_classes_means_nothing() -> None:
    given = cosines()
    moved = transport(given, 10.0)
    torch.testing.assert_close(moved.to_classes.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(moved.to_images.sum(dim=0), torch.ones(4))
    for other in (given[[3, 0, 5, 1, 2, 4]], given[:, [2, 0, 3, 1]], given.repeat(2, 1)):
        torch.testing.assert_close(loss_of(other), loss_of(given))


def test_the_rates_follow_the_published_multipliers() -> None:
    settings = PoufSettings()
    schedule = optimizer_recipe(settings).schedule
    for step, expected in ((0, 0.01), (500, 0.00931012), (5000, 0.00594604), (10000, 0.00438691)):
        rate = schedule(Position(step, 1, 10_001, 21))
        assert rate / (settings.learning_rate / 0.01) == pytest.approx(expected, abs=1e-8)


@in_project
def test_mode_prompt_trains_the_context_and_the_scale_and_starts_as_the_plain_prompt() -> None:
    given = task()
    network = untrained(given, options(mode="prompt"))
    n_trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
    assert n_trained == 4 * network.prompts.width + 1
    plain = network.backbone.encode_text([f"a photo of a {n.replace('_', ' ')}." for n in CLASSES])
    torch.testing.assert_close(network.class_vectors(), plain, atol=1e-5, rtol=0)


@in_project
def test_mode_model_trains_all_of_clip_and_starts_without_a_full_stop() -> None:
    network = untrained(task(), options())
    assert all(each.requires_grad for each in network.backbone.model.parameters())
    plain = network.backbone.encode_text([f"a photo of a {n.replace('_', ' ')}" for n in CLASSES])
    torch.testing.assert_close(network.class_vectors(), plain, atol=1e-5, rtol=0)


@in_project
def test_in_mode_model_unused_words_move_by_decay_alone() -> None:
    given = task()
    assert given.backbone is not None
    words = given.backbone.model.token_embedding.weight
    before = words.detach().clone()
    METHOD.adapt(given, options(epochs=1, steps_per_epoch=1, weight_decay=0.1), Journal())
    moved = words.detach() / before
    unused = moved[1000:1010]  # no prompt has these words; Nesterov's first step is 1.9 gradients
    torch.testing.assert_close(unused, torch.full_like(unused, 1 - 1e-3 * 1.9 * 0.1))


@in_project
@MODES
def test_training_moves_what_the_mode_trains_and_nothing_else(mode: str) -> None:
    given = task()
    assert given.backbone is not None
    before = frozen_of(given.backbone)
    journal = Journal()
    classifier = METHOD.adapt(given, options(mode=mode, prompt_learning_rate=0.1), journal)
    after = frozen_of(given.backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    everything = {name for name, _ in given.backbone.named_parameters()}
    assert moved == (everything if mode == "model" else {"model.logit_scale"})
    assert set(journal.rows[2]) >= {"loss_transport", "loss_information"}
    assert not any(name.startswith("pseudo") for name in journal.rows[2])
    assert len(classifier.trained_state()) == (len(everything) if mode == "model" else 2)


@in_project
@MODES
def test_an_interrupted_training_ends_with_the_same_bits(mode: str, tmp_path: Path) -> None:
    settings = options(mode=mode, epochs=3)  # 9 steps are three passes of three batches of four
    whole = METHOD.adapt(task(), settings, Journal()).trained_state()
    with pytest.raises(KilledError):
        METHOD.adapt(task(checkpoints=tmp_path), settings, Interrupting(after=1))
    journal = Journal()
    resumed = METHOD.adapt(task(checkpoints=tmp_path), settings, journal).trained_state()
    assert sorted(journal.rows) == [2, 3]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Grader:
    """A monitor with labels, as the runner has one; a method must not profit from it."""

    def __init__(self) -> None:
        self.guesses: list[object] = []

    def pseudo_labels(self, indices: Tensor, guesses: Any) -> None:
        self.guesses += list(guesses)

    def evaluate(self, classifier: Classifier, epoch: int) -> None:
        views = Views(images=torch.zeros(1, 3, 32, 32))
        assert classifier.logits(views).shape == (1, 3)


@in_project
def test_measuring_changes_nothing_and_no_label_is_guessed() -> None:
    grader = Grader()
    alone = METHOD.adapt(task(), options(), Journal()).trained_state()
    graded = METHOD.adapt(task(monitor=grader), options(), Journal()).trained_state()
    assert all(torch.equal(alone[name], graded[name]) for name in alone)
    assert grader.guesses == []


@in_project
def test_a_frozen_image_tower_encodes_no_test_image_again(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = METHOD.adapt(task(), options(mode="prompt", epochs=0), Journal())
    monkeypatch.setattr(Backbone, "encode_global", None)
    assert classifier.views.kind == "embedding"
    given = torch.nn.functional.normalize(torch.randn(2, 16), dim=-1)
    assert classifier.logits(Views(embeddings=given)).shape == (2, 3)


@in_project
@MODES
def test_a_prompt_longer_than_the_context_is_refused(mode: str) -> None:
    with pytest.raises(SettingsError, match="expected prompts of .* tokens, got"):
        METHOD.adapt(task(), options(mode=mode, words="a very " * 9 + "good photo"), Journal())


@in_project
def test_it_needs_images_and_a_backbone() -> None:
    for missing in ("images", "backbone"):
        with pytest.raises(ValueError, match="got none"):
            METHOD.adapt(task(**{missing: None}), options(), Journal())


def test_the_worked_example() -> None:
    similarity = torch.tensor([[0.30, 0.10], [0.20, 0.25], [0.05, 0.15]])
    moved = transport(similarity, 10.0)
    own, mean = prediction_entropies(moved.to_classes)
    for found, expected in (
        (moved.to_classes[:, 0], [0.880797, 0.377541, 0.268941]),
        (moved.to_images[:, 0], [0.689672, 0.253716, 0.056612]),
        (moved.to_images[:, 1], [0.140244, 0.628532, 0.231224]),
        (moved.image_cost, 0.789871),
        (moved.class_cost, 0.766842),
        (own, 0.536775),
        (mean, 0.692980),
        (loss_of(similarity), 1.509851),
    ):
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_images_on_their_class_cost_nothing() -> None:
    moved = transport(torch.eye(2), 100.0)
    assert moved.image_cost + moved.class_cost < 1e-30
    own, mean = prediction_entropies(moved.to_classes)
    assert own - mean == pytest.approx(-0.693155, abs=1e-6)


def test_every_image_twice_changes_no_term() -> None:
    def terms(similarity: Tensor) -> list[Tensor]:
        moved = transport(similarity, 10.0)
        return [moved.image_cost, moved.class_cost, *prediction_entropies(moved.to_classes)]

    torch.testing.assert_close(terms(cosines().repeat(2, 1)), terms(cosines()))
