"""What a table may say beyond its accuracies: intervals, marked differences, mean ranks.

`add` takes a built table and the runs behind its rows. Intervals and differences are those of
`statistics`, over test images and seeds; Holm's adjustment is over all differences of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from microclip.measure import comparison, statistics
from microclip.measure.comparison import TestedImages
from microclip.measure.scores import ACCURACIES
from microclip.measure.statistics import Right
from microclip.measure.typesetting import Cell, Column, Row, Table
from microclip.settings.base import SettingsError
from microclip.settings.declarations import Supervision
from microclip.settings.reports import Spread, TableRow
from microclip.study import RunSpec

if TYPE_CHECKING:
    import pandas as pd

_ROUNDING_PCT = 0.001  # scores.csv has four decimals
_RESAMPLES_A_DIFFERENCE = 200  # so that the least p, times all differences, is 0.01
RANK = "Rank"


@dataclass(frozen=True)
class Options:
    """What a table shows besides accuracies; `reference` is the row that others are compared with.

    `datasets` are its columns, without their mean.
    """

    datasets: tuple[str, ...]
    spread: Spread = "deviation"
    reference: TableRow | None = None
    has_ranks: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """The runs that a cell averages: the seeds, and by dataset which images each run got right."""

    seeds: tuple[int, ...]
    sets: tuple[Right, ...]


@dataclass(frozen=True, eq=False)
class ShownRow:
    """A row of a table, and its runs' rows of `scores.csv`.

    Attributes:
        supervision: what its method may see; None if that is not known.
    """

    row: TableRow
    scores: pd.DataFrame
    supervision: Supervision | None = None

    @property
    def is_bound(self) -> bool:
        """A method that learns all labels is a bound for the others and competes with none."""
        return self.supervision is Supervision.LABELS

    @cached_property
    def runs(self) -> dict[str, dict[int, TestedImages]]:
        """Which images the runs got right, by dataset and seed; a run without the head is left out.

        Raises:
            MissingDataError: a run does not say which images it got right.
            SettingsError: a run is not the one that `scores.csv` has.
        """
        found: dict[str, dict[int, TestedImages]] = {}
        for scored in self.scores.to_dict("records"):
            top1_pct = scored[ACCURACIES[self.row.head]]
            if top1_pct is None or math.isnan(top1_pct):
                continue
            run = comparison.read(RunSpec.of(scored).folder, self.row.head)
            if abs(statistics.accuracy_pct([run.right[None]]) - top1_pct) > _ROUNDING_PCT:
                raise SettingsError(
                    f"run {run.folder} has {statistics.accuracy_pct([run.right[None]]):.4f} %, "
                    f"scores.csv has {top1_pct:.4f} %: it is older; run `snakemake`"
                )
            found.setdefault(run.spec.dataset, {})[run.spec.seed] = run
        return found

    def measured(self, datasets: Sequence[str]) -> Measured | None:
        """The runs on these datasets, with the seeds that all have; None if there are none."""
        own = [self.runs.get(name, {}) for name in datasets]
        seeds = tuple(sorted(set.intersection(*(set(runs) for runs in own))))
        if not seeds:
            return None
        return Measured(
            seeds, tuple(np.array([runs[seed].right for seed in seeds]) for runs in own)
        )


def add(table: Table, shown: Sequence[ShownRow], options: Options) -> Table:
    """The table with what the options ask for, and a caption that says what it is.

    Raises:
        MissingDataError: a run does not say which images it got right.
        SettingsError: runs on one dataset were tested on different images.
    """
    captions: list[str] = []
    if options.spread == "interval" or options.reference is not None:
        captions.append(_images(shown, options.datasets))
    if options.spread == "interval":
        table = _with_intervals(table, shown, options.datasets)
    if options.reference is not None:
        table, caption = _with_marks(table, shown, options)
        captions.append(caption)
    if options.has_ranks:
        table, caption = _with_ranks(table, shown, len(options.datasets))
        captions.append(caption)
    return replace(table, caption=" ".join([table.caption, *captions]))


def _columns(datasets: Sequence[str]) -> list[tuple[str, ...]]:
    """The datasets behind each column; the last one is their mean, if there are several."""
    single: list[tuple[str, ...]] = [(name,) for name in datasets]
    return [*single, tuple(datasets)] if len(datasets) > 1 else single


def _images(shown: Sequence[ShownRow], datasets: Sequence[str]) -> str:
    """How many test images there are, in words; all rows must have the same ones."""
    sizes = set()
    for name in datasets:
        runs = [run for one in shown for run in one.runs.get(name, {}).values()]
        if runs:
            comparison.check_same_images(runs)
            sizes.add(len(runs[0].labels))
    if not sizes:
        return "No test images yet."
    n = str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return f"{n} test images{' a dataset' if len(datasets) > 1 else ''}."


def _with_intervals(table: Table, shown: Sequence[ShownRow], datasets: Sequence[str]) -> Table:
    rows = []
    for row, one in zip(table.rows, shown, strict=True):
        cells = []
        for cell, names in zip(row.cells, _columns(datasets), strict=True):
            measured = one.measured(names) if cell.hole is None else None
            if measured is not None:
                found = statistics.accuracy_interval(measured.sets)
                cell = replace(cell, low=f"{found.low:.1f}", high=f"{found.high:.1f}")
            cells.append(cell)
        rows.append(replace(row, cells=tuple(cells)))
    return replace(table, rows=tuple(rows))


def _with_marks(table: Table, shown: Sequence[ShownRow], options: Options) -> tuple[Table, str]:
    """The table with p and marks, and what its caption says about them."""
    reference = next((one for one in shown if one.row == options.reference), None)
    assert options.reference is not None
    label = options.reference.label
    if reference is None:
        return table, f"Nothing is compared: {label} was not run."
    pairs = dict(_pairs(table, shown, reference, options.datasets))
    resamples = max(statistics.RESAMPLES, _RESAMPLES_A_DIFFERENCE * len(pairs))
    found = [_p(first, second, resamples) for first, second in pairs.values()]
    adjusted = dict(zip(pairs, statistics.holm(found), strict=True))
    rows = [
        replace(row, cells=tuple(_marked(c, adjusted.get((i, j))) for j, c in enumerate(row.cells)))
        for i, row in enumerate(table.rows)
    ]
    caption = (
        f"† differs from {label} at the {100 * (1 - statistics.LEVEL):.0f} % level: two-sided, "
        f"adjusted by Holm for the {len(pairs)} differences of this table; paired bootstrap of "
        "test images and seeds, between two single runs McNemar's exact test."
    )
    return replace(table, rows=tuple(rows)), caption


def _pairs(
    table: Table, shown: Sequence[ShownRow], reference: ShownRow, datasets: Sequence[str]
) -> Iterator[tuple[tuple[int, int], tuple[Measured, Measured]]]:
    """Yield the place of each cell that can be compared, with the reference's runs and its own."""
    for i, one in enumerate(shown):
        for j, names in enumerate(_columns(datasets)):
            if one is reference or table.rows[i].cells[j].hole is not None:
                continue
            first, second = reference.measured(names), one.measured(names)
            if first is not None and second is not None:
                yield (i, j), (first, second)


