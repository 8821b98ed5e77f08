"""The benchmark that says what could be gained: its ceilings by hand, its row on a tiny project."""

from __future__ import annotations

from argparse import Namespace
from types import ModuleType

import pytest
import torch

from microclip.data.loading import LabelledImages, UnlabelledImages
from microclip.settings import load_backbone_settings
from tests.fixtures import benchmarks


@pytest.fixture(scope="module")
def headroom() -> ModuleType:
    return benchmarks.load("headroom")


def split(*labels: int) -> LabelledImages:
    images = UnlabelledImages(store=None, rows=())  # type: ignore[arg-type]
    return LabelledImages(images, torch.tensor(labels), tuple(map(str, range(len(labels)))))


def test_a_class_and_a_drawing_are_right_if_most_of_their_scenes_are(headroom: ModuleType) -> None:
    train, test = split(0, 0, 0, 0, 1, 1, 1, 1), split(0, 0, 1, 1, 1)
    predicted = torch.tensor([0, 0, 2, 2, 2, 2, 1, 2])
    # Class 0 is right: of equally frequent classes the first counts. Class 1 is called 2.
    by_class, by_drawing = headroom.ceilings(predicted, train, test, {})
    assert (by_class, by_drawing) == (40.0, None)
    drawings = {
        "train": ["a", "a", "b", "b", "c", "c", "d", "d"],
        "test": ["a", "b", "c", "d", "unseen"],
    }
    # Right are a and d; of the scenes of class 1, from which "unseen" is, a half.
    _, by_drawing = headroom.ceilings(predicted, train, test, drawings)
    assert by_drawing == pytest.approx(100 * (1 + 0 + 0 + 1 + 0.5) / 5)


def test_an_accuracy_stands_beside_its_standard_error(headroom: ModuleType) -> None:
    assert str(headroom.Share(50.0, 400)) == "50.0 ± 2.5"


@pytest.mark.usefixtures("project")
def test_a_row_has_every_criterion_of_a_set_that_was_not_fetched(
    headroom: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Namespace(
        descriptions="shipped", oracle=True, views="mild", epochs=2, learning_rate=None, seed=0
    )
    case = headroom.read_case("shapes", load_backbone_settings("tiny"), options)
    chosen = case.settings_of("oracle", trained_view="mild", epochs=2, learning_rate=None)
    assert (chosen.trained_view, chosen.epochs, chosen.learning_rate) == ("mild", 2, 1e-4)
    row = headroom.row(case)
    assert len(row) == len(headroom.HEADS)
    assert row[:3] == ["shapes", "15", "12"]
    assert row[8] == "—"  # a folder names no drawings
    assert all("±" in row[place] for place in (3, 4, 5, 6, 9, 10))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == [
        f"shapes, oracle, epoch {epoch}" for epoch in range(3)
    ]
    assert said[-1].split("fused ")[1].split(",")[0] == row[10].split(" ")[0]
