"""Your own folder in a study: three lines of settings, then the whole chain for real."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from microclip.icons.scenes import write_dataset
from microclip.settings import DatasetSettings, FolderSource, IconSource
from tests.workflow import folder
from tests.workflow.folder import MACHINE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_warm")]
SCORES = "results/tiny/scores.csv"
EXAMPLE = Path("config/datasets/mine.yaml.example")
THREE_LINES = """\
title: My pictures
source: {kind: folder, folder: ../pictures, bad_images: skip}
templates: ["a picture of a {}"]
"""
SCENES = IconSource(
    drawings="food", classes=4, train_scenes=6, test_scenes=1, size_px=64, difficulty=0.3
)
STUDY = {
    "datasets": ["mine"],
    "descriptions": ["templates"],
    "methods": {"microclip": {"epochs": 1, "batch_size": 8, "n_crops": 4}},
}


def write_pictures(target: Path, scratch: Path) -> None:
    """Write `<class>/<number>.<suffix>`: icon scenes in several formats, and a text file."""
    write_dataset(SCENES, scratch)
    with (scratch / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        (target / row["class"]).mkdir(parents=True, exist_ok=True)
        mode, suffix = (("RGB", ".jpg"), ("CMYK", ".jpg"), ("P", ".gif"))[number % 3]
        with Image.open(scratch / row["file"]) as image:
            image.convert(mode).save(target / row["class"] / f"{number}{suffix}")
    (target / "notes.txt").write_text("not an image")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the study was run, and the name of a damaged image."""
    place = folder.write(tmp_path_factory.mktemp("mine") / "study", **STUDY)
    (place / "config" / "datasets" / "mine.yaml").write_text(THREE_LINES)
    pictures = place.parent / "pictures"
    write_pictures(pictures, place.parent / "scenes")
    first = min(pictures.rglob("*.jpg"))
    first.write_bytes(first.read_bytes()[:50])
    done = folder.snakemake(place, *MACHINE, "--", SCORES)
    assert done.returncode == 0, done.stdout
    return place, first.name


def test_three_lines_of_settings_make_a_folder_a_dataset(made: tuple[Path, str]) -> None:
    place, damaged = made
    for method in ("clip", "cupl", "microclip"):
        run = place / "results/runs/mine/icon-clip/templates" / method / "default/seed-0"
        scores = json.loads((run / "scores.json").read_text())
        print(method, scores["top1_pct"], scores["n_test"])
        assert scores["n_test"] >= 4
    data = place / "results/data/mine"
    with (data / "bad_files.csv").open() as stream:
        [bad] = list(csv.DictReader(stream))
    assert bad["file"].endswith(damaged)
    with (data / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["split"] for row in rows} == {"train", "test"}
    assert len({row["class"] for row in rows}) == 4
    with (place / SCORES).open() as stream:
        assert {row["dataset"] for row in csv.DictReader(stream)} == {"mine"}
    assert folder.dry(place, "--", SCORES) == {}


def test_deleted_pixels_are_restored_with_the_same_bytes(made: tuple[Path, str]) -> None:
    pixels = made[0] / "results/data/mine/pixels.bin"
    before = pixels.read_bytes()
    pixels.unlink()
    refused = folder.microclip(made[0], "encode-images", "mine")
    assert refused.returncode == 3
    assert "run `microclip store-images mine`" in refused.stderr
    done = folder.microclip(made[0], "store-images", "mine")
    assert done.returncode == 0, done.stderr
    assert pixels.read_bytes() == before


def test_a_faulty_folder_gives_one_line_and_starts_nothing(tmp_path: Path) -> None:
    place = folder.write(tmp_path / "study", **STUDY)
    (tmp_path / "pictures" / "only").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / "only" / "a.png")
    (place / "config" / "datasets" / "mine.yaml").write_text(THREE_LINES)
    done = folder.snakemake(place, *MACHINE, "--", SCORES)
    assert done.returncode == 1
    lines = {line for line in done.stdout.splitlines() if line.startswith("microclip:")}
    print(lines)
    assert len(lines) == 1
    assert "expected at least 2 classes, got 1 in" in lines.pop()
    assert not (place / "results/data/mine/manifest.csv").exists()


def test_the_example_differs_only_in_its_folder() -> None:
    lines = (folder.ROOT / EXAMPLE).read_text().splitlines()
    values = yaml.safe_load("\n".join(lines))
    assert len([line for line in lines if not line.startswith("#")]) == 3
    assert list(values) == list(yaml.safe_load(THREE_LINES)) == ["title", "source", "templates"]
    dataset = DatasetSettings.model_validate({"name": "mine", **values})
    assert isinstance(dataset.source, FolderSource)
    assert dataset.source.folder == Path("~/pictures")
