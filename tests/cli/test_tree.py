"""The tree of verbs: what stands in its table, what is imported when, and how its help looks."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer import rich_utils

from microclip.cli import app, main, panels
from microclip.cli.tree import Tree
from microclip.cli.verbs import VERBS

MODULES = sorted(path.stem for path in Path(main.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("name", VERBS)
def test_the_line_of_a_verb_is_the_first_of_its_own_help(name: str) -> None:
    command = Tree().commands[name]
    first = " ".join(command.help.split("\n\n")[0].split())
    assert (VERBS[name].about, VERBS[name].is_hidden) == (first, command.hidden)
    assert command.name == name


def test_the_table_has_every_verb_of_every_module_in_the_order_of_the_code() -> None:
    tree = Tree()
    listed = list(tree.commands)
    for name in listed:
        tree.commands[name]  # its module registers all others of that module
    assert list(Tree().commands) == listed == list(VERBS)
    for module in MODULES:
        registered = [
            info.name or str(info.callback.__name__).replace("_", "-")
            for info in app.registered_commands
            if info.callback is not None and info.callback.__module__ == f"microclip.cli.{module}"
        ]
        if module != "data":  # a group of its own
            assert registered == [n for n, verb in VERBS.items() if verb.module == module], module


def test_an_unknown_verb_is_no_verb_of_the_tree() -> None:
    tree = Tree()
    assert "adopt" not in tree.commands
    assert tree.commands.get("adopt") is None
    with pytest.raises(TypeError, match="cannot be removed"):
        del tree.commands["adapt"]


# What Python needs besides, what is not there without a verb, and with one.
LIGHT = ("pydantic", "yaml", "rich", "psutil", "numpy", "microclip.runtime", "microclip.processes")
PROGRAM = """
import sys
from microclip.cli.main import main
code = main(sys.argv[3:])
expected, unwanted = int(sys.argv[1]), set(sys.argv[2].split(","))
found = sorted(unwanted & set(sys.modules))
sys.exit(f"imports {found}" if found else f"exit code {code}" if code != expected else 0)
"""


def imports_nothing_of(unwanted: tuple[str, ...], code: int, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(code), ",".join(unwanted), *words],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2), (["--nonsense"], 2)])
def test_without_a_verb_no_verb_is_imported_nor_what_models_and_drawings_need(
    words: list[str], code: int
) -> None:
    verbs = tuple(f"microclip.cli.{verb.module}" for verb in VERBS.values())
    imports_nothing_of((*LIGHT, *verbs), code, *words)


@pytest.mark.parametrize("name", ["status", "adapt", "doctor", "describe"])
def test_the_help_of_a_verb_imports_its_module_alone_and_no_model(name: str) -> None:
    others = {f"microclip.cli.{verb.module}" for verb in VERBS.values()}
    others -= {f"microclip.cli.{VERBS[name].module}"}
    unwanted = ("pydantic", "yaml", "microclip.settings.base", *others)
    imports_nothing_of(unwanted, 0, name, "--help")


def as_rich_draws(monkeypatch: pytest.MonkeyPatch, width: int, name: str, *, colour: bool) -> str:
    """The help of the whole command line as typer draws it."""
    monkeypatch.setattr(panels, "usual_width", lambda: None)
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", width)
    monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", colour)
    return drawn(monkeypatch, name)


def as_here(monkeypatch: pytest.MonkeyPatch, width: int, name: str, *, colour: bool) -> str:
    monkeypatch.setattr(panels, "usual_width", lambda: width)
    monkeypatch.setattr("sys.stdout.isatty", lambda: colour, raising=False)
    return drawn(monkeypatch, name)


def drawn(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    stream = Stream()
    stream.is_terminal = sys.stdout.isatty()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        tree = Tree()
        tree.format_help(tree.make_context(name, ["status"]), None)
    return stream.getvalue()


class Stream(io.StringIO):
    """A text that says whether it is a terminal."""

    encoding = "utf-8"
    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal


def signs(text: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Each sign with the numbers that the terminal was told before it; of a blank, none."""
    styles: frozenset[str] = frozenset()
    for code, sign in re.findall(r"\x1b\[([\d;]*)m|(.|\n)", text):
        if sign:
            yield sign, frozenset() if sign.isspace() else styles
        else:
            styles = frozenset(code.split(";")) - {"0", ""}


@pytest.mark.parametrize("width", [50, 63, 79, 80, 100, 121, 200])
@pytest.mark.parametrize("name", ["microclip", "python -m microclip"])
@pytest.mark.parametrize("colour", [False, True], ids=["plain", "coloured"])
def test_the_help_looks_as_typer_draws_it(
    monkeypatch: pytest.MonkeyPatch, width: int, name: str, *, colour: bool
) -> None:
    def by(draw: Callable[..., str]) -> str:
        with monkeypatch.context() as patched:
            return draw(patched, width, name, colour=colour)

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    here, rich = by(as_here), by(as_rich_draws)
    assert "describe" in here
    assert list(signs(here)) == list(signs(rich))
    assert ("\x1b" in here) == ("\x1b" in rich) == colour
    if not colour:
        assert here == rich


def usual_terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Standard output and variables as in a usual terminal of 100 columns."""
    for name in panels._COLOURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "platform", "linux")
    stream = Stream()
    stream.is_terminal = True
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def test_what_is_unusual_is_left_to_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = usual_terminal(monkeypatch)
    assert panels.usual_width() == 100
    changes: tuple[Callable[[pytest.MonkeyPatch], Any], ...] = (
        lambda patched: patched.setenv("NO_COLOR", "1"),
        lambda patched: patched.setenv("FORCE_COLOR", "1"),
        lambda patched: patched.setenv("TERM", "dumb"),
        lambda patched: patched.setenv("COLUMNS", "30"),
        lambda patched: patched.setattr(usual, "encoding", "ascii"),
        lambda patched: patched.setattr(sys, "platform", "win32"),
    )
    for number, change in enumerate(changes):
        with monkeypatch.context() as patched:
            change(patched)
            assert panels.usual_width() is None, number
    usual.is_terminal = False
    monkeypatch.setenv("TERM", "dumb")  # says nothing of a file or a pipe
    assert panels.usual_width() == 100


def test_the_width_is_the_terminals_or_eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    usual_terminal(monkeypatch)
    monkeypatch.delenv("COLUMNS")

    def size(handle: int) -> os.terminal_size:
        if handle == 0:
            raise OSError
        return os.terminal_size((90, 24))

    monkeypatch.setattr(os, "get_terminal_size", size)
    assert panels.usual_width() == 90

    def no_size(handle: int) -> os.terminal_size:
        raise OSError

    monkeypatch.setattr(os, "get_terminal_size", no_size)
    assert panels.usual_width() == 80
