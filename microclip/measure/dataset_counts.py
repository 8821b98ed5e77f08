"""What datasets hold, counted in their files, beside what the paper prints (its Table 10)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microclip import paths
from microclip.measure import published
from microclip.measure.layout import Cell, Column, Row, Table
from microclip.reports import TableSettings

HEADINGS = {  # by column of the published CSV
    "descriptions_per_class": "Descriptions a class",
    "classes": "Classes",
    "train": "Train",
    "test": "Test",
}
NOT_DESCRIBED = "descriptions not gathered"
NOT_FETCHED = "not fetched"
_OURS, _PAPER = "ours", "paper"


def count(dataset: str, descriptions: str) -> dict[str, tuple[int, int]]:
    """Return smallest and largest number of each column that can be told; lacking ones left out.

    They differ where classes have different numbers of descriptions.

    Raises: SettingsError if a manifest or descriptions file is damaged.
    """
    found: dict[str, tuple[int, int]] = {}
    text = Path(paths.DESCRIPTIONS.format(descriptions=descriptions, dataset=dataset))
    if text.is_file():
        from microclip.text.descriptions import read

        numbers = [len(sentences) for sentences in read(text).sentences.values()]
        found["descriptions_per_class"] = (min(numbers), max(numbers))
    if Path(paths.MANIFEST.format(dataset=dataset)).is_file():
        from microclip.data.datasets import read_manifest

        manifest = read_manifest(dataset)
        splits = Counter(manifest.splits)
        n_classes = len(set(manifest.labels))
        found["classes"] = (n_classes, n_classes)
        found |= {split: (splits[split], splits[split]) for split in ("train", "test")}
    return found


def why_not(column: str) -> str:
    """Return why a column could not be counted."""
    return NOT_DESCRIBED if column == "descriptions_per_class" else NOT_FETCHED


def text_of(number: tuple[int, int]) -> str:
    """Return a count as printed: one number, or a range."""
    least, most = number
    return str(least) if least == most else f"{least}–{most}"


def build(
    table: TableSettings, titles: Mapping[str, str], selection: Mapping[str, Any], study: str
) -> Table:
    """Return one row a dataset: our counts, the paper's, and a mark where they differ.

    Counts of descriptions are those of the selection's first author of descriptions.
    """
    author = selection["descriptions"][0]
    printed = None if table.published is None else published.load(table.published)
    groups = [_OURS] if printed is None else [_OURS, _PAPER]
    rows: list[Row] = []
    lacking: dict[str, list[str]] = {NOT_FETCHED: [], NOT_DESCRIBED: []}
    for dataset, title in titles.items():
        found = count(dataset, author)
        if selection["is_brief"] and not found:
            continue
        for reason in {why_not(column) for column in HEADINGS if column not in found}:
            lacking[reason].append(title)
        theirs = {} if printed is None else printed.rows.get(dataset, {})
        cells = [
            cell for column in HEADINGS for cell in _pair(column, found, theirs)[: len(groups)]
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
        notes=tuple(
            f"{'all datasets' if len(names) == len(rows) else ', '.join(names)}: {why}"
            for why, names in lacking.items()
            if names
        ),
    )


def _pair(
    column: str, found: Mapping[str, tuple[int, int]], theirs: Mapping[str, str]
) -> tuple[Cell, Cell]:
    """Return our cell and the paper's, which is marked if it differs."""
    text = theirs.get(column, "")
    if column not in found:
        return Cell(hole=why_not(column)), Cell(text)
    ours = text_of(found[column])
    differs = text not in ("", ours)
    return Cell(ours), Cell(f"≠ {text}" if differs else text)
