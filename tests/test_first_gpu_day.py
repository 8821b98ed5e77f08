"""The commands of docs/first-gpu-day.md exist: verbs, options, files, targets."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from microclip import settings, study
from microclip.cli.tree import Tree
from microclip.measure import published
from microclip.settings.datasets import PublicSource

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "first-gpu-day.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCK.findall(TEXT)
    for line in block.splitlines()
    if not language  # "text" is what a command prints
]
OURS = [command[1:] for command in COMMANDS if command[0] == "microclip"]
MADE = "config/dtd.yaml"  # by a command of the page


def test_the_page_has_commands_of_every_kind() -> None:
    assert {command[0] for command in COMMANDS} >= {"make", "snakemake", "microclip", "nvidia-smi"}
    assert {words[0] for words in OURS} == {
        *("doctor", "data", "fetch-weights", "plan", "status", "show", "verify", "passport"),
        "bundle",
    }


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_verb_takes_the_arguments_that_the_page_gives_it(words: list[str]) -> None:
    command: click.Command = Tree()
    context = click.Context(command)
    while hasattr(command, "commands"):  # not isinstance: typer has its own copy of click
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"no verb {name!r}"
        command = found
    command.make_context(command.name, words)  # raises on an unknown option or argument


def test_every_study_dataset_and_target_exists() -> None:
    configs = {Path(word) for command in COMMANDS for word in command if word.startswith("config/")}
    assert {path for path in configs if not (ROOT / path).is_file()} == {Path(MADE)}
    named = {name for words in OURS if words[:2] == ["data", "get"] for name in words[2:]}
    six = study.load(settings.read_yaml(ROOT / "config/six.yaml"))
    assert named == set(six.names("dataset"))
    assert all(isinstance(settings.load_dataset(name).source, PublicSource) for name in named)
    targets = make_targets()
    assert all(c[1] in targets for c in COMMANDS if c[0] == "make")


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_runs_it_names_are_runs_of_their_studies(tmp_path: Path) -> None:
    folders = set()
    for name in ("icons-all", "pets", "six"):
        found = study.load(settings.read_yaml(ROOT / f"config/{name}.yaml"))
        folders |= {str(spec.folder) for spec in found.runs}
    named = {
        str(Path(word).parent if Path(word).suffix else Path(word))
        for command in COMMANDS
        for word in command
        if word.startswith("results/runs/")
    }
    assert named
    assert named <= folders


def test_the_study_of_dtd_is_made_as_the_page_says(tmp_path: Path) -> None:
    (command,) = [command for command in COMMANDS if command[0] == "sed"]
    *words, arrow, target = command
    assert (arrow, target) == (">", MADE)
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (tmp_path / "dtd.yaml").write_text(made)
    found = study.load(settings.read_yaml(tmp_path / "dtd.yaml"))
    pets = study.load(settings.read_yaml(ROOT / "config/pets.yaml"))
    assert found.settings.study == "dtd"
    assert found.names("dataset") == ("dtd",)
    assert "DTD" in found.settings.title
    assert len(found.runs) == len(pets.runs)


def test_the_papers_numbers_are_those_of_config_published() -> None:
    rows = published.load("table1").rows
    for dataset in ("Pets", "DTD"):
        _, table = TEXT.split(f"| {dataset}, ViT-B/32 |", 1)
        for label, row in (
            ("CLIP", "CLIP / zero-shot"),
            ("CuPL", "CuPL / zero-shot"),
            ("microCLIP", "microCLIP / unsupervised"),
        ):
            found = re.search(rf"^\| {label} \| ([\d.]+) \|", table, re.MULTILINE)
            assert found is not None
            assert found[1] == rows[row][dataset.lower()]
    assert f"printed: {rows['CLIP / zero-shot']['pets']} %" in TEXT


def test_its_links_lead_somewhere_and_the_other_pages_link_to_it() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT):
        assert (PAGE.parent / target).is_file(), target
    for page in ("README.md", "docs/reproduce-the-paper.md"):
        assert "first-gpu-day.md" in (ROOT / page).read_text(encoding="utf-8"), page
