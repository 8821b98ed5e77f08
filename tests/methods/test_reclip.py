"""ReCLIP as a method: what each copy trains, what it sees, its labels and its resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microclip import runner, study
from microclip.adaptation.teacher import Teaching
from microclip.data.loading import ViewBatch
from microclip.methods.base import Supervision, Views, sees_with
from microclip.methods.reclip import (
    METHOD,
    CopiesLosses,
    LabelPass,
    PropagationTeacher,
    TwoCopies,
    optimizer_recipe,
)
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.token_fusion import cosine_similarity
from microclip.settings import SettingsError, load_dataset, validated
from microclip.settings.methods.reclip import DECLARATION, ReclipSettings
from microclip.text.prompts import fill
from tests.fixtures import project as fixture
from tests.methods.tasks import Interrupting, KilledError, task

TEMPLATES = ("a picture of a {}", "an icon of a {}")


def options(**values: Any) -> ReclipSettings:
    return ReclipSettings(**{"epochs": 2, "batch_size": 4, "neighbours": 3, **values})


def copies() -> TwoCopies:
    backbone = load_backbone("tiny")
    prompts = [backbone.tokenize(own) for own in fill(TEMPLATES, fixture.CLASSES)]
    return TwoCopies(backbone, torch.stack(prompts))


def test_losses_of_the_worked_example() -> None:
    """CE (1, 2, 3, 4), mask (1, 0, 1, 0): 2.0, and 0.5 after the division by the batch size."""

    class Given(CopiesLosses):
        def cross_entropies(self, batch: ViewBatch, teaching: Teaching) -> tuple[Tensor, Tensor]:
            del batch, teaching
            each = torch.tensor([1.0, 2.0, 3.0, 4.0])
            return each, each

    views = torch.zeros(4, 3, 32, 32)
    batch = ViewBatch(torch.arange(4), views, views[:, None][:, :0])
    teaching = Teaching(torch.zeros(4, dtype=torch.long), torch.tensor([1.0, 0, 1, 0]))
    for rule, visual in (("as-coded", 0.5), ("mean", 2.0)):
        losses = Given(None, options(visual_loss=rule), None)  # type: ignore[arg-type]
        terms = losses.terms(batch, teaching)
        assert {name: float(term) for name, term in terms.items()} == {
            "text": 2.0,
            "visual": visual,
        }


@pytest.mark.usefixtures("project")
def test_one_copy_trains_text_layer_norms_and_the_other_visual_ones() -> None:
    network = copies()
    trained = network.trained_parameters()
    text = {name for name in trained if name.startswith("text.")}
    visual = set(trained) - text
    blocks = {"text": 1, "visual": 2}
    assert sum(trained[n].numel() for n in text) == (2 * blocks["text"] + 1) * 2 * 16
    assert sum(trained[n].numel() for n in visual) == (2 * blocks["visual"] + 2) * 2 * 32
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        name.replace("text.", "text.model.").replace("visual.", "visual.model.visual.", 1)
        for name in trained
    }


def encoded(copy: Backbone, pictures: Tensor) -> Tensor:
    """In the teacher's batches: the last bits may hang on a batch's size."""
    return torch.cat([copy.encode_global(part) for part in pictures.split(5)])


@pytest.mark.usefixtures("project")
def test_the_text_copys_image_tower_and_the_visual_copys_texts_never_change() -> None:
    network, settings = copies(), options()
    pictures = torch.randn(15, 3, 32, 32)
    teacher = PropagationTeacher(network, settings, lambda: pictures.split(5))
    start, before = network.text_matrix(), encoded(network.text, pictures)
    recipe = optimizer_recipe(settings, 15).build(network.trained_parameters())
    losses = CopiesLosses(network, settings, teacher)
    for epoch in (1, 2):
        teacher.start_epoch(epoch)
        batch = ViewBatch(torch.arange(15), pictures, pictures[:, None][:, :0])
        teaching = teacher.teach(batch)
        assert teaching is not None
        recipe.zero_grad()
        sum(losses.terms(batch, teaching).values()).backward()  # type: ignore[union-attr]
        recipe.step()
    assert torch.equal(encoded(network.text, pictures), before)
    assert torch.equal(teacher.features, before)
    assert torch.equal(teacher._start, start)
    assert not torch.equal(network.text_matrix(), start)
    assert not torch.equal(network.visual.encode_global(pictures), before)


@pytest.mark.usefixtures("project")
def test_in_the_first_epoch_both_copies_agree_everywhere() -> None:
    network = copies()
    pictures = torch.randn(15, 3, 32, 32)
    teacher = PropagationTeacher(network, options(), lambda: pictures.split(5))
    teacher.start_epoch(1)
    assert teacher.label_pass.is_agreed.all()
    assert torch.equal(network.centroids, teacher.label_pass.centroids)


@pytest.mark.usefixtures("project")
def test_before_training_it_is_the_mean_of_the_first_template_and_of_all() -> None:
    images = torch.randn(4, 3, 32, 32)
    classifier = METHOD.adapt(task(), options(epochs=0), fixture.Journal())
    backbone = load_backbone("tiny")
    encoded = backbone.encode_global(images)
    rows = [backbone.encode_text(own) for own in fill(TEMPLATES, fixture.CLASSES)]
    first = cosine_similarity(encoded, torch.stack([own[0] for own in rows]))
    every = cosine_similarity(encoded, torch.stack([own.mean(dim=0) for own in rows]))
    heads = classifier.heads(Views(images=images))
    torch.testing.assert_close(heads["text"], first, atol=1e-5, rtol=0)
    torch.testing.assert_close(heads["visual"], every, atol=1e-5, rtol=0)
    torch.testing.assert_close(heads["fused"], (first + every) / 2, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("project")
def test_the_same_seed_gives_the_same_bits_and_so_does_a_resumed_run(tmp_path: Path) -> None:
    long = options(epochs=4, text_learning_rate=0.01, visual_learning_rate=0.5)
    images = torch.randn(6, 3, 32, 32)
    whole = METHOD.adapt(task(), long, fixture.Journal())
    expected = whole.trained_state()
    with pytest.raises(KilledError):
        METHOD.adapt(task(checkpoints=tmp_path / "kept"), long, Interrupting(after=2))
    journal = fixture.Journal()
    resumed = METHOD.adapt(task(checkpoints=tmp_path / "kept"), long, journal)
    found = resumed.trained_state()
    assert list(journal.rows) == [3, 4]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(resumed.logits(Views(images=images)), whole.logits(Views(images=images)))
    assert {"loss_text", "loss_visual", "agreement"} <= journal.rows[4].keys()
    other = METHOD.adapt(task(seed=1), long, fixture.Journal()).trained_state()
    assert any(not torch.equal(other[name], expected[name]) for name in expected)


def test_what_it_sees_follows_its_settings() -> None:
    assert sees_with(METHOD, options()).supervision is Supervision.UNLABELLED
    assert sees_with(METHOD, options(adapt_to="test")).supervision is Supervision.TRANSDUCTIVE
    assert DECLARATION.sees({"adapt_to": "test"}) is Supervision.TRANSDUCTIVE
    assert DECLARATION.sees({}) is Supervision.UNLABELLED


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("variant", "n_seen"), [("default", 15), ("official", 12)])
def test_a_run_adapts_to_the_images_of_its_variant(
    monkeypatch: pytest.MonkeyPatch, variant: str, n_seen: int
) -> None:
    declared = study.load(
        {
            "study": "tiny",
            "datasets": ["shapes"],
            "backbones": ["tiny"],
            "descriptions": ["shipped"],
            "runs": [{"methods": ["reclip"], "variants": [variant]}],
            "methods": {"reclip": {"batch_size": 4, "neighbours": 3}},
            "device": "cpu",
        }
    )
    settings = declared.resolve(declared.runs[0])
    fixture.prepare(settings)
    seen: set[int] = set()
    plain = PropagationTeacher.label

    def label(self: PropagationTeacher, visual_features: Tensor) -> LabelPass:
        seen.add(len(self.features))
        return plain(self, visual_features)

    monkeypatch.setattr(PropagationTeacher, "label", label)
    journal = fixture.Journal()
    scores = runner.run(settings, Path("run"), journal)
    assert seen == {n_seen}
    assert list(journal.rows) == [0, 1, 2]
    assert {"pseudo_text_pct", "pseudo_visual_pct", "agreement"} <= journal.rows[2].keys()
    assert journal.rows[2]["test_fused_pct"] == scores.top1_pct


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("missing", ["images", "backbone", "templates"])
def test_it_needs_images_a_backbone_and_templates(missing: str) -> None:
    nothing: Any = () if missing == "templates" else None
    with pytest.raises(ValueError, match="got none"):
        METHOD.adapt(task(**{missing: nothing}), options(), fixture.Journal())


@pytest.mark.usefixtures("project")
def test_centroids_of_other_classes_are_refused() -> None:
    state = copies().trained_state()
    state["centroids"] = state["centroids"][:2]
    with pytest.raises(ValueError, match=r"centroids of shape \(2, 16\), expected \(3, 16\)"):
        METHOD.restore(task(), options(), state)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"alpha": 1.0}, "alpha in here"),
        ({"cut": 1}, "cut in here"),
        ({"neighbours": 0}, "neighbours in here"),
        ({"epochs": -1}, "epochs in here"),
        ({"first_template": "a photo"}, "first_template in here"),
    ],
)
def test_bad_settings_are_refused_in_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        validated(ReclipSettings, values, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n", "epochs"), [(1, 2), (4999, 2), (5000, 3), (75750, 17), (10**6, 100)])
def test_the_number_of_images_decides_the_epochs_unless_they_are_set(n: int, epochs: int) -> None:
    assert ReclipSettings().n_epochs(n) == epochs
    assert options(epochs=15).n_epochs(n) == 15


@pytest.mark.usefixtures("project")
def test_a_first_template_joins_the_others_and_is_the_text_copys_classifier() -> None:
    """As for ImageNet, where the code puts "a photo of a {}." before the 80 templates."""
    given, images = task(), torch.randn(4, 3, 32, 32)
    settings = options(epochs=0, first_template="a photo of a {}.")
    heads = METHOD.adapt(given, settings, fixture.Journal()).heads(Views(images=images))
    backbone = load_backbone("tiny")
    templates = ("a photo of a {}.", *given.templates)
    rows = [backbone.encode_text(own) for own in fill(templates, fixture.CLASSES)]
    encoded = backbone.encode_global(images)
    for head, vectors in (
        ("text", torch.stack([own[0] for own in rows])),
        ("visual", torch.stack([own.mean(dim=0) for own in rows])),
    ):
        expected = cosine_similarity(encoded, vectors)
        torch.testing.assert_close(heads[head], expected, atol=1e-5, rtol=0)


def test_the_first_template_is_that_of_the_code_on_every_dataset() -> None:
    """Where a dataset has one template, it is that; without the setting a digest is the old one."""
    first = {
        "dtd": "a photo of a {} texture.",
        "fgvc": "a photo of a {}, a type of aircraft.",
        "resisc45": "satellite imagery of {}.",
        "ucf101": "a photo of a person {}.",
        **dict.fromkeys(
            ("caltech101", "cars", "cifar100", "imagenet", "sun397"), "a photo of a {}."
        ),
    }
    for name, expected in first.items():
        dataset = load_dataset(name)
        own = ReclipSettings(**dataset.methods.get("reclip", {}))
        assert (own.first_template or dataset.templates[0]) == expected, name
        assert ("first_template" in own.model_dump()) is (name == "imagenet")
