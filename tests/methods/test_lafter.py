"""LaFTer: the card's checks, both stages, exact resume, and tasks that are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microclip.adaptation.losses import smoothed_cross_entropy
from microclip.adaptation.teacher import FixedLabels, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import ViewBatch
from microclip.methods.base import Silence, Task, Views
from microclip.methods.lafter import (
    METHOD,
    HeadTeacher,
    PromptedClassifier,
    PromptedTower,
    SentenceLosses,
    Sentences,
    StudentLosses,
    TextHead,
    TextWatcher,
    image_recipe,
    initial_prompt,
    labelled_sentences,
    smoothed_terms,
    text_recipe,
    trained_head,
)
from microclip.model import sentences
from microclip.model.backbone import load_backbone
from microclip.model.prompts import encode_prompted_images
from microclip.settings import SettingsError
from microclip.settings.methods.lafter import LafterSettings
from microclip.text.prompts import fill
from tests.fixtures.project import CLASSES, SENTENCES, Journal
from tests.methods import tasks
from tests.methods.tasks import Interrupting, KilledError, frozen_of

in_project = pytest.mark.usefixtures("project")
TEMPLATES = ("a picture of a {}", "an icon of a {}")


def task(**values: Any) -> Task:
    own = tuple(SENTENCES[name.replace("_", " ")] for name in CLASSES)
    return tasks.task(**{"sentences": own, "templates": TEMPLATES, **values})


def options(**values: Any) -> LafterSettings:
    short = {"epochs": 2, "batch_size": 4, "text_steps": 20, "n_prompts": 3}
    return LafterSettings.model_validate({**short, **values})


def tower(n_prompts: int = 3) -> PromptedTower:
    generator = torch.Generator().manual_seed(0)
    backbone = load_backbone("tiny")
    prompt = initial_prompt(backbone.width, n_prompts, generator=generator)
    return PromptedTower(backbone, prompt, torch.randn(3, 16, generator=generator))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.336513), (10.0, 1.666667)])
def test_the_smoothed_loss_of_the_card(factor: float, expected: float) -> None:
    logits, label = factor * torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    terms = smoothed_terms(logits, Teaching(label), LafterSettings())
    assert float(terms["nll"] + terms["smooth"]) == pytest.approx(expected, abs=1e-6)
    own, smooth = smoothed_cross_entropy(logits, label)
    torchs = functional.cross_entropy(logits, label, label_smoothing=0.1)
    assert float(0.9 * own + 0.1 * smooth) == pytest.approx(float(torchs), abs=1e-6)


def test_prompt_tokens_are_drawn_evenly_within_the_bound_of_16_pixel_patches() -> None:
    drawn = initial_prompt(768, 50, generator=torch.Generator().manual_seed(0))
    assert 0.062 < drawn.abs().max() <= 0.0625
    assert drawn.var() == pytest.approx(0.0625**2 / 3, rel=0.02)


@in_project
@torch.no_grad()
def test_the_blocks_see_class_token_patches_and_prompt_tokens() -> None:
    network = tower()
    seen: list[Tensor] = []
    first = network.backbone.visual.transformer.resblocks[0].ln_1
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(images())
    assert seen[0].shape == (4, 1 + 16 + 3, 32)
    assert all(torch.equal(row, network.prompt) for row in seen[0][:, -3:])
    none = encode_prompted_images(network.backbone, images(), [torch.empty(0, 32)], is_normed=False)
    plain = network.backbone.project(network.backbone.encode_image(images()).cls)
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=1e-5)


@in_project
def test_labels_follow_the_layer_norms_but_not_the_prompt_tokens() -> None:
    network = tower()
    teacher = HeadTeacher(network.backbone, network.head)
    before = teacher.scores(images())
    with torch.no_grad():
        network.prompt.add_(1.0)
        network.head.add_(1.0)
        assert torch.equal(teacher.scores(images()), before)
        network.backbone.visual.ln_pre.weight[0].mul_(3.0)
        assert not torch.equal(teacher.scores(images()), before)


@in_project
def test_the_length_of_an_embedding_and_of_the_head_changes_no_prediction() -> None:
    network = tower()
    logits = PromptedClassifier(network).logits(Views(images=images()))
    assert torch.equal(logits.argmax(-1), network(images()).argmax(-1))
    with torch.no_grad():
        network.head.mul_(7.0)
    again = PromptedClassifier(network).logits(Views(images=images()))
    torch.testing.assert_close(again, logits)


def test_the_head_separates_classes_that_can_be_separated() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = functional.normalize(torch.randn(5, 32, generator=generator), dim=-1)
    labels = torch.arange(5).repeat_interleave(30)
    rows = centres[labels] + 0.05 * torch.randn(150, 32, generator=generator)
    rows = functional.normalize(rows, dim=-1)
    start = torch.empty(5, 32).uniform_(-1 / math.sqrt(32), 1 / math.sqrt(32), generator=generator)
    head, settings = TextHead(start), LafterSettings(text_steps=400)
    batches = Sentences(rows, n_steps=settings.text_steps, seed=0)
    losses = SentenceLosses(head, settings)
    recipe = text_recipe(settings)
    trainer = Trainer(head, FixedLabels(labels), losses, recipe, batches, settings={})
    trainer.train(TextWatcher(Silence()))
    assert ((rows @ head.weight.T).argmax(-1) == labels).float().mean() > 0.9


def test_noise_is_fresh_at_each_step_and_has_its_deviation() -> None:
    losses = SentenceLosses(TextHead(torch.zeros(2, 512)), LafterSettings())
    generator, like = torch.Generator().manual_seed(0), torch.zeros(100, 512)
    one, other = (losses.noise(like, generator) for _ in range(2))
    assert not torch.equal(one, other)
    assert one.std() == pytest.approx(0.1, rel=0.01)


def test_sentences_are_in_the_official_order() -> None:
    texts, labels = labelled_sentences([["a1", "a2"], ["b1"]], [["A"], ["B"]])
    assert texts == ["a1", "a2", "b1", "A", "B"]
    assert labels == [0, 0, 1, 0, 1]


def test_two_classes_of_one_name_share_sentences_with_two_labels() -> None:
    """As in the code for ImageNet's "missile" and "sunglasses"; ours end the second by "_"."""
    own = [["It flies."], ["It flies."]]
    texts, labels = labelled_sentences(own, fill(("a {}",), ("missile", "missile_")))
    assert texts == ["It flies.", "It flies.", "a missile", "a missile"]
    assert labels == [0, 1, 0, 1]


