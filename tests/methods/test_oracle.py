"""The oracle: microCLIP's training with true labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from microclip.adaptation.losses import self_training_loss
from microclip.adaptation.teacher import Teaching
from microclip.data import loading
from microclip.data.loading import Examples, ViewBatch
from microclip.methods import fusion as shared
from microclip.methods import microclip, oracle
from microclip.methods.base import Task
from microclip.methods.oracle import METHOD, LabelLosses
from microclip.model import embeddings
from microclip.model.backbone import load_backbone
from microclip.model.token_fusion import TokenFusion
from microclip.settings import SettingsError, study, validated
from microclip.settings.declarations import Work
from microclip.settings.fusion import FusionSettings
from microclip.settings.methods.microclip import MicroClipSettings
from microclip.settings.methods.oracle import OracleSettings, work
from tests.fixtures import project as fixture
from tests.model.networks import tiny_backbone

from .tasks import check_needs


def task(labels: torch.Tensor | None = None, **values: Any) -> Task:
    settings = fixture.settings_of("clip")
    fixture.prepare(settings)
    train = loading.load(settings.dataset)["train"]
    return Task(
        class_names=fixture.CLASSES,
        texts=embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions),
        seed=0,
        device="cpu",
        precision="fp32",
        backbone=load_backbone("tiny"),
        examples=Examples(train.labels if labels is None else labels, images=train.images),
        **values,
    )


def options(**values: Any) -> OracleSettings:
    return OracleSettings(**{"epochs": 1, "batch_size": 8, **values})


@pytest.mark.usefixtures("project")
def test_it_learns_the_labels_it_is_given_and_no_others() -> None:
    journal = fixture.Journal()
    one, again, other = (
        METHOD.adapt(task(labels), options(), journal).trained_state()["classifier"]
        for labels in (None, None, torch.arange(15) % 3)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert set(journal.first[0].losses) == {"ce"}


@pytest.mark.usefixtures("project")
def test_it_sees_microclips_strong_views_in_microclips_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[torch.Tensor]] = []

    def remembered(
        network: TokenFusion, images: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        seen[-1].append(images.clone())  # the memory of a batch is used again
        return shared.trained_similarity(network, images, generator)

    for module in (microclip, oracle):
        monkeypatch.setattr(module, "trained_similarity", remembered)
    given = task()
    assert given.examples is not None
    seen.append([])
    METHOD.adapt(given, options(), fixture.Journal())
    unlabelled = Task(**{**vars(given), "images": given.examples.images, "examples": None})
    seen.append([])
    short = MicroClipSettings(epochs=1, batch_size=8, n_crops=2)
    microclip.METHOD.adapt(unlabelled, short, fixture.Journal())
    ours, theirs = seen
    assert len(ours) == len(theirs) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("view", ["strong", "mild", "none"])
def test_the_loss_is_the_cross_entropy_of_the_chosen_view(view: Any) -> None:
    torch.manual_seed(0)
    network = TokenFusion(tiny_backbone(), torch.randn(5, 16))
    crops, strong = torch.randn(4, 1, 3, 32, 32), torch.randn(4, 3, 32, 32)
    batch = ViewBatch(torch.arange(4), torch.randn(4, 3, 32, 32), crops, strong)
    labels = torch.tensor([0, 1, 4, 1])
    terms = LabelLosses(network, options(trained_view=view)).terms(
        batch, Teaching(labels), torch.Generator()
    )
    images = {"strong": strong, "mild": crops[:, 0], "none": batch.weak}[view]
    assert set(terms) == {"ce"}
    torch.testing.assert_close(terms["ce"], self_training_loss(network(images).logits, labels))


@pytest.mark.usefixtures("project")
def test_a_checkpoint_of_other_labels_is_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    METHOD.adapt(task(checkpoints=folder), options(), fixture.Journal())
    same, other = fixture.Journal(), fixture.Journal()
    METHOD.adapt(task(checkpoints=folder), options(), same)
    METHOD.adapt(task(torch.arange(15) % 3, checkpoints=folder), options(), other)
    assert list(same.rows) == []
    assert list(other.rows) == [0, 1]


@pytest.mark.usefixtures("project")
def test_it_needs_labelled_images_and_a_backbone() -> None:
    check_needs(METHOD, task(), options(), "examples", "backbone")


def test_its_settings_are_microclips_but_for_the_pseudo_labels() -> None:
    common = set(OracleSettings.model_fields) & set(MicroClipSettings.model_fields)
    assert common == set(FusionSettings.model_fields)
    assert OracleSettings.model_validate(study.load_method_file("oracle").settings) == (
        OracleSettings()
    )
    with pytest.raises(SettingsError, match=r"mild_scale must rise within \(0, 1\]"):
        validated(OracleSettings, {"mild_scale": (0.9, 0.5)}, "here")


def test_its_work_is_that_of_the_student_alone() -> None:
    assert work(options(epochs=3)) == Work(
        epochs=3, batch_size=8, trained=1, reads_patches=True, is_cut=True
    )
