r"""Tables and texts as structures, and as CSV, Markdown and LaTeX.

A `Table` has headings, rows in groups and cells; a text is a sequence of `Block`s. Every format is
written from these structures, HTML included (`template` and `templates/parts.html`); nothing parses
what another format wrote. In LaTeX each table is a file to `\input`, and `write` makes one document
of all tables. A table needs the package booktabs; a wide one is set sideways and needs rotating
too. The same table gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from microclip import paths, runtime
from microclip.study import Plan

HOLE, DAGGER = "—", "†"
_TEMPLATES = Path(__file__).parent / "templates"
_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≠": r"$\neq$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "γ": r"$\gamma$",
    "—": "---",
    "–": "--",
    "…": r"\dots{}",
}
_SPECIAL = re.compile("|".join(map(re.escape, _TEX)))
_MAX_UPRIGHT_COLUMNS = 9  # the row labels' column included
_UPRIGHT_PT, _SIDEWAYS_PT = 455.0, 700.0  # text width and height of A4 with margins of 25 mm
_FONTS = {  # widths in Computer Modern, pt: an average letter, a bold digit, a digit
    "small": (4.5, 5.35, 4.65),
    "footnotesize": (4.15, 4.9, 4.3),
    "scriptsize": (3.85, 4.6, 4.0),
    "tiny": (3.2, 4.0, 3.45),
}
_LAYOUTS = (  # environment, text width, font of numbers, font of deviations; the first fit is used
    ("table", _UPRIGHT_PT, "small", "scriptsize"),
    ("table", _UPRIGHT_PT, "footnotesize", "scriptsize"),
    ("table", _UPRIGHT_PT, "footnotesize", "tiny"),
    ("sidewaystable", _SIDEWAYS_PT, "small", "scriptsize"),
    ("sidewaystable", _SIDEWAYS_PT, "footnotesize", "scriptsize"),
    ("sidewaystable", _SIDEWAYS_PT, "footnotesize", "tiny"),
    ("sidewaystable", _SIDEWAYS_PT, "scriptsize", "tiny"),
)
_POINT, _PLUS_MINUS, _BRACKETS = 0.6, 2.4, 2.4  # widths in digits, with spaces and comma
_GAP_PT = 6.0  # between columns, twice \tabcolsep


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the number as printed; empty in a hole.
        deviation: sample deviation over seeds as printed; empty with one seed.
        low: lower end of its interval as printed, or empty; an interval replaces the deviation.
        high: upper end of its interval as printed, or empty.
        p: of its difference to the reference row as printed, adjusted; empty if not compared.
        is_marked: whether that difference is significant.
        rank: 1 for the best of its column, 2 for the second, by the printed number.
        hole: why there is no number; empty if no note is needed; None if there is a number.
        differs: differs from the paper's number by more than the tolerance.
    """

    text: str = ""
    deviation: str = ""
    rank: int | None = None
    hole: str | None = None
    differs: bool = False
    low: str = ""
    high: str = ""
    p: str = ""
    is_marked: bool = False

    @property
    def interval(self) -> str:
        """The interval as printed, or empty."""
        return f"[{self.low}, {self.high}]" if self.low else ""


@dataclass(frozen=True)
class Column:
    """A column's heading, and the heading that it shares with its neighbours, if any.

    Attributes:
        is_bare: its cells have no deviation, interval or p beside them.
    """

    title: str
    group: str | None = None
    is_bare: bool = False

    @property
    def name(self) -> str:
        """Both headings in one."""
        return self.title if self.group is None else f"{self.group}, {self.title}"


