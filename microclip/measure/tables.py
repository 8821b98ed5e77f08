"""Tables of a study, built from `scores.csv` and the datasets' passports.

In a table of accuracies, columns are datasets and their mean, rows are methods and variants. The
best of a column is bold, the second underlined, bounds that learn all labels left out; with several
seeds a cell is mean and sample deviation. Accuracies are the last epoch's, unless study or card ask
for the best one's. What was not run is a hole with its reason; nothing is
filled in. The table of datasets (the paper's Table 10) shows the counts of their passports beside
the paper's. A dataset that is not fetched is shown with the counts that its card declares, marked
as such; the ledger compares only counted numbers. Intervals, daggers and ranks are added on request
(`significance`); a table of claims is built by `claims`. The same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from microclip import paths, runtime, settings
from microclip.data import passport as passports
from microclip.measure import claims, published, scores, significance
from microclip.measure.scores import ACCURACIES, BEST, Statistic, missing, runs_of, statistics
from microclip.measure.significance import Options, ShownRow
from microclip.measure.typesetting import (
    HOLE,
    Cell,
    Column,
    Row,
    Table,
    to_csv,
    to_markdown,
    to_tex,
)
from microclip.methods.base import declaration_of, work_of
from microclip.settings.base import SettingsError
from microclip.settings.datasets import DatasetCard, PublicSource
from microclip.settings.declarations import Supervision
from microclip.settings.reports import Spread, TableRow, TableSettings
from microclip.study import Plan, Selection, unavailable
from microclip.text import descriptions

if TYPE_CHECKING:
    import pandas as pd

MEAN, SUPERVISION = "Mean", "Supervision"
BEST_MARK = "‡"
BEST_CAPTION = f" {BEST_MARK} best epoch of each run, selected with test labels."
NO_BEST = "no best epoch recorded: the run is older, or tests another run's weights"
HEADINGS = {  # by column of the published CSV
    "descriptions_per_class": "Descriptions a class",
    "classes": "Classes",
    "train": "Train",
    "test": "Test",
}
NOT_DESCRIBED = "descriptions not gathered"
NOT_FETCHED = "not fetched"
DECLARED = "*"
_OURS, _PAPER = "ours", "paper"

FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_tex}

Numbers = dict[str, tuple[int, int]]  # by column, smallest and largest


def write(table: TableSettings, plan: Plan) -> Path:
    """Build a table of a planned study and write it in all formats; return its path without suffix.

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
    """Build a table of a planned study from the study's current files.

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
        return count_table(table, titles, selection, plan.study)
    if table.kind == "claims":
        return claims.build(table, scores.read(plan.study), titles=titles, plan=plan)
    return build(table, scores.read(plan.study), titles=titles, plan=plan)


def build(
    table: TableSettings,
    frame: pd.DataFrame,
    *,
    titles: Mapping[str, str],
    plan: Plan,
) -> Table:
    """Build a table of accuracies; `titles` maps its datasets to headings, in column order.

    Raises:
        SettingsError: a row mixes backbones or descriptions.
    """
    selection = plan.tables[table.name]
    names, rows, shown = list(titles), [], []
    headings = [*titles.values(), MEAN] if len(titles) > 1 else list(titles.values())
    sizes: set[int] = set()
    for row in table.rows:
        own = runs_of(row, frame, selection, table.name)
        is_best = _is_best(row, table, selection)
        found = statistics(own, names, BEST if is_best else ACCURACIES[row.head])
        run = set(own["dataset"]) if is_best else set()
        if selection.is_brief and not run and not any(one.n for one in found):
            continue
        sizes |= {one.n for one in found} - {0}
        reasons = [NO_BEST if n in run else missing(row, n, plan, selection) for n in names]
        cells = tuple(map(_cell, found, [*reasons, ""]))
        label = f"{row.label} {BEST_MARK}" if is_best else row.label
        rows.append(Row(label, cells[: len(headings)], row.group))
        shown.append(ShownRow(row, own, _supervision(row)))
    rows = _compared(rows, shown)
    built = Table(
        title=table.title,
        caption=f"{table.caption} Study {plan.study}; {_seeds(sizes, selection.spread)}."
        + (BEST_CAPTION if any(row.label.endswith(BEST_MARK) for row in rows) else ""),
        label=table.label,
        source=paths.STUDY_SCORES.format(study=plan.study),
        corner="Method" if len({row.method for row in table.rows}) > 1 else "Variant",
        columns=tuple(map(Column, headings)),
        rows=tuple(rows),
        notes=_notes(rows, headings),
    )
    built = significance.add(built, shown, _options(table, selection, names))
    return _with_supervision(built, shown) if table.shows_supervision else built


def _is_best(row: TableRow, table: TableSettings, selection: Selection) -> bool:
    """Whether a row shows its best epoch: a method that does not train has none to select."""
    if "best" not in (table.epoch, selection.epoch) or unavailable(row.method):
        return False
    work = work_of(row.method, settings.load_method_file(row.method).settings)
    return work is None or bool(work.epochs or work.steps)


def _with_supervision(table: Table, shown: Sequence[ShownRow]) -> Table:
    """The table with a first column that says what each row's method may see."""
    rows = tuple(
        replace(row, cells=(Cell(each.supervision or HOLE), *row.cells))
        for row, each in zip(table.rows, shown, strict=True)
    )
    first = Column(SUPERVISION, is_bare=True)
    return replace(table, columns=(first, *table.columns), rows=rows)


