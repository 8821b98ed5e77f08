"""What datasets hold, as their passports count it, beside what the paper prints (its Table 10).

A dataset that is not here is shown with the counts that its card declares, marked as such: they are
nobody's count of files. The ledger compares counted numbers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from microclip import paths, settings
from microclip.data import passport as passports
from microclip.measure import published
from microclip.measure.layout import Cell, Column, Row, Table
from microclip.runs import Selection
from microclip.settings.datasets import DatasetCard, PublicSource
from microclip.settings.reports import TableSettings

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

Numbers = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Declared:
    """The counts that a dataset's card declares for its split, and by whose word."""

    numbers: Numbers
    source: str


def count(dataset: str, descriptions: str) -> Numbers:
    """Return smallest and largest number of each column that can be told; lacking ones left out.

    They differ where classes have different numbers of descriptions.

    Raises: SettingsError if a passport or descriptions file is damaged.
    """
    found: Numbers = {}
    text = Path(paths.DESCRIPTIONS.format(descriptions=descriptions, dataset=dataset))
    if text.is_file():
        from microclip.text.descriptions import read

        numbers = [len(sentences) for sentences in read(text).sentences.values()]
        found["descriptions_per_class"] = (min(numbers), max(numbers))
    passport = passports.read(dataset)
    if passport is not None:
        counted = {"classes": len(passport.classes), "train": passport.train, "test": passport.test}
        found |= {column: (number, number) for column, number in counted.items()}
    return found


def declared(dataset: str) -> Declared | None:
    """Return what a public dataset's card declares for its split; None if it says nothing."""
    card = _card(dataset)
    source = settings.load_dataset(dataset).source
    if card is None or not isinstance(source, PublicSource) or source.split not in card.counts:
        return None
    said = card.counts[source.split]
    numbers = {
        column: (number, number)
        for column in ("classes", "train", "test")
        if (number := getattr(said, column)) is not None
    }
    return Declared(numbers, said.source)


def _card(dataset: str) -> DatasetCard | None:
    source = settings.load_dataset(dataset).source
    return settings.load_card(source) if isinstance(source, PublicSource) else None


def why_not(column: str) -> str:
    """Return why a column could not be counted."""
    return NOT_DESCRIBED if column == "descriptions_per_class" else NOT_FETCHED


def text_of(number: tuple[int, int]) -> str:
    """Return a count as printed: one number, or a range."""
    least, most = number
    return str(least) if least == most else f"{least}–{most}"


def count_table(
    table: TableSettings, titles: Mapping[str, str], selection: Selection, study: str
) -> Table:
    """Return one row a dataset: our counts, the paper's, and a mark where they differ.

    Counts of descriptions are those of the selection's first author of descriptions.
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
        theirs = {} if printed is None else printed.rows.get(dataset, {})
        cells = [
            cell
            for column in HEADINGS
            for cell in _count_cells(column, known, theirs, is_counted=column in found)[
                : len(groups)
            ]
        ]
        rows.append(Row(title, tuple(cells)))
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
    """Yield by whose word the declared counts are, then what is odd of each dataset."""
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
    column: str, known: Numbers, theirs: Mapping[str, str], *, is_counted: bool
) -> tuple[Cell, Cell]:
    """Return our cell and the paper's, which is marked if it differs."""
    text = theirs.get(column, "")
    if column not in known:
        return Cell(hole=why_not(column)), Cell(text)
    ours = text_of(known[column])
    differs = text not in ("", ours)
    mark = "" if is_counted else DECLARED
    return Cell(f"{ours}{mark}"), Cell(f"≠ {text}" if differs else text)
