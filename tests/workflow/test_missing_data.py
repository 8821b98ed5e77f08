"""A dry run names the missing public datasets before anything starts."""

from pathlib import Path

import pytest

from tests.data.layouts import dtd
from tests.workflow import folder
from tests.workflow.folder import MACHINE


def notice(where: Path, *arguments: str) -> list[str]:
    done = folder.snakemake(where, "--dry-run", *MACHINE, *arguments)
    assert done.returncode == 0, done.stdout
    kinds = ("public datasets:", "descriptions:")
    return [line for line in done.stdout.splitlines() if line.startswith(kinds)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = folder.write(
        tmp_path_factory.mktemp("mixed") / "study",
        datasets=["tiny", "dtd", "cars", "caltech101"],
        descriptions=["templates", "cupl-gpt3"],
        runs=[
            {"methods": ["clip"], "descriptions": ["templates"]},
            {"methods": ["clip"], "descriptions": ["cupl-gpt3"], "datasets": ["dtd", "cars"]},
        ],
        tables=[],
    )
    dtd.build(where / "data/dtd")
    theirs = where / "data/descriptions/cupl/texture_prompts_full.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    return where


def test_missing_datasets_are_listed_once_with_how_to_get_them(mixed: Path) -> None:
    assert notice(mixed) == [
        "public datasets: 1 of 3 here; missing: cars (hub), caltech101 (archive); "
        "`microclip data list` says how to get them",
        f"descriptions: 1 of 2 files here; missing: {mixed}/data/descriptions/cupl/"
        "cars_prompts_full.json; docs/reproduce-the-paper.md says where to get them",
    ]


def test_a_study_without_public_datasets_reports_nothing_missing(tmp_path: Path) -> None:
    assert notice(folder.write(tmp_path / "icons")) == []
