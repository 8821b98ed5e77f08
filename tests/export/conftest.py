"""icon-clip adapted to a few icon scenes, and scenes that it has not seen."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from microclip.api import Adapted, adapt
from microclip.icons import scenes
from microclip.settings import IconSource

SOURCE = IconSource(drawings="food", classes=10, train_scenes=3, test_scenes=6, difficulty=0.2)


@dataclass(frozen=True)
class Icons:
    """A classifier, the folder it was saved to, and labelled test scenes."""

    adapted: Adapted
    folder: Path
    test: dict[Path, str]  # file to class


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Icons:
    """icon-clip after one epoch of microclip on 30 scenes."""
    root = tmp_path_factory.mktemp("icons")
    scenes.write_dataset(SOURCE, root / "scenes")
    with (root / "scenes" / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    files = {
        split: {root / "scenes" / r["file"]: r["class"] for r in rows if r["split"] == split}
        for split in ("train", "test")
    }
    names = scenes.class_names("food", 10)
    adapted = adapt(list(files["train"]), names, epochs=1, n_crops=2, device="cpu")
    return Icons(adapted, adapted.save(root / "adapted"), files["test"])
