"""A table of claims: what the paper says of its parts, and whether it holds in a study's runs.

A claim names two sides, runs that differ in one part, and says that the first is better, or that
both are about as good. The difference, its interval and p are those of `statistics`: bootstrap of
test images and seeds; where a claim is about pseudo-labels, whose images no run keeps, a paired
t-test over seeds. p is adjusted by Holm for all differences of the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from microclip import paths
from microclip.measure import comparison, statistics
from microclip.measure.comparison import TestedImages
from microclip.measure.scores import runs_of
from microclip.measure.significance import ShownRow
from microclip.measure.statistics import Difference
from microclip.measure.typesetting import Cell, Column, Row, Table
from microclip.settings.reports import Claim, ClaimSide, TableRow, TableSettings
from microclip.study import Plan, RunSpec
from microclip.tracking.run import check_written, read_history

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["holds", "does not hold", "cannot tell"]
ALL, PAPER = "All sets", "Paper"
_RESAMPLES_A_DIFFERENCE = 100  # so that the least p, times all differences, is 0.02
_CAPTION = (
    "Effect: the first side minus the second, in points, with its 95 % interval (percentile "
    "bootstrap of test images and seeds; of pseudo-labels, paired t-test over seeds). p: "
    "two-sided, adjusted by Holm for the {n} differences of this table. A claim holds if its "
    "effect is above 0 and p below {level:g}, and does not hold if the effect is below 0 and p "
    "below {level:g}. Two sides claimed to be alike are so if the interval lies within the margin, "
    "and are not if it lies outside. Otherwise these runs cannot tell."
)


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim on some datasets; `p` is adjusted, and None of alike sides."""

    difference: Difference
    p: float | None
    verdict: Verdict


class _MissingError(Exception):
    """A side has no runs; the message says why."""


@dataclass(frozen=True, eq=False)
class _Runs:
    """The runs of a study, by what claims ask of them."""

    scores: pd.DataFrame
    plan: Plan
    table: str
    _shown: dict[TableRow, ShownRow] = field(default_factory=dict)

    def right(self, side: ClaimSide, dataset: str) -> dict[int, TestedImages]:
        """Which test images each seed's run got right."""
        own = self._own(side, dataset)
        if not (runs := own.runs.get(dataset, {})):
            raise _MissingError(f"{_name(side)} was not run")
        return runs

    def history(self, side: ClaimSide, dataset: str) -> dict[int, float]:
        """A column of each seed's history: its mean over epochs, or the first or last epoch's."""
        assert side.column is not None
        found = {}
        own = self._own(side, dataset).scores
        for scored in own[own["dataset"] == dataset].to_dict("records"):
            spec = RunSpec.of(scored)
            check_written(spec.folder, paths.RUN_HISTORY)
            values = [row[side.column] for row in read_history(spec.folder) if side.column in row]
            if not values:
                raise _MissingError(
                    f"{spec.folder / paths.RUN_HISTORY} has no column {side.column}"
                )
            of_epoch = {"mean": fmean(values), "first": values[0], "last": values[-1]}
            found[spec.seed] = of_epoch[side.epoch]
        if not found:
            raise _MissingError(f"{_name(side)} was not run")
        return found

    def _own(self, side: ClaimSide, dataset: str) -> ShownRow:
        names = {"method": side.method, "variant": self._variant(side, dataset)}
        row = TableRow.model_validate({**names, "label": _name(side), "head": side.head})
        if row not in self._shown:
            selection = self.plan.tables[self.table]
            self._shown[row] = ShownRow(row, runs_of(row, self.scores, selection, self.table))
        return self._shown[row]

    def _variant(self, side: ClaimSide, dataset: str) -> str:
        if side.figure is None:
            return side.variant
        listed = self.plan.figures.get(side.figure)
        for point in () if listed is None else listed.points:
            if (point.dataset, point.value) == (dataset, side.value):
                return point.variant
        raise _MissingError(f"{_name(side)} is no point of {side.figure} in this study")


def _name(side: ClaimSide) -> str:
    if side.figure is not None:
        return f"value {side.value:g} of {side.figure}"
    return f"{side.method}/{side.variant}"


def build(
    table: TableSettings, frame: pd.DataFrame, *, titles: Mapping[str, str], plan: Plan
) -> Table:
    """Build a table of claims; `titles` maps its datasets to headings, in column order.

    Raises:
        MissingDataError: a run does not say which images it got right.
        SettingsError: a side mixes backbones or descriptions, or test sets differ.
    """
    places = _places(titles)
    differences, holes = _differences(table, _Runs(frame, plan, table.name), places)
    found = _judged(table.claims, differences)
    rows = [
        Row(
            claim.label, _cells(claim, [found.get((i, j)) for j in range(len(places))]), claim.group
        )
        for i, claim in enumerate(table.claims)
    ]
    n_tests = sum(one.p is not None for one in found.values())
    said = _CAPTION.format(n=n_tests, level=round(1 - statistics.LEVEL, 4))
    return Table(
        corner="Claim",
        columns=(
            Column("effect", PAPER, is_bare=True),
            *(
                Column(title, heading, is_bare=title != "effect")
                for heading in places
                for title in ("effect", "p", "verdict")
            ),
        ),
        rows=tuple(rows),
        title=table.title,
        caption=f"{table.caption} Study {plan.study}, {_seeds(plan, table.name)}. {said} "
        f"{_counted(found, places)}",
        label=table.label,
        source=paths.STUDY_SCORES.format(study=plan.study),
        notes=tuple(dict.fromkeys(holes)),
    )


