"""A folder of unlabelled images for tests, and the `adapt` command as users type it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from microclip import paths
from microclip.cli import main
from tests.fixtures.project import CLASSES, N_TRAIN, draw

SHORT = ("--set", "epochs=2", "--set", "batch_size=8", "--set", "n_crops=2")
N_IMAGES = N_TRAIN * len(CLASSES)


def write_photos(folder: Path) -> dict[str, str]:
    """Write images into `folder`, some in nested folders; return each one's class by name."""
    truth = {}
    for label, name in enumerate(CLASSES):
        for number in range(N_TRAIN):
            place = folder / ("", "more", "more/deep")[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"photo-{label}{number}.png"
            draw(label, number).save(file)
            truth[file.relative_to(folder).as_posix()] = name
    return truth


def write_labels(path: Path, truth: dict[str, str]) -> Path:
    """Write a labels file and return its path."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "class"), *truth.items()])
    return path


def adapt(*more: str, out: str = "adapted") -> int:
    """Run `adapt` on `photos` with the tiny backbone and short training; return the exit code."""
    given = ("adapt", "photos", "--classes", "names.txt", "--out", out, "--backbone", "tiny")
    short = () if "--method" in more else SHORT
    return main.main([*given, "--set", "device=cpu", *short, *more])


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def place(
    project: Path, empty_database: Path, shared_warm: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Work in a folder with photos, class names and an empty MLflow store; return that folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (project / "results").mkdir()
    shutil.copy(empty_database, project / paths.TRACKING_DATABASE)
    write_photos(project / "photos")
    (project / "names.txt").write_text("\n".join(CLASSES) + "\n")
    return project
