"""The paper's numbers as printed (`config/published`), what its text implies, and its slips.

A cell that is illegible in our copy stays empty. A printed number is never corrected; where it
contradicts another one, `slips.yaml` says so. `derived.yaml` holds averages that the text gives
as a difference; they are marked wherever they are shown. `figure` looks up the zero-shot
accuracy that the gate compares CLIP with.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from microclip import paths
from microclip.settings.base import Frozen, Name, SettingsError, read_yaml, validated
from microclip.settings.datasets import DatasetSettings, PublicSource

AVERAGE = "avg"
JOINT = " / "
_ZERO_SHOT = "config/published/zero_shot.yaml"
_SPLIT = "paper"  # the only split that the paper's numbers belong to
AUDIT_TOLERANCE_PCT = 0.011  # two roundings to 0.01, and the floats' last bits
_KEYS = (
    "dataset",
    "backbone",
    "method",
    "group",
    "variant",
    "classifier_for_pseudo_labels",
    "pseudo_labels",
    "shots",
)


class DerivedCell(Frozen):
    """An average that is not printed in a table but follows from the paper's text."""

    table: Name
    row: str
    column: str
    value: float
    source: str
    note: str = ""


class Slip(Frozen):
    """A printed statement that contradicts the paper itself, its code or its data."""

    table: Name
    row: str | None = None  # None: the whole table
    column: str | None = None  # None: the whole row
    note: str


Note = TypeVar("Note", DerivedCell, Slip)


class DerivedFile(Frozen):
    """`config/published/derived.yaml`."""

    cells: tuple[DerivedCell, ...]


class SlipFile(Frozen):
    """`config/published/slips.yaml`."""

    slips: tuple[Slip, ...]


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper.

    Attributes:
        columns: columns of numbers, in the paper's order; the average is last.
        rows: printed numbers by row key and column; empty where illegible.
        derived: cells that the text implies, by row key and column.
    """

    name: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]
    derived: Mapping[tuple[str, str], DerivedCell] = field(default_factory=dict)
    slips: tuple[Slip, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """All columns except the average."""
        return tuple(column for column in self.columns if column != AVERAGE)

    def row(self, key: str, where: str) -> Mapping[str, str]:
        """The printed numbers of a row. Raises SettingsError if there is no such row."""
        if key not in self.rows:
            raise SettingsError(
                f"no row {key!r} in config/published/{self.name}.csv, named in {where}; "
                f"known: {', '.join(map(repr, self.rows))}"
            )
        return self.rows[key]

    def value(self, key: str, column: str) -> float | None:
        """A printed or derived number; None if it is illegible."""
        text = self.rows[key][column]
        if text:
            return float(text)
        derived = self.derived.get((key, column))
        return None if derived is None else derived.value

    def slips_of(self, key: str, column: str) -> tuple[Slip, ...]:
        """The slips to note at a cell; those of a whole row are noted at its last cell."""
        return tuple(
            slip
            for slip in self.slips
            if slip.row == key and (slip.column or self.columns[-1]) == column
        )


@dataclass(frozen=True)
class Audit:
    """A printed average and the mean of the cells in its row, all of them legible."""

    table: str
    row: str
    printed: float
    mean: float

    @property
    def difference(self) -> float:
        """Printed average minus mean."""
        return self.printed - self.mean

    @property
    def is_flagged(self) -> bool:
        """Whether the difference is too large for rounding."""
        return abs(self.difference) > AUDIT_TOLERANCE_PCT


def load(name: str) -> PublishedTable:
    """Read a table of the paper with its derived cells and slips.

    Raises:
        SettingsError: there is no such table, a cell is not a number, or a derived cell or slip
            names a row or column that does not exist.
    """
    return _load(name, _folder())


@cache
def _load(name: str, folder: Path) -> PublishedTable:
    path = folder / f"{name}.csv"
    known = ", ".join(sorted(file.stem for file in folder.glob("*.csv")))
    if not path.is_file():
        raise SettingsError(f"no config/published/{name}.csv; known: {known or 'none'}")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        heads = list(reader.fieldnames or ())
        lines = list(reader)
    keys = [head for head in heads if head in _KEYS]
    columns = tuple(head for head in heads if head not in _KEYS)
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        key = JOINT.join(line[head] for head in keys if line[head])
        if key in rows:
            raise SettingsError(
                f"two rows {key!r} in config/published/{name}.csv; make their keys differ"
            )
        rows[key] = {column: _number(line[column], f"{name}.csv, {key}") for column in columns}
    table = PublishedTable(name, columns, rows)
    derived = _of_table(table, _derived(folder), "derived.yaml")
    for cell in derived:
        if rows[cell.row][cell.column]:
            raise SettingsError(
                f"{cell.row!r}, {cell.column} of {name} is both printed and in "
                "config/published/derived.yaml; remove it there"
            )
    by_place = {(cell.row, cell.column): cell for cell in derived}
    return PublishedTable(
        name, columns, rows, by_place, tuple(_of_table(table, _slips(folder), "slips.yaml"))
    )


def audit() -> list[Audit]:
    """Every printed average whose row is legible, in the paper's order."""
    found = []
    for name in names():
        table = load(name)
        for key, row in table.rows.items():
            cells = [row[column] for column in table.datasets]
            if AVERAGE in table.columns and row[AVERAGE] and all(cells):
                mean = sum(map(float, cells)) / len(cells)
                found.append(Audit(name, key, float(row[AVERAGE]), mean))
    return found


