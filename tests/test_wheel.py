"""The wheel: what is in it, how large it is, and that it works with no source tree in reach."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.project import CLASSES, draw
from tests.fixtures.warm import PLUGINS, ROOT, VARIABLES

build = pytest.importorskip("hatchling.build", reason="no hatchling; pip install -e '.[dev]'")
SHIPPED = "microclip/shipped"
LIMIT_MB = 25
# Commands in one process, as each imports torch; the line before a command's output names it.
PROGRAM = """
import os, sys
from pathlib import Path
import microclip
from microclip.cli.main import main
print(microclip.__file__)
def run(*words):
    print(">", *words)
    sys.stdout.flush()
    print("exit", main(list(words)))
run("doctor")
run("data", "list")
run("describe", "names.txt", "--llm", "gpt-4o", "--prompts", "own-images", "--dry-run")
run("adapt", "photos", "--classes", "names.txt", "--out", "adapted",
    *("--set", "epochs=1", "--set", "batch_size=4", "--set", "n_crops=2", "--set", "device=cpu"))
run("predict", "adapted", "photos/0.png")
run("embed-descriptions", "icons-food-tiny", "--backbone", "icon-clip-2")
run("init", "my-study")
os.chdir("my-study")
run("plan", "--brief")
run("fetch-dataset", "icons-objects-tiny")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / str(build.build_wheel(str(folder)))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def files_of(*parts: str) -> set[str]:
    """Names in the wheel of the project's files."""
    found = [path for part in parts for path in (ROOT / part).rglob("*") if path.is_file()]
    kept = [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]
    return {f"{SHIPPED}/{path.as_posix()}" for path in kept}


def test_it_has_the_packages_and_what_they_read(names: set[str]) -> None:
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "microclip",
        "snakemake_executor_plugin_microclip_pods",
        "snakemake_logger_plugin_microclip",
    }
    for data in ("microclip/measure/templates", "microclip/cli/new_study"):
        assert {f"{data}/{path.name}" for path in (ROOT / data).iterdir()} <= names


def test_it_has_the_project_but_for_what_is_large(names: set[str]) -> None:
    weights = {f"resources/icon-clip/icon-clip.{end}" for end in ("json", "safetensors")}
    resources = {f"{SHIPPED}/{n}" for n in (*weights, "resources/icon-clip/calibration.json")}
    texts = files_of("resources/classes", "resources/descriptions", "resources/icons/food")
    rules = files_of("workflow/profiles", "workflow/report", "workflow/rules")
    single = {f"{SHIPPED}/{name}" for name in ("Snakefile", "environment.yml")}
    found = {name for name in names if name.startswith(SHIPPED)}
    assert found == resources | texts | rules | single | files_of("config")


def test_it_is_small_and_the_docs_say_how_large(wheel: Path) -> None:
    size = wheel.stat().st_size / 1e6
    assert size < LIMIT_MB
    said = re.search(r"wheel has (\d+) MB", (ROOT / "docs" / "package.md").read_text())
    assert said is not None
    assert abs(int(said[1]) - size) < 1


def test_an_editable_install_has_nothing_of_the_project_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_editable(str(tmp_path))) as editable:
        linked = editable.read("_microclip.pth").decode().splitlines()
        others = [name for name in editable.namelist() if ".dist-info/" not in name]
    assert [Path(line) for line in linked] == [ROOT, PLUGINS]
    assert others == ["_microclip.pth"]


@pytest.mark.slow
def test_alone_it_adapts_and_begins_a_study(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "installed")
    photos = tmp_path / "elsewhere" / "photos"
    photos.mkdir(parents=True)
    (photos.parent / "names.txt").write_text("\n".join(CLASSES) + "\n")
    for number in range(6):
        draw(number % 3, number).save(photos / f"{number}.png")
    given = {key: value for key, value in os.environ.items() if not key.startswith("MICROCLIP_")}

    # MLflow is no part of this: a workflow has its own mirror.
    apart = {"PYTHONPATH": str(tmp_path / "installed"), "MICROCLIP_MIRROR": "workflow"}

    def in_it(*words: str, folder: Path = photos.parent) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env={**given, **VARIABLES, **apart},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    said = in_it("-c", PROGRAM)
    place, *parts = re.split(r"^> ", said, flags=re.MULTILINE)
    assert place.strip() == str(tmp_path / "installed/microclip/__init__.py")
    codes = {part.split()[0]: int(part.split()[-1]) for part in parts}
    wrong = {"embed-descriptions": 3, "fetch-dataset": 2}  # what the wheel leaves out
    expected = {part.split()[0]: 0 for part in parts} | wrong
    assert codes == expected, said
    assert "left out backbone icon-clip-2" in parts[0]
    for missing in ("icon-clip/icon-clip-2.safetensors", "icons/objects"):
        assert f"cp -r SOURCE/resources/{missing} resources/" in said
    assert (photos.parent / "adapted" / "README.md").is_file()
    study = photos.parent / "my-study"
    words = ("-m", "snakemake", "--dry-run", "--cores", "1", "--resources", "gpu=1", "all")
    assert re.search(r"^adapt +5$", in_it(*words, folder=study), re.MULTILINE)
