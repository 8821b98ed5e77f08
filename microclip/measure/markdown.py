"""The Markdown that this project writes (tables, the ledger), read back so that a page can show it.

Only the marks that `tables.py` and `ledger.py` use have a meaning; all other text is text, and is
escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup, escape

Align = Literal["left", "center", "right"]

_CELL_END = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r":?-+:?")
_HEADING = re.compile(r"(#{1,6})\s+")
_ITEM = re.compile(r"([-*+]|[0-9]+[.)])\s+")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~$&])")
_KEPT = re.compile("\ue000([0-9]+)\ue001")  # private characters hold an escaped one's place
_MARKS = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])"), r"<em>\1</em>"),
    (re.compile(r"&lt;(u|sup|sub)&gt;(.*?)&lt;/\1&gt;"), r"<\1>\2</\1>"),
    (re.compile(r"&lt;br ?/?&gt;"), "<br>"),
    (re.compile(r" ?(± ?[0-9.]+)"), r" <small>\1</small>"),
)


@dataclass(frozen=True)
class Row:
    """Cells of a table's line, as HTML."""

    cells: tuple[Markup, ...]

    @property
    def is_heading(self) -> bool:
        """Return whether only the first cell says something: the row names a group."""
        return len(self.cells) > 1 and bool(self.cells[0]) and not any(self.cells[1:])


@dataclass(frozen=True)
class Group:
    """Consecutive rows under one heading, or without."""

    heading: Markup | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class MarkdownTable:
    """A table: headings and alignments of its columns, and its rows in groups."""

    heads: tuple[Markup, ...]
    aligns: tuple[Align, ...]
    groups: tuple[Group, ...]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is a file's title."""

    level: int
    text: Markup
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, or a line of it that ends in a break."""

    text: Markup
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Listing:
    """A list, numbered if `is_ordered`."""

    is_ordered: bool
    items: tuple[Markup, ...]
    kind: ClassVar[str] = "list"


Block = MarkdownTable | Heading | Paragraph | Listing


def inline(text: str) -> Markup:
    """Return a line's text as HTML: bold, emphasis, code, underlined, raised and lowered."""
    kept = _ESCAPED.sub(lambda found: f"\ue000{ord(found[1])}\ue001", text.strip())
    marked = str(escape(kept))
    for pattern, replacement in _MARKS:
        marked = pattern.sub(replacement, marked)
    # Escaped by markupsafe above; the only tags are those of _MARKS.
    return Markup(_KEPT.sub(lambda found: str(escape(chr(int(found[1])))), marked).strip())


def read(text: str) -> tuple[Block, ...]:
    """Return the headings, paragraphs, lists and tables of a Markdown text, in order."""
    blocks: list[Block] = []
    for part in re.split(r"\n[ \t]*\n", text.strip()):
        lines = [line.lstrip() for line in part.splitlines() if line.strip()]
        if len(lines) > 1 and lines[0].startswith("|") and _is_rule(lines[1]):
            blocks.append(_table(lines))
        elif lines and (mark := _HEADING.match(lines[0])):
            blocks.append(Heading(len(mark[1]), inline(lines[0][mark.end() :])))
            blocks += _texts(lines[1:])
        else:
            blocks += _texts(lines)
    return tuple(blocks)


def _texts(lines: Sequence[str]) -> list[Block]:
    """Return the list or paragraphs that lines make."""
    mark = _ITEM.match(lines[0]) if lines else None
    parts: list[str] = []
    for line in lines:
        item = _ITEM.match(line) if mark else None
        if item or not parts or (not mark and parts[-1].endswith("  ")):
            parts.append(line[item.end() :] if item else line)
        else:
            parts[-1] += " " + line
    texts = tuple(inline(part) for part in parts)
    if mark:
        return [Listing(mark[1][0].isdigit(), texts)]
    return [Paragraph(text) for text in texts]


def _split(line: str) -> list[str]:
    cells = _CELL_END.split(line.rstrip())
    return cells[1:-1] if not cells[-1] else cells[1:]


def _is_rule(line: str) -> bool:
    cells = _split(line)
    return bool(cells) and all(_RULE.fullmatch(cell.strip()) for cell in cells)


def _align(cell: str) -> Align:
    mark = cell.strip()
    if mark.endswith(":"):
        return "center" if mark.startswith(":") else "right"
    return "left"


def _table(lines: Sequence[str]) -> MarkdownTable:
    heads = tuple(inline(cell) for cell in _split(lines[0]))
    aligns = tuple(_align(cell) for cell in _split(lines[1]))
    groups: list[tuple[Markup | None, list[Row]]] = []
    for line in lines[2:]:
        cells = tuple(inline(cell) for cell in _split(line))
        row = Row((*cells, *[Markup("")] * (len(heads) - len(cells)))[: len(heads)])
        if row.is_heading:
            groups.append((_plain(row.cells[0]), []))
        elif groups:
            groups[-1][1].append(row)
        else:
            groups.append((None, [row]))
    return MarkdownTable(heads, aligns, tuple(Group(name, tuple(rows)) for name, rows in groups))


def _plain(heading: Markup) -> Markup:
    """Return a group's heading without the bold or emphasis that the page gives it anyway."""
    return Markup(re.sub(r"</?(strong|em)>", "", heading))  # was HTML before
