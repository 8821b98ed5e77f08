"""The contract of all methods: what they see, what they return, what they leave."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from microclip.adaptation.teacher import FixedLabels
from microclip.data import loading
from microclip.data.loading import Examples, UnlabelledImages
from microclip.methods import base
from microclip.methods.base import (
    Classifier,
    Method,
    Sight,
    Supervision,
    Task,
    Views,
    grant,
    known_methods,
    load_method,
    settings_of,
)
from microclip.methods.clip import Clip
from microclip.model import embeddings
from microclip.model.backbone import load_backbone
from microclip.settings import SettingsError, load_method_file, variants_of
from microclip.settings import methods as declarations
from microclip.settings.declarations import Work
from microclip.settings.methods.microclip import MicroClipSettings
from microclip.text import descriptions
from tests.fixtures import project as fixture

SHORT: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "n_crops": 2,
    "n_repeats": 2,
    "n_context": 2,  # the tiny network's context is short
    "depth": 1,  # and its text tower has one block
    "steps_per_epoch": 2,
    "text_steps": 5,
    "n_prompts": 3,
}


def options(name: str) -> Any:
    model = settings_of(name)
    return model(**{key: value for key, value in SHORT.items() if key in model.model_fields})


def task(method: Any) -> Task:
    settings = fixture.settings_of("clip")
    fixture.prepare(settings)
    train = loading.load(settings.dataset)["train"]
    backbone = load_backbone("tiny") if method.reads == "images" else None
    sight = Sight(
        train.images, lambda: loading.image_embeddings(load_backbone("tiny"), train.images)
    )
    blind = Task(
        class_names=fixture.CLASSES,
        texts=embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions),
        seed=0,
        device="cpu",
        precision="fp32",
        templates=settings.dataset.templates,
        backbone=backbone,
        sentences=tuple(descriptions.load(settings.dataset, settings.descriptions).values()),
    )
    examples = Examples(
        train.labels,
        images=train.images if method.reads == "images" else None,
        embeddings=sight.embeddings() if method.reads == "embeddings" else None,
    )
    return grant(blind, method, train=sight, test=sight, examples=examples)


def views(classifier: Classifier) -> Views:
    torch.manual_seed(0)
    if classifier.views.kind == "image":
        return Views(images=torch.randn(4, 3, 32, 32))
    n_crops = 0 if classifier.views.squares is None else classifier.views.squares.n
    whole, *squares = torch.nn.functional.normalize(torch.randn(1 + n_crops, 4, 16), dim=2)
    return Views(embeddings=whole, squares=torch.stack(squares, dim=1) if squares else None)


@pytest.mark.parametrize("name", known_methods())
def test_a_method_declares_what_it_is(name: str) -> None:
    method = load_method(name)
    assert isinstance(method, Method)
    assert method.supervision in Supervision
    assert method.reads in {"embeddings", "images"}
    assert method.RECIPE >= 1
    assert all(field.description for field in method.Settings.model_fields.values())


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", known_methods())
def test_the_classifier_gives_cosines_and_is_restored_from_its_state(name: str) -> None:
    method = load_method(name)
    classifier = method.adapt(task(method), options(name), fixture.Journal())
    assert isinstance(classifier, Classifier)
    given = views(classifier)
    logits = classifier.logits(given)
    assert logits.shape == (4, 3)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert logits.abs().max() <= 1 + 1e-5
    assert torch.equal(classifier.heads(given)["fused"], logits)
    restored = method.restore(task(method), options(name), classifier.trained_state())
    assert torch.equal(restored.logits(given), logits)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", known_methods())
def test_the_wrong_kind_of_view_is_refused(name: str) -> None:
    method = load_method(name)
    classifier = method.restore(task(method), options(name), _untrained(method, name))
    with pytest.raises(ValueError, match="follow its ViewPlan"):
        classifier.logits(Views())


def _untrained(method: Any, name: str) -> dict[str, torch.Tensor]:
    given = options(name)
    if "epochs" in type(given).model_fields:
        given = given.model_copy(update={"epochs": 0})
    state: dict[str, torch.Tensor] = method.adapt(
        task(method), given, fixture.Journal()
    ).trained_state()
    return state


class LabelsSeenError(RuntimeError):
    """Says where the labels of a training are."""


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["coop", "lafter", "maple", "oracle", "upl"])
def test_labels_are_on_the_device_that_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta", which needs no GPU: a loss cannot read labels of another device."""

    def stop(_: FixedLabels, labels: torch.Tensor) -> None:
        raise LabelsSeenError(labels.device)

    monkeypatch.setattr(FixedLabels, "__init__", stop)
    method = load_method(name)
    with pytest.raises(LabelsSeenError, match="meta"):
        method.adapt(replace(task(method), device="meta"), options(name), fixture.Journal())