@dataclass(frozen=True)
class Row:
    """A label and its cells; consecutive rows share the heading `group`."""

    label: str
    cells: tuple[Cell, ...]
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """A built table, ready to be written in any format.

    Attributes:
        corner: heading of the row labels.
        title: name in the paper, such as "Table 1".
        caption: what the numbers are, from which study and how many seeds.
        label: LaTeX label.
        source: file that the numbers were read from.
        notes: reasons for holes, one per note, without the hole's mark.
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
        """The rows by the headings above them."""
        grouped = itertools.groupby(self.rows, lambda row: row.group)
        return [(group, list(rows)) for group, rows in grouped]

    def spread_columns(self) -> list[tuple[str, str]]:
        """The columns of CSV beside each column of numbers: suffix, and field of the cell."""
        cells = [cell for row in self.rows for cell in row.cells]
        known = (("sd", "deviation"), ("low", "low"), ("high", "high"), ("p", "p"))
        return [pair for pair in known if any(getattr(cell, pair[1]) for cell in cells)]


@dataclass(frozen=True)
class Code:
    """Text to be shown verbatim."""

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
    """Plain numbers; columns `sd`, `low`, `high`, `p` and `Hole` only if the table has any."""
    has_groups = any(row.group for row in table.rows)
    has_holes = any(cell.hole for row in table.rows for cell in row.cells)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = ["Group"] * has_groups + [table.corner]
    beside = table.spread_columns()
    for column in table.columns:
        heads += [column.name]
        heads += [f"{column.name} {suffix}" for suffix, _ in beside if not column.is_bare]
    writer.writerow(heads + ["Hole"] * has_holes)
    for row in table.rows:
        line = [row.group or ""] * has_groups + [row.label]
        for column, cell in zip(table.columns, row.cells, strict=True):
            line += [cell.text]
            line += [getattr(cell, field) for _, field in beside if not column.is_bare]
        reasons = dict.fromkeys(cell.hole for cell in row.cells if cell.hole)
        writer.writerow(line + ["; ".join(reasons)] * has_holes)
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """Caption, table and notes; the best bold, the second underlined; aligned as plain text too."""
    parts = [f"**{table.title}.** {table.caption}", "", *markdown_grid(table)]
    if table.notes:
        parts += ["", "  \n".join(f"{HOLE} {note}" for note in table.notes)]
    return "\n".join([*parts, ""])


def markdown_grid(table: Table) -> list[str]:
    """The lines of headings and rows; a group's heading is a row of its own."""
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
    text = mark.format(cell.text) + DAGGER * cell.is_marked
    if cell.interval:
        return f"{text} {cell.interval}"
    return text + (f" ± {cell.deviation}" if cell.deviation else "")


def text_to_markdown(blocks: Iterable[Block]) -> str:
    """Headings, paragraphs, lists and tables, separated by blank lines."""
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
    """A Markdown table whose first line is the heading; first column left, the others right."""
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


@cache
def _environment() -> Environment:
    """Keeps what it has read: to compile a page's template takes longer than to fill it in."""
    found = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["duration"] = partial(runtime.duration, decimals=True)
    return found


def template(name: str) -> Template:
    """A template from this folder; values are HTML-escaped."""
    return _environment().get_template(name)


def escape(text: str) -> str:
    """The text with LaTeX's special characters, and some symbols, as commands."""
    return _SPECIAL.sub(lambda found: _TEX[found.group()], text)


def to_tex(table: Table) -> str:
    """The table as a `table` environment, or a `sidewaystable` if it is wide."""
    environment, font, small = _fit(table)
    placement = "[t]" if environment == "table" else ""
    lines = [
        f"% generated by microclip tabulate from {table.source}",
        rf"\begin{{{environment}}}{placement}",
        r"\centering",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{{table.label}}}",
        r"\smallskip",
        rf"\{font}",
        rf"\setlength{{\tabcolsep}}{{{_GAP_PT / 2:g}pt}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * len(table.columns)}@{{}}}}",
        r"\toprule",
        *_heading(table),
        *_body(table, small),
        r"\bottomrule",
        r"\end{tabular}",
        *_tex_notes(table),
        rf"\end{{{environment}}}",
    ]
    return "\n".join([*lines, ""])


def _fit(table: Table) -> tuple[str, str, str]:
    """Environment and fonts of the first layout that fits the page, or of the last layout."""
    is_wide = len(table.columns) + 1 > _MAX_UPRIGHT_COLUMNS
    for environment, width, font, small in _LAYOUTS:
        if is_wide and environment == "table":
            continue
        if _width_pt(table, font, small) <= width:
            break
    return environment, font, small


