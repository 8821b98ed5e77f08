"""The help of the whole command line in panels, as typer draws it by means of rich.

rich takes longer to import than all else that this help needs. What differs from machine to machine
is left to it: an encoding without lines, a narrow or a simple terminal, variables about colours.
Tests compare both drawings, sign by sign.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence

_NARROWEST = 50  # below it, rich shortens the columns
_COLOURS = (
    *("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS", "_TYPER_FORCE_DISABLE_TERMINAL"),
)
# Numbers by which a terminal is told how to write; all colours are bold.
_BOLD, _DIM, _CYAN, _YELLOW, _GREEN, _DIM_YELLOW = "1", "2", "1;36", "1;33", "1;32", "1;2;33"
_SWITCH = re.compile(r"(?<!\w)(-\w+)(?![a-zA-Z0-9])")


def usual_width() -> int | None:
    """Columns to draw in; None where anything is unusual, so that rich must draw."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    is_usual = encoding.startswith("utf") and sys.platform != "win32"
    if sys.stdout.isatty():
        is_usual &= os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    if not is_usual or any(os.environ.get(name) for name in _COLOURS):
        return None
    width = _columns()
    return width if width >= _NARROWEST else None


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    if given.isdigit():
        return int(given)
    for handle in (0, 1, 2):  # the output may be a file, and the input still the terminal
        try:
            return os.get_terminal_size(handle).columns or 80
        except OSError:
            continue
    return 80


class Drawing:
    """Draws lines of a given width, with colours or without."""

    def __init__(self, width: int, *, is_coloured: bool) -> None:
        """Remember the width in signs, and whether a terminal shows colours."""
        self.width = width
        self.is_coloured = is_coloured

    def whole(self, usage: str, about: str, verbs: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Yield the lines of the help: the usage, what it is about, `--help`, and all verbs."""
        blank = " " * self.width
        yield blank
        yield from (f" {self._usage(line)} " for line in _wrapped(usage, self.width - 2))
        yield blank
        yield from (f" {line} " for line in _wrapped(about, self.width - 2))
        yield blank
        brackets = (self._in(_DIM_YELLOW, "<"), self._in(_YELLOW, "bool"))
        kind = "".join((*brackets, self._in(_DIM_YELLOW, ">")))
        option = f"{self._in(_CYAN, '--help')}        {kind}  "
        yield from self._panel("Options", [(option, "Show this message and exit.")], 22)
        longest = max(len(name) for name, _ in verbs)
        rows = [(self._in(_CYAN, name.ljust(longest)) + "  ", about) for name, about in verbs]
        yield from self._panel("Commands", rows, longest + 2)

    def _usage(self, line: str) -> str:
        before, usage, rest = line.rpartition("Usage: ")
        pieces = _SWITCH.split(rest)  # every second one is an option, as in "python -m"
        styles = (_BOLD, _GREEN)
        drawn = [self._in(styles[k % 2], piece) for k, piece in enumerate(pieces)]
        return before + self._in(_YELLOW, usage) + "".join(drawn)

    def _panel(self, title: str, rows: Sequence[tuple[str, str]], indent: int) -> Iterator[str]:
        """Yield a box of rows, each a drawn beginning of `indent` signs and a text beside it."""
        edge = self._in(_DIM, "│")
        yield self._in(_DIM, f"╭─ {title} {'─' * (self.width - len(title) - 5)}╮")
        for beginning, text in rows:
            lines = _wrapped(text, self.width - 4 - indent)
            yield f"{edge} {beginning}{lines[0]} {edge}"
            yield from (f"{edge} {' ' * indent}{line} {edge}" for line in lines[1:])
        yield self._in(_DIM, f"╰{'─' * (self.width - 2)}╯")

    def _in(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.is_coloured and text else text


def _wrapped(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return [line.ljust(width) for line in lines]
