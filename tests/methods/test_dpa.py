"""DPA as a method: its worked example, what it trains, what it sees, and its resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from microclip.adaptation.losses import fairness_loss, self_training_loss
from microclip.adaptation.schedules import Position
from microclip.data import loading
from microclip.methods.base import Views
from microclip.methods.dpa import (
    METHOD,
    PrototypeLosses,
    PrototypeTeacher,
    RunningMean,
    alignment_loss,
    dual_labels,
    optimizer_recipe,
)
from microclip.model.backbone import load_backbone
from microclip.model.token_fusion import TokenFusion, cosine_similarity
from microclip.settings import SettingsError, validated
from microclip.settings.methods.dpa import DpaSettings
from microclip.study import load as load_study
from tests.fixtures import project as fixture
from tests.methods.tasks import Interrupting, KilledError, task

TEXT = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
IMAGE = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


def options(**values: Any) -> DpaSettings:
    return DpaSettings(**{"epochs": 2, "batch_size": 4, **values})


def test_labels_and_weights_of_the_worked_example() -> None:
    mean = RunningMean(32).update(TEXT)
    torch.testing.assert_close(mean, torch.tensor([0.65, 0.35]))
    found = dual_labels(TEXT, IMAGE, mean=mean, image_share=0.5)
    aligned = torch.tensor([[0.556818, 0.443182], [0.446809, 0.553191]])
    torch.testing.assert_close(found.aligned, aligned, atol=1e-6, rtol=0)
    mix = torch.tensor([[0.678409, 0.321591], [0.373404, 0.626596]])
    torch.testing.assert_close(found.mix, mix, atol=1e-6, rtol=0)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.weights, torch.tensor([1, 2 / 3]), atol=1e-6, rtol=0)


def test_losses_of_the_worked_example() -> None:
    strong = torch.tensor([[0.8, 0.2], [0.45, 0.55]])
    labels, weights = torch.tensor([0, 1]), torch.tensor([1, 2 / 3])
    loss = self_training_loss(strong.log(), labels, 1, weights=weights)
    assert loss.item() == pytest.approx(0.310851, abs=1e-6)
    assert fairness_loss(strong.mean(dim=0), 1).item() == pytest.approx(0.725416, abs=1e-6)
    assert fairness_loss(torch.tensor([0.9, 0.1]), 1).item() == pytest.approx(1.203973, abs=1e-6)


def test_the_scale_of_the_alignment_decides_whether_it_vanishes() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    own = texts / texts.norm(dim=1, keepdim=True)
    cosines = own @ images  # unit rows: the worked example's (1, .9) would need longer ones
    gap = float(cosines[0, 0] - cosines[0, 1])
    for scale in (1.0, 100.0):
        expected = math.log1p(math.exp(-scale * gap))
        assert alignment_loss(images, texts, scale).item() == pytest.approx(expected, rel=1e-4)


def test_rows_of_the_alignment_are_image_prototypes() -> None:
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0]]), dim=1)
    texts = torch.nn.functional.normalize(torch.tensor([[1.0, 0.9], [0.0, 1.0]]), dim=1)
    rows = (images @ texts.T).log_softmax(dim=1).diagonal()
    assert alignment_loss(images, texts, 1).item() == pytest.approx(-float(rows.mean()), rel=1e-5)


def test_the_running_mean_keeps_32_batches_and_goes_on_after_a_resume() -> None:
    window = RunningMean(32)
    batches = torch.rand(40, 5, 3).softmax(dim=-1)
    for batch in batches[:35]:
        window.update(batch)
    assert len(window) == 32
    other = RunningMean(32)
    other.load_state_dict(window.state_dict())
    torch.testing.assert_close(other.update(batches[35]), batches[4:36].mean(dim=(0, 1)))
    assert len(other) == 32


def test_a_label_that_both_rank_first_counts_in_full_and_no_label_more() -> None:
    torch.manual_seed(0)
    text, image = (torch.randn(200, 6).mul(3).softmax(dim=-1) for _ in range(2))
    found = dual_labels(text, image, mean=text.mean(dim=0), image_share=0.3)
    agree = (text.argmax(dim=1) == found.labels) & (image.argmax(dim=1) == found.labels)
    assert agree.any()
    assert not agree.all()
    assert (found.weights[agree] > 1 - 1e-5).all()
    assert (found.weights >= 0).all()
    assert (found.weights <= 1).all()


def test_a_class_that_no_image_of_a_batch_expects_gives_no_nan() -> None:
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = dual_labels(text, IMAGE, mean=text.mean(dim=0), image_share=0.5)
    assert found.mix.isfinite().all()


@pytest.mark.usefixtures("project")
def test_it_trains_layer_norms_and_prototypes_and_decays_no_bias() -> None:
    given = task()
    assert given.backbone is not None
    network = TokenFusion(given.backbone, given.texts.templates, train_head="cls")
    trained = network.trained_parameters()
    width, blocks = 32, 2
    assert sum(p.numel() for p in trained.values()) == (2 + 2 * blocks) * 2 * width + 3 * 16
    groups = optimizer_recipe(options()).build(trained).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in trained.items()} == {
        name: 0.0 if "bias" in name else 0.1 for name in trained
    }


@pytest.mark.usefixtures("project")
def test_the_alignment_moves_the_textual_prototypes_alone() -> None:
    given, settings = task(), options()
    assert given.backbone is not None
    network = TokenFusion(given.backbone, given.texts.templates, train_head="cls")
    views = torch.randn(4, 3, 32, 32)
    batch = loading.ViewBatch(torch.arange(4), views, views[:, None][:, :0], views)
    teacher = PrototypeTeacher(network, settings, lambda: [batch])
    teacher.start_epoch(1)
    losses = PrototypeLosses(network, settings, teacher)
    terms = losses.terms(batch, teacher.teach(batch))
    trained = network.trained_parameters()
    found = torch.autograd.grad(terms["align"], list(trained.values()), allow_unused=True)
    moved = {name for name, gradient in zip(trained, found, strict=True) if gradient is not None}
    assert moved == {"classifier"}
    assert not any(value.requires_grad for value in teacher.state_dict().values())


@pytest.mark.usefixtures("project")
def test_before_training_it_is_zero_shot_by_templates_or_descriptions() -> None:
    images = torch.randn(4, 3, 32, 32)
    encoded = load_backbone("tiny").encode_global(images)
    for start in ("templates", "descriptions"):
        given = task()
        classifier = METHOD.adapt(
            given, options(epochs=0, initial_classifier=start), fixture.Journal()
        )
        texts = given.texts.templates if start == "templates" else given.texts.uniform
        expected = cosine_similarity(encoded, texts)
        torch.testing.assert_close(classifier.logits(Views(images=images)), expected)


@pytest.mark.usefixtures("project")
def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    states = [
        METHOD.adapt(task(seed=seed), options(), fixture.Journal()).trained_state()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["classifier"], states[2]["classifier"])


@pytest.mark.usefixtures("project")
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    long = options(epochs=4)
    expected = METHOD.adapt(task(), long, fixture.Journal()).trained_state()
    stopped = task(checkpoints=tmp_path / "kept")
    with pytest.raises(KilledError):
        METHOD.adapt(stopped, long, Interrupting(after=2))
    journal = fixture.Journal()
    found = METHOD.adapt(task(checkpoints=tmp_path / "kept"), long, journal).trained_state()
    assert list(journal.rows) == [3, 4]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {"loss_ce", "loss_fairness", "loss_align", "label_weight"} <= journal.rows[4].keys()


@pytest.mark.usefixtures("project")
def test_it_needs_images_and_a_backbone() -> None:
    for missing in ("images", "backbone"):
        with pytest.raises(ValueError, match="got none"):
            METHOD.adapt(task(**{missing: None}), options(), fixture.Journal())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_share": 1.5}, "image_share in here"),
        ({"window": 0}, "window in here"),
        ({"alignment_scale": 0}, "alignment_scale in here"),
    ],
)
def test_bad_settings_are_refused_in_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        validated(DpaSettings, values, "here")
    assert "\n" not in str(caught.value)


SHIPPED = {  # card of the released code: a, w, reg, align, rate, epochs
    "dtd": (0.2, 100, 1, 1, 5e-5, 15),
    "caltech101": (0.5, 100, 1, 1, 1e-4, 15),
    "flowers": (0.5, 1, 1, 1, 1e-4, 15),
    "fgvc": (0.5, 100, 1, 1, 3e-6, 10),
    "pets": (0.01, 100, 1, 1, 7e-5, 15),
    "cars": (0.5, 100, 1, 1, 5e-6, 15),
    "sun397": (0.5, 100, 0.2, 1, 1e-6, 15),
    "cifar100": (0.2, 100, 1, 1, 1e-5, 15),
    "ucf101": (0.5, 100, 1, 1, 1e-5, 15),
    "food101": (0.2, 100, 1, 1, 1e-6, 15),
    "imagenet": (0.5, 100, 1, 1, 1e-6, 15),
    "birdsnap": (0.5, 100, 1, 1, 1e-4, 15),  # none is shipped for these two
    "resisc45": (0.5, 100, 1, 1, 1e-4, 15),
}


def test_each_dataset_has_its_shipped_settings_and_the_rates_of_the_chosen_protocol() -> None:
    study = load_study(
        {
            "study": "s",
            "datasets": list(SHIPPED),
            "backbones": ["vit-b-32"],
            "descriptions": ["templates"],
            "runs": [{"methods": ["dpa"], "variants": ["default", "official"]}],
        }
    )
    found = {(spec.dataset, spec.variant): study.resolve(spec).method for spec in study.runs}
    small = {"food101", "sun397", "imagenet"}
    for name, (share, scale, balance, align, rate, epochs) in SHIPPED.items():
        for variant in ("default", "official"):
            own = found[name, variant]
            assert own["image_share"] == share
            assert own["alignment_scale"] == scale
            assert own["balance"] == balance
            assert own["alignment"] == align
        assert found[name, "official"]["learning_rate"] == rate
        assert found[name, "official"]["epochs"] == epochs
        assert found[name, "default"]["learning_rate"] == (1e-6 if name in small else 1e-4)
        assert found[name, "default"]["epochs"] == 15


@pytest.mark.parametrize(("scale", "expected"), [(100.0, 4.540e-5), (1.0, 0.644397)])
def test_the_alignment_of_equal_prototypes(scale: float, expected: float) -> None:
    """Two classes with a cosine of 0.9, of which both kinds of prototype are the same."""
    both = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5]])
    found = alignment_loss(both, both, scale).item()
    assert found == pytest.approx(expected, rel=1e-3 if scale == 100 else 1e-5)


@pytest.mark.parametrize(
    ("rate", "expected"), [(1e-4, (1e-4, 5.1e-5, 2.0003e-6)), (1e-6, (1e-6, 1.5e-6, 2.0000e-6))]
)
def test_the_rate_ends_at_the_doubled_floor_and_may_rise_to_it(
    rate: float, expected: tuple[float, ...]
) -> None:
    schedule = optimizer_recipe(options(learning_rate=rate)).schedule
    found = [schedule(Position(step, 1, 900, 15)) for step in (0, 450, 899)]
    assert found == pytest.approx(expected, rel=1e-4)
