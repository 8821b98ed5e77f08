"""The paper ledger of a study: `ledger.csv` with every cell, `ledger.md` for people."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

from microclip import paths, runtime
from microclip.measure import comparison, layout, published
from microclip.measure.comparison import ELSEWHERE, VERDICTS, Entry
from microclip.measure.layout import (
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
from microclip.measure.published import Audit
from microclip.runs import Plan, Selection
from microclip.settings import reports
from microclip.settings.reports import TableSettings

_LEGEND = Paragraph(
    (
        "A cell is the published number, ours, and ours minus published. Bold: beyond the "
        "tolerance. ",
        Code("*"),
        ": derived from the paper's text. ",
        Code("?"),
        f": {comparison.ILLEGIBLE}. ",
        Code(HOLE),
        ": no score. ",
        Code("[n]"),
        ": footnote.",
    )
)


def write(plan: Plan) -> Path:
    """Write a study's ledger as CSV and Markdown; return its path without suffix.

    Raises:
        MissingDataError: the study has no scores yet.
        SettingsError: a table names a published row that is not there.
    """
    entries = comparison.compare(plan)
    target = Path(paths.LEDGER.format(study=plan.study, format="csv"))
    runtime.write_text(target, to_csv(entries))
    text = layout.text_to_markdown(to_text(entries, plan))
    runtime.write_text(target.with_suffix(".md"), text)
    return target.with_suffix("")


def to_csv(entries: Sequence[Entry]) -> str:
    """Return a line an entry."""
    stream = io.StringIO()
    names = [field.name for field in fields(Entry)]
    writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        asdict(entry) | {"is_derived": str(entry.is_derived).lower()} for entry in entries
    )
    return stream.getvalue()


def to_text(entries: Sequence[Entry], plan: Plan) -> tuple[Block, ...]:
    """Return counts by verdict, a table of pairs for each table, footnotes, printed averages."""
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
    """Return the number of cells by verdict, a row a table."""
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
    """Return whether the study has none of the datasets of a table of the paper."""
    return all(entry.reason in (ELSEWHERE, comparison.ILLEGIBLE) for entry in entries)


def _marks(entries: Sequence[Entry], footnotes: list[str]) -> dict[tuple[str, str], int]:
    """Add a table's footnotes; return their numbers by row and column of the cell they are on."""
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
    """Return a table's part of the ledger: published, ours and difference of each cell."""
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
    """Yield why cells have no score, each reason once with the number of its cells."""
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
    """Return a printed average and the mean of its row in a line."""
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
    entries = comparison.compare(plan)
    yield from layout.text_to_markdown([summary(entries)]).splitlines()
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
