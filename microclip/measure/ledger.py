"""The ledger of a study: each cell that the paper prints beside ours, with a verdict.

`ledger.csv` has every cell, `ledger.md` is for people, and `verify` checks the differences.
Verdicts compare numbers as printed. `match` and `differs` compare both numbers, `cannot run` is a
hole of the plan, and `not run` is everything else without a score. A cell that is illegible in the
paper has no verdict, because there is nothing to compare with. No number is ever filled in.

Comparing, writing and verifying are one module because all three need the same entries.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from microclip import paths, runtime
from microclip.measure import published, scores, tables, typesetting
from microclip.measure.published import AVERAGE, Audit, PublishedTable
from microclip.measure.typesetting import (
    HOLE,
    Block,
    Cell,
    Code,
    Column,
    Heading,
    Listing,
    Paragraph,
    Row,
    Table,
)
from microclip.settings import reports
from microclip.settings.base import SettingsError
from microclip.settings.reports import TableRow, TableSettings
from microclip.study import Plan, Selection

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["match", "differs", "not run", "cannot run", ""]
VERDICTS: tuple[Verdict, ...] = ("match", "differs", "not run", "cannot run")
ELSEWHERE = "no dataset of the paper in this study"
ILLEGIBLE = "illegible in the paper"
_LEGEND = Paragraph(
    (
        "A cell is the published number, ours, and ours minus published. Bold: beyond the "
        "tolerance. ",
        Code("*"),
        ": derived from the paper's text. ",
        Code("?"),
        f": {ILLEGIBLE}. ",
        Code(HOLE),
        ": no score. ",
        Code("[n]"),
        ": footnote.",
    )
)


@dataclass(frozen=True)
class Entry:
    """A published cell and ours; numbers as printed, empty if there is none.

    Attributes:
        is_derived: the published number is not printed but follows from the paper's text.
        ours: mean over `n_seeds` seeds, or a count.
        difference: ours minus published.
        verdict: empty if the paper's number is illegible.
        reason: why there is no comparison.
        note: what the reader should know about the published number.
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
    """One entry for every cell of the published tables that a study shows.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: a table names a published row that does not exist, or names one twice.
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
    """The entry of a published cell, still without our number."""
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
    """The entry with its verdict, if it has both numbers."""
    if not entry.published:
        return replace(entry, verdict="", reason=ILLEGIBLE)
    if not entry.ours or not _is_number(entry.ours):
        return entry
    # Both numbers are rounded as printed, so that a verdict can be checked by hand.
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
        own = scores.runs_of(row, frame, plan.tables[table.name], table.name)
        found = scores.statistics(own, printed.datasets, scores.ACCURACIES[row.head])
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
    """The rows that name a published row, by its key.

    Raises:
        SettingsError: the published row does not exist, or two rows name it.
    """
    found: dict[str, TableRow] = {}
    for row in table.rows:
        if row.published is None:
            continue
        printed.row(row.published, f"config/tables/{table.name}.yaml")
        if row.published in found:
            raise SettingsError(
                f"two rows of config/tables/{table.name}.yaml name {row.published!r}; keep one"
            )
        found[row.published] = row
    return found


def _why_not(
    row: TableRow, column: str, others: Mapping[str, Entry], plan: Plan, table: str
) -> dict[str, Any]:
    """Verdict and reason of a cell without a score; `others` are the row's datasets so far."""
    selection = plan.tables[table]
    if column == AVERAGE:
        return _why_no_average(others)
    if column in selection.datasets:
        hole = scores.hole_of(row, column, plan, selection)
        if hole is not None:
            return {"verdict": "cannot run", "reason": hole}
        return {"reason": scores.missing(row, column, plan, selection)}
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
        found = tables.count(dataset, selection.descriptions[0]) if is_here else {}
        for column in printed.columns:
            entry = _blank(table, printed, dataset, column)
            if column in found:
                entry = replace(entry, ours=tables.text_of(found[column]))
                if not _is_number(entry.ours):
                    entry = replace(entry, verdict="differs", reason="not the same for all classes")
            elif is_here:
                entry = replace(entry, reason=tables.why_not(column))
            else:
                entry = replace(entry, reason=f"{dataset} is not in this study")
            yield _judged(entry)


