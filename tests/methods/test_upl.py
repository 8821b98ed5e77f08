"""UPL as a method: what it chooses, what it may see, its ensemble, its resume, its bad settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from microclip import runner, runtime
from microclip.adaptation.pseudo_labels import most_confident
from microclip.adaptation.schedules import Position, recipe_of
from microclip.methods.base import Task, Views
from microclip.methods.upl import METHOD, mean_over_members, zero_shot_probabilities
from microclip.model.backbone import load_backbone
from microclip.model.token_fusion import cosine_similarity
from microclip.model.weights import backbone_key
from microclip.settings import SettingsError, load_method_file, variants_of
from microclip.settings.base import _load, validated
from microclip.settings.methods.upl import UplSettings
from microclip.study import RunSettings
from tests.fixtures import project as fixture

from .tasks import check_needs, frozen_of, states_of_resumed_and_whole, task

pytestmark = pytest.mark.usefixtures("project")


def options(**values: Any) -> UplSettings:
    return UplSettings(**{"per_class": 2, "n_context": 3, "epochs": 2, "batch_size": 3, **values})


def adapted(given: Task, **values: Any) -> dict[str, torch.Tensor]:
    return METHOD.adapt(given, options(**values), fixture.Journal()).trained_state()


def test_the_surest_of_each_predicted_class() -> None:
    """Rows 1 and 5 are less sure than two others of their class; class 2 is never predicted."""
    rows = [
        [0.90, 0.05, 0.05],
        [0.60, 0.30, 0.10],
        [0.80, 0.10, 0.10],
        [0.20, 0.70, 0.10],
        [0.10, 0.85, 0.05],
        [0.34, 0.33, 0.33],
    ]
    found = most_confident(torch.tensor(rows), 2)
    assert found.indices.tolist() == [0, 2, 4, 3]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert most_confident(torch.tensor(rows), None).indices.tolist() == [0, 2, 1, 5, 4, 3]


def test_among_equal_confidences_the_first_image_is_chosen() -> None:
    rows = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert most_confident(rows, 2).indices.tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="at least 1 image per class, got 0"):
        most_confident(rows, 0)


def test_the_ensemble_averages_logits_not_probabilities() -> None:
    """Mean logits (0.8333, 0.6667) say class 0, mean probabilities (0.4873, 0.5127) class 1."""
    logits = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[2.5, 0.0]]])
    assert mean_over_members(list(logits)).argmax() == 0
    assert logits.softmax(dim=-1).mean(dim=0).argmax() == 1


def test_the_backbone_keeps_its_bits_and_the_context_alone_is_trained() -> None:
    given = task()
    assert given.backbone is not None
    before = frozen_of(given.backbone)
    state = adapted(given)
    assert {name: tuple(value.shape) for name, value in state.items()} == {"context_0": (3, 16)}
    assert all(torch.equal(before[n], v) for n, v in given.backbone.state_dict().items())


def test_the_same_seed_gives_the_same_bits_and_another_one_another_context() -> None:
    first, again, other = (adapted(task(seed=seed))["context_0"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seeds_learn_from_the_same_images() -> None:
    """The selection draws nothing; only start, order and crops depend on the seed."""
    lines = []
    for seed in (0, 1):
        journal = fixture.Journal()
        METHOD.adapt(task(seed=seed), options(epochs=0), journal)
        lines.append(journal.lines[0])
    assert lines[0] == lines[1]


def test_members_of_an_ensemble_are_trainings_of_their_own() -> None:
    alone = adapted(task())["context_0"]
    together = adapted(task(), ensemble=3)
    assert list(together) == ["context_0", "context_1", "context_2"]
    torch.testing.assert_close(together["context_0"], alone)
    assert not torch.allclose(together["context_1"], together["context_2"])


def test_the_prediction_is_the_mean_of_the_members_cosines() -> None:
    classifier = METHOD.adapt(task(), options(ensemble=2), fixture.Journal())
    embeddings = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    state = classifier.trained_state()
    each = [
        METHOD.restore(task(), options(), {"context_0": context}).logits(
            Views(embeddings=embeddings)
        )
        for context in state.values()
    ]
    found = classifier.logits(Views(embeddings=embeddings))
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)


@pytest.mark.parametrize("ensemble", [1, 2])
def test_a_resumed_run_ends_like_one_that_never_stopped(ensemble: int, tmp_path: Path) -> None:
    resumed, whole = states_of_resumed_and_whole(
        METHOD, options(epochs=3, ensemble=ensemble), tmp_path / "checkpoints"
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_labels_are_guessed_by_the_templates_or_by_one_sentence() -> None:
    given = task()
    assert given.images is not None
    backbone = load_backbone("tiny")
    found = zero_shot_probabilities(given, options())
    assert found.shape == (15, 3)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(15))
    texts = [f"a {name.replace('_', ' ')}, drawn." for name in fixture.CLASSES]
    vectors = backbone.encode_text(texts)
    named = zero_shot_probabilities(given, options(template="a {}, drawn."))
    own = torch.log(named) / backbone.logit_scale  # cosines but for a constant of each image
    from microclip.data.loading import image_embeddings

    cosines = cosine_similarity(image_embeddings(backbone, given.images), vectors)
    torch.testing.assert_close(own - own[:, :1], cosines - cosines[:, :1], atol=1e-4, rtol=1e-4)


def test_voters_are_averaged_in() -> None:
    """The task's own backbone as its only voter changes nothing."""
    sentence = "a {}."
    one = zero_shot_probabilities(task(), options(template=sentence))
    two = zero_shot_probabilities(task(), options(template=sentence, voters=["tiny"]))
    torch.testing.assert_close(one, two)


