"""Tables of a study: one builder for all, made from `scores.csv` alone, the same bytes each time.

Columns are datasets and their mean, rows are methods. The best of a column is bold, the second
underlined; with several seeds a cell is mean and sample deviation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from microclip.reports import TableRow, TableSettings
from microclip.settings import SettingsError

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
}


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, in percent; no `deviation` with one seed, no `mean` if it was not run."""

    mean: float | None
    deviation: float | None = None
    rank: int | None = None  # 1 best, 2 second, by the printed value

    @property
    def text(self) -> str:
        """Return the printed number."""
        return "" if self.mean is None else f"{self.mean:.2f}"


@dataclass(frozen=True)
class Table:
    """A built table, ready to be written in any format."""

    caption: str
    label: str
    study: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    n_seeds: int


def _ranked(cells: Sequence[Cell]) -> list[Cell]:
    """Return a column's cells with the ranks of the best two printed values."""
    values = sorted({cell.text for cell in cells if cell.mean is not None}, key=float, reverse=True)
    rank = {value: position + 1 for position, value in enumerate(values[:2])}
    return [Cell(c.mean, c.deviation, rank.get(c.text)) for c in cells]


def _cells(scores: pd.DataFrame, datasets: Sequence[str]) -> list[Cell]:
    """Return a row: a cell a dataset, then their mean over the seeds that all of them have."""
    table = scores.pivot_table(index="seed", columns="dataset", values="top1_pct")
    table = table.reindex(columns=list(datasets))
    whole = table.dropna()
    columns = [table[name].dropna() for name in datasets] + [whole.mean(axis=1)]
    return [
        Cell(
            float(c.mean()) if len(c) else None,
            float(c.std(ddof=1)) if len(c) > 1 else None,
        )
        for c in columns
    ]


def _runs_of(row: TableRow, scores: pd.DataFrame, table: str) -> pd.DataFrame:
    """Return the runs that a row averages over seeds."""
    own = scores[(scores["method"] == row.method) & (scores["variant"] == row.variant)]
    for field in ("backbone", "descriptions"):
        named = getattr(row, field)
        if named is not None:
            own = own[own[field] == named]
        elif own[field].nunique() > 1:
            raise SettingsError(
                f"row {row.label!r} of table {table} mixes {field} "
                f"{', '.join(sorted(own[field].unique()))}; name one in config/tables/{table}.yaml"
            )
    return own


def build(
    table: TableSettings, scores: pd.DataFrame, *, titles: dict[str, str], study: str
) -> Table:
    """Return the table; rows whose method the study does not run are left out.

    `titles` maps datasets to column headings, in column order.

    Raises: SettingsError if no row of the table is in the scores, or a row mixes backbones.
    """
    names, listed = [], []
    for row in table.rows:
        own = _runs_of(row, scores, table.name)
        if len(own):
            names.append(row.label)
            listed.append(_cells(own, list(titles)))
    if not listed:
        raise SettingsError(
            f"table {table.name} has no row in the scores of study {study}; its methods are "
            f"{', '.join(row.method for row in table.rows)}"
        )
    columns = [_ranked(column) for column in zip(*listed, strict=True)]
    rows = tuple(zip(names, zip(*columns, strict=True), strict=True))
    n_seeds = int(scores.groupby(["method", "variant", "dataset"])["seed"].nunique().max())
    return Table(table.caption, table.label, study, (*titles.values(), "Mean"), rows, n_seeds)


def to_csv(table: Table) -> str:
    """Return the numbers, two columns a dataset where there are several seeds."""
    frame = pd.DataFrame({"Method": [name for name, _ in table.rows]})
    for i, column in enumerate(table.columns):
        frame[column] = [cells[i].text for _, cells in table.rows]
        if table.n_seeds > 1:
            deviations = [cells[i].deviation for _, cells in table.rows]
            frame[f"{column} sd"] = ["" if d is None else f"{d:.2f}" for d in deviations]
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _marked(cell: Cell, bold: str, underline: str, plus_minus: str, hole: str) -> str:
    if cell.mean is None:
        return hole
    mark = {1: bold, 2: underline}.get(cell.rank or 0, "{}")
    deviation = "" if cell.deviation is None else f"{plus_minus}{cell.deviation:.2f}"
    return mark.format(cell.text) + deviation


def to_markdown(table: Table) -> str:
    """Return a Markdown table: best bold, second underlined."""
    lines = [
        "| " + " | ".join(["Method", *table.columns]) + " |",
        "| --- |" + " ---: |" * len(table.columns),
    ]
    for name, cells in table.rows:
        shown = [_marked(cell, "**{}**", "<u>{}</u>", " ± ", "—") for cell in cells]
        lines.append("| " + " | ".join([name, *shown]) + " |")
    return "\n".join([*lines, "", _note(table), ""])


def _note(table: Table) -> str:
    seeds = "one seed" if table.n_seeds == 1 else f"mean ± sample deviation, {table.n_seeds} seeds"
    return f"{table.caption} Study {table.study}; {seeds}."


def escape(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return re.sub(r"[\\&%$#_{}~^]", lambda found: _TEX[found.group()], text)


def to_tex(table: Table) -> str:
    """Return a `table` environment that needs booktabs alone."""
    note = escape(_note(table)).replace("±", r"$\pm$")
    lines = [
        f"% generated by microclip tabulate from results/{table.study}/scores.csv",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{note}}}",
        rf"\label{{{table.label}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["Method", *map(escape, table.columns)]) + r" \\",
        r"\midrule",
    ]
    for name, cells in table.rows:
        shown = [
            _marked(cell, r"\textbf{{{}}}", r"\underline{{{}}}", r" $\pm$ ", "--") for cell in cells
        ]
        lines.append(" & ".join([escape(name), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "md": to_markdown,
    "tex": to_tex,
}
