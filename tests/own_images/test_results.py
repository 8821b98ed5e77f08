"""Result tables and the gallery's choice of images, checked against hand-made predictions."""

from __future__ import annotations

from pathlib import Path

import torch

from microclip.data.files import Survey
from microclip.data.vocabulary import Vocabulary
from microclip.own_images import results
from microclip.own_images.inputs import Materials
from microclip.own_images.report import chosen_images
from microclip.own_images.results import Predictions

NAMES = ("owl", "tit, marsh", "auk")


def found(classes: list[int], margins: list[float], zero_shot: list[int]) -> Predictions:
    """Predictions with given classes and margins."""
    first = torch.tensor(classes)
    margin = torch.tensor(margins)
    return Predictions(first, (first + 1) % 3, margin / 2 + 0.5, margin, torch.tensor(zero_shot))


def test_predictions_hold_the_two_most_probable_classes() -> None:
    fused = torch.tensor([[0.02, 0.01, 0.0], [0.0, 0.0, 0.0]])
    heads = {"fused": fused, "local": fused.flip(1), "global": fused}
    said = results.predictions(heads, torch.tensor([1, 2]))
    e = 2.718281828
    assert torch.allclose(said.confidence, torch.tensor([e**2 / (e**2 + e + 1), 1 / 3]))
    assert said.first.tolist() == [0, 0]  # ties go to the first class
    assert said.second.tolist() == [1, 1]
    lines = results.predictions_csv(said, ["a.png", "b,c.png"], NAMES).splitlines()
    assert lines[0] == ",".join(results.PREDICTION_COLUMNS)
    assert lines[1] == 'a.png,owl,0.6652,"tit, marsh",0.4205,auk,owl,"tit, marsh"'
    assert lines[2].startswith('"b,c.png",owl,0.3333,')


def test_the_most_uncertain_images_are_spread_over_the_classes() -> None:
    said = found([0, 0, 0, 1, 2], [0.1, 0.2, 0.3, 0.9, 0.5], [0] * 5)
    assert results.most_uncertain(said, 9) == [0, 4, 3, 1, 2]
    assert results.most_uncertain(said, 2) == [0, 4]
    lines = results.label_first_csv(said, list("abcde"), NAMES, 2).splitlines()
    assert lines[1:] == ['1,a,owl,0.5500,"tit, marsh",0.1000', "2,e,auk,0.7500,owl,0.5000"]


def test_the_gallery_shows_uncertain_and_changed_images_and_some_of_every_class() -> None:
    n = 90
    said = found(
        [i % 3 for i in range(n)],
        [i / n for i in range(n)],
        [i % 3 if i % 2 else 0 for i in range(n)],
    )
    unsure = results.most_uncertain(said, 50)
    shown = chosen_images(said, unsure, at_most=30)
    assert len(shown) == len(set(shown)) == 30
    assert shown[:10] == unsure[:10]
    others = shown[10:]
    assert sum(int(said.first[i] != said.zero_shot[i]) for i in others) >= 9
    assert {int(said.first[i]) for i in others[-9:]} == {0, 1, 2}
    assert chosen_images(said, unsure, at_most=n) == list(range(n))


def test_a_few_shot_methods_images_are_those_it_learns_from(tmp_path: Path) -> None:
    survey = Survey(tuple(tmp_path / f"{number}.png" for number in range(40)))
    materials = Materials(tmp_path, survey, Vocabulary(NAMES, "names"), "", {})

    class Settings:
        batch_size = 32

    assert list(results.warning_lines(materials, Settings())) == []
    assert list(results.warning_lines(materials, Settings(), n_drawn=6)) == [
        "  fewer labelled images than a batch of 32: each step sees all 6"
    ]