def write(plan: Plan) -> Path:
    """Write a study's ledger as CSV and Markdown; return its path without suffix.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: a table names a published row that does not exist.
    """
    entries = compare(plan)
    target = Path(paths.LEDGER.format(study=plan.study, format="csv"))
    runtime.write_text(target, to_csv(entries))
    text = typesetting.text_to_markdown(to_text(entries, plan))
    runtime.write_text(target.with_suffix(".md"), text)
    return target.with_suffix("")


def to_csv(entries: Sequence[Entry]) -> str:
    """The entries as CSV, one line each."""
    stream = io.StringIO()
    names = [field.name for field in fields(Entry)]
    writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        asdict(entry) | {"is_derived": str(entry.is_derived).lower()} for entry in entries
    )
    return stream.getvalue()


def to_text(entries: Sequence[Entry], plan: Plan) -> tuple[Block, ...]:
    """The ledger as text: counts, one table of pairs per published table, footnotes, averages."""
    blocks: list[Block] = [Heading(1, f"Paper ledger of study {plan.study}"), summary(entries)]
    if any(entry.ours for entry in entries):
        blocks.append(_LEGEND)
    footnotes: list[str] = []
    elsewhere: list[str] = []
    sections: list[Block] = []
    for name, group in groupby(entries, key=lambda entry: entry.table):
        own = list(group)
        marks = _marks(own, footnotes)
        if is_elsewhere(own):
            n = sum(entry.reason == ELSEWHERE for entry in own)
            title = reports.load_table(name).title
            elsewhere.append(f"{title}: {n} cells not run: {ELSEWHERE}")
        else:
            sections += _section(own, plan.tables[name], marks)
    if elsewhere:
        blocks.append(Listing(tuple(elsewhere)))
    blocks += sections
    if footnotes:
        blocks += [Heading(2, "Footnotes"), Listing(tuple(footnotes), is_ordered=True)]
    return (*blocks, Heading(2, "Printed averages"), *_audit_blocks())


def summary(entries: Sequence[Entry]) -> Table | Paragraph:
    """The number of cells by verdict, one row per table."""
    if not entries:
        return Paragraph(("No table of this study has published numbers.",))
    rows = [
        Row(reports.load_table(name).title, _verdict_counts(list(group)))
        for name, group in groupby(entries, key=lambda entry: entry.table)
    ]
    return Table(
        corner="Table",
        columns=tuple(map(Column, (*VERDICTS, "illegible"))),
        rows=(*rows, Row("All", _verdict_counts(entries))),
    )


def _verdict_counts(entries: Sequence[Entry]) -> tuple[Cell, ...]:
    found = Counter(entry.verdict for entry in entries)
    return tuple(Cell(str(found[verdict])) for verdict in (*VERDICTS, ""))


def is_elsewhere(entries: Sequence[Entry]) -> bool:
    """Whether the study has none of the table's datasets."""
    return all(entry.reason in (ELSEWHERE, ILLEGIBLE) for entry in entries)


def _marks(entries: Sequence[Entry], footnotes: list[str]) -> dict[tuple[str, str], int]:
    """Add a table's notes to `footnotes`; return their numbers by row and column of the cell."""
    table = reports.load_table(entries[0].table)
    assert table.published is not None  # else it had no entry
    title = table.title
    slips = published.load(table.published).slips
    footnotes += [f"{title}: {slip.note}" for slip in slips if slip.row is None]
    marks = {}
    for entry in entries:
        if entry.note:
            footnotes.append(f"{title}, {entry.row}, {_heading(entry.column)}: {entry.note}")
            marks[entry.row, entry.column] = len(footnotes)
    return marks


def _heading(column: str) -> str:
    return "average" if column == published.AVERAGE else column