def test_a_changed_voter_is_another_run_and_is_recorded_among_its_inputs(own_project: Path) -> None:
    """Its YAML decides what is current, the bytes of its weights are in `run.json`."""
    file = own_project / "config" / "backbones" / "voter.yaml"

    def resolved(title: str, **changes: Any) -> RunSettings:
        own = {"config": "resources/tiny/tiny.json", "weights": "resources/tiny/tiny.safetensors"}
        file.write_text(yaml.safe_dump({"title": title, **own, **changes}))
        _load.cache_clear()
        values = {"per_class": 2, "n_context": 3, "epochs": 1, "batch_size": 3}
        return fixture.settings_of("upl", template="a {}.", voters=["voter"], **values)

    run = resolved("Voter")
    assert resolved("Another title").digest() == run.digest()
    sha256 = runtime.sha256(own_project / "resources" / "tiny" / "tiny.safetensors")
    assert resolved("Voter", sha256=sha256).digest() != run.digest()
    assert RunSettings.from_dict(json.loads(run.identity)).digest() == run.digest()
    assert "further_backbones" not in fixture.settings_of("upl").as_dict()
    fixture.prepare(run)
    runner.run(run, Path("run"), fixture.Journal())
    inputs = json.loads(Path("run/run.json").read_text())["inputs"]
    assert inputs["backbone_voter"] == backbone_key(run.further_backbones[0])


def test_squashed_images_are_tested_squashed() -> None:
    classifier = METHOD.adapt(task(), options(image_shape="squash"), fixture.Journal())
    assert (classifier.views.kind, classifier.views.crop) == ("image", "squash")
    images = torch.randn(2, 3, 32, 32)
    embeddings = load_backbone("tiny").encode_global(images)
    plain = METHOD.restore(task(), options(), classifier.trained_state())
    torch.testing.assert_close(
        classifier.logits(Views(images=images)), plain.logits(Views(embeddings=embeddings))
    )


def test_classes_that_are_never_predicted_are_counted() -> None:
    journal = fixture.Journal()
    METHOD.adapt(task(), options(per_class=16, epochs=0), journal)
    assert journal.lines[0].startswith("15 images of ")
    assert "3 of 3 classes have fewer than 16" in journal.lines[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_class": 0}, "per_class in config/methods/upl.yaml"),
        ({"ensemble": 0}, "ensemble in config/methods/upl.yaml"),
        ({"template": "a photo"}, "one {} for the class name"),
        ({"voters": ["vit-b-16"]}, "voters read the template, got none; set template"),
        ({"image_shape": "wide"}, "image_shape in config/methods/upl.yaml"),
    ],
)
def test_bad_settings_get_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validated(UplSettings, values, "config/methods/upl.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(SettingsError, match="at most 16 tokens, got 21 for class 'red_disc'"):
        METHOD.adapt(task(), options(n_context=16), fixture.Journal())
    template = "a photo of one of the many kinds of a small {} on a table."
    with pytest.raises(SettingsError, match="shorten 'template' or the class names"):
        METHOD.adapt(task(), options(template=template), fixture.Journal())


def test_it_needs_images_and_a_backbone() -> None:
    check_needs(METHOD, task(), options(), "images", "backbone")


def test_the_shipped_settings_and_variants() -> None:
    shipped = UplSettings(**load_method_file("upl").settings)
    assert shipped == UplSettings()
    variants = variants_of("upl")
    assert variants["official"] == {"ensemble": 16, "image_shape": "squash"}
    microclip = load_method_file("microclip").settings
    for key in ("epochs", "batch_size", "learning_rate", "weight_decay"):
        assert variants["paper-protocol"][key] == microclip[key], key


def test_at_most_k_images_of_a_class_are_chosen_and_all_by_their_likeliest_class() -> None:
    rows = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    for k in (1, 16, 100):
        found = most_confident(rows, k)
        assert len(found.indices) <= 7 * k
        assert found.labels.bincount(minlength=7).max() <= k
        assert torch.equal(found.labels, rows.argmax(dim=-1)[found.indices])


def test_the_official_rates() -> None:
    """The first epoch at 1e-5; the cosine then starts an epoch late and does not reach zero."""
    schedule = recipe_of(UplSettings()).schedule
    expected = {0: 1e-5, 1: 2e-3, 2: 1.998027e-3, 26: 1e-3, 48: 1.771275e-5, 49: 7.885299e-6}
    found = {epoch: schedule(Position(0, epoch + 1, 50, 50)) for epoch in expected}
    assert found == pytest.approx(expected, abs=1e-9)
