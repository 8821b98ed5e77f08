"""From a study's declarations to its runs: each once, with what is asked for and cannot run.

Runs come from three places: the grids of the study, the rows of its tables and the points of its
figures. A point of a sweep that equals the settings of the default run is the default run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from microclip import settings
from microclip.methods.base import known_methods, settings_of
from microclip.runs import RunSpec, Selection, SweepPoint
from microclip.settings import ReportSelection, RunGrid, SettingsError, StudySettings, reports


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

    def add(self, method: str, variant: str, part: Selection) -> None:
        """Add a method's runs on a part of the study, or holes if the method has no code here."""
        seeds = part.seeds if settings.load_method_file(method).seeded else (0,)
        reason = unavailable(method)
        for names in itertools.product(part.datasets, part.backbones, part.descriptions):
            for seed in seeds:
                spec = RunSpec(*names, method=method, variant=variant, seed=seed)
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
        part = selected(study, grid)
        for method, variant in itertools.product(grid.methods, grid.variants):
            found.add(method, variant, part)
    for selection in study.tables:
        _add_table(found, selection)
    for selection in study.figures:
        _add_figure(found, selection)
    return found


def _add_table(found: Expansion, selection: ReportSelection) -> None:
    for row in reports.load_table(selection.name).rows:
        if unavailable(row.method) and selection.is_brief:
            continue
        part = selected(found.study, selection)
        if row.backbone is not None:
            part = replace(part, backbones=(row.backbone,))
        if row.descriptions is not None:
            part = replace(part, descriptions=(row.descriptions,))
        found.add(row.method, row.variant, part)


def _add_figure(found: Expansion, selection: ReportSelection) -> None:
    figure = reports.load_figure(selection.name)
    part = selected(found.study, selection)
    for variant in figure.variants:
        found.add(figure.plot.method, variant, part)
    if not isinstance(figure.plot, reports.SweepPlot):
        return
    points = []
    for dataset in part.datasets:
        for value in selection.values or figure.plot.values:
            variant = _point(found, figure.plot, dataset, value)
            points.append(SweepPoint(dataset, value, variant))
            found.add(figure.plot.method, variant, replace(part, datasets=(dataset,)))
    found.points[figure.name] = tuple(points)


def selected(study: StudySettings, asked: ReportSelection | RunGrid) -> Selection:
    """Return the part of a study that is asked for; what is not named is all of it."""
    return Selection(
        datasets=asked.datasets or study.datasets,
        backbones=asked.backbones or study.backbones,
        descriptions=asked.descriptions or study.descriptions,
        seeds=study.seeds if asked.seeds is None else asked.seeds,
        is_brief=isinstance(asked, ReportSelection) and asked.is_brief,
    )


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
