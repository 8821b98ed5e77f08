"""Two runs compared image by image, from the files that real runs wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from microclip import paths
from microclip.cli import main
from microclip.measure import comparison
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from microclip.study import RunSpec
from tests.fixtures.project import CLASSES, N_TEST
from tests.measure.tiny_run import CLIP, MICROCLIP, finished_runs
from tests.workflow.folder import environment

ANY = RunSpec("*", "*", "*", "*")
N = N_TEST * len(CLASSES)


@pytest.fixture(scope="module")
def runs(project_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work beside complete runs of clip and microclip, which tests must not change."""
    with finished_runs(project_source, tmp_path_factory.mktemp("runs")) as folder:
        yield folder


@pytest.fixture
def own_runs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside copies of the runs and of the manifest that a test may change."""
    for kept in (CLIP, MICROCLIP, Path("results/data/shapes")):
        shutil.copytree(runs / kept, tmp_path / kept)
    for run in (CLIP, MICROCLIP):  # as runs from before files' hashes were kept: tests rewrite them
        record = json.loads((tmp_path / run / paths.RUN_RECORD).read_text())
        del record["files"]
        (tmp_path / run / paths.RUN_RECORD).write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(folder: Path, right: str) -> None:
    """Rewrite a run's predictions: right on the images marked 1, class after class."""
    table = pd.read_parquet(folder / paths.RUN_PREDICTIONS).sort_values(["label", "file"])
    marks = np.array([mark == "1" for mark in right])
    table["prediction"] = np.where(marks, table["label"], (table["label"] + 1) % len(CLASSES))
    table["correct"] = marks
    table.to_parquet(folder / paths.RUN_PREDICTIONS, index=False)


def reseeded(folder: Path, seed: int, right: str, **changed: Any) -> Path:
    """A copy of a run as another seed would have left it, with these answers."""
    copy = folder.with_name(f"seed-{seed}")
    shutil.copytree(folder, copy)
    record = json.loads((copy / paths.RUN_RECORD).read_text())
    record["settings"]["spec"]["seed"] = seed
    record["settings"] |= changed
    (copy / paths.RUN_RECORD).write_text(json.dumps(record))
    answer(copy, right)
    return copy


def compared(first: str, second: str) -> comparison.Comparison:
    return comparison.compare(comparison.find(first, ANY), comparison.find(second, ANY))


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("head", ["fused", "global", "local"])
def test_each_heads_right_images_give_its_accuracy(head: Any) -> None:
    found = comparison.read(MICROCLIP, head)
    scores = json.loads((MICROCLIP / "scores.json").read_text())
    key = "top1_pct" if head == "fused" else f"top1_{head}_pct"
    assert 100 * found.right.mean() == pytest.approx(scores[key])
    assert len(found.right) == scores["n_test"] == N


@pytest.mark.usefixtures("own_runs")
def test_one_run_is_compared_with_another_image_by_image() -> None:
    answer(CLIP, "1100" * 3)
    answer(MICROCLIP, "1111" + "1110" + "0100")
    found = compared(str(CLIP), str(MICROCLIP))
    assert found.names == ("clip", "microclip")
    assert found.top1_pct == (50.0, pytest.approx(100 * 8 / 12))
    assert found.difference.points == pytest.approx(100 * 2 / 12)
    assert found.only_right == (1, 3)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 4) / 2**4)
    assert [(one.name, one.points, one.n_images) for one in found.classes] == [
        ("red_disc", 50.0, 4),
        ("blue bar", -25.0, 4),
        ("green square", 25.0, 4),
    ]


@pytest.mark.usefixtures("own_runs")
def test_a_methods_name_takes_all_its_seeds() -> None:
    answer(CLIP, "0" * 12)
    answer(MICROCLIP, "1111" + "0000" + "0000")
    reseeded(MICROCLIP, 1, "1111" + "1111" + "0000")
    reseeded(MICROCLIP, 2, "1111" + "1111" + "1111")
    found = compared("clip", "microclip")
    assert found.seeds == ((0,), (0, 1, 2))
    assert found.top1_pct == (0.0, pytest.approx(100 * 2 / 3))
    assert found.only_right == (0, 8)  # in two or three of three seeds
    assert not found.is_paired
    same = compared(str(MICROCLIP.parent), "microclip:fused")
    assert same.is_paired
    assert same.difference.points == 0
    assert same.names == (str(MICROCLIP.parent), "microclip:fused")  # what tells them apart


@pytest.mark.usefixtures("runs")
def test_two_heads_of_one_method_are_compared() -> None:
    found = compared("microclip:global", f"{MICROCLIP}:local")
    scores = json.loads((MICROCLIP / "scores.json").read_text())
    assert found.names == ("microclip:global", "microclip:local")
    assert found.top1_pct == pytest.approx((scores["top1_global_pct"], scores["top1_local_pct"]))


