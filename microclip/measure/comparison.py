"""Each published cell beside ours, with a verdict; nothing is filled in.

`match` and `differs` are decided on the printed numbers. `cannot run` is a hole of the plan, `not
run` everything else that has no score. A cell that is illegible in the paper has no verdict: there
is nothing to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from microclip.measure import dataset_counts, published, scores, statistics
from microclip.measure.published import AVERAGE, PublishedTable
from microclip.runs import Plan, Selection
from microclip.settings import SettingsError, reports
from microclip.settings.reports import TableRow, TableSettings

Verdict = Literal["match", "differs", "not run", "cannot run", ""]
VERDICTS: tuple[Verdict, ...] = ("match", "differs", "not run", "cannot run")
ELSEWHERE = "no dataset of the paper in this study"
ILLEGIBLE = "illegible in the paper"


@dataclass(frozen=True)
class Entry:
    """A published cell and ours; numbers as printed, empty if there is none.

    Attributes:
        is_derived: the published number follows from the paper's text.
        ours: mean over `n_seeds` seeds, or a count.
        difference: ours minus published.
        verdict: empty if the paper's number is illegible.
        reason: why there is no comparison.
        note: what the reader should know of the published number.
    """

    table: str
    row: str
    column: str
    published: str
    is_derived: bool
    ours: str = ""
    deviation: str = ""
    n_seeds: int = 0
    difference: str = ""
    tolerance: str = ""
    verdict: Verdict = "not run"
    reason: str = ""
    note: str = ""


def compare(plan: Plan) -> list[Entry]:
    """Return an entry for every row and column of the published tables that a study shows.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: a table names a published row that is not there, or one twice.
    """
    frame = scores.read(plan.study)
    found: list[Entry] = []
    for name, selection in plan.tables.items():
        table = reports.load_table(name)
        if table.published is None:
            continue
        printed = published.load(table.published)
        named = printed.rows if table.kind == "datasets" else printed.datasets
        if not set(named) & set(selection.datasets):
            found += _elsewhere(table, printed)
        elif table.kind == "datasets":
            found += _counted(table, printed, selection)
        else:
            found += _accuracies(table, printed, frame, plan)
    return found


def _elsewhere(table: TableSettings, printed: PublishedTable) -> Iterator[Entry]:
    for key in printed.rows:
        for column in printed.columns:
            yield _judged(replace(_blank(table, printed, key, column), reason=ELSEWHERE))


def _blank(table: TableSettings, printed: PublishedTable, key: str, column: str) -> Entry:
    """Return an entry without ours."""
    derived = printed.derived.get((key, column))
    text = printed.rows[key][column]
    notes = [slip.note for slip in printed.slips_of(key, column)]
    if derived is not None:
        text = f"{derived.value:.2f}"
        notes += [f"Derived. {derived.source}.", derived.note]
    tolerance = f"{table.tolerance_pct:.2f}" if table.kind == "accuracy" else "0"
    return Entry(
        table=table.name,
        row=key,
        column=column,
        published=text,
        is_derived=derived is not None,
        tolerance=tolerance,
        note=" ".join(filter(None, notes)),
    )


def _judged(entry: Entry) -> Entry:
    """Return an entry with the verdict that its numbers have, if it has both."""
    if not entry.published:
        return replace(entry, verdict="", reason=ILLEGIBLE)
    if not entry.ours or not _is_number(entry.ours):
        return entry
    decimals = 0 if entry.tolerance == "0" else 2
    difference = round(float(entry.ours) - float(entry.published), decimals)
    verdict: Verdict = "match" if abs(difference) <= float(entry.tolerance) else "differs"
    return replace(entry, difference=f"{difference:+.{decimals}f}", verdict=verdict)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _accuracies(
    table: TableSettings, printed: PublishedTable, frame: pd.DataFrame, plan: Plan
) -> Iterator[Entry]:
    rows = rows_by_key(table, printed)
    for key in printed.rows:
        blanks = {c: _blank(table, printed, key, c) for c in printed.columns}
        row = rows.get(key)
        if row is None:
            why = f"no row of config/tables/{table.name}.yaml names it"
            yield from (_judged(replace(entry, reason=why)) for entry in blanks.values())
            continue
        own = statistics.runs_of(row, frame, plan.tables[table.name], table.name)
        found = statistics.statistics(own, printed.datasets, row.head)
        filled: dict[str, Entry] = {}
        for column, one in zip([*printed.datasets, AVERAGE], found, strict=True):
            if one.mean is None:
                why_not = _why_not(row, column, filled, plan, table.name)
                filled[column] = replace(blanks[column], **why_not)
                continue
            deviation = "" if one.deviation is None else f"{one.deviation:.2f}"
            filled[column] = replace(
                blanks[column], ours=f"{one.mean:.2f}", deviation=deviation, n_seeds=one.n
            )
        yield from (_judged(filled[column]) for column in printed.columns)


def rows_by_key(table: TableSettings, printed: PublishedTable) -> dict[str, TableRow]:
    """Return the rows that name a published one, by its key.

    Raises: SettingsError if there is no such published row, or two rows name it.
    """
    found: dict[str, TableRow] = {}
    for row in table.rows:
        if row.published is None:
            continue
        printed.row(row.published, f"config/tables/{table.name}.yaml")
        if row.published in found:
            raise SettingsError(
                f"two rows of config/tables/{table.name}.yaml name {row.published!r}; leave one"
            )
        found[row.published] = row
    return found


def _why_not(
    row: TableRow, column: str, others: Mapping[str, Entry], plan: Plan, table: str
) -> dict[str, Any]:
    """Return verdict and reason of a cell without a score; `others` are the row's datasets."""
    selection = plan.tables[table]
    if column == AVERAGE:
        return _why_no_average(others)
    if column in selection.datasets:
        hole = statistics.hole_of(row, column, plan, selection)
        if hole is not None:
            return {"verdict": "cannot run", "reason": hole}
        return {"reason": statistics.missing(row, column, plan, selection)}
    return {"reason": f"{column} is not in this study"}


def _why_no_average(datasets: Mapping[str, Entry]) -> dict[str, Any]:
    lacking = [entry for entry in datasets.values() if not entry.ours]
    if not lacking:
        return {"reason": "no seed that all datasets have"}
    for entry in lacking:
        if entry.verdict == "cannot run":
            return {"verdict": "cannot run", "reason": entry.reason}
    return {"reason": f"lacks {', '.join(entry.column for entry in lacking)}"}


def _counted(
    table: TableSettings, printed: PublishedTable, selection: Selection
) -> Iterator[Entry]:
    for dataset in printed.rows:
        is_here = dataset in selection.datasets
        found = dataset_counts.count(dataset, selection.descriptions[0]) if is_here else {}
        for column in printed.columns:
            entry = _blank(table, printed, dataset, column)
            if column in found:
                entry = replace(entry, ours=dataset_counts.text_of(found[column]))
                if not _is_number(entry.ours):
                    entry = replace(entry, verdict="differs", reason="not the same for all classes")
            elif is_here:
                entry = replace(entry, reason=dataset_counts.why_not(column))
            else:
                entry = replace(entry, reason=f"{dataset} is not in this study")
            yield _judged(entry)
