"""The documentation: its commands are real, its links lead somewhere, its notebook runs.

`pytest -s tests/test_docs.py` prints how many commands and links were checked.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from mlflow.cli import cli as mlflow_cli
from nbclient import NotebookClient
from snakemake.cli import get_argument_parser

from microclip.cli import main
from microclip.cli.tree import Tree
from snakemake_logger_plugin_microclip.command_line import with_targets_apart
from tests.browser import DESKTOP, PHONE, Browser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`(microclip [a-z][^`]*)`")
_ASSIGNED = re.compile(r"\w+=")
# What belongs to a machine or to another project; only its words are checked.
SYSTEM = {".", "base64", "cat", "cd", "cp", "curl", "export", "git", "mkdir", "nvidia-smi", "sed"}
SYSTEM |= {"docker", "kubectl", "sudo", "tr"}
MADE = {"config/dtd.yaml"}  # by a command of docs/first-gpu-day.md, whose test runs it


def commands(page: Path) -> Iterator[str]:
    """Yield the commands in a page's blocks of shell lines."""
    text = page.read_text(encoding="utf-8")
    for _, language, block in _BLOCK.findall(text):
        if language in ("", "bash", "console"):
            lines = block.replace("\\\n", " ").splitlines()
            yield from (line.strip() for line in lines if line.strip())
    if page.name == "CONTRIBUTING.md":
        yield from re.findall(r"^    (make .*)$", text, re.MULTILINE)


def check(line: str) -> None:
    """Raise if a command could not be typed as it is."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word.strip("&|;>"):
            words.append(word)
            continue
        while words and _ASSIGNED.match(words[0]):
            words = words[1:]
        if words and word != ">":
            _check_program(*words)
        words = [] if word != ">" else [*words, ">"]


def _check_program(program: str, *words: str) -> None:
    for word in words:
        if word.startswith(("config/", "workflow/")) and word not in MADE:
            assert (ROOT / word).exists(), f"nothing at {word}"
    known = PROGRAMS.get(program)
    assert known or program in SYSTEM, f"unknown program {program!r}"
    if known:
        known(words)


def _check_make(words: tuple[str, ...]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \??=", makefile, re.MULTILINE))
    for word in words:
        name, equals, value = word.partition("=")
        assert name in (variables if equals else targets), f"no target or variable {name}"
        assert name != "CONFIG" or (ROOT / value).is_file(), f"no file {value}"


def _check_pip(words: tuple[str, ...]) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= declared["optional-dependencies"].keys(), extras


def _check_snakemake(words: tuple[str, ...]) -> None:
    get_argument_parser().parse_args(with_targets_apart(words))


def _check_microclip(words: tuple[str, ...]) -> None:
    _parse(Tree(), [word for word in words if word != "--debug"])


def _check_python(words: tuple[str, ...]) -> None:
    # The one script that is not in the repository is copied beside an exported model.
    assert words[0].endswith("onnx_predict.py") or (ROOT / words[0]).is_file(), words[0]


PROGRAMS: dict[str, Callable[[tuple[str, ...]], None]] = {
    "make": _check_make,
    "microclip": _check_microclip,
    "mlflow": lambda words: _parse(mlflow_cli, list(words)),
    "pip": _check_pip,
    "python": _check_python,
    "snakemake": _check_snakemake,
}


def _parse(command: Any, words: list[str]) -> None:
    """Parse arguments as the program does; an unknown verb, option or argument raises."""
    # Not isinstance: typer has its own copy of click.
    while hasattr(command, "commands"):
        assert words, "a verb is missing"
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def test_every_command_of_the_docs_can_be_typed_as_it_is() -> None:
    found = [(page.name, line) for page in PAGES for line in commands(page)]
    failing = []
    for page, line in found:
        try:
            check(line)
        except (Exception, SystemExit) as error:  # whatever the parsers raise
            failing.append(f"{page}: {line}: {error}")
    print(f"\n{len(found)} commands checked, {len(failing)} failing")
    assert failing == []
    assert len(found) > 80


@pytest.mark.parametrize(
    "line",
    [
        "microclip adopt ./photos",
        "microclip data fetch dtd",
        "microclip adapt ./photos --output ./adapted",
        "microclip predict",
        "make everything",
        "make run CONFIG=config/none.yaml",
        "snakemake --config-file config/six.yaml",
        "microclip plan --config config/none.yaml",
        "pip install 'microclip[onnx]'",
        "frobnicate --now",
        "cd here && microclip adopt",
    ],
)
def test_a_command_that_cannot_be_typed_is_found(line: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(line)


def test_verbs_named_in_prose_exist() -> None:
    spans = [span for page in PAGES for span in _SPAN.findall(page.read_text(encoding="utf-8"))]
    root: Any = Tree()
    named = {shlex.split(span.replace("'", ""))[1] for span in spans}
    assert len(named) > 10
    assert named <= root.commands.keys()


CHEAP = ("microclip data list", "microclip describe names.txt --llm gpt-4o")


@pytest.mark.parametrize("start", CHEAP)
def test_a_command_that_costs_nothing_runs(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in commands(ROOT / "README.md") if line.startswith(start)]
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("heron\nplover\n")
    assert lines
    for line in lines:
        assert main.main(shlex.split(line, comments=True)[1:]) == 0
    assert capsys.readouterr().out


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and the site make of a page's headings."""
    plain = _BLOCK.sub("", text)
    headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*slugs, *re.findall(r'id="([^"]+)"', text)}