def _options(table: TableSettings, selection: Selection, datasets: Sequence[str]) -> Options:
    """What the table shows besides accuracies; the study's reference row replaces the table's."""
    named = selection.reference or table.reference
    reference = None if named is None else table.row_named(named)
    return Options(tuple(datasets), selection.spread, reference, selection.has_ranks)


def _supervision(row: TableRow) -> Supervision | None:
    """What a row's method may see; None if it has no code here that says so."""
    if unavailable(row.method):
        return None
    declared = declaration_of(row.method)
    if declared.supervision_with is None:
        return declared.supervision
    own = settings.load_method_file(row.method).settings
    return declared.sees({**own, **settings.load_variant(row.method, row.variant)})


def _compared(rows: Sequence[Row], shown: Sequence[ShownRow]) -> list[Row]:
    """The rows with the best two of each column marked, bounds left out."""
    competing = [row for row, each in zip(rows, shown, strict=True) if not each.is_bound]
    ranked = [_ranked(column) for column in zip(*(row.cells for row in competing), strict=True)]
    lines: Iterator[tuple[Cell, ...]] = iter(zip(*ranked, strict=True) if competing else ())
    return [
        row if each.is_bound else replace(row, cells=next(lines))
        for row, each in zip(rows, shown, strict=True)
    ]


def _cell(found: Statistic, why: str) -> Cell:
    if found.mean is None:
        return Cell(hole=why)
    deviation = "" if found.deviation is None else f"{found.deviation:.2f}"
    return Cell(f"{found.mean:.2f}", deviation)


def _ranked(cells: Iterable[Cell]) -> list[Cell]:
    """A column's cells with the ranks of its two best values; a cell alone gets no rank."""
    # Ranked by the printed text, so that numbers that look equal are both bold.
    cells = list(cells)
    values = sorted({cell.text for cell in cells if cell.text}, key=float, reverse=True)
    is_contest = sum(bool(cell.text) for cell in cells) > 1
    rank = {value: place for place, value in enumerate(values[:2], start=1)} if is_contest else {}
    return [replace(cell, rank=rank.get(cell.text)) for cell in cells]


def _seeds(sizes: set[int], spread: Spread) -> str:
    """What a caption says about the number of seeds behind its cells, and about their spread."""
    several = sorted(sizes - {1})
    if not sizes:
        return "no score yet"
    interval = "[95 % interval, percentile bootstrap of test images"
    if not several:
        return "one seed" if spread == "deviation" else f"one seed {interval}]"
    n = str(several[0]) if len(several) == 1 else f"{several[0]} to {several[-1]}"
    if spread == "interval":
        alone = "; that of a single run: of images alone" if 1 in sizes else ""
        return f"mean {interval} and seeds], {n} seeds{alone}"
    alone = "; a number alone is of one run" if 1 in sizes else ""
    return f"mean ± sample deviation, {n} seeds{alone}"


def _notes(rows: Sequence[Row], headings: Sequence[str]) -> tuple[str, ...]:
    """The reasons for holes, each once, with its rows, and the columns if not all of a row's."""
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


@dataclass(frozen=True)
class Declared:
    """The counts that a dataset's card declares for its split, and their source."""

    numbers: Numbers
    source: str


def count(dataset: str, author: str) -> Numbers:
    """Smallest and largest number of each column that can be counted.

    The two differ only where classes have different numbers of descriptions; `author` names the
    set of descriptions.

    Raises:
        SettingsError: a passport or a file of descriptions is damaged.
    """
    found: Numbers = {}
    text = Path(paths.DESCRIPTIONS.format(descriptions=author, dataset=dataset))
    if text.is_file():
        numbers = [len(own) for own in descriptions.read(text).sentences.values()]
        found["descriptions_per_class"] = (min(numbers), max(numbers))
    passport = passports.read(dataset)
    if passport is not None:
        counted = {"classes": len(passport.classes), "train": passport.train, "test": passport.test}
        found |= {column: (number, number) for column, number in counted.items()}
    return found


