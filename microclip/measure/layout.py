"""A table as it is printed: headings, rows in groups, cells; and its CSV and Markdown.

LaTeX is in `typesetting.py`, HTML in `templates/parts.html`. The same table gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

HOLE = "—"


@dataclass(frozen=True)
class Cell:
    """What is printed in one place.

    Attributes:
        text: the number as printed; empty in a hole.
        deviation: sample deviation over seeds as printed; empty with one seed.
        rank: 1 the best of its column, 2 the second, by the printed number.
        hole: why there is no number; empty if a note would say nothing new; None: no hole.
        differs: from the paper's number, by more than the tolerance.
    """

    text: str = ""
    deviation: str = ""
    rank: int | None = None
    hole: str | None = None
    differs: bool = False


@dataclass(frozen=True)
class Column:
    """A heading, and the heading above it and its neighbours if there is one."""

    title: str
    group: str | None = None

    @property
    def name(self) -> str:
        """Return both headings in one."""
        return self.title if self.group is None else f"{self.group}, {self.title}"


@dataclass(frozen=True)
class Row:
    """A label and its cells; `group` is the heading above consecutive rows."""

    label: str
    cells: tuple[Cell, ...]
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """A built table, ready to be written in any format.

    Attributes:
        corner: heading of the row labels.
        title: as in the paper, "Table 1".
        caption: what the numbers are, of which study and of how many seeds.
        label: LaTeX label.
        source: what the numbers were read from.
        notes: why there are holes, one reason a note, without the hole's mark.
    """

    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str = ""
    caption: str = ""
    label: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    kind: ClassVar[str] = "table"

    @property
    def groups(self) -> list[tuple[str | None, list[Row]]]:
        """Return the rows by the headings above them."""
        grouped = itertools.groupby(self.rows, lambda row: row.group)
        return [(group, list(rows)) for group, rows in grouped]

    @property
    def has_deviations(self) -> bool:
        """Return whether any cell stands for several seeds."""
        return any(cell.deviation for row in self.rows for cell in row.cells)


@dataclass(frozen=True)
class Code:
    """Characters to be read as they stand."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is a text's title."""

    level: int
    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph: plain text and code, in order."""

    parts: tuple[str | Code, ...]
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Listing:
    """A list, numbered if `is_ordered`."""

    entries: tuple[str, ...]
    is_ordered: bool = False
    kind: ClassVar[str] = "list"


Block = Heading | Paragraph | Listing | Table


def to_csv(table: Table) -> str:
    """Return the plain numbers; `sd` columns where there are seeds, `Hole` where there are some."""
    has_groups = any(row.group for row in table.rows)
    has_holes = any(cell.hole for row in table.rows for cell in row.cells)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = ["Group"] * has_groups + [table.corner]
    for column in table.columns:
        heads += [column.name] + [f"{column.name} sd"] * table.has_deviations
    writer.writerow(heads + ["Hole"] * has_holes)
    for row in table.rows:
        line = [row.group or ""] * has_groups + [row.label]
        for cell in row.cells:
            line += [cell.text] + [cell.deviation] * table.has_deviations
        reasons = dict.fromkeys(cell.hole for cell in row.cells if cell.hole)
        writer.writerow(line + ["; ".join(reasons)] * has_holes)
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """Return caption, table and notes; best bold, second underlined; readable as plain text too."""
    parts = [f"**{table.title}.** {table.caption}", "", *markdown_grid(table)]
    if table.notes:
        parts += ["", "  \n".join(f"{HOLE} {note}" for note in table.notes)]
    return "\n".join([*parts, ""])


def markdown_grid(table: Table) -> list[str]:
    """Return the lines of headings and rows; a group's heading is a row of its own."""
    lines = [[table.corner, *(column.name for column in table.columns)]]
    for group, rows in table.groups:
        if group:
            lines.append([f"*{group}*", *[""] * len(table.columns)])
        lines += [[row.label, *map(_markdown_cell, row.cells)] for row in rows]
    return aligned(lines)


def _markdown_cell(cell: Cell) -> str:
    if cell.hole is not None:
        return HOLE
    if cell.differs:
        return f"**{cell.text}**"
    mark = {1: "**{}**", 2: "<u>{}</u>"}.get(cell.rank or 0, "{}")
    return mark.format(cell.text) + (f" ± {cell.deviation}" if cell.deviation else "")


def text_to_markdown(blocks: Iterable[Block]) -> str:
    """Return headings, paragraphs, lists and tables, a blank line between them."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(parts):
            return "".join(f"`{p.text}`" if isinstance(p, Code) else p for p in parts)
        case Listing(entries, is_ordered):
            marks = [f"{number}." if is_ordered else "-" for number in range(1, len(entries) + 1)]
            return "\n".join(f"{m} {text}" for m, text in zip(marks, entries, strict=True))
        case Table():
            return "\n".join(markdown_grid(block))


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table of a heading line and others: first column left, the rest right."""
    escaped = [[text.replace("|", r"\|") for text in line] for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]
    first, *others = widths
    rule = f"| {'-' * first} |" + "".join(f" {'-' * (width - 1)}: |" for width in others)
    shown = [
        f"| {line[0].ljust(first)} |"
        + "".join(f" {text.rjust(w)} |" for text, w in zip(line[1:], others, strict=True))
        for line in escaped
    ]
    return [shown[0], rule, *shown[1:]]