def test_every_link_of_the_docs_leads_somewhere() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for book in BOOKS:
        cells = nbformat.read(book, as_version=4).cells
        texts[book] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = [(page, link) for page, text in texts.items() for link in _LINK.findall(text)]
    failing = []
    for page, link in found:
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        if "://" in link or link.startswith("mailto:"):
            continue
        is_there = target.is_file() and (
            not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
        )
        if not is_there:
            failing.append(f"{page.name}: {link}")
    print(f"\n{len(found)} links checked, {len(failing)} failing")
    assert failing == []
    assert len(found) > 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation site; a broken link, or a page outside the menu, ends its build."""
    target = tmp_path_factory.mktemp("site")
    # Not --quiet: that also hides warnings from --strict.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_the_site_has_every_verb_and_function(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    root: Any = Tree()
    visible = {name for name, command in root.commands.items() if not command.hidden}
    for name in visible:
        assert f'id="microclip-{name}' in text, name
    assert "--classes-from-folders" in text
    python = (site / "api.html").read_text(encoding="utf-8")
    for name in ("adapt", "load", "api.Adapted.predict", "methods.base.Task", "model.saliency"):
        assert f'id="microclip.{name}' in python, name


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_site_opens_from_disk_without_a_network(
    site: Path, size: tuple[int, int], browser: Browser
) -> None:
    for name in ("index.html", "gallery.html", "notebooks/own-images.html"):
        with browser.visit((site / name).as_uri(), size) as seen:
            assert (seen.errors, seen.outside(), seen.overflow_px()) == ([], [], 0), name
            pictures = "[...document.querySelectorAll('article img')].map(i => i.naturalWidth)"
            assert all(seen.page.evaluate(pictures)), name


def test_the_sites_search_finds_a_page(site: Path, browser: Browser) -> None:
    with browser.visit((site / "index.html").as_uri(), DESKTOP) as seen:
        seen.page.locator(".md-search__input").fill("saliency")
        seen.page.locator(".md-search-result__link").first.wait_for(timeout=60_000)


@pytest.mark.slow
def test_the_notebook_of_own_images_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(ROOT / "docs/notebooks/own-images.ipynb", as_version=4)
    committed = printed(book)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "verdict: " in committed
    # Numbers of a training may differ in their last digits from machine to machine.
    assert [line.partition(":")[0] for line in printed(book).splitlines() if ":" in line] == [
        line.partition(":")[0] for line in committed.splitlines() if ":" in line
    ]


def printed(book: Any) -> str:
    """What the cells of a notebook printed."""
    cells = (cell for cell in book.cells if cell.cell_type == "code")
    outputs = (output for cell in cells for output in cell.outputs)
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
