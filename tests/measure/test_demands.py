"""What a cluster is asked for grows with the work and the attempt, and stays within the limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from microclip import settings, study
from microclip.measure.demands import CARD, LIMIT, Demand, Demands
from microclip.settings import SettingsError
from microclip.study import RunSpec, Study
from tests.fixtures.project import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CARD, LIMIT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def declared() -> Study:
    """The paper's six ablation sets on ViT-B/32."""
    return study.load(settings.read_yaml(ROOT / "config" / "six.yaml"))


def run_of(declared: Study, method: str, dataset: str = "pets") -> RunSpec:
    return next(
        spec
        for spec in declared.runs
        if (spec.method, spec.dataset, spec.variant) == (method, dataset, "default")
    )


def demand(declared: Study, method: str, attempt: int = 1, dataset: str = "pets") -> Demand:
    return Demands(declared).of_run(run_of(declared, method, dataset), attempt)


def test_a_training_gets_more_time_than_a_classifier_of_texts(declared: Study) -> None:
    trained, read = demand(declared, "microclip"), demand(declared, "cupl")
    assert trained.minutes > 2 * read.minutes
    assert 10 < read.minutes < 30


def test_a_larger_dataset_gets_more_time(declared: Study) -> None:
    names = {spec.dataset for spec in declared.runs}
    larger = next(name for name in ("sun397", "food101", "ucf101") if name in names)
    small, large = (demand(declared, "microclip", 1, d).minutes for d in ("pets", larger))
    assert large > small


def test_the_next_attempt_gets_more_of_both(declared: Study) -> None:
    found = [demand(declared, "microclip", attempt) for attempt in (1, 2, 3)]
    assert found[0].minutes < found[1].minutes < found[2].minutes
    assert [each.memory_mb for each in found] == pytest.approx(
        [found[0].memory_mb * attempt for attempt in (1, 2, 3)], abs=3
    )


def test_a_faster_card_gets_less_time(declared: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    slowest = demand(declared, "microclip").minutes
    monkeypatch.setenv(CARD, "h100")
    assert demand(declared, "microclip").minutes < slowest


def test_no_job_asks_for_more_time_than_the_limit(
    declared: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "15")
    assert demand(declared, "microclip", attempt=9).minutes == 15


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (LIMIT, "1 day", "MICROCLIP_MAX_MINUTES must be a whole number of minutes, got '1 day'"),
        (LIMIT, "0", "whole number of minutes"),
        (CARD, "abacus", "abacus"),
    ],
)
def test_a_variable_that_means_nothing_is_refused(
    declared: Study, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        Demands(declared)


def test_all_jobs_of_a_study_can_be_asked_for(declared: Study) -> None:
    asked = Demands(declared)
    for spec in declared.runs[:40]:
        name, backbone, author = spec.dataset, spec.backbone, spec.descriptions
        for found in (
            asked.of_run(spec, 1),
            asked.of_images(name, backbone, 1),
            asked.of_texts(name, backbone, author, 1),
        ):
            assert found.memory_mb >= 4000
            assert found.minutes >= 10


@pytest.mark.usefixtures("project")
def test_a_run_of_unknown_length_gets_all_the_time_that_is_allowed() -> None:
    """Nobody says how many images a folder has before it is read, nor how fast this CPU is."""
    own = load_study()
    found = Demands(own).of_run(run_of(own, "microclip", "shapes"), 1)
    assert found.minutes == 24 * 60