@in_project
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("names", ["red disc", "green square", "blue bar"]),
        ("photo", [f"a photo of a {name}" for name in ("red disc", "green square", "blue bar")]),
    ],
)
def test_the_head_may_be_trained_on_names_alone(
    texts: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = task(sentences=(), templates=())
    seen: list[str] = []
    plain = sentences.encode
    monkeypatch.setattr(sentences, "encode", lambda own, t, _: (seen.extend(t), plain(own, t))[1])
    trained_head(given, options(texts=texts), Journal())
    assert seen == expected


@in_project
def test_a_step_moves_prompt_tokens_layer_norms_and_head_alone() -> None:
    given = task()
    assert given.backbone is not None
    before, journal = frozen_of(given.backbone), Journal()
    classifier = METHOD.adapt(given, options(), journal)
    after = frozen_of(given.backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {f"model.visual.{name}" for name in given.backbone.layer_norms()}
    assert moved == norms
    assert set(classifier.trained_state()) == {
        "prompt",
        "classifier",
        *(name.removeprefix("model.") for name in norms),
    }
    assert set(journal.rows[2]) >= {"loss_nll", "loss_smooth"}
    assert any("text head" in line for line in journal.lines)


@in_project
def test_biases_alone_are_spared_by_decay() -> None:
    network = tower()
    recipe = image_recipe(options(weight_decay=0.5))
    groups = recipe.build(network.trained_parameters()).param_groups
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    named = network.trained_parameters()
    assert {name for name, each in named.items() if id(each) in spared} == {
        name for name in named if name.endswith(".bias")
    }


@in_project
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = options(epochs=3)
    whole = METHOD.adapt(task(), settings, Journal()).trained_state()
    with pytest.raises(KilledError):
        METHOD.adapt(task(checkpoints=tmp_path), settings, Interrupting(after=1))
    monkeypatch.setattr(SentenceLosses, "terms", None)  # the head is not trained again
    journal = Journal()
    resumed = METHOD.adapt(task(checkpoints=tmp_path), settings, journal).trained_state()
    assert sorted(journal.rows) == [2, 3]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@in_project
def test_a_restored_classifier_needs_no_sentences() -> None:
    settings = options()
    trained = METHOD.adapt(task(), settings, Journal())
    bare = task(sentences=(), templates=(), images=None)
    restored = METHOD.restore(bare, settings, trained.trained_state())
    given = Views(images=images())
    assert torch.equal(restored.logits(given), trained.logits(given))


@in_project
def test_a_class_without_a_sentence_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"a sentence for each class, got none for 'green squ"):
        METHOD.adapt(task(sentences=(["red"], [], ["blue"]), templates=()), options(), Journal())


@in_project
def test_it_needs_images_and_a_backbone() -> None:
    for missing in ("images", "backbone"):
        with pytest.raises(ValueError, match="got none"):
            METHOD.adapt(task(**{missing: None}), options(), Journal())


@in_project
def test_the_student_learns_from_the_strong_view_alone() -> None:
    network = tower()
    losses = StudentLosses(network, options())
    batch = ViewBatch(torch.arange(4), images(), torch.empty(0), images() + 1)
    terms = losses.terms(batch, Teaching(torch.tensor([0, 1, 2, 0])), torch.Generator())
    own = functional.cross_entropy(network(images() + 1), torch.tensor([0, 1, 2, 0]))
    assert float(terms["nll"].detach() / 0.9) == pytest.approx(float(own.detach()), abs=1e-5)
