"""The zero-shot gate in a real workflow: a dataset far off is stopped before it trains."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from microclip.icons import scenes
from microclip.settings import IconSource
from tests.fixtures import snakemake
from tests.workflow import folder
from tests.workflow.folder import MACHINE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_warm")]
SOURCE = IconSource.model_validate(
    {"drawings": "food", "classes": 4, "train_scenes": 2, "test_scenes": 4, "size_px": 64}
)
DATASET = {
    "title": "Fruit",
    "source": {"kind": "public", "dataset": "fruit", "split": "paper"},
    "templates": ["a picture of a {}"],
    "card": {
        "licence": "test",
        "routes": [{"kind": "local", "layout": "image_folder", "recipe": "lay them out"}],
        "splits": {"paper": {"rule": "parts", "train": ["train"], "test": ["test"]}},
    },
}
STUDY = {
    "datasets": ["fruit"],
    "descriptions": ["templates"],
    "runs": [{"methods": ["clip"]}],
    "methods": {},
    "tables": [],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A study of one public dataset, with a printed accuracy that no run can reach."""
    place = folder.write(tmp_path / "study", **STUDY)
    (place / "resources").unlink()
    (place / "resources/classes").mkdir(parents=True)
    for path in (ROOT / "resources").iterdir():
        if path.name != "classes":
            (place / "resources" / path.name).symlink_to(path)
    names = scenes.class_names("food", 4, 0)
    (place / "resources/classes/fruit.txt").write_text("\n".join(names) + "\n")
    (place / "config/datasets/fruit.yaml").write_text(yaml.safe_dump(DATASET))
    shutil.rmtree(place / "config/published")
    (place / "config/published").mkdir()
    (place / "config/published/table1.csv").write_text("method,group,fruit\nCLIP,zero-shot,1.5\n")
    rows = {"icon-clip": {"table": "table1", "row": "CLIP / zero-shot"}}
    (place / "config/published/zero_shot.yaml").write_text(yaml.safe_dump({"backbones": rows}))
    scenes.write_dataset(SOURCE, tmp_path / "scenes")
    with (tmp_path / "scenes/manifest.csv").open(newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            target = place / "data/fruit" / row["split"] / row["class"] / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "scenes" / row["file"], target)
    return place


def run(place: Path, scores: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {**folder.environment(), **variables}
    return snakemake.run([*MACHINE, "--", scores], place, given, timeout=600)


def test_no_run_starts_until_the_gate_is_passed_or_softened(place: Path) -> None:
    scores = "results/runs/fruit/icon-clip/templates/clip/default/seed-0/scores.json"
    declared = place / "config/config.yaml"
    declared.write_text(declared.read_text() + "gate: warn\n")
    stopped = run(place, scores, MICROCLIP_ZERO_SHOT_GATE="stop")  # wins over the study
    assert stopped.returncode != 0
    assert "% on fruit, the paper prints 1.50 % (table1, CLIP / zero-shot)" in stopped.stdout
    assert not (place / "results/runs").exists()
    refused = place / "results/data/fruit/zero-shot-icon-clip.refused.json"
    assert json.loads(refused.read_text())["verdict"] == "refused"
    assert (place / "results/data/fruit/passport.json").is_file()

    softened = run(place, scores)
    assert softened.returncode == 0, softened.stdout
    gate = json.loads((place / "results/data/fruit/zero-shot-icon-clip.json").read_text())
    assert gate["verdict"] == "warned"
    assert (place / scores).is_file()
    record = json.loads((place / scores).with_name("run.json").read_text())
    assert len(record["inputs"]["passport"]) == 64
