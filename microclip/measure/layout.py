"""A table as it is printed: headings, rows in groups, cells; and its CSV and Markdown.

LaTeX is in `typesetting.py`. The same table gives the same bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

HOLE = "—"


@dataclass(frozen=True)
class Cell:
    """What is printed in one place.

    Attributes:
        text: the number as printed; empty in a hole.
        deviation: sample deviation over seeds as printed; empty with one seed.
        rank: 1 the best of its column, 2 the second, by the printed number.
        hole: why there is no number; empty if a note would say nothing new; None: no hole.
    """

    text: str = ""
    deviation: str = ""
    rank: int | None = None
    hole: str | None = None


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
        title: as in the paper, "Table 1".
        caption: what the numbers are, of which study and of how many seeds.
        label: LaTeX label.
        source: what the numbers were read from.
        corner: heading of the row labels.
        notes: why there are holes, one reason a note, without the hole's mark.
    """

    title: str
    caption: str
    label: str
    source: str
    corner: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_deviations(self) -> bool:
        """Return whether any cell stands for several seeds."""
        return any(cell.deviation for row in self.rows for cell in row.cells)


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
    lines = [[table.corner, *(column.name for column in table.columns)]]
    group = None
    for row in table.rows:
        if row.group and row.group != group:
            lines.append([f"*{row.group}*", *[""] * len(row.cells)])
        group = row.group
        lines.append([row.label, *map(_marked, row.cells)])
    parts = [f"**{table.title}.** {table.caption}", "", *aligned(lines)]
    if table.notes:
        parts += ["", "  \n".join(f"{HOLE} {note}" for note in table.notes)]
    return "\n".join([*parts, ""])


def _marked(cell: Cell) -> str:
    if cell.hole is not None:
        return HOLE
    mark = {1: "**{}**", 2: "<u>{}</u>"}.get(cell.rank or 0, "{}")
    return mark.format(cell.text) + (f" ± {cell.deviation}" if cell.deviation else "")


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