def _section(
    entries: Sequence[Entry],
    selection: Selection,
    marks: Mapping[tuple[str, str], int],
) -> list[Block]:
    """A table's section of the ledger: published, ours and difference of each cell."""
    table = reports.load_table(entries[0].table)
    is_accuracy = table.kind == "accuracy"
    shown = [
        column
        for column in dict.fromkeys(entry.column for entry in entries)
        if not is_accuracy or column in (*selection.datasets, published.AVERAGE)
    ]
    rows = []
    for key, group in groupby(entries, key=lambda entry: entry.row):
        cells = {entry.column: entry for entry in group}
        if is_accuracy or key in selection.datasets:
            rows.append(Row(key, tuple(_pair(cells[column], marks) for column in shown)))
    reasons = tuple(_reasons(entries))
    return [
        Heading(2, table.title),
        Paragraph((_what_is_ours(table, selection, entries),)),
        Table("Row", tuple(Column(_heading(column)) for column in shown), tuple(rows)),
        *([Listing(reasons)] if reasons else []),
    ]


def _what_is_ours(table: TableSettings, selection: Selection, entries: Sequence[Entry]) -> str:
    if table.kind == "datasets":
        return "Ours are counts of what was fetched and described; tolerance 0."
    sizes = sorted({entry.n_seeds for entry in entries} - {0}) or [0]
    n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    used = []
    for field, several in (("backbone", "backbones"), ("descriptions", "descriptions")):
        named = [getattr(row, field) for row in table.rows]
        default = getattr(selection, several) if None in named else []
        used.append(dict.fromkeys([*default, *filter(None, named)]))
    return (
        f"Ours: {', '.join(used[0])}; descriptions {', '.join(used[1])}; "
        f"{n} seed{'' if n == '1' else 's'} a cell; tolerance {table.tolerance_pct:.2f} points."
    )


def _pair(entry: Entry, marks: Mapping[tuple[str, str], int]) -> Cell:
    star = "*" if entry.is_derived else ""
    mark = marks.get((entry.row, entry.column))
    theirs = (entry.published or "?") + star + (f" [{mark}]" if mark else "")
    ours = entry.ours or HOLE
    if entry.deviation:
        ours += f" ± {entry.deviation}"
    difference = f" ({entry.difference})" if entry.difference else ""
    return Cell(f"{theirs} / {ours}{difference}", differs=entry.verdict == "differs")


def _reasons(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield why cells have no score: each reason once, with its number of cells."""
    counts = Counter((e.verdict, e.reason) for e in entries if e.verdict and e.reason)
    for (verdict, reason), n in counts.items():
        yield f"{n} {'cell' if n == 1 else 'cells'} {verdict}: {reason}"


def _audit_blocks() -> Iterator[Block]:
    found = published.audit()
    flagged = [one for one in found if one.is_flagged]
    text = (
        f"{len(found)} printed averages have a legible row; {len(flagged)} differ from its mean by "
        f"more than {published.AUDIT_TOLERANCE_PCT} points{':' if flagged else '.'}"
    )
    yield Paragraph((text,))
    if flagged:
        yield Listing(tuple(describe(one) for one in flagged))


def describe(audit: Audit) -> str:
    """A printed average and the mean of its row, in one line."""
    return (
        f"{audit.table}, {audit.row}: printed {audit.printed:.2f}, mean of its cells "
        f"{audit.mean:.2f}, difference {audit.difference:+.2f}"
    )


def verify(plan: Plan, *, is_full_audit: bool = False) -> Iterator[str]:
    """Yield what `microclip verify` prints: counts, cells that differ, printed averages.

    Raises:
        MissingDataError: the study has no scores yet.
        VerificationError: after the last line, if a cell differs beyond its tolerance.
    """
    entries = compare(plan)
    yield from typesetting.text_to_markdown([summary(entries)]).splitlines()
    yield ""
    differing = [entry for entry in entries if entry.verdict == "differs"]
    for entry in differing:
        deviation = f" ± {entry.deviation}" if entry.deviation else ""
        seeds = f", {entry.n_seeds} seeds" if entry.n_seeds > 1 else ""
        yield (
            f"differs  {entry.table}, {entry.row}, {entry.column}: published {entry.published}, "
            f"ours {entry.ours}{deviation}{seeds}, difference {entry.difference or 'unclear'}, "
            f"tolerance {entry.tolerance}"
        )
    for one in published.audit():
        if one.is_flagged or is_full_audit:
            yield f"{'average ' if one.is_flagged else 'agrees  '} {describe(one)}"
    if differing:
        raise runtime.VerificationError(
            f"{len(differing)} of {sum(bool(e.verdict) for e in entries)} published cells differ "
            f"from study {plan.study} beyond their tolerance"
        )
