"""The gate with real weights: icon-clip on scenes laid out as a public dataset, labels permuted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from microclip import settings
from microclip.cli import main
from microclip.icons import scenes
from microclip.measure.published import figure
from microclip.measure.zero_shot_gate import PERMUTED_POINTS, best_renaming
from microclip.settings import IconSource
from tests.data import public_project

ROOT = Path(__file__).resolve().parents[2]
SOURCE = IconSource(
    drawings="food",
    classes=6,
    train_scenes=1,
    test_scenes=10,
    difficulty=0.2,
    size_px=64,
    seed=0,
)
GATE = Path("results/data/fruit/zero-shot-icon-clip.json")
REFUSAL = Path("results/data/fruit/zero-shot-icon-clip.refused.json")
CARD = {
    "title": "Fruit",
    "source": {"kind": "public", "dataset": "fruit", "split": "paper"},
    "templates": ["a picture of a {}", "a drawing of a {}"],
    "card": {
        "licence": "test",
        "routes": [{"kind": "local", "layout": "image_folder", "recipe": "lay them out"}],
        "splits": {
            "paper": {"rule": "parts", "train": ["train"], "test": ["test"]},
            "other": {"rule": "parts", "train": ["train"], "test": ["test"]},
        },
        "counts": {"paper": {"classes": 6, "train": 6, "test": 61, "source": "made up"}},
    },
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return scenes of six foods with their manifest."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_dataset(SOURCE, folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with icon-clip and the card of a public dataset; work in another folder."""
    root = tmp_path / "root"
    (root / "resources/classes").mkdir(parents=True)
    for name in ("icons", "icon-clip"):
        (root / "resources" / name).symlink_to(ROOT / "resources" / name)
    shutil.copytree(ROOT / "config", root / "config")
    shutil.rmtree(root / "config/published")
    (root / "config/published").mkdir()
    (root / "config/datasets/fruit.yaml").write_text(yaml.safe_dump(CARD))
    names = scenes.class_names("food", 6, 0)
    (root / "resources/classes/fruit.txt").write_text("\n".join(names) + "\n")
    monkeypatch.setenv("MICROCLIP_ROOT", str(root))
    monkeypatch.setenv("MICROCLIP_DATA", str(root / "data"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


def lay_out(root: Path, drawn: Path, shift: int = 0) -> None:
    """Put the scenes into class folders, shifted by `shift` classes, and encode them."""
    names = scenes.class_names("food", 6, 0)
    with (drawn / "manifest.csv").open(newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            name = names[(int(row["label"]) + shift) % len(names)]
            target = root / "data/fruit" / row["split"] / name / f"{number:03}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn / row["file"], target)
    public_project.bring("fruit")
    assert main.main(["encode-images", "fruit"]) == 0


def publish(root: Path, top1_pct: float) -> None:
    """Make the paper print this accuracy of CLIP for the dataset."""
    folder = root / "config/published"
    (folder / "table1.csv").write_text(f"method,group,fruit\nCLIP,zero-shot,{top1_pct}\n")
    rows = {"icon-clip": {"table": "table1", "row": "CLIP / zero-shot"}}
    (folder / "zero_shot.yaml").write_text(yaml.safe_dump({"backbones": rows}))


def gate() -> int:
    return main.main(["check-zero-shot", "fruit", "--backbone", "icon-clip"])


def outcome(path: Path = GATE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def measured(project: Path, drawn: Path) -> float:
    """The accuracy of icon-clip where the paper prints nothing."""
    lay_out(project, drawn)
    assert gate() == 0
    found = outcome()
    assert (found["verdict"], found["printed"], found["n_test"]) == ("no figure", None, 60)
    return float(found["top1_pct"])


def test_an_accuracy_within_two_points_of_the_papers_passes(
    project: Path, measured: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured > 60  # six classes by chance: 17 %
    publish(project, measured - 1.9)
    assert gate() == 0
    assert outcome()["verdict"] == "agrees"
    assert outcome()["difference_points"] == pytest.approx(1.9)
    assert f"printed: {measured - 1.9:.2f} %" in capsys.readouterr().err


@pytest.mark.parametrize("off", [-3.0, 3.0])
def test_more_than_two_points_off_either_way_stops_and_shows_both_numbers(
    off: float, project: Path, measured: float, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, measured - off)
    assert gate() == 6
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"CLIP (icon-clip) reaches {measured:.2f} % on fruit, the paper prints" in line
    assert f"{measured - off:.2f} % (table1, CLIP / zero-shot): {off:+.2f} points" in line
    assert "the split: 60 test images, expected 61 in split 'paper' (made up)" in line
    assert "labels look permuted" not in line
    assert not GATE.exists()  # a workflow must not take it for a pass
    assert outcome(REFUSAL)["verdict"] == "refused"


def test_permuted_labels_are_recognised(
    project: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(project, drawn, shift=1)
    publish(project, 80.0)
    assert gate() == 6
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Likely causes: the labels look permuted (class order): with the classes renamed" in line
    found = outcome(REFUSAL)
    assert found["renamed"]["top1_pct"] - found["top1_pct"] > PERMUTED_POINTS
    names = scenes.class_names("food", 6, 0)
    moved = dict(found["renamed"]["seen_as"])
    assert len(moved) >= 4
    assert all(names.index(own) == (names.index(other) + 1) % 6 for own, other in moved.items())


def test_the_gate_can_be_softened_to_a_warning(
    project: Path,
    measured: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(project, measured + 9)
    assert gate() == 6
    monkeypatch.setenv("MICROCLIP_ZERO_SHOT_GATE", "warn")
    assert gate() == 0
    assert outcome()["verdict"] == "warned"
    assert not REFUSAL.exists()
    assert "-9.00 points" in caplog.text
    monkeypatch.setenv("MICROCLIP_ZERO_SHOT_GATE", "maybe")
    assert gate() == 2


def test_two_swapped_names_are_found_among_many() -> None:
    names = ("a", "b", "c", "d")
    labels = torch.arange(4).repeat_interleave(5)
    swapped = torch.tensor([0, 2, 1, 3])[labels]
    swapped[5] = 1
    found = best_renaming(swapped, labels, names)
    assert found.seen_as == (("c", "b"), ("b", "c"))
    assert found.top1_pct == 95.0
    assert best_renaming(labels, labels, names).seen_as == ()


def test_only_the_papers_split_of_a_public_dataset_has_a_printed_accuracy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    pets = settings.load_dataset("pets")
    found = figure(pets, "vit-b-32")
    assert found is not None
    assert (found.top1_pct, found.where) == (87.5, "table1, CLIP / zero-shot")
    larger = figure(pets, "vit-b-16")
    assert larger is not None
    assert (larger.top1_pct, larger.where) == (89.0, "table6, CLIP / zero-shot")
    assert figure(pets, "metaclip-400m") is None
    assert figure(settings.load_dataset("food101"), "vit-b-16") is None
    assert figure(settings.load_dataset("icons-food"), "vit-b-32") is None
    other = pets.model_copy(update={"source": pets.source.model_copy(update={"split": "coop"})})
    assert figure(other, "vit-b-32") is None
