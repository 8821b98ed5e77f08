"""A row of a table on one dataset: its runs, their mean over seeds, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from microclip import settings
from microclip.runs import Plan, RunSpec, Selection
from microclip.settings import SettingsError
from microclip.settings.reports import TableRow

ACCURACIES = {"fused": "top1_pct", "global": "top1_global_pct", "local": "top1_local_pct"}


@dataclass(frozen=True)
class Statistic:
    """Mean over seeds and sample deviation, in percent; `n` seeds, none: no mean."""

    mean: float | None
    deviation: float | None
    n: int


def runs_of(row: TableRow, scores: pd.DataFrame, selection: Selection, table: str) -> pd.DataFrame:
    """Return the runs that a row averages over seeds.

    Raises: SettingsError if they are of several backbones or descriptions.
    """
    own = scores[
        (scores["method"] == row.method)
        & (scores["variant"] == row.variant)
        & scores["dataset"].isin(selection.datasets)
    ]
    for field, several in (("backbone", "backbones"), ("descriptions", "descriptions")):
        named = getattr(row, field)
        own = own[own[field].isin(getattr(selection, several) if named is None else [named])]
        if own[field].nunique() > 1:
            raise SettingsError(
                f"row {row.label!r} of table {table} mixes {field} "
                f"{', '.join(sorted(own[field].unique()))}; name one in config/tables/{table}.yaml"
            )
    if settings.load_method_file(row.method).seeded:
        own = own[own["seed"].isin(selection.seeds)]
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


def missing(row: TableRow, dataset: str, plan: Plan, selection: Selection) -> str:
    """Return why a row has no number for a dataset."""
    hole = hole_of(row, dataset, plan, selection)
    if hole is not None:
        return hole
    if any(_is_of(run.spec, row, dataset, selection) for run in plan.runs):
        if row.head != "fused":
            return f"no accuracy of the {row.head} token in its runs"
        return "planned, and not in scores.csv"
    return "not run in this study"


def hole_of(row: TableRow, dataset: str, plan: Plan, selection: Selection) -> str | None:
    """Return why a row cannot run on a dataset, or None if the plan has no such hole."""
    for hole in plan.holes:
        if _is_of(hole.spec, row, dataset, selection):
            return hole.reason
    return None


def _is_of(spec: RunSpec, row: TableRow, dataset: str, selection: Selection) -> bool:
    backbones = selection.backbones if row.backbone is None else (row.backbone,)
    descriptions = selection.descriptions if row.descriptions is None else (row.descriptions,)
    return (
        spec.method == row.method
        and spec.variant == row.variant
        and spec.dataset == dataset
        and spec.backbone in backbones
        and spec.descriptions in descriptions
    )
