"""CoOp as a method: the card's checks, its seeds, its resume, its bad settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from microclip.adaptation.losses import self_training_loss
from microclip.adaptation.schedules import Position, recipe_of, set_learning_rate
from microclip.methods.base import Views
from microclip.methods.coop import METHOD
from microclip.model.backbone import load_backbone
from microclip.model.prompts import ContextPrompts, class_prompts, random_vectors
from microclip.settings import SettingsError, load_method_file, variants_of
from microclip.settings.base import validated
from microclip.settings.methods.coop import CoopSettings
from tests.fixtures import project as fixture
from tests.model.test_prompts import backbone

from .tasks import check_needs, frozen_of, states_of_resumed_and_whole, task

pytestmark = pytest.mark.usefixtures("project")


def options(**values: Any) -> CoopSettings:
    return CoopSettings(**{"shots": 2, "n_context": 3, "epochs": 3, "batch_size": 4, **values})


def test_only_the_context_is_trained_and_the_backbone_keeps_its_bits() -> None:
    given = task(shots=2)
    assert given.backbone is not None
    before = frozen_of(given.backbone)
    state = METHOD.adapt(given, options(), fixture.Journal()).trained_state()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"context": (3, 16)}
    assert all(torch.equal(before[n], v) for n, v in given.backbone.state_dict().items())


def test_class_specific_contexts_have_one_matrix_per_class() -> None:
    chosen = options(class_specific=True, name_position="middle")
    state = METHOD.adapt(task(shots=2), chosen, fixture.Journal()).trained_state()
    assert state["context"].shape == (3, 3, 16)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    first, again, other = (
        METHOD.adapt(task(shots=2, seed=seed), options(), fixture.Journal()).trained_state()
        for seed in (0, 0, 1)
    )
    assert torch.equal(first["context"], again["context"])
    assert not torch.equal(first["context"], other["context"])


def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    resumed, whole = states_of_resumed_and_whole(
        METHOD, options(epochs=4), tmp_path / "checkpoints", shots=2
    )
    assert torch.equal(resumed["context"], whole["context"])


def test_words_start_as_the_zero_shot_classifier_of_one_template() -> None:
    chosen = options(initial_words="a photo of a", epochs=0)
    classifier = METHOD.adapt(task(shots=1), chosen, fixture.Journal())
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in fixture.CLASSES]
    expected = load_backbone("tiny").encode_text(texts)
    torch.testing.assert_close(classifier.vectors, expected)


def test_the_test_embeddings_are_the_frozen_ones() -> None:
    classifier = METHOD.adapt(task(shots=1), options(epochs=1), fixture.Journal())
    assert classifier.views.kind == "embedding"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    embeddings = load_backbone("tiny").encode_global(images)
    expected = embeddings @ classifier.vectors.T
    torch.testing.assert_close(classifier.logits(Views(embeddings=embeddings)), expected)


def test_the_classifier_follows_the_training() -> None:
    """Class vectors that are kept must not outlive a change of the context."""
    seen = []

    class Looking(fixture.Journal):
        def evaluate(self, classifier: Any, epoch: int) -> None:
            del epoch
            seen.append(classifier.vectors.clone())

        def pseudo_labels(self, *_: Any) -> None:
            """Nothing."""

    given = task(shots=2, monitor=Looking())
    last = METHOD.adapt(given, options(learning_rate=0.5), fixture.Journal())
    assert len(seen) == 4
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[3], last.vectors)


def test_the_official_rates() -> None:
    """The card's values: a first epoch at 1e-5, then half a cosine that does not reach zero."""
    schedule = recipe_of(CoopSettings(epochs=50)).schedule
    expected = {0: 1e-5, 1: 2e-3, 2: 1.998027e-3, 25: 1.0627905e-3, 49: 7.885299e-6}
    for epoch, rate in expected.items():
        assert schedule(Position(0, epoch + 1, 50, 50)) == pytest.approx(rate, rel=1e-6)


def test_classes_with_too_few_images_are_named() -> None:
    """Five images a class: 7 shots take them all."""
    journal = fixture.Journal()
    METHOD.adapt(task(shots=7), options(shots=7, epochs=1), journal)
    assert journal.lines[0] == (
        "3 of 3 classes have fewer than 7 labelled images ('red_disc' and so on); they give all "
        "they have"
    )


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"at most 16 tokens, got 21 for class 'red_disc'"):
        METHOD.adapt(task(shots=1), options(n_context=16), fixture.Journal())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shots": 0}, "shots in config/methods/coop.yaml: must be at least 1"),
        ({"n_context": 0}, "n_context in config/methods/coop.yaml"),
        ({"momentum": 1.0}, "momentum in config/methods/coop.yaml"),
        ({"initial_words": "a", "class_specific": True}, "initial_words start one context"),
    ],
)
def test_bad_settings_get_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        validated(CoopSettings, values, "config/methods/coop.yaml")
    assert "\n" not in str(caught.value)


def test_it_needs_labelled_images_and_a_backbone() -> None:
    check_needs(METHOD, task(shots=1), options(), "examples", "backbone")


def test_the_shipped_settings_are_the_official_ones_and_the_protocols_are_microclips() -> None:
    official = CoopSettings(**load_method_file("coop").settings)
    assert official == CoopSettings()
    variants = variants_of("coop")
    microclip = load_method_file("microclip").settings
    for name in ("paper-protocol", "paper-protocol-shots-2"):
        found = CoopSettings(**{**official.model_dump(), **variants[name]})
        for key in ("epochs", "batch_size", "learning_rate", "weight_decay"):
            assert getattr(found, key) == microclip[key], key
        assert (found.optimizer, found.schedule) == ("adamw", "cosine")
    epochs = {name: variants[f"shots-{name}"]["epochs"] for name in (1, 2, 4, 8, 16)}
    assert epochs == {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_a_small_step_on_images_of_one_class_lowers_their_loss_and_none_changes_nothing(
    rate: float,
) -> None:
    tower = backbone()
    prompts = class_prompts(tower, ["red disc", "bar"], n_vectors=3)
    start = random_vectors(3, 32, generator=torch.Generator().manual_seed(0))
    network = ContextPrompts(prompts, start)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer = recipe_of(options()).build(network.trained_parameters())
    set_learning_rate(optimizer, rate)
    losses, predictions = [], []
    for _ in range(2):
        optimizer.zero_grad()
        similarity = network.similarity(images)
        loss = self_training_loss(similarity, torch.ones(4, dtype=torch.long))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        predictions.append(similarity.argmax(dim=-1))
    if rate:
        assert losses[1] < losses[0]
    else:
        assert losses[1] == losses[0]
        assert torch.equal(*predictions)
