"""Each figure is drawn according to its kind and saved where the page looks for it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from microclip import runtime, study
from microclip.cli import main
from microclip.cli import study as figures
from microclip.measure.curves import Results, draw_sweep
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError, reports
from microclip.study import Plan

ROOT = Path(__file__).resolve().parents[2]
CURVES = ("figure3", "figure5", "figure6", "figure6a", "figure6b", "figure8")


def planned(**selection: Any) -> Plan:
    """The plan of the shipped study with the figures that are curves."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    listed = [{"name": name, "datasets": ["icons-food-small"], **selection} for name in CURVES]
    return study.load({**config, "study": "s", "tables": [], "figures": listed}).plan()


def write_scores(plan: Plan, *, variants: tuple[str, ...]) -> None:
    """Write `scores.csv` with one row per run of these variants."""
    rows = [
        {**run.as_dict(), "top1_pct": 50.0 + run.spec.seed, "seconds": 9.0, "device": "cpu"}
        for run in plan.runs
        if run.spec.variant in variants
    ]
    names = ["dataset", "backbone", "descriptions", "method", "variant", "seed"]
    frame = pd.DataFrame(rows, columns=[*names, "top1_pct", "seconds", "device"])
    folder = Path("results/s")
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "scores.csv", index=False)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_figure_is_saved_in_the_study_with_its_numbers() -> None:
    plan = planned()
    write_scores(plan, variants=("default", "gamma-0"))
    figure = reports.load_figure("figure5")
    assert figures.write_figure(figure, plan) == Path("results/s/figures/figure5")
    drawn = draw_sweep("figure5", figure.plot, plan.figures["figure5"], Results.of(plan))
    saved = pd.read_csv("results/s/figures/figure5.csv")
    assert saved.columns.tolist() == drawn.numbers.columns.tolist()
    assert saved["value"].tolist() == pytest.approx(drawn.numbers["value"].tolist(), nan_ok=True)
    assert saved.loc[saved["kind"] == "mean", ["gamma", "value"]].to_numpy().tolist() == [
        [0.0, 50.0],
        [0.5, 50.0],
    ]
    with Image.open("results/s/figures/figure5.png") as image:
        assert image.width == 650
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_a_figure_has_the_same_bytes_each_time() -> None:
    plan = planned(seeds=[0, 1])
    write_scores(plan, variants=("default", "gamma-0"))
    files = [Path(f"results/s/figures/figure5.{kind}") for kind in ("png", "pdf", "csv")]
    figures.write_figure(reports.load_figure("figure5"), plan)
    first = [file.read_bytes() for file in files]
    figures.write_figure(reports.load_figure("figure5"), plan)
    assert [file.read_bytes() for file in files] == first


@pytest.mark.parametrize("name", CURVES)
def test_a_study_without_runs_still_has_its_figures(name: str) -> None:
    plan = planned()
    write_scores(plan, variants=())
    figures.write_figure(reports.load_figure(name), plan)
    saved = pd.read_csv(f"results/s/figures/{name}.csv")
    assert set(saved["kind"]) == {"missing"}
    assert set(saved["note"]) == {"not in scores.csv"}


def test_the_papers_point_is_shown_where_nothing_could_run() -> None:
    plan = planned(datasets=["dtd"])
    write_scores(plan, variants=())
    figures.write_figure(reports.load_figure("figure6a"), plan)
    saved = pd.read_csv("results/s/figures/figure6a.csv").query("kind == 'published'")
    assert saved[["n_crops", "value"]].to_numpy().tolist() == [[8, 60.0], [16, 60.11]]


def test_a_figure_that_the_study_does_not_list_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"study s lists no figure 'figure9'; listed: figure3"):
        figures.write_figure(reports.load_figure("figure9"), planned())


def test_without_scores_the_message_says_what_to_run() -> None:
    with pytest.raises(MissingDataError, match=r"results/s/scores\.csv does not exist; run"):
        figures.write_figure(reports.load_figure("figure5"), planned())


def test_the_verb_plots_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned()
    write_scores(plan, variants=("default",))
    plan.write()
    assert main.main(["plot", "figure8", "--study", "s"]) == 0
    assert "results/s/figures/figure8.pdf" in capsys.readouterr().err
    assert Path("results/s/figures/figure8.pdf").read_bytes().startswith(b"%PDF")


def test_a_runs_settings_are_the_same_from_json_text_a_json_file_and_its_yaml(
    tmp_path: Path,
) -> None:
    """YAML alone would read JSON's 1e-06 as a string."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    declared = study.load({**config, "figures": []})
    spec = next(spec for spec in declared.runs if spec.method == "microclip")
    resolved = declared.resolve(spec)
    text = json.dumps(resolved.as_dict())
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(resolved.as_dict()))
    for given in (text, str(tmp_path / "run.json"), str(tmp_path / "run.yaml")):
        assert figures._read_run_settings(given).digest() == resolved.digest()
    with pytest.raises(SettingsError, match=r"other\.json does not exist"):
        figures._read_run_settings("other.json")


@pytest.mark.parametrize("verb", ["status", "plan", "verify"])
def test_a_bad_key_is_named_with_the_file_that_was_given(
    own_project: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(
        "study: mine\ndatasets: [shapes]\nbackbones: [tiny]\ndescriptions: [shipped]\nseds: [0]\n"
    )
    assert main.main([verb, "--config", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "unknown key 'seds' in mine.yaml; did you mean 'seeds'" in said


@pytest.mark.parametrize("arguments", [["status"], ["plan", "--no-calibration"]])
def test_bf16_on_a_cpu_without_it_is_noted_once(
    own_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    facts = own_project / "cpuinfo"
    monkeypatch.setattr(runtime, "_CPU_FACTS", facts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study = {"study": "mine", "datasets": ["shapes"], "backbones": ["tiny"], "seeds": [0, 1]}
    study |= {"descriptions": ["shipped"], "runs": [{"methods": ["clip", "microclip"]}]}
    for flags, changes, n_notes in (
        ("avx2", {"precision": "bf16", "device": "cpu"}, 1),
        ("avx2", {"precision": "bf16"}, 1),
        ("avx2 avx512_bf16", {"precision": "bf16", "device": "cpu"}, 0),
        ("avx2", {"precision": "bf16", "device": "cuda"}, 0),
        ("avx2", {"device": "cpu"}, 0),
    ):
        facts.write_text(f"flags : {flags}\n")
        Path("mine.yaml").write_text(yaml.safe_dump({**study, **changes}))
        assert main.main([*arguments, "--config", "mine.yaml"]) == 0
        said = capsys.readouterr().err
        assert said.count("note: precision: bf16 on this CPU") == n_notes, (flags, changes)
