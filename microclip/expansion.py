"""From a study's declarations to its runs: each once, with what is asked for and cannot run.

Runs come from three places: the grids of the study, the rows of its tables and the points of its
figures. A point of a sweep that equals the settings of the default run is the default run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from microclip import reports, settings
from microclip.methods.base import known_methods, settings_of
from microclip.runs import RunSpec
from microclip.settings import ReportSelection, SettingsError, StudySettings


@dataclass(frozen=True, order=True)
class SweepPoint:
    """A value of a sweep on one dataset, and the variant that has it."""

    dataset: str
    value: float
    variant: str


@dataclass
class Expansion:
    """What a study asks for.

    Attributes:
        runs: all runs, in order of first mention.
        holes: runs that cannot be made, with the reason.
        generated: overrides of variants that sweeps have made, by method and variant.
        points: of each figure that is a sweep.
    """

    study: StudySettings
    runs: dict[RunSpec, None] = field(default_factory=dict)
    holes: dict[RunSpec, str] = field(default_factory=dict)
    generated: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    points: dict[str, tuple[SweepPoint, ...]] = field(default_factory=dict)
    _named: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, repr=False)

    def add(  # noqa: PLR0913  the parts of a RunSpec
        self,
        method: str,
        variant: str,
        *,
        datasets: Iterable[str],
        backbones: Iterable[str],
        descriptions: Iterable[str],
        seeds: Sequence[int],
    ) -> None:
        """Add the product as runs, or as holes if the method has no code here."""
        if not settings.load_method_file(method).seeded:
            seeds = (0,)
        reason = unavailable(method)
        for parts in itertools.product(datasets, backbones, descriptions):
            for seed in seeds:
                spec = RunSpec(*parts, method=method, variant=variant, seed=seed)
                if reason is None:
                    self.runs[spec] = None
                else:
                    self.holes[spec] = reason

    def overrides(self, method: str, variant: str) -> dict[str, Any]:
        """Return what a variant changes: a sweep's point, or a named one of config/variants."""
        made = self.generated.get((method, variant), self.named(method).get(variant))
        return settings.load_variant(method, variant) if made is None else made

    def named(self, method: str) -> dict[str, dict[str, Any]]:
        """Return the variants of config/variants, read once."""
        if method not in self._named:
            self._named[method] = settings.variants_of(method)
        return self._named[method]


def unavailable(method: str) -> str | None:
    """Return why a declared method cannot run, or None if it can."""
    return None if method in known_methods() else f"method {method} has no code in this release"


def expand(study: StudySettings) -> Expansion:
    """Return all that a study asks for.

    Raises: SettingsError naming the method, variant, table or figure at fault.
    """
    found = Expansion(study)
    for grid in study.runs:
        for method, variant in itertools.product(grid.methods, grid.variants):
            found.add(
                method,
                variant,
                datasets=grid.datasets or study.datasets,
                backbones=grid.backbones or study.backbones,
                descriptions=grid.descriptions or study.descriptions,
                seeds=study.seeds if grid.seeds is None else grid.seeds,
            )
    for selection in study.tables:
        _add_table(found, selection)
    for selection in study.figures:
        _add_figure(found, selection)
    return found


def _add_table(found: Expansion, selection: ReportSelection) -> None:
    for row in reports.load_table(selection.name).rows:
        if unavailable(row.method) and selection.is_brief:
            continue
        parts = selected(found.study, selection)
        if row.backbone is not None:
            parts["backbones"] = (row.backbone,)
        if row.descriptions is not None:
            parts["descriptions"] = (row.descriptions,)
        found.add(row.method, row.variant, **parts)


def _add_figure(found: Expansion, selection: ReportSelection) -> None:
    figure = reports.load_figure(selection.name)
    parts = selected(found.study, selection)
    for variant in figure.variants:
        found.add(figure.plot.method, variant, **parts)
    if not isinstance(figure.plot, reports.SweepPlot):
        return
    points = []
    for dataset in parts["datasets"]:
        for value in selection.values or figure.plot.values:
            variant = _point(found, figure.plot, dataset, value)
            points.append(SweepPoint(dataset, value, variant))
            found.add(figure.plot.method, variant, **{**parts, "datasets": (dataset,)})
    found.points[figure.name] = tuple(points)


def selected(study: StudySettings, selection: ReportSelection) -> dict[str, Any]:
    """Return the part of a study that a table or figure shows; what is not said is all of it."""
    return {
        "datasets": selection.datasets or study.datasets,
        "backbones": selection.backbones or study.backbones,
        "descriptions": selection.descriptions or study.descriptions,
        "seeds": study.seeds if selection.seeds is None else selection.seeds,
    }


def _point(found: Expansion, plot: reports.SweepPlot, dataset: str, value: float) -> str:
    """Return the variant of a sweep's value, made known if no file names it."""
    overrides = {plot.setting: value}
    if plot.setting not in settings_of(plot.method).model_fields:
        raise SettingsError(
            f"setting {plot.setting!r} of the sweep over {plot.prefix} is none of {plot.method}; "
            f"known: {', '.join(settings_of(plot.method).model_fields)}"
        )
    default = resolve_method(found, plot.method, dataset, {})
    if resolve_method(found, plot.method, dataset, overrides) == default:
        return "default"
    name = f"{plot.prefix}-{value:g}"
    named = found.named(plot.method).get(name, overrides)
    if named != overrides:
        raise SettingsError(
            f"variant {name!r} is {named} in config/variants/{plot.method}.yaml and {overrides} "
            "in a figure; rename one"
        )
    found.generated[plot.method, name] = overrides
    return name


def resolve_method(
    found: Expansion, method: str, dataset: str, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Return a method's complete settings: method file -> dataset -> study -> `overrides`.

    Raises: SettingsError naming the layer with an unknown key or a value that does not fit.
    """
    layers = {
        f"config/methods/{method}.yaml": settings.load_method_file(method).settings,
        f"config/datasets/{dataset}.yaml": settings.load_dataset(dataset).methods.get(method, {}),
        "the study": found.study.methods.get(method, {}),
        f"config/variants/{method}.yaml": overrides,
    }
    merged: dict[str, Any] = {}
    for where, layer in layers.items():
        merged |= layer
        resolved = settings.validated(settings_of(method), merged, where)
    return resolved.model_dump(mode="json")