def declared(dataset: str) -> Declared | None:
    """The counts that a public dataset's card declares for its split; None if it has none."""
    card = _card(dataset)
    source = settings.load_dataset(dataset).source
    if card is None or not isinstance(source, PublicSource) or source.split not in card.counts:
        return None
    counts = card.counts[source.split]
    numbers = {
        column: (number, number)
        for column in ("classes", "train", "test")
        if (number := getattr(counts, column)) is not None
    }
    return Declared(numbers, counts.source)


def _card(dataset: str) -> DatasetCard | None:
    source = settings.load_dataset(dataset).source
    return settings.load_card(source) if isinstance(source, PublicSource) else None


def why_not(column: str) -> str:
    """Why a column could not be counted."""
    return NOT_DESCRIBED if column == "descriptions_per_class" else NOT_FETCHED


def text_of(number: tuple[int, int]) -> str:
    """A count as printed: one number, or a range."""
    least, most = number
    return str(least) if least == most else f"{least}–{most}"


def count_table(
    table: TableSettings, titles: Mapping[str, str], selection: Selection, study: str
) -> Table:
    """One row per dataset: our counts, the paper's, and a mark where they differ.

    Descriptions are counted for the first set of descriptions in the selection.
    """
    author = selection.descriptions[0]
    printed = None if table.published is None else published.load(table.published)
    groups = [_OURS] if printed is None else [_OURS, _PAPER]
    rows: list[Row] = []
    lacking: dict[str, list[str]] = {NOT_FETCHED: [], NOT_DESCRIBED: []}
    shown: list[tuple[str, str]] = []
    for dataset, title in titles.items():
        found, said = count(dataset, author), declared(dataset)
        known = {**({} if said is None else said.numbers), **found}
        if selection.is_brief and not known:
            continue
        shown.append((dataset, title))
        for reason in {why_not(column) for column in HEADINGS if column not in known}:
            lacking[reason].append(title)
        theirs = None if printed is None else printed.rows.get(dataset, {})
        rows.append(Row(title, tuple(_count_cells(found, known, theirs))))
    where = f"results/data and results/descriptions/{author}"
    return Table(
        title=table.title,
        caption=f"{table.caption} Study {study}; ours are counted in {where}"
        + ("." if printed is None else "; ≠: the paper's count is another."),
        label=table.label,
        source=where,
        corner="Dataset",
        columns=tuple(Column(group, head) for head in HEADINGS.values() for group in groups),
        rows=tuple(rows),
        notes=(*_reasons(lacking, len(rows)), *_count_notes(shown)),
    )


def _reasons(lacking: Mapping[str, list[str]], n_rows: int) -> Iterator[str]:
    for why, names in lacking.items():
        if names:
            yield f"{'all datasets' if len(names) == n_rows else ', '.join(names)}: {why}"


def _count_notes(shown: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the sources of declared counts, then each dataset's warnings."""
    cards = []
    for dataset, title in shown:
        said = declared(dataset)
        if said is not None and passports.read(dataset) is None:
            cards.append(f"{title} ({said.source})")
    if cards:
        yield f"{DECLARED} declared by the dataset's card, not counted here: {'; '.join(cards)}"
    for dataset, title in shown:
        passport, card = passports.read(dataset), _card(dataset)
        if passport is not None:
            yield from (f"{title}: {line}" for line in passports.warnings(passport))
        elif card is not None:
            split = getattr(settings.load_dataset(dataset).source, "split", "")
            yield from (f"{title}: {flag}" for flag in [card.flags.get(split)] if flag)
        if card is not None:
            yield from card.deviations


def _count_cells(
    counted: Numbers, known: Numbers, theirs: Mapping[str, str] | None
) -> Iterator[Cell]:
    """Yield our cell of each column and, beside the paper's numbers, theirs.

    `known` has the counted and the declared numbers; the latter are marked as such.
    """
    for column in HEADINGS:
        ours = text_of(known[column]) if column in known else None
        if ours is None:
            yield Cell(hole=why_not(column))
        else:
            yield Cell(ours if column in counted else f"{ours}{DECLARED}")
        if theirs is not None:
            text = theirs.get(column, "")
            differs = ours is not None and text not in ("", ours)
            yield Cell(f"≠ {text}" if differs else text)
