"""A study: its runs, their resolved settings, and the plan that all later stages read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from microclip import expansion, settings
from microclip.expansion import Expansion
from microclip.methods.base import evaluation_fields, known_methods, reads_of, recipe_of
from microclip.runs import FigureSelection, Hole, Plan, PlannedRun, RunSettings, RunSpec
from microclip.settings import reports

__all__ = ["Plan", "RunSettings", "RunSpec", "Study", "load", "reads_of"]


@dataclass(frozen=True)
class Study:
    """A validated study and its runs, in a fixed order, each once."""

    settings: settings.StudySettings
    expansion: Expansion

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Return all runs."""
        return tuple(self.expansion.runs)

    def resolve(self, spec: RunSpec) -> RunSettings:
        """Return the settings of one run: method file -> dataset -> study -> variant."""
        return RunSettings(
            spec=spec,
            dataset=settings.load_dataset(spec.dataset),
            backbone=settings.load_backbone_settings(spec.backbone),
            descriptions=settings.load_descriptions(spec.descriptions),
            method=expansion.resolve_method(
                self.expansion,
                spec.method,
                spec.dataset,
                self.expansion.overrides(spec.method, spec.variant),
            ),
            device=self.settings.device,
            precision=self.settings.precision,
            recipe=recipe_of(spec.method),
        )

    def trained_by(self, spec: RunSpec) -> RunSpec | None:
        """Return the run of this study whose weights `spec` only tests in another way, if any."""
        overrides = self.expansion.overrides(spec.method, spec.variant)
        ignored = evaluation_fields(spec.method)
        trained = {key: value for key, value in overrides.items() if key not in ignored}
        if trained == overrides:
            return None
        for variant in self.names("variant"):
            other = replace(spec, variant=variant)
            is_planned = other in self.expansion.runs
            if is_planned and self.expansion.overrides(spec.method, variant) == trained:
                return other
        return None

    def names(self, field: str) -> tuple[str, ...]:
        """Return the different values of a RunSpec field, in the order of the runs."""
        return tuple(dict.fromkeys(str(getattr(spec, field)) for spec in self.runs))

    def settings_json(self, **spec: str) -> str:
        """Return the resolved settings of the run that the wildcards name, as JSON.

        Without the device: where a run is made does not name it, and must not make it anew.
        """
        named = RunSpec(**{**spec, "seed": int(spec["seed"])})  # type: ignore[arg-type]
        values = self.resolve(named).as_dict()
        del values["device"]
        return json.dumps(values, sort_keys=True)

    def plan(self) -> Plan:
        """Return what all later stages read: runs, holes, and what each table and figure shows."""
        found = self.expansion
        declared = self.settings
        return Plan(
            study=declared.study,
            title=declared.title,
            runs=tuple(self._planned(spec) for spec in self.runs),
            holes=tuple(Hole(spec, why) for spec, why in found.holes.items()),
            tables={s.name: expansion.selected(declared, s) for s in declared.tables},
            figures={
                s.name: FigureSelection(
                    **vars(expansion.selected(declared, s)), points=found.points.get(s.name, ())
                )
                for s in declared.figures
            },
        )

    def _planned(self, spec: RunSpec) -> PlannedRun:
        resolved = self.resolve(spec)
        return PlannedRun(spec, resolved.digest(), resolved.recipe)


def load(config: Mapping[str, Any]) -> Study:
    """Return the study of a config mapping, every run resolved once so that errors come early.

    Raises: SettingsError naming the key or file at fault.
    """
    declared = settings.load_study(config)
    unknown = set(declared.methods) - set(known_methods())
    if unknown:
        raise settings.SettingsError(
            f"unknown method {sorted(unknown)[0]!r} in the study's methods; "
            f"known: {', '.join(known_methods())}"
        )
    for kind, load_report in (("tables", reports.load_table), ("figures", reports.load_figure)):
        for selection in getattr(declared, kind):
            load_report(selection.name)
    study = Study(declared, expansion.expand(declared))
    for spec in study.runs:
        study.resolve(spec)
    return study