def _p(first: Measured, second: Measured, resamples: int) -> float:
    one, other = first.sets[0][0], second.sets[0][0]
    are_single = len(first.sets) == len(first.seeds) == len(second.seeds) == 1
    if are_single and one.dtype == other.dtype == np.bool_:  # not the shares of several draws
        # Exact where a bootstrap is not: a handful of images that only one of two gets right.
        return statistics.mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
    paired = comparison.is_paired(first.seeds, second.seeds)
    return statistics.difference(first.sets, second.sets, is_paired=paired, resamples=resamples).p


def _marked(cell: Cell, p: float | None) -> Cell:
    if p is None:
        return cell
    return replace(cell, p=f"{p:.4f}", is_marked=p < 1 - statistics.LEVEL)


def _with_ranks(table: Table, shown: Sequence[ShownRow], n_datasets: int) -> tuple[Table, str]:
    """The table with a column of mean ranks, and what its caption says about them."""
    whole = [
        row
        for row, one in zip(table.rows, shown, strict=True)
        if not one.is_bound and all(cell.hole is None for cell in row.cells)
    ]
    if len(whole) < 3 or n_datasets < 2:
        return table, "No ranks: they need three rows without holes and two datasets."
    # By the printed text, as in the columns: numbers that look equal share a rank.
    printed = [[float(cell.text) for cell in row.cells[:n_datasets]] for row in whole]
    found = statistics.friedman(np.array(printed))
    ranks: Mapping[int, float] = dict(zip(map(id, whole), found.mean, strict=True))
    rows = [_with_rank(row, ranks.get(id(row))) for row in table.rows]
    caption = (
        f"{RANK}: mean over {n_datasets} datasets, 1 is best; Friedman's test of "
        f"{len(whole)} rows: {comparison.p_text(found.p)}; ranks {found.critical_difference:.2f} "
        f"or more apart differ at the {100 * (1 - statistics.LEVEL):.0f} % level (Nemenyi)."
    )
    return replace(
        table, columns=(*table.columns, Column(RANK, is_bare=True)), rows=tuple(rows)
    ), caption


def _with_rank(row: Row, rank: float | None) -> Row:
    cell = Cell(hole="") if rank is None else Cell(f"{rank:.2f}")
    return replace(row, cells=(*row.cells, cell))