def _width_pt(table: Table, font: str, small: str) -> float:
    """Estimated width of the table, with deviations in the font `small`."""
    letter, bold, _ = _FONTS[font]
    _, _, digit = _FONTS[small]
    total = letter * max(len(text) for text in [table.corner, *(row.label for row in table.rows)])
    for i, column in enumerate(table.columns):
        widths = [letter * len(column.title)]
        for cell in (row.cells[i] for row in table.rows):
            deviation = _digits(cell.deviation) + _PLUS_MINUS if cell.deviation else 0.0
            interval = _digits(cell.low) + _digits(cell.high) + _BRACKETS if cell.low else 0.0
            beside = interval or deviation
            widths.append(_digits(cell.text) * bold + (beside + cell.is_marked) * digit)
        total += max(widths) + _GAP_PT
    return total


def _digits(text: str) -> float:
    return len(text) - (1 - _POINT) * text.count(".")


def _heading(table: Table) -> Iterator[str]:
    """Yield the heading line, below a line of groups and their rules if columns have groups."""
    if any(column.group for column in table.columns):
        above, rules, position = [""], [], 2
        for group, columns in itertools.groupby(table.columns, key=lambda column: column.group):
            n = len(list(columns))
            above.append(rf"\multicolumn{{{n}}}{{c}}{{{escape(group or '')}}}")
            if group:
                rules.append(rf"\cmidrule(lr){{{position}-{position + n - 1}}}")
            position += n
        yield " & ".join(above) + r" \\"
        yield " ".join(rules)
    yield " & ".join(map(escape, [table.corner, *(c.title for c in table.columns)])) + r" \\"


def _body(table: Table, small: str) -> Iterator[str]:
    n = len(table.columns) + 1
    if not table.rows:
        yield r"\midrule"
    for group, rows in itertools.groupby(table.rows, lambda row: row.group):
        yield r"\midrule"
        if group:
            yield rf"\multicolumn{{{n}}}{{@{{}}l}}{{\textit{{{escape(group)}}}}} \\"
        yield from (_line(row, small) for row in rows)


def _line(row: Row, small: str) -> str:
    return " & ".join([escape(row.label), *(_tex_cell(c, small) for c in row.cells)]) + r" \\"


def _tex_cell(cell: Cell, small: str) -> str:
    if cell.hole is not None:
        return "--"
    mark = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(cell.rank or 0, "%s")
    beside = rf"\,{{\{small}$\pm$\,{cell.deviation}}}" if cell.deviation else ""
    if cell.interval:
        beside = rf"\,{{\{small}{cell.interval}}}"
    dagger = r"$^\dagger$" if cell.is_marked else ""
    return mark % escape(cell.text) + dagger + beside


def _tex_notes(table: Table) -> Iterator[str]:
    if table.notes:
        yield r"\par\smallskip"
        yield r"\begin{minipage}{\linewidth}\footnotesize\raggedright"
        yield " \\\\\n".join(f"-- {escape(note)}" for note in table.notes)
        yield r"\end{minipage}"


def write(plan: Plan) -> Path:
    """Write a document that inputs every table of a study; return its path.

    Compile it in its own folder: `pdflatex all.tex`.

    Raises:
        MissingDataError: a table was not built.
    """
    target = Path(paths.ALL_TABLES.format(study=plan.study))
    lines = [
        f"% generated by microclip typeset from the tables of study {plan.study}",
        r"\documentclass[a4paper]{article}",
        r"\usepackage[margin=25mm]{geometry}",
        r"\usepackage{booktabs}",
        r"\usepackage{rotating}",
        r"\makeatletter",  # pages of tables begin at the top
        r"\setlength{\@fptop}{0pt}",
        r"\setlength{\@fpsep}{20pt}",
        r"\makeatother",
        r"\pagestyle{myheadings}",
        rf"\markright{{{escape(plan.title or plan.study)}}}",
        r"\begin{document}",
    ]
    for name in plan.tables:
        file = target.with_name(f"{name}.tex")
        if not file.is_file():
            raise runtime.MissingDataError(
                f"{file} does not exist; run `microclip tabulate {name} --study {plan.study}`"
            )
        number = re.search(r"\d+$", name)
        if number:  # the tables keep their numbers in the paper
            lines.append(rf"\setcounter{{table}}{{{int(number.group()) - 1}}}")
        lines.append(rf"\input{{{name}}}")
    runtime.write_text(target, "\n".join([*lines, r"\end{document}", ""]))
    return target
