"""How fast a machine is: measured once, remembered for that machine, or assumed from a card."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from microclip import settings
from microclip.measure import calibration
from microclip.measure.calibration import Pace, Question, Stopwatch, assumed
from microclip.measure.flops import network_of
from microclip.settings import CardSettings, SettingsError

CARD = CardSettings(
    name="c", title="C", source="here", fp32_tflops=10, bf16_tflops=100, memory_gb=8
)


def question(**changes: Any) -> Question:
    backbone = settings.load_backbone_settings("tiny")
    values = {
        "backbone": backbone,
        "network": network_of(backbone),
        "canvas": (60, 45),
        "batch_size": 2,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }
    return Question(**values)


@pytest.mark.usefixtures("project")
def test_real_steps_are_measured_even_if_no_time_is_left() -> None:
    pace = calibration.measure(question(), limit_s=0)
    seconds = pace.model_dump(exclude={"workers", "peak_memory_mib"})
    assert all(value > 0 for value in seconds.values()), seconds
    assert pace.workers == 0  # the CPU makes strong views itself
    assert pace.peak_memory_mib is None
    assert pace.share <= 1


@pytest.mark.usefixtures("project")
def test_bf16_is_measured_apart_from_the_float32_of_the_tests() -> None:
    pace = calibration.measure(question(precision="bf16"), limit_s=0)
    assert pace.evaluation != pace.forward


def test_work_on_the_cpu_is_timed_without_what_others_do() -> None:
    """A sleep stands in for other programs: the wall sees it, the thread's clock does not."""
    watch = Stopwatch.of(0)
    assert watch.per_item(lambda _: time.sleep(0.05), 4) < 0.02
    assert watch.share < 0.5
    assert Stopwatch.of(0).per_item(lambda _: time.sleep(0.05), 4, lambda: None) >= 0.05


def test_the_number_of_items_grows_until_they_take_long_enough() -> None:
    counts: list[int] = []
    Stopwatch.of(60).per_item(counts.append, 100, lambda: time.sleep(0.31 if counts[-1] > 9 else 0))
    assert counts[0] == counts[1] == 1
    assert counts[-3:] == [counts[-1]] * 3
    assert all(later <= 8 * earlier for earlier, later in zip(counts, counts[1:], strict=False))


@pytest.mark.usefixtures("project")
def test_a_measurement_is_valid_for_its_machine_network_and_precision() -> None:
    pace = calibration.assumed(CARD, question().network, (60, 45), "fp32")
    assert calibration.known(question()) is None
    path = calibration.remember(question(), pace)
    assert path == Path("results/calibration.json")
    assert calibration.known(question()) == pace
    assert calibration.known(question(precision="bf16")) is None
    assert calibration.known(question(batch_size=4)) is None
    calibration.remember(question(batch_size=4), pace)
    assert calibration.known(question()) == pace  # the other one is kept


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("text", ["{", json.dumps({"calibrations": {"a": {"pace": {}}}})])
def test_a_damaged_or_old_file_is_measured_again(text: str) -> None:
    path = Path("results/calibration.json")
    path.parent.mkdir()
    path.write_text(text)
    assert calibration.known(question()) is None
    calibration.remember(question(), assumed(CARD, question().network, (60, 45), "fp32"))
    assert calibration.known(question()) is not None


def test_a_card_is_a_share_of_its_published_peak() -> None:
    network = network_of(settings.load_backbone_settings("vit-b-16"))
    full = assumed(CARD, network, (640, 480), "fp32")
    half = assumed(CARD, network, (640, 480), "bf16")
    assert full.forward == full.training == full.evaluation == 10e12 * 0.5
    assert (half.forward, half.evaluation) == (100e12 * 0.25, 10e12 * 0.5)
    assert full.cut_s == pytest.approx(2.6e-3, rel=0.02)  # as measured on a CPU, fidelity.md
    without = CARD.model_copy(update={"bf16_tflops": None})
    with pytest.raises(SettingsError, match=r"C has no bf16 .*use precision: fp32"):
        assumed(without, network, (640, 480), "bf16")


def test_a_busy_machine_is_named() -> None:
    pace = Pace(
        forward=2e9, evaluation=2e9, training=1e9, cut_s=1e-3, window_s=1, strong_s=2e-3,
        decode_s=1, hash_rate=1, start_s=1, load_s=1, workers=0,
    )  # fmt: skip
    said = calibration.described([pace])
    assert said == "2 GFLOP/s without gradient, 1 with, 1.00 ms a cut, 2.0 ms a strong view"
    busy = calibration.described([pace.model_copy(update={"share": 0.21})])
    assert busy == f"{said}; other programs left it 21% of a CPU, a run beside them takes longer"
