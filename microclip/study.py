"""A study: its runs, their resolved settings, and the plan that all later stages read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from microclip import paths, runtime, settings
from microclip.methods.base import (
    evaluation_fields,
    known_methods,
    reads_of,
    recipe_of,
    settings_of,
)
from microclip.settings import reports
from microclip.settings.base import SettingsError
from microclip.settings.study import ReportSelection, RunGrid, StudySettings

__all__ = ["Plan", "RunSettings", "RunSpec", "Study", "load", "reads_of"]


@dataclass(frozen=True, order=True)
class RunSpec:
    """The identity of one run: six names that are also the six folders of its results."""

    dataset: str
    backbone: str
    descriptions: str
    method: str
    variant: str = "default"
    seed: int = 0

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> RunSpec:
        """Return the run that a row of `scores.csv` or an entry of a plan is about."""
        names = {name: str(row[name]) for name in SPEC if name != "seed"}
        return cls(**names, seed=int(row["seed"]))

    @property
    def folder(self) -> Path:
        """Return the run's folder, relative to the working directory."""
        return Path(paths.RUN.format(**asdict(self)))

    @property
    def name(self) -> str:
        """Return the run's name in MLflow: its path below `results/runs`."""
        return self.folder.relative_to("results/runs").as_posix()


SPEC = tuple(field.name for field in fields(RunSpec))


@dataclass(frozen=True)
class RunSettings:
    """All that a run depends on besides its input files."""

    spec: RunSpec
    dataset: settings.DatasetSettings
    backbone: settings.BackboneSettings
    descriptions: settings.DescriptionSettings
    method: dict[str, Any]  # resolved and complete, ready for Method.Settings
    device: str
    precision: str
    recipe: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for YAML or JSON; without what changes no number."""
        return {
            "spec": asdict(self.spec),
            "dataset": self.dataset.model_dump(mode="json", exclude={"title", "methods", "card"}),
            "backbone": self.backbone.model_dump(mode="json", exclude={"title"}),
            "descriptions": self.descriptions.identity(),
            "method": self.method,
            "device": self.device,
            "precision": self.precision,
            "recipe": self.recipe,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """Return settings from what `as_dict` gave; other keys are ignored.

        Raises: SettingsError if they are not a run's settings.
        """
        where = "the run's settings"
        required = ("spec", "dataset", "backbone", "descriptions", "method", "recipe")
        missing = [key for key in required if key not in values]
        if missing:
            raise settings.SettingsError(
                f"{where} lack {missing[0]!r}; take a settings.yaml that a run has written"
            )
        models: dict[str, type[settings.Frozen]] = {
            "dataset": settings.DatasetSettings,
            "backbone": settings.BackboneSettings,
            "descriptions": settings.DescriptionSettings,
        }
        parts: dict[str, Any] = {
            key: settings.validated(model, {"title": "", **values[key]}, where)
            for key, model in models.items()
        }
        return cls(
            spec=RunSpec(**values["spec"]),
            **parts,
            method=dict(values["method"]),
            device=str(values.get("device", "auto")),
            precision=str(values.get("precision", "fp32")),
            recipe=int(values["recipe"]),
        )

    def digest(self) -> str:
        """Return what names these settings; the device is not part of it."""
        values = self.as_dict()
        del values["device"]
        return settings.digest(values)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study, and what `scores.csv` checks it against.

    Attributes:
        digest: of its settings.
        recipe: version of its method's code.
    """

    spec: RunSpec
    digest: str
    recipe: int

    @property
    def name(self) -> str:
        """Return the run's name in MLflow."""
        return self.spec.name

    def as_dict(self) -> dict[str, Any]:
        """Return the run as the plan's file holds it."""
        return {
            "name": self.name,
            **asdict(self.spec),
            "digest": self.digest,
            "recipe": self.recipe,
        }


@dataclass(frozen=True)
class Hole:
    """A run that a table or figure asks for and that cannot be made."""

    spec: RunSpec
    reason: str


@dataclass(frozen=True)
class Selection:
    """The part of a study that a table shows; `is_brief` leaves out rows without any run."""

    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    descriptions: tuple[str, ...]
    seeds: tuple[int, ...]
    is_brief: bool = False


@dataclass(frozen=True)
class SweepPoint:
    """A value of a sweep on one dataset, and the variant that has it."""

    dataset: str
    value: float
    variant: str


@dataclass(frozen=True)
class FigureSelection(Selection):
    """The part of a study that a figure shows; only a sweep has points."""

    points: tuple[SweepPoint, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`results/<study>/plan.json`: a study's runs, its holes, and what each report shows.

    Attributes:
        tables: by name, in the study's order.
        figures: likewise.
    """

    study: str
    title: str
    runs: tuple[PlannedRun, ...]
    holes: tuple[Hole, ...]
    tables: Mapping[str, Selection]
    figures: Mapping[str, FigureSelection]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as its file holds it; the workflow takes digests of its parts."""
        return {
            "study": self.study,
            "title": self.title,
            "runs": [run.as_dict() for run in self.runs],
            "holes": [{**asdict(hole.spec), "reason": hole.reason} for hole in self.holes],
            "tables": {name: asdict(part) for name, part in self.tables.items()},
            "figures": {name: asdict(part) for name, part in self.figures.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan that `as_dict` gave. Raises KeyError or TypeError if it is none."""
        return cls(
            study=str(values["study"]),
            title=str(values["title"]),
            runs=tuple(
                PlannedRun(RunSpec.of(run), str(run["digest"]), int(run["recipe"]))
                for run in values["runs"]
            ),
            holes=tuple(Hole(RunSpec.of(hole), str(hole["reason"])) for hole in values["holes"]),
            tables={name: Selection(**_tuples(part)) for name, part in values["tables"].items()},
            figures={
                name: FigureSelection(
                    **_tuples({**part, "points": [SweepPoint(**one) for one in part["points"]]})
                )
                for name, part in values["figures"].items()
            },
        )

    @classmethod
    def read(cls, study: str) -> Plan:
        """Return the plan of a study. Raises MissingDataError if it was not planned."""
        path = Path(paths.STUDY_PLAN.format(study=study))
        if not path.is_file():
            raise runtime.MissingDataError(f"{path} does not exist; run `make run` or `snakemake`")
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> Plan:
        """Return the plan in a file. Raises SettingsError if it holds something else."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise settings.SettingsError(
                f"{path} is not a study's plan ({error!r}); run `microclip plan --config FILE`"
            ) from error

    def write(self) -> Path:
        """Write the plan where all stages find it; return the file."""
        target = Path(paths.STUDY_PLAN.format(study=self.study))
        runtime.write_json(target, self.as_dict())
        return target


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with JSON's lists as tuples."""
    return {key: tuple(part) if isinstance(part, list) else part for key, part in values.items()}


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
            method=resolve_method(
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
            tables={s.name: selected(declared, s) for s in declared.tables},
            figures={
                s.name: FigureSelection(
                    **vars(selected(declared, s)), points=found.points.get(s.name, ())
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
    study = Study(declared, expand(declared))
    for spec in study.runs:
        study.resolve(spec)
    return study