def _seeds(plan: Plan, table: str) -> str:
    n = len(plan.tables[table].seeds)
    return f"{n} seed{'' if n == 1 else 's'}"


def _counted(found: Mapping[_Place, Finding], places: Mapping[str, Sequence[str]]) -> str:
    """How many claims hold, and how many do not, under the last heading."""
    last = len(places) - 1
    counts = Counter(one.verdict for (_, place), one in found.items() if place == last)
    words: tuple[Verdict, ...] = get_args(Verdict)
    return f"{[*places][last]}: {', '.join(f'{word} {counts[word]}' for word in words)}."


def _places(titles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The datasets behind each heading; the last one has all, if there are several."""
    single: dict[str, tuple[str, ...]] = {title: (name,) for name, title in titles.items()}
    return {**single, ALL: tuple(titles)} if len(titles) > 1 else single


_Place = tuple[int, int]  # number of the claim, and of the heading


def _differences(
    table: TableSettings, runs: _Runs, places: Mapping[str, Sequence[str]]
) -> tuple[dict[_Place, Difference], list[str]]:
    """The difference of each claim under each heading, and why some have none."""
    n = len(table.claims) * len(places)
    resamples = max(statistics.RESAMPLES, _RESAMPLES_A_DIFFERENCE * n)
    found, holes = {}, []
    for i, claim in enumerate(table.claims):
        for j, datasets in enumerate(places.values()):
            try:
                found[i, j] = _difference(claim, runs, datasets, resamples)
            except _MissingError as why:
                holes.append(f"{claim.group}, {claim.label}: {why}")
    return found, holes


def _difference(claim: Claim, runs: _Runs, datasets: Sequence[str], resamples: int) -> Difference:
    """The first side's number minus the second's, averaged over datasets."""
    if claim.first.column is not None:
        return _of_history(claim, runs, datasets)
    first, second = (
        [runs.right(side, name) for name in datasets] for side in (claim.first, claim.second)
    )
    for one, other in zip(first, second, strict=True):
        comparison.check_same_images([*one.values(), *other.values()])
    seeds = [_common(sets) for sets in (first, second)]
    ours, theirs = (
        [np.array([runs[seed].right for seed in own]) for runs in sets]
        for sets, own in zip((first, second), seeds, strict=True)
    )
    paired = comparison.is_paired(*seeds)
    return statistics.difference(theirs, ours, is_paired=paired, resamples=resamples)


def _of_history(claim: Claim, runs: _Runs, datasets: Sequence[str]) -> Difference:
    sides = [
        [runs.history(side, name) for name in datasets] for side in (claim.first, claim.second)
    ]
    seeds = _common([own for side in sides for own in side])
    if len(seeds) < 2:
        raise _MissingError("needs two seeds that both sides have")
    first, second = ([fmean(own[seed] for own in side) for seed in seeds] for side in sides)
    return statistics.seed_difference(second, first)


def _common(runs: Sequence[Mapping[int, object]]) -> tuple[int, ...]:
    """The seeds that all have. Raises _MissingError if there is none."""
    seeds = tuple(sorted(set.intersection(*(set(own) for own in runs))))
    if not seeds:
        raise _MissingError("no seed that all datasets have")
    return seeds


def _judged(
    claims: Sequence[Claim], differences: Mapping[_Place, Difference]
) -> dict[_Place, Finding]:
    """What the differences say of the claims."""
    tested = [place for place in differences if claims[place[0]].alike_pct is None]
    adjusted = statistics.holm([differences[place].p for place in tested])
    p_of = dict(zip(tested, adjusted, strict=True))
    return {
        place: Finding(found, p_of.get(place), _verdict(claims[place[0]], found, p_of.get(place)))
        for place, found in differences.items()
    }


def _verdict(claim: Claim, found: Difference, p: float | None) -> Verdict:
    margin = claim.alike_pct
    if margin is not None:
        if -margin <= found.interval.low and found.interval.high <= margin:
            return "holds"
        is_outside = found.interval.low > margin or found.interval.high < -margin
        return "does not hold" if is_outside else "cannot tell"
    if p is None or p >= 1 - statistics.LEVEL or found.points == 0:
        return "cannot tell"
    return "holds" if found.points > 0 else "does not hold"


def _cells(claim: Claim, found: Sequence[Finding | None]) -> tuple[Cell, ...]:
    printed = claim.published_pct
    paper = Cell(hole="") if printed is None else Cell(f"{printed:+.2f}")
    return (paper, *(cell for one in found for cell in _of_finding(one)))


def _of_finding(found: Finding | None) -> Iterator[Cell]:
    """Yield a finding's effect, p and verdict, or three holes."""
    if found is None:
        yield from [Cell(hole="")] * 3
        return
    points, interval = found.difference.points, found.difference.interval
    yield Cell(f"{points:+.2f}", low=f"{interval.low:.2f}", high=f"{interval.high:.2f}")
    p = found.p
    yield Cell(hole="") if p is None else Cell("<0.001" if p < 0.001 else f"{p:.3f}")
    yield Cell(found.verdict)
