"""`adapt` on real artwork with the shipped backbone: odd files, a normal run, a collapse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from microclip import paths
from microclip.cli import main
from microclip.icons.scenes import write_dataset
from microclip.settings.datasets import IconSource
from tests.own_images.folder import read, write_labels

ROOT = Path(__file__).resolve().parents[2]
N_CLASSES, N_SCENES = 8, 4
SCENES = IconSource.model_validate(
    {
        "drawings": "food",
        "classes": N_CLASSES,
        "train_scenes": N_SCENES,
        "test_scenes": 1,
        "difficulty": 0.3,
    }
)


@pytest.fixture
def scenes(
    tmp_path: Path, empty_database: Path, shared_warm: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Work in a folder with icon scenes and odd files in `photos`, and labels beside it."""
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    shutil.copy(empty_database, tmp_path / paths.TRACKING_DATABASE)
    write_dataset(SCENES, tmp_path / "drawn")
    rows = [row for row in read(tmp_path / "drawn" / "manifest.csv") if row["split"] == "train"]
    truth = {}
    for number, row in enumerate(rows):
        target = tmp_path / "photos" / ("a", "b/c")[number % 2] / f"{number:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "drawn" / row["file"], target)
        truth[target.relative_to(tmp_path / "photos").as_posix()] = row["class"]
    write_labels(tmp_path / "labels.csv", truth)
    (tmp_path / "names.txt").write_text("\n".join(dict.fromkeys(truth.values())) + "\n")
    photos = tmp_path / "photos"
    with Image.open(photos / "a" / "000.png") as first:
        first.convert("CMYK").save(photos / "a" / "print.jpg")
    (photos / "torn.png").write_bytes((photos / "a" / "000.png").read_bytes()[:300])
    Image.new("RGB", (30000, 2)).save(photos / "line.png")
    (photos / "empty.jpg").touch()
    (photos / "phone.heic").write_bytes(b"no picture")
    return tmp_path


def adapt(out: str, *more: str) -> int:
    """Run the command on the scenes with the shipped backbone."""
    words = ROOT / "resources" / "descriptions" / "food.json"
    given = ["adapt", "photos", "--classes", "names.txt", "--descriptions", str(words)]
    given += ["--labels", "labels.csv", "--out", out, "--skip-bad", "--set", "batch_size=16"]
    return main.main([*given, "--set", "n_crops=2", *more])


@pytest.mark.slow
def test_a_normal_run_is_kept_and_one_with_too_high_a_learning_rate_collapses(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt("usual", "--set", "epochs=4") == 0
    usual = json.loads((scenes / "usual" / "adapted.json").read_text())["about"]
    said = capsys.readouterr().err
    print(said)
    assert f"{N_CLASSES * N_SCENES + 1} images of {N_CLASSES} classes" in said
    assert "for photographs, use `--backbone vit-b-32`" in said
    assert "skipped, cannot be used: 4" in said
    bad = {Path(row["file"]).name for row in read(scenes / "usual" / "bad_files.csv")}
    assert bad == {"torn.png", "line.png", "empty.jpg", "phone.heic"}
    assert usual["images"]["kinds"] == {"RGB": N_CLASSES * N_SCENES, "CMYK": 1}
    assert usual["verdict"] != "collapsed"
    assert usual["kept"] == "adapted"
    scores = json.loads((scenes / "usual" / "scores.json").read_text())
    assert scores["n_labelled"] == N_CLASSES * N_SCENES
    assert scores["top1_pct"] > 2 * 100 / N_CLASSES  # twice chance level
    assert adapt("fast", "--set", "epochs=3", "--set", "learning_rate=0.05") == 0
    print(capsys.readouterr().err)
    fast = json.loads((scenes / "fast" / "adapted.json").read_text())
    assert (fast["method"], fast["about"]["verdict"]) == ("cupl", "collapsed")
    kept = json.loads((scenes / "fast" / "scores.json").read_text())
    assert kept["top1_pct"] == kept["top1_zero_shot_pct"] == scores["top1_zero_shot_pct"]
