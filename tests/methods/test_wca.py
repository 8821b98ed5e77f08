"""WCA: the weights of crops and sentences, the draws, and a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from microclip import runner
from microclip.adaptation.multi_view import view_weights
from microclip.data.crops import CropDraw, OfficialDraws, crop_embeddings, official_squares
from microclip.data.loading import load
from microclip.methods.base import Task, ViewPlan, Views
from microclip.methods.wca import METHOD, CropClassifier, class_vectors, draw_crops
from microclip.model.backbone import load_backbone, unit_norm
from microclip.own_images.record import resolve
from microclip.settings.base import SettingsError
from microclip.settings.methods.wca import WcaSettings
from microclip.text.classifier import anchored_sums
from tests.fixtures import project as fixture


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return unit_norm(torch.randn(*shape, generator=generator))


def options(**values: Any) -> WcaSettings:
    return WcaSettings(**{"n_crops": 4, "n_drawn": 3, "n_repeats": 3, **values})


def logits(views: Views, vectors: Tensor, *, drawn: list[int], **values: Any) -> Tensor:
    assert views.squares is not None
    chosen = options(n_crops=views.squares.shape[1], **values)
    return CropClassifier(vectors, chosen, torch.tensor([drawn])).logits(views)


def test_crops_are_weighed_by_their_likeness_to_the_whole_image() -> None:
    relevance = torch.tensor([[0.90, 0.85, 0.80]])
    whole, crops = torch.tensor([[1.0, 0.0]]), torch.stack([relevance, relevance * 0], dim=-1)
    sharp = view_weights(whole, crops, 1 / options().image_scale)
    torch.testing.assert_close(
        sharp, torch.tensor([[0.935034, 0.060988, 0.003978]]), rtol=1e-5, atol=1e-6
    )
    even = view_weights(whole, crops, 1 / options(image_log_scale=0.0).image_scale)
    torch.testing.assert_close(
        even, torch.tensor([[0.350132, 0.333056, 0.316812]]), rtol=1e-5, atol=1e-6
    )


def test_sentences_are_weighed_by_their_likeness_to_the_anchor() -> None:
    sentences, anchor = [torch.eye(2)], torch.tensor([[0.8, 0.6]])
    sums = anchored_sums(sentences, anchor, options().text_scale)
    torch.testing.assert_close(sums, torch.tensor([[0.814242, 0.185758]]), rtol=1e-5, atol=1e-6)
    vectors = class_vectors(sentences, anchor, options())
    torch.testing.assert_close(vectors, torch.tensor([[0.974951, 0.222422]]), rtol=1e-5, atol=1e-6)


def test_weights_of_sentences_stay_finite_at_any_scale() -> None:
    sentences, anchor = [unit(3, 8), unit(1, 8, seed=1)], unit(2, 8, seed=2)
    found = anchored_sums(sentences, anchor, 1e4)
    nearest = (sentences[0] @ anchor[0]).argmax()
    torch.testing.assert_close(found, torch.stack([sentences[0][nearest], sentences[1][0]]))


def test_the_plain_sums_are_the_papers_double_sum() -> None:
    whole, crops = unit(2, 8), unit(2, 5, 8, seed=1)
    sentences, anchors = [unit(4, 8, seed=2), unit(1, 8, seed=3)], unit(2, 8, seed=4)
    drawn = [0, 2, 2]
    vectors = class_vectors(sentences, anchors, options(sums="plain"))
    views = Views(embeddings=whole, squares=crops)
    found = logits(views, vectors, drawn=drawn, sums="plain")
    for image in range(2):
        of_crops = (math.exp(4) * crops[image, drawn] @ whole[image]).softmax(dim=0)
        for label, own in enumerate(sentences):
            of_sentences = (math.exp(2) * own @ anchors[label]).softmax(dim=0)
            cosines = crops[image, drawn] @ own.T
            expected = (of_crops[:, None] * of_sentences * cosines).sum()
            torch.testing.assert_close(found[image, label], expected)


def test_one_crop_that_is_the_image_and_one_sentence_are_cupl() -> None:
    whole, sentences = unit(3, 8), unit(2, 8, seed=1)
    vectors = class_vectors(list(sentences[:, None]), unit(2, 8, seed=2), options())
    found = logits(Views(embeddings=whole, squares=whole[:, None]), vectors, drawn=[0])
    torch.testing.assert_close(found, whole @ sentences.T)


def test_equal_crops_need_no_weights_and_repeated_crops_change_nothing() -> None:
    whole, crops, vectors = unit(2, 8), unit(2, 3, 8, seed=1), unit(4, 8, seed=2)
    equal = Views(embeddings=whole, squares=crops[:, :1].expand(-1, 3, -1))
    some = [logits(equal, vectors, drawn=[0, 1, 2], image_log_scale=s) for s in (0.0, 4.0)]
    torch.testing.assert_close(*some)
    views = Views(embeddings=whole, squares=crops)
    once, twice = (logits(views, vectors, drawn=[0, 1, 2] * k) for k in (1, 2))
    torch.testing.assert_close(once, twice)


def test_normalising_a_class_may_change_the_prediction() -> None:
    views = Views(embeddings=torch.tensor([[0.8, 0.6]]), squares=torch.tensor([[[0.8, 0.6]]]))
    sentences = [torch.eye(2), torch.tensor([[1.0, 0.0]])]
    anchors = unit_norm(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    expected = {"plain": [0.7, 0.8], "normalised": [0.989949, 0.8]}
    for sums, scores in expected.items():
        vectors = class_vectors(sentences, anchors, options(sums=sums))
        found = logits(views, vectors, drawn=[0], sums=sums)
        torch.testing.assert_close(found, torch.tensor([scores]))


@pytest.mark.parametrize(("low", "least"), [(0.5, 30), (0.1, 6)])
def test_crops_have_the_right_sides_and_lie_inside(low: float, least: int) -> None:
    draws = OfficialDraws.seeded(0)
    windows = official_squares((60, 100), 32, 500, scale=(low, 0.9), draws=draws)
    sides = {window.height for window in windows}
    assert min(sides) >= least
    assert max(sides) == 53  # 54 has probability zero
    assert len(sides) > 20
    assert all(w.top + w.height <= 60 and w.left + w.width <= 100 for w in windows)
    assert all(w.height == w.width and min(w.top, w.left) >= 0 for w in windows)


def test_a_very_high_scale_leaves_the_most_similar_crop() -> None:
    whole, crops, vectors = unit(1, 8), unit(1, 5, 8, seed=1), torch.eye(8)
    best = int((crops[0] @ whole[0]).argmax())
    views = Views(embeddings=whole, squares=crops)
    found = logits(views, vectors, drawn=list(range(5)), image_log_scale=9.0)
    torch.testing.assert_close(found, crops[:, best], rtol=0, atol=1e-3)


def test_crops_are_drawn_with_replacement_and_alike_for_all_images() -> None:
    draws = draw_crops(5, 40, 3, torch.Generator().manual_seed(0))
    assert draws.shape == (3, 40)
    assert set(draws.flatten().tolist()) == set(range(5))
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.usefixtures("project")
def test_an_images_crops_do_not_depend_on_its_neighbours() -> None:
    settings = fixture.settings_of("clip")
    fixture.prepare(settings)
    images = load(settings.dataset)["test"].images
    tower, draw = load_backbone("tiny"), CropDraw(3, (0.5, 0.9))
    whole, crops = crop_embeddings(tower, images, draw, seed=7)
    assert crops.shape == (len(images), 3, 16)
    alone = crop_embeddings(tower, images.part([5]), draw, seed=7, first=5)
    torch.testing.assert_close(alone[0], whole[5:6])
    torch.testing.assert_close(alone[1], crops[5:6])
    again = crop_embeddings(tower, images, draw, seed=7)[1]
    assert torch.equal(again, crops)
    assert not torch.equal(crop_embeddings(tower, images, draw, seed=8)[1], crops)


@pytest.mark.usefixtures("project")
def test_a_run_reports_the_mean_over_its_draws() -> None:
    settings = fixture.settings_of("wca", n_crops=6, n_drawn=2, n_repeats=4)
    fixture.prepare(settings)
    scores = runner.run(settings, Path("run"), fixture.Journal())
    written = json.loads(Path("run/scores.json").read_text())
    accuracies = written["top1_repeats_pct"]
    assert len(accuracies) == 4
    assert written["top1_pct"] == scores.top1_pct == pytest.approx(sum(accuracies) / 4)
    spread = math.sqrt(sum((each - scores.top1_pct) ** 2 for each in accuracies) / 4)
    assert written["top1_repeats_std_pct"] == pytest.approx(spread)
    assert not any(name.startswith("top1_repeat_") for name in written)
    table = pd.read_parquet("run/predictions.parquet")
    assert 100 * table["correct"].mean() == pytest.approx(accuracies[0])
    runner.run(settings, Path("again"), fixture.Journal())
    for name in ("adapted.safetensors", "predictions.parquet"):
        assert (Path("run") / name).read_bytes() == (Path("again") / name).read_bytes()


def test_the_classifier_asks_for_crops() -> None:
    classifier = CropClassifier(unit(2, 8), options(), torch.zeros(1, 3, dtype=torch.long))
    assert classifier.views == ViewPlan("embedding", squares=CropDraw(4, (0.5, 0.9)))
    with pytest.raises(ValueError, match="follow its ViewPlan"):
        classifier.logits(Views(embeddings=unit(2, 8)))


def test_it_needs_sentences_and_a_backbone() -> None:
    task = Task(("a",), None, seed=0, device="cpu", precision="fp32")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got none or no backbone"):
        METHOD.adapt(task, options(), fixture.Journal())


@pytest.mark.usefixtures("project")
def test_an_anchor_longer_than_the_context_is_refused() -> None:
    settings = fixture.settings_of("wca")
    fixture.prepare(settings)
    texts = runner.read_inputs(settings, "images").texts
    given = Task(
        fixture.CLASSES,
        texts,
        seed=0,
        device="cpu",
        precision="fp32",
        backbone=load_backbone("tiny"),
        sentences=tuple(("red",) for _ in fixture.CLASSES),
    )
    long = "a photo of one of the many kinds of a small {} on a table."
    with pytest.raises(SettingsError, match="shorten 'anchor' or the class names"):
        METHOD.adapt(given, options(anchor=long), fixture.Journal())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale must rise within \(0, 1\]"),
        ({"crop_scale": (0.0, 0.5)}, r"crop_scale must rise within \(0, 1\]"),
        ({"anchor": "a photo"}, r"anchor must contain \{\} once"),
        ({"n_drawn": 0}, "n_drawn"),
        ({"n_crops": 0}, "n_crops"),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        resolve("wca", values, "the options of adapt")
    assert "\n" not in str(raised.value)