@pytest.mark.parametrize("name", known_methods())
def test_the_settings_file_is_complete_and_says_where_each_number_is_from(name: str) -> None:
    declared = load_method_file(name)
    assert set(declared.settings) <= set(settings_of(name).model_fields)
    text = (Path("config/methods") / f"{name}.yaml").read_text(encoding="utf-8")
    block = text.split("settings:\n")[1].splitlines() if "settings:\n" in text else []
    assert all("#" in line for line in block if line.strip())


@pytest.mark.parametrize("method", known_methods())
def test_every_variant_of_a_method_with_code_is_valid(method: str) -> None:
    declared = load_method_file(method).settings
    for overrides in variants_of(method).values():
        settings_of(method).model_validate({**declared, **overrides})


class Blank:
    """A method of some supervision."""

    RECIPE = 1

    def __init__(self, supervision: Supervision, reads: str) -> None:
        self.supervision, self.reads = supervision, reads


@pytest.mark.parametrize("reads", ["images", "embeddings"])
@pytest.mark.parametrize("supervision", list(Supervision))
def test_a_method_is_granted_what_its_supervision_allows(
    supervision: Supervision, reads: str
) -> None:
    def embeddings_of(rows: torch.Tensor) -> torch.Tensor:
        assert reads == "embeddings", "encoded for a method that reads images"
        return rows

    rows = {"train": torch.zeros(3, 2), "test": torch.ones(2, 2)}
    images = {name: UnlabelledImages(store=None, rows=()) for name in rows}  # type: ignore[arg-type]
    sights = {name: Sight(images[name], partial(embeddings_of, own)) for name, own in rows.items()}
    examples = Examples(torch.tensor([1, 0]))
    blank = Task((), None, seed=0, device="cpu", precision="fp32")  # type: ignore[arg-type]
    method: Any = Blank(supervision, reads)
    split = {Supervision.UNLABELLED: "train", Supervision.TRANSDUCTIVE: "test"}.get(supervision)
    given = grant(blank, method, examples=examples, **sights)
    has_labels = supervision in {Supervision.FEW_SHOT, Supervision.LABELS}
    assert given.examples is (examples if has_labels else None)
    assert given.images is (images[split] if split and reads == "images" else None)
    assert given.embeddings is (rows[split] if split and reads == "embeddings" else None)
    if has_labels:
        with pytest.raises(SettingsError, match=rf"needs labels \({supervision}\)"):
            grant(blank, method, **sights)


class OneFile(Clip):
    """A method in one file, without a declaration."""

    supervision = Supervision.FEW_SHOT  # type: ignore[assignment]
    reads = "images"  # type: ignore[assignment]
    Settings = MicroClipSettings  # type: ignore[assignment]
    RECIPE = 3  # type: ignore[assignment]
    REVISED: ClassVar[dict[str, str]] = {"fairness": "off"}
    EVALUATION_FIELDS = ("rho",)

    def work(self, settings: MicroClipSettings) -> Work:
        return Work(epochs=settings.epochs)


def test_a_method_without_a_declaration_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("microclip.methods.onefile")
    module.METHOD = OneFile()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(base, "known_methods", lambda: ["onefile"])
    assert settings_of("onefile") is MicroClipSettings
    assert base.reads_of("onefile") == "images"
    assert base.declaration_of("onefile").supervision is Supervision.FEW_SHOT
    assert base.recipe_of("onefile", {"fairness": "off"}) == 4
    assert base.recipe_of("onefile", {}) == 3
    assert base.evaluation_fields("onefile") == {"rho"}
    assert base.work_of("onefile", {"epochs": 7}) == Work(epochs=7)


def test_every_shipped_method_declares_itself_without_its_code() -> None:
    declared = {Path(str(found)).stem for found in Path(declarations.__path__[0]).glob("*.py")}
    assert declared - {"__init__"} == set(known_methods())


def test_an_unknown_method_lists_the_known() -> None:
    with pytest.raises(SettingsError, match="known: clip, "):
        load_method("clop")
