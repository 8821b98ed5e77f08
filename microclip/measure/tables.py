"""Tables of a study: one builder for all, made from `scores.csv`, the same bytes each time.

Columns are datasets and their mean, rows are methods and variants. The best of a column is bold,
the second underlined; with several seeds a cell is mean and sample deviation. What was not run is
a hole with its reason; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from microclip import paths, runtime, settings
from microclip.measure import dataset_counts
from microclip.measure.layout import Cell, Column, Row, Table, to_csv, to_markdown
from microclip.measure.scores import SPEC
from microclip.measure.typesetting import to_tex
from microclip.reports import TableRow, TableSettings
from microclip.settings import SettingsError

FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_tex}
MEAN = "Mean"
ACCURACIES = {"fused": "top1_pct", "global": "top1_global_pct", "local": "top1_local_pct"}


@dataclass(frozen=True)
class Statistic:
    """Mean over seeds and sample deviation, in percent; `n` seeds, none: no mean."""

    mean: float | None
    deviation: float | None
    n: int


def read_scores(study: str) -> pd.DataFrame:
    """Return `scores.csv` of a study. Raises MissingDataError if it has not been written."""
    path = Path(paths.STUDY_SCORES.format(study=study))
    if not path.is_file():
        raise runtime.MissingDataError(f"{path} is not there; run `make run` or `snakemake`")
    texts = {name: str for name in SPEC if name != "seed"}
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def write(table: TableSettings, plan: Mapping[str, Any]) -> Path:
    """Build a table of a planned study and write it in all formats; return its path, no suffix.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: the study has no such table, or a row mixes backbones or descriptions.
    """
    study = plan["study"]
    if table.name not in plan["tables"]:
        known = ", ".join(plan["tables"]) or "none"
        raise SettingsError(f"study {study} has no table {table.name}; its tables: {known}")
    selection = plan["tables"][table.name]
    titles = {name: settings.load_dataset(name).title for name in selection["datasets"]}
    if table.kind == "datasets":
        built = dataset_counts.build(table, titles, selection, study)
    else:
        built = build(table, read_scores(study), titles=titles, plan=plan)
    target = Path(paths.TABLE.format(study=study, table=table.name, format="md"))
    for suffix, format_ in FORMATS.items():
        runtime.write_text(target.with_suffix(f".{suffix}"), format_(built))
    return target.with_suffix("")


def build(
    table: TableSettings,
    scores: pd.DataFrame,
    *,
    titles: Mapping[str, str],
    plan: Mapping[str, Any],
) -> Table:
    """Return a table of accuracies; `titles` maps its datasets to headings, in column order.

    Raises: SettingsError if a row mixes backbones or descriptions.
    """
    selection = plan["tables"][table.name]
    names, rows = list(titles), []
    headings = [*titles.values(), MEAN] if len(titles) > 1 else list(titles.values())
    sizes: set[int] = set()
    for row in table.rows:
        own = runs_of(row, scores, selection, table.name)
        found = statistics(own, names, row.head)
        if selection["is_brief"] and not any(one.n for one in found):
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
        caption=f"{table.caption} Study {plan['study']}; {_seeds(sizes)}.",
        label=table.label,
        source=paths.STUDY_SCORES.format(study=plan["study"]),
        corner="Method" if len({row.method for row in table.rows}) > 1 else "Variant",
        columns=tuple(map(Column, headings)),
        rows=tuple(rows),
        notes=_notes(rows, headings),
    )


def runs_of(
    row: TableRow, scores: pd.DataFrame, selection: Mapping[str, Any], table: str
) -> pd.DataFrame:
    """Return the runs that a row averages over seeds.

    Raises: SettingsError if they are of several backbones or descriptions.
    """
    own = scores[
        (scores["method"] == row.method)
        & (scores["variant"] == row.variant)
        & scores["dataset"].isin(selection["datasets"])
    ]
    for field, several in (("backbone", "backbones"), ("descriptions", "descriptions")):
        named = getattr(row, field)
        own = own[own[field].isin(selection[several] if named is None else [named])]
        if own[field].nunique() > 1:
            raise SettingsError(
                f"row {row.label!r} of table {table} mixes {field} "
                f"{', '.join(sorted(own[field].unique()))}; name one in config/tables/{table}.yaml"
            )
    if settings.load_method_file(row.method).seeded:
        own = own[own["seed"].isin(selection["seeds"])]
    return own


def statistics(own: pd.DataFrame, datasets: Sequence[str], head: str) -> list[Statistic]:
    """Return one a dataset, then that of their mean over the seeds that all of them have."""
    table = own.pivot(index="seed", columns="dataset", values=ACCURACIES[head])
    table = table.reindex(columns=list(datasets)).astype(float)
    columns = [table[name].dropna() for name in datasets] + [table.dropna().mean(axis=1)]
    return [
        Statistic(
            float(c.mean()) if len(c) else None,
            float(c.std(ddof=1)) if len(c) > 1 else None,
            len(c),
        )
        for c in columns
    ]


def missing(
    row: TableRow, dataset: str, plan: Mapping[str, Any], selection: Mapping[str, Any]
) -> str:
    """Return why a row has no number for a dataset."""
    hole = hole_of(row, dataset, plan, selection)
    if hole is not None:
        return hole
    if any(_is_of(run, row, dataset, selection) for run in plan["runs"]):
        if row.head != "fused":
            return f"no accuracy of the {row.head} token in its runs"
        return "planned, and not in scores.csv"
    return "not run in this study"


def hole_of(
    row: TableRow, dataset: str, plan: Mapping[str, Any], selection: Mapping[str, Any]
) -> str | None:
    """Return why a row cannot run on a dataset, or None if the plan has no such hole."""
    for hole in plan["holes"]:
        if _is_of(hole, row, dataset, selection):
            return str(hole["reason"])
    return None


def _is_of(
    run: Mapping[str, Any], row: TableRow, dataset: str, selection: Mapping[str, Any]
) -> bool:
    backbones = selection["backbones"] if row.backbone is None else [row.backbone]
    descriptions = selection["descriptions"] if row.descriptions is None else [row.descriptions]
    return (
        run["method"] == row.method
        and run["variant"] == row.variant
        and run["dataset"] == dataset
        and run["backbone"] in backbones
        and run["descriptions"] in descriptions
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
