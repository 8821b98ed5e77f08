"""microCLIP as a method: its inputs, its seeds, its start."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microclip.data import loading
from microclip.methods.base import Task, ViewPlan, Views
from microclip.methods.microclip import METHOD
from microclip.model import embeddings
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.token_fusion import cosine_similarity
from tests.fixtures import project as fixture

from .tasks import check_needs

pytestmark = pytest.mark.usefixtures("project")


def task(seed: int = 0) -> Task:
    settings = fixture.settings_of("clip")
    fixture.prepare(settings)
    return Task(
        class_names=fixture.CLASSES,
        texts=embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions),
        seed=seed,
        device="cpu",
        precision="fp32",
        backbone=load_backbone("tiny"),
        images=loading.load(settings.dataset)["train"].images,
    )


def options(**values: Any) -> Any:
    return METHOD.Settings(**{"epochs": 1, "batch_size": 8, "n_crops": 2, **values})


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    states = [
        METHOD.adapt(task(seed), options(), fixture.Journal()).trained_state() for seed in (0, 0, 1)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["classifier"], states[2]["classifier"])


def test_before_training_the_global_head_is_cupl() -> None:
    given = task()
    classifier = METHOD.adapt(given, options(epochs=0), fixture.Journal())
    images = torch.randn(4, 3, 32, 32)
    expected = cosine_similarity(load_backbone("tiny").encode_global(images), given.texts.uniform)
    torch.testing.assert_close(classifier.heads(Views(images=images))["global"], expected)


def test_the_classifier_can_start_from_the_templates() -> None:
    given = task()
    start = METHOD.adapt(
        given, options(epochs=0, initial_classifier="templates"), fixture.Journal()
    ).trained_state()["classifier"]
    torch.testing.assert_close(start, given.texts.anchors)


@pytest.mark.parametrize(("prior", "n_encoded"), [("frozen", 15 + 15 * 2), ("online", 3 * 15 * 2)])
def test_the_frozen_prior_encodes_crops_once_and_the_online_one_each_epoch(
    monkeypatch: pytest.MonkeyPatch, prior: str, n_encoded: int
) -> None:
    given = task()
    encoded = []
    plain = Backbone.encode_global

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(Backbone, "encode_global", counted)
    METHOD.adapt(given, options(prior=prior, epochs=3), fixture.Journal())
    assert sum(encoded) == n_encoded


def test_the_test_view_follows_its_setting() -> None:
    classifier = METHOD.adapt(task(), options(epochs=0, test_view="random"), fixture.Journal())
    assert classifier.views == ViewPlan("image", "random")


def test_a_random_query_predicts_the_same_twice() -> None:
    classifier = METHOD.adapt(task(), options(epochs=0, query="random"), fixture.Journal())
    views = Views(images=torch.randn(4, 3, 32, 32))
    assert torch.equal(classifier.logits(views), classifier.logits(views))


def test_it_needs_images_and_a_backbone() -> None:
    check_needs(METHOD, task(), options(), "images", "backbone")
