"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from microclip.icons import scenes
from microclip.settings import IconSource
from tests.workflow import folder
from tests.workflow.folder import MACHINE, ROOT

pytestmark = pytest.mark.slow
BLOCK = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COPIED = ("microclip", "config", "workflow", "Snakefile", "environment.yml")
CLASSES = ("lemon", "melon", "pear", "peach")
SCENES = IconSource(drawings="food", classes=4, train_scenes=3, test_scenes=5, size_px=64)


def recipes() -> dict[str, str]:
    """The files that the recipes spell out, by path."""
    return dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def write_images(target: Path, scratch: Path) -> None:
    """Write `train/<class>/` and `test/<class>/`; what a scene really shows does not matter."""
    scenes.write_dataset(SCENES, scratch)
    with (scratch / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = dict(zip(sorted({row["class"] for row in rows}), CLASSES, strict=True))
    for number, row in enumerate(rows):
        place = target / row["split"] / names[row["class"]]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(scratch / row["file"], place / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the recipes' files and some images, its study run."""
    made = tmp_path_factory.mktemp("contributed")
    place = made / "project"
    place.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
    shutil.copytree(ROOT / "resources" / "classes", place / "resources" / "classes")
    for path in (ROOT / "resources").iterdir():
        if path.name != "classes":
            (place / "resources" / path.name).symlink_to(path)
    for name, text in recipes().items():
        assert not (place / name).exists(), f"the recipe's {name} exists already"
        (place / name).write_text(text, encoding="utf-8")
    write_images(place / "data" / "fruit", made / "scenes")
    done = folder.snakemake(place, *MACHINE, "--configfile", "config/fruit.yaml")
    assert done.returncode == 0, done.stdout[-4000:]
    return place


def test_the_recipes_spell_out_a_method_a_dataset_a_table_and_a_figure() -> None:
    kinds = {str(Path(name).parent) for name in recipes()}
    assert kinds == {
        "microclip/settings/methods",
        "microclip/methods",
        "config/methods",
        "resources/classes",
        "config/datasets",
        "config/tables",
        "config/figures",
        "config",
    }


def test_every_file_that_the_page_names_is_there() -> None:
    """Except placeholders, and the files that the recipes write."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:microclip|config|tests|docs|workflow|resources)/[^`<*]*?)`", text)
    )
    assert {name for name in named - recipes().keys() if not (ROOT / name).exists()} == set()


def test_the_new_table_has_the_new_method_on_the_new_dataset(place: Path) -> None:
    with (place / "results/fruit/scores.csv").open(newline="") as stream:
        runs = list(csv.DictReader(stream))
    assert {run["dataset"] for run in runs} == {"fruit"}
    assert {run["method"] for run in runs} == {"clip", "cupl", "average"}
    table = (place / "results/fruit/tables/fruit.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| Average")]
    assert len(rows) == 1
    assert re.search(r"\d+\.\d\d", rows[0])


def test_the_new_figure_sweeps_the_new_setting(place: Path) -> None:
    with (place / "results/fruit/figures/share.csv").open(newline="") as stream:
        values = {float(row["share"]) for row in csv.DictReader(stream)}
    assert values == {0.0, 0.5, 1.0}


def test_the_example_method_passes_the_checks_of_the_project(place: Path) -> None:
    modules = [
        str(place / f"microclip/{part}/average.py") for part in ("settings/methods", "methods")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache"]
        + ["--config", str(ROOT / "pyproject.toml"), *modules],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
