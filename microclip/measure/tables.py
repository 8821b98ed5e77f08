"""Tables of a study: one builder for all, made from `scores.csv`, the same bytes each time.

Columns are datasets and their mean, rows are methods and variants. The best of a column is bold,
the second underlined; with several seeds a cell is mean and sample deviation. What was not run is
a hole with its reason; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from microclip import paths, runtime, settings
from microclip.measure import dataset_counts, scores
from microclip.measure.layout import Cell, Column, Row, Table, to_csv, to_markdown
from microclip.measure.statistics import Statistic, missing, runs_of, statistics
from microclip.measure.typesetting import to_tex
from microclip.runs import Plan
from microclip.settings import SettingsError
from microclip.settings.reports import TableSettings

FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_tex}
MEAN = "Mean"


def write(table: TableSettings, plan: Plan) -> Path:
    """Build a table of a planned study and write it in all formats; return its path, no suffix.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: the study has no such table, or a row mixes backbones or descriptions.
    """
    built = read(table, plan)
    target = Path(paths.TABLE.format(study=plan.study, table=table.name, format="md"))
    for suffix, format_ in FORMATS.items():
        runtime.write_text(target.with_suffix(f".{suffix}"), format_(built))
    return target.with_suffix("")


def read(table: TableSettings, plan: Plan) -> Table:
    """Return a table of a planned study, built from what the study's files say today.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: the study has no such table, or a row mixes backbones or descriptions.
    """
    if table.name not in plan.tables:
        known = ", ".join(plan.tables) or "none"
        raise SettingsError(f"study {plan.study} has no table {table.name}; its tables: {known}")
    selection = plan.tables[table.name]
    titles = {name: settings.load_dataset(name).title for name in selection.datasets}
    if table.kind == "datasets":
        return dataset_counts.count_table(table, titles, selection, plan.study)
    return build(table, scores.read(plan.study), titles=titles, plan=plan)


def build(
    table: TableSettings,
    frame: pd.DataFrame,
    *,
    titles: Mapping[str, str],
    plan: Plan,
) -> Table:
    """Return a table of accuracies; `titles` maps its datasets to headings, in column order.

    Raises: SettingsError if a row mixes backbones or descriptions.
    """
    selection = plan.tables[table.name]
    names, rows = list(titles), []
    headings = [*titles.values(), MEAN] if len(titles) > 1 else list(titles.values())
    sizes: set[int] = set()
    for row in table.rows:
        own = runs_of(row, frame, selection, table.name)
        found = statistics(own, names, row.head)
        if selection.is_brief and not any(one.n for one in found):
            continue
        sizes |= {one.n for one in found} - {0}
        reasons = [missing(row, name, plan, selection) for name in names]
        cells = tuple(map(_cell, found, [*reasons, ""]))
        rows.append(Row(row.label, cells[: len(headings)], row.group))
    ranked = [_ranked(column) for column in zip(*(row.cells for row in rows), strict=True)]
    lines = zip(*ranked, strict=True) if rows else ()
    rows = [replace(row, cells=cells) for row, cells in zip(rows, lines, strict=True)]
    return Table(
        title=table.title,
        caption=f"{table.caption} Study {plan.study}; {_seeds(sizes)}.",
        label=table.label,
        source=paths.STUDY_SCORES.format(study=plan.study),
        corner="Method" if len({row.method for row in table.rows}) > 1 else "Variant",
        columns=tuple(map(Column, headings)),
        rows=tuple(rows),
        notes=_notes(rows, headings),
    )


def _cell(found: Statistic, why: str) -> Cell:
    if found.mean is None:
        return Cell(hole=why)
    deviation = "" if found.deviation is None else f"{found.deviation:.2f}"
    return Cell(f"{found.mean:.2f}", deviation)


def _ranked(cells: Iterable[Cell]) -> list[Cell]:
    """Return a column's cells with the ranks of its best two printed values, if there are two."""
    cells = list(cells)
    values = sorted({cell.text for cell in cells if cell.text}, key=float, reverse=True)
    is_contest = sum(bool(cell.text) for cell in cells) > 1
    rank = {value: place for place, value in enumerate(values[:2], start=1)} if is_contest else {}
    return [replace(cell, rank=rank.get(cell.text)) for cell in cells]


def _seeds(sizes: set[int]) -> str:
    """Return what a caption says of the numbers of seeds in its cells."""
    several = sorted(sizes - {1})
    if not sizes:
        return "no score yet"
    if not several:
        return "one seed"
    n = str(several[0]) if len(several) == 1 else f"{several[0]} to {several[-1]}"
    alone = "; a number alone is of one run" if 1 in sizes else ""
    return f"mean ± sample deviation, {n} seeds{alone}"


def _notes(rows: Sequence[Row], headings: Sequence[str]) -> tuple[str, ...]:
    """Return the reasons of holes, each once, with the rows and, of part of a row, the columns."""
    if not rows:
        return ("no row of this table was run in this study",)
    labels = [row.label for row in rows]
    names = [
        f"{row.group}: {row.label}" if labels.count(row.label) > 1 and row.group else row.label
        for row in rows
    ]
    where: dict[str, list[str]] = {}
    for name, row in zip(names, rows, strict=True):
        for reason in dict.fromkeys(cell.hole for cell in row.cells if cell.hole):
            at = [
                head for head, cell in zip(headings, row.cells, strict=True) if cell.hole == reason
            ]
            is_whole = len(at) == sum(cell.hole != "" for cell in row.cells)
            where.setdefault(reason, []).append(name if is_whole else f"{name} ({', '.join(at)})")
    return tuple(
        f"{'all rows' if places == names else '; '.join(places)}: {reason}"
        for reason, places in where.items()
    )
