"""What `microclip plan` says of a study: before it starts, and beside what it took."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from microclip import settings, study
from microclip.cli import main
from microclip.measure import calibration, forecast
from microclip.measure.costs import Costs
from microclip.measure.forecast import Basis, Forecast, compare, needs_of, predict
from microclip.methods.base import known_methods
from microclip.study import Study
from tests.fixtures.project import load_study, prepare, settings_of

ROOT = Path(__file__).resolve().parents[2]
CARD = "a100"


def shipped(name: str) -> Study:
    return study.load(settings.read_yaml(ROOT / "config" / f"{name}.yaml"))


def basis(costs: Costs, device: str = "cpu") -> Basis:
    card = settings.CardSettings(name="c", title="C", source="", fp32_tflops=1e-3, memory_gb=1)
    paces = {n: calibration.assumed(card, n, (60, 45), "fp32") for n in costs.networks.values()}
    return Basis("this machine", paces, 2, device, is_measured=True)


def finish(declared: Study, method: str, seconds: float) -> None:
    spec = next(spec for spec in declared.runs if spec.method == method)
    spec.folder.mkdir(parents=True, exist_ok=True)
    resolved = declared.resolve(spec)
    scores = {
        "digest": resolved.digest(),
        "recipe": resolved.recipe,
        "seconds": seconds,
        "device": "cpu",
    }
    (spec.folder / "scores.json").write_text(json.dumps(scores))


@pytest.fixture
def declared(project: Path) -> Study:
    prepare(settings_of("clip"))
    return load_study()


def test_a_finished_run_keeps_the_prediction_from_before_it_ran(declared: Study) -> None:
    before = Costs(declared)
    first = predict(before, basis(before)).runs["shapes/tiny/shipped/microclip/default/seed-0"]
    finish(declared, "microclip", 2 * first.seconds)
    after = Costs(declared)
    slower = Basis("another pace", basis(after).paces, 1, "cpu", is_measured=True)
    prediction = predict(after, slower)
    assert prediction.runs["shapes/tiny/shipped/microclip/default/seed-0"] == first
    assert prediction.runs["shapes/tiny/shipped/clip/default/seed-0"].basis == "another pace"
    assert json.loads(Path("results/tiny/prediction.json").read_text())["study"] == "tiny"
    (found,) = compare(after, prediction)
    assert (found.method, found.n, found.n_late) == ("microclip", 1, 0)
    assert found.ratio == pytest.approx(2)


def test_a_prediction_after_the_fact_says_so(declared: Study) -> None:
    finish(declared, "microclip", 3.0)
    costs = Costs(declared)
    prediction = predict(costs, basis(costs))
    found = Forecast(costs, [basis(costs)], needs_of(costs), compare(costs, prediction))
    (line,) = [line for line in found.lines() if line.startswith("finished runs")]
    assert "measured 3.0 s" in line
    assert line.endswith("1 of them predicted after they ran")


def test_runs_of_another_device_or_other_settings_are_not_compared(declared: Study) -> None:
    finish(declared, "microclip", 3.0)
    costs = Costs(declared)
    assert compare(costs, predict(costs, basis(costs, "cuda"))) == []
    other = load_study(microclip={"gamma": 0.1})
    predicted = predict(Costs(other), basis(Costs(other)))
    assert compare(costs, predicted) == []


def test_a_study_of_public_datasets_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MICROCLIP_DATA", raising=False)
    others = [name for name in known_methods() if name != "clip_lora"]
    monkeypatch.setattr(study, "known_methods", lambda: others)  # one still has no code
    costs = Costs(shipped("six"))
    cards = [forecast.basis_of_card(costs, settings.load_card_of_gpu(CARD))]
    needs = needs_of(costs)
    assert {each.name for each in needs.downloads} >= {"pets", "ucf101", "vit-b-16"}
    assert needs.disk_gb > needs.download_gb > 12
    text = "\n".join(Forecast(costs, cards, needs).lines())
    assert "ucf101 6.5 (place it by hand)" in text
    assert "missing: descriptions cupl-gpt3, to be placed in data/descriptions/cupl: " in text
    assert "not counted, 36 runs, has no code in this release: clip_lora 36" in text
    assert "not measured: 50% of the published fp32 peak is assumed" in text
    assert "memory of the device: about 10.9 GB" in text


def test_the_docs_show_the_table_that_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a change: `microclip plan-overview` in an empty folder, and paste what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MICROCLIP_DATA", raising=False)
    assert main.main(["plan-overview"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed in (ROOT / "docs" / "reproduce-the-paper.md").read_text()


def write_config(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    values: dict[str, Any] = load_study().settings.model_dump(mode="json")
    path.write_text(json.dumps(values))
    return path


def test_the_verb_measures_once_and_keeps_its_prediction(
    declared: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "LIMIT_S", 0.0)
    config = str(write_config(Path()))
    assert main.main(["plan", "--config", config]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "measuring this machine with 1 network shape, " in said.err
    assert "study tiny: 3 runs, 0 done" in said.out
    assert Path("results/tiny/plan.json").is_file()
    assert set(forecast.read_prediction("tiny").runs) == {spec.name for spec in declared.runs}

    def fail(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(calibration, "measure", fail)
    assert main.main(["plan", "--config", config, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (only,) = found["bases"].values()
    assert only["is_measured"]
    assert only["total"]["wall"] > 0
    assert [stage["stage"] for stage in found["stages"]][:2] == ["images, decoded", "class vectors"]
    with pytest.raises(AssertionError, match="measured twice"):
        main.main(["--debug", "plan", "--config", config, "--recalibrate"])


@pytest.mark.usefixtures("declared")
def test_without_a_measurement_the_verb_gives_amounts_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(write_config(Path()))
    assert main.main(["plan", "--config", config, "--no-calibration", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bases"] == {}
    assert found["stages"][-1]["flop"] > 0
    assert not Path("results/calibration.json").exists()
    assert not Path("results/tiny/prediction.json").exists()
    assert main.main(["plan", "--config", config, "--card", "a1000"]) == 2
    assert "no config/cards/a1000.yaml" in capsys.readouterr().err


def test_a_study_is_announced_by_this_machines_pace_or_by_the_shipped_one(
    declared: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(Path()))
    assert main.main(["plan", "--config", config, "--brief"]) == 0
    said = capsys.readouterr().err
    assert "study tiny: 3 of 3 runs to do; `microclip plan` measures how long that takes" in said
    finish(declared, "clip", 1.0)
    monkeypatch.setattr(calibration, "LIMIT_S", 0.0)
    assert main.main(["plan", "--config", config]) == 0
    capsys.readouterr()
    assert main.main(["plan", "--config", config, "--brief"]) == 0
    said = capsys.readouterr().err
    assert "study tiny: 2 of 3 runs to do, about " in said
    assert "as `microclip plan` measured this machine" in said


def test_the_embedded_study_has_a_shipped_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(
        r"study icons: (\d+) of \1 runs to do, about \d+ min \d\d s on \d+ idle CPU cores? "
        r"\(AMD EPYC; this machine not measured\)",
        forecast.announcement(shipped("config")),
    )
