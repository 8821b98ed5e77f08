"""Prompt-learning methods on one's images: UPL without labels, CoOp with some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import microclip
from microclip.cli import main
from microclip.export.onnx import network_of, similarities
from microclip.methods.base import Task, work_of
from microclip.own_images import training
from microclip.own_images.record import with_images
from microclip.settings import SettingsError
from tests.fixtures.project import CLASSES

from .folder import adapt, place, read, write_labels, write_photos

__all__ = ["place"]

TINY = ("--set", "epochs=2", "--set", "n_context=2")


def test_upl_adapts_without_labels_and_predicts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt("--method", "upl", *TINY, "--set", "per_class=3") == 0, capsys.readouterr().err
    rows = read(place / "adapted/predictions.csv")
    assert len(rows) == 15
    capsys.readouterr()
    assert main.main(["predict", "adapted", "photos", "--json"]) == 0
    again = {one["file"]: one["class"] for one in json.loads(capsys.readouterr().out)}
    assert {f"photos/{row['file']}": row["class"] for row in rows} == again


def test_coop_learns_from_the_shots_that_labels_give_and_is_scored_on_the_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five labelled images of each of three classes: two of each are learned from, nine score."""
    truth = write_photos(place / "photos")
    labels = str(write_labels(place / "labels.csv", truth))
    given = ("--method", "coop", *TINY, "--set", "shots=2", "--labels", labels)
    assert adapt(*given) == 0
    assert "15 labels, a few to learn from, the others for scoring" in capsys.readouterr().err
    scores = json.loads((place / "adapted/scores.json").read_text())
    assert scores["n_labelled"] == 9
    assert not scores["seen_in_training"]
    report = (place / "adapted/README.md").read_text()
    assert "trained on 6 labelled ones of 15 images" in report
    assert "9 labelled images, which training did not see" in report


def test_a_training_in_steps_is_estimated_and_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CLIP-LoRA counts steps: here 4 a shot, in batches of 3 of the 6 images."""
    labels = str(write_labels(place / "labels.csv", write_photos(place / "photos")))
    given = ("--method", "clip_lora", "--labels", labels, "--set", "shots=2")
    steps = ("--set", "steps_per_shot=4", "--set", "batch_size=3", "--set", "rounds=2")
    assert adapt(*given, *steps, "--set", "template=a {}.") == 0, capsys.readouterr().err
    assert json.loads((place / "adapted/scores.json").read_text())["n_labelled"] == 9


def test_an_estimate_trains_in_the_precision_of_the_command(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(task: Task, *rest: Any) -> Task:
        seen.append(task.precision)
        return with_images(task, *rest)

    monkeypatch.setattr(training, "with_images", noted)
    assert adapt("--method", "clip", "--set", "precision=bf16") == 0
    assert len(seen) > 1
    assert set(seen) == {"bf16"}


@pytest.mark.parametrize(
    ("method", "settings", "passes", "tests"),
    [
        ("clip_lora", {"shots": 2, "steps_per_shot": 10, "batch_size": 4, "rounds": 5}, 20 / 3, 5),
        ("clip_lora", {"epochs": 7, "batch_size": 4}, 7, 7),
        ("pouf", {"epochs": 2, "steps_per_epoch": 30, "batch_size": 4}, 2 * 30 / 3, 2),
        ("pouf", {"epochs": 2, "steps_per_epoch": None, "batch_size": 4}, 2, 2),
        ("reclip", {}, 2, 2),  # 10 // 5000 + 2
        ("wca", {}, 0, 0),  # nothing is trained
    ],
)
def test_an_estimate_counts_passes_over_ten_images(
    method: str, settings: dict[str, Any], passes: float, tests: int
) -> None:
    work = work_of(method, settings)
    assert work is not None
    assert (work.n_passes(10), work.n_epochs(10)) == (passes, tests)


def test_a_few_shot_method_without_labels_names_the_option(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del place
    assert adapt("--method", "coop", *TINY) != 0
    said = capsys.readouterr().err
    assert "learns from labelled images, got none; give --labels FILE" in said
    assert "Traceback" not in said


def test_a_prompt_too_long_for_the_backbone_gets_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt("--method", "upl", "--set", "n_context=40") != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("microclip: expected prompts of at most 16 tokens, got 45")
    assert not (place / "adapted/adapted.json").exists()


def test_python_takes_labels_by_path(project: Path) -> None:
    photos = project / "photos"
    truth = write_photos(photos)
    labels = {str(photos / file): name for file, name in truth.items()}
    chosen = {"backbone": "tiny", "device": "cpu", "epochs": 1}
    adapted = microclip.adapt(
        photos, CLASSES, method="maple", labels=labels, depth=1, shots=1, **chosen
    )
    assert adapted.record.about["asked_method"] == "maple"
    with pytest.raises(SettingsError, match="method 'maple' has no network"):
        network_of(adapted)
    learned = microclip.adapt(photos, CLASSES, method="coop", labels=labels, n_context=2, **chosen)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exported = network_of(learned)(images)[1]
    torch.testing.assert_close(exported, similarities(learned, images))
    for wrong, message in (
        ({str(photos / "none.png"): "blue bar"}, "is not among the images"),
        ({next(iter(labels)): "yellow"}, "'yellow', which is not among the 3 class names"),
        ({}, "learns from labelled images, got none"),
    ):
        with pytest.raises(SettingsError, match=message):
            microclip.adapt(photos, CLASSES, method="coop", labels=wrong, n_context=2, **chosen)