@pytest.mark.usefixtures("own_runs")
def test_the_command_prints_a_line_for_each_answer(capsys: pytest.CaptureFixture[str]) -> None:
    answer(CLIP, "1100" * 3)
    answer(MICROCLIP, "1111" + "1110" + "0100")
    assert main.main(["compare", "clip", "microclip", "--dataset", "shapes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "test set    shapes, 12 images",
        "clip        50.00 %, seed 0",
        "microclip   66.67 %, seed 0",
    ]
    assert lines[3].startswith("difference  +16.67 points, 95 % interval ")
    assert lines[3].endswith("(paired bootstrap of images)")
    assert lines[4] == ("McNemar     p = 0.625; right: only clip 1 image, only microclip 3 images")
    assert lines[5:] == [
        "class       +50.00 points  red_disc, 4 images",
        "class       -25.00 points  blue bar, 4 images",
        "class       +25.00 points  green square, 4 images",
    ]


@pytest.mark.usefixtures("own_runs")
def test_json_has_the_same_numbers_and_all_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["compare", "clip", "microclip", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    found = compared("clip", "microclip")
    assert written["difference"]["interval"]["low"] == found.difference.interval.low
    assert written["only_right"] == list(found.only_right)
    assert len(written["classes"]) == len(CLASSES)
    assert (written["level"], written["resamples"]) == (0.95, 10_000)


def test_comparing_loads_neither_torch_nor_mlflow(runs: Path, project_source: Path) -> None:
    program = (
        "import sys; from microclip.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'mlflow', 'timm', 'open_clip', 'matplotlib'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "compare", str(CLIP), str(MICROCLIP)],
        cwd=runs,
        env={**environment(), "MICROCLIP_ROOT": str(project_source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5 + len(CLASSES)


@pytest.mark.usefixtures("own_runs")
def test_runs_of_different_test_sets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((CLIP / paths.RUN_RECORD).read_text())
    record["inputs"]["images"] = "f" * 64
    (CLIP / paths.RUN_RECORD).write_text(json.dumps(record))
    assert main.main(["compare", str(CLIP), str(MICROCLIP)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{CLIP} and {MICROCLIP} were tested on different images or labels" in line
    assert "manifests ffffffffffff and " in line


@pytest.mark.usefixtures("own_runs")
def test_a_run_from_before_heads_were_kept_is_refused_by_name_of_the_column() -> None:
    table = pd.read_parquet(MICROCLIP / paths.RUN_PREDICTIONS)
    old = table[["file", "label", "prediction", "confidence", "correct"]]
    old.to_parquet(MICROCLIP / paths.RUN_PREDICTIONS, index=False)
    assert compared("clip", "microclip").n_images == N  # its own prediction was always kept
    with pytest.raises(MissingDataError, match="no column prediction_local in predictions.parquet"):
        compared("microclip", "microclip:local")
    (MICROCLIP / paths.RUN_PREDICTIONS).unlink()
    with pytest.raises(MissingDataError, match="an older version made it; run `snakemake"):
        compared("clip", "microclip")


@pytest.mark.usefixtures("own_runs")
def test_a_method_is_found_beside_a_folder_of_its_name() -> None:
    """As in this project, whose package is called microclip."""
    Path("microclip").mkdir()
    [run] = comparison.find("microclip", ANY).runs
    assert run.folder == MICROCLIP


@pytest.mark.usefixtures("own_runs")
def test_what_names_no_complete_run_is_refused() -> None:
    with pytest.raises(MissingDataError, match="no complete run matches results/runs/.*/cupl/def"):
        comparison.find("cupl", ANY)
    with pytest.raises(MissingDataError, match="no complete run matches results/runs/pets/"):
        comparison.find("clip", replace(ANY, dataset="pets"))
    with pytest.raises(SettingsError, match="unknown head 'cls' in 'clip:cls'; write RUN or RUN:H"):
        comparison.find("clip:cls", ANY)
    with pytest.raises(SettingsError, match="has no local head, only its own prediction"):
        comparison.find("clip:local", ANY)
    (MICROCLIP / paths.RUN_SCORES).unlink()
    with pytest.raises(MissingDataError, match="is not complete: it has no scores.json; run"):
        comparison.find(str(MICROCLIP), ANY)


@pytest.mark.usefixtures("own_runs")
def test_a_name_with_runs_in_several_places_is_refused_with_the_places() -> None:
    shutil.copytree("results/runs/shapes/tiny", "results/runs/shapes/huge")
    with pytest.raises(SettingsError, match="2 places .shapes/huge/shipped, shapes/tiny/shipped."):
        comparison.find("clip", ANY)
    assert comparison.find("clip", replace(ANY, backbone="huge")).seeds == (0,)


@pytest.mark.usefixtures("own_runs")
def test_seeds_made_with_other_settings_are_not_averaged() -> None:
    reseeded(MICROCLIP, 1, "0" * N, precision="bf16")
    with pytest.raises(SettingsError, match="not seeds of one method: they differ in precision"):
        comparison.find("microclip", ANY)
    assert comparison.find(str(MICROCLIP), ANY).seeds == (0,)


def test_settings_files_are_not_needed(own_runs: Path) -> None:
    for file in own_runs.rglob("settings.yaml"):
        assert yaml.safe_load(file.read_text())
        file.unlink()
    assert compared("clip", "microclip").n_images == N


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("adapted.json",), "there are no labels, so no accuracy to compare; label_these_first"),
        (("adapted.json", "scores.json"), "scores.json there has its accuracy beside zero-shot's;"),
    ],
)
def test_a_folder_of_adapt_is_no_run(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SettingsError, match=said) as caught:
        comparison.find(str(tmp_path), ANY)
    assert "make the images a dataset of a study" in str(caught.value)
    assert "snakemake" not in str(caught.value)