def names() -> list[str]:
    """The paper's tables in `config/published`, in the paper's order."""
    stems = (path.stem for path in _folder().glob("*.csv"))
    return sorted(stems, key=lambda stem: (len(stem), stem))


def _folder() -> Path:
    return paths.project_root() / "config" / "published"


def _number(text: str, where: str) -> str:
    try:
        float(text or 0)
    except ValueError:
        raise SettingsError(
            f"{text!r} in config/published/{where} is not a number; leave an illegible cell empty"
        ) from None
    return text


def _derived(folder: Path) -> tuple[DerivedCell, ...]:
    path = folder / "derived.yaml"
    where = "config/published/derived.yaml"
    return validated(DerivedFile, read_yaml(path), where).cells if path.is_file() else ()


def _slips(folder: Path) -> tuple[Slip, ...]:
    path = folder / "slips.yaml"
    where = "config/published/slips.yaml"
    return validated(SlipFile, read_yaml(path), where).slips if path.is_file() else ()


def _of_table(table: PublishedTable, notes: Iterable[Note], file: str) -> list[Note]:
    """The notes on a table. Raises SettingsError if one names a row or column it does not have."""
    own = [note for note in notes if note.table == table.name]
    for note in own:
        if note.row is not None:
            table.row(note.row, f"config/published/{file}")
        if note.column is not None and note.column not in table.columns:
            raise SettingsError(
                f"no column {note.column!r} in config/published/{table.name}.csv, named in {file}; "
                f"known: {', '.join(table.columns)}"
            )
    return own


class PrintedRow(Frozen):
    """A row of one of the paper's tables."""

    table: Name
    row: str
    may_be_of_descriptions: bool = Field(
        default=False, description="the paper does not say what its zero-shot classifies by"
    )


class BothRows(Frozen):
    """Two rows of a table: the same CLIP with templates and with descriptions."""

    table: Name
    templates: str
    descriptions: str


class ZeroShotFile(Frozen):
    """`config/published/zero_shot.yaml`."""

    backbones: dict[Name, PrintedRow]
    gains: tuple[BothRows, ...] = Field((), description="what descriptions add to templates")


@dataclass(frozen=True)
class Figure:
    """A printed accuracy, and the table and row where it is printed.

    Attributes:
        lower_by: points that templates may be below it, because it may be of descriptions.
    """

    top1_pct: float
    where: str
    lower_by: float = 0.0


def figure(dataset: DatasetSettings, backbone: str) -> Figure | None:
    """CLIP's printed accuracy on a public dataset's split `paper`; None if there is none.

    Raises:
        SettingsError: `zero_shot.yaml` names a row that does not exist.
    """
    path = paths.project_root() / _ZERO_SHOT
    source = dataset.source
    if not isinstance(source, PublicSource) or source.split != _SPLIT or not path.is_file():
        return None
    declared = _read_zero_shot(path)
    named = declared.backbones.get(backbone)
    if named is None:
        return None
    printed = load(named.table).row(named.row, _ZERO_SHOT).get(source.dataset, "")
    if not printed:
        return None
    lower_by = _gain(declared, source.dataset) if named.may_be_of_descriptions else 0.0
    return Figure(float(printed), f"{named.table}, {named.row}", lower_by)


@cache
def _read_zero_shot(path: Path) -> ZeroShotFile:
    return validated(ZeroShotFile, read_yaml(path), _ZERO_SHOT)


def _gain(declared: ZeroShotFile, dataset: str) -> float:
    """The most that descriptions add to templates on a dataset, in points; at least 0."""
    found = [0.0]
    for both in declared.gains:
        table = load(both.table)
        templates, descriptions = (
            table.row(row, _ZERO_SHOT).get(dataset, "")
            for row in (both.templates, both.descriptions)
        )
        if templates and descriptions:
            found.append(float(descriptions) - float(templates))
    return round(max(found), 4)
