"""A study: which runs it needs, their resolved settings, and the plan that later stages read.

One subject in three steps, which is why it is one long module. `RunSpec` and `RunSettings` name a
run and hold all it depends on. `expand` turns the study's lists, tables and figures into runs and
holes, each once. `Study.plan` writes down the result, the only thing that the workflow, tables and
figures read. No torch is imported, so that planning is quick.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from microclip import paths, runtime, settings
from microclip.methods.base import (
    check_blocks,
    check_keys,
    evaluation_fields,
    further_backbones,
    known_methods,
    reads_of,
    recipe_of,
    resolved_settings,
    settings_of,
)
from microclip.settings import reports
from microclip.settings.base import SettingsError, check_device, digest_of_text, loads, readable
from microclip.settings.study import (
    DECLARED,
    ReportSelection,
    RunGrid,
    StudySettings,
    check_options,
)

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
        """The run that a row of `scores.csv` or an entry of a plan belongs to."""
        names = {name: str(row[name]) for name in SPEC if name != "seed"}
        return cls(**names, seed=int(row["seed"]))

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the working directory."""
        return Path(paths.RUN.format(**vars(self)))

    @property
    def name(self) -> str:
        """The run's name in MLflow: its path below `results/runs`."""
        return paths.RUN.removeprefix("results/runs/").format(**vars(self))


SPEC = tuple(field.name for field in fields(RunSpec))


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run depends on besides its input files."""

    spec: RunSpec
    dataset: settings.DatasetSettings
    backbone: settings.BackboneSettings
    descriptions: settings.DescriptionSettings
    method: dict[str, Any]  # resolved and complete, ready for Method.Settings
    device: str
    precision: str
    recipe: int
    compile: str = "off"
    further_backbones: tuple[settings.BackboneSettings, ...] = ()  # that the method also loads

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML or JSON, without titles and other parts that change no number.

        `compile` is left out while it is off, and further backbones while there are none, so that
        older runs keep their digests.
        """
        used: dict[str, Any] = {} if self.compile == "off" else {"compile": self.compile}
        if self.further_backbones:
            used["further_backbones"] = [_identity(one) for one in self.further_backbones]
        return {
            "spec": dict(vars(self.spec)),
            "dataset": self.dataset.model_dump(mode="json", exclude={"title", "methods", "card"}),
            "backbone": _identity(self.backbone),
            "descriptions": self.descriptions.identity(),
            "method": self.method,
            "device": self.device,
            "precision": self.precision,
            "recipe": self.recipe,
            **used,
        }

    @classmethod
    @readable("the run's settings", "use a settings.yaml that a run has written")
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """Read back what `as_dict` returned; other keys are ignored.

        Raises:
            SettingsError: the values are not a run's settings.
        """
        where = "the run's settings"
        required = ("spec", "dataset", "backbone", "descriptions", "method", "recipe")
        missing = [key for key in required if key not in values]
        if missing:
            raise settings.SettingsError(
                f"{where} lack {missing[0]!r}; use a settings.yaml that a run has written"
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
            device=check_device(values.get("device", "auto"), where),
            precision=str(values.get("precision", "fp32")),
            recipe=int(values["recipe"]),
            compile=str(values.get("compile", "off")),
            further_backbones=tuple(
                settings.validated(settings.BackboneSettings, {"title": "", **one}, where)
                for one in values.get("further_backbones", ())
            ),
        )

    @cached_property
    def identity(self) -> str:
        """JSON of all that decides the numbers: all but the device."""
        values = self.as_dict()
        del values["device"]
        return json.dumps(values, sort_keys=True)

    def digest(self) -> str:
        """Digest that identifies these settings; the device is not part of it."""
        return digest_of_text(self.identity)


def _identity(backbone: settings.BackboneSettings) -> dict[str, Any]:
    """What decides a backbone's numbers."""
    return backbone.model_dump(mode="json", exclude={"title"})


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study, and what `scores.csv` checks it against.

    Attributes:
        digest: digest of its settings.
        recipe: version of its method's code.
    """

    spec: RunSpec
    digest: str
    recipe: int

    @property
    def name(self) -> str:
        """The run's name in MLflow."""
        return self.spec.name

    def as_dict(self) -> dict[str, Any]:
        """The run as `plan.json` holds it."""
        return {
            "name": self.name,
            **vars(self.spec),
            "digest": self.digest,
            "recipe": self.recipe,
        }


@dataclass(frozen=True)
class Hole:
    """A run that a table or figure needs but that cannot be made, and why."""

    spec: RunSpec
    reason: str


@dataclass(frozen=True)
class Selection:
    """The part of a study that a table shows, and how.

    Attributes:
        is_brief: leave out rows without any run.
        spread: what is shown with an accuracy.
        reference: the row that others are compared with, unless it is the table's own.
        has_ranks: add mean ranks over datasets.
        epoch: which one is shown of methods that train.
    """

    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    descriptions: tuple[str, ...]
    seeds: tuple[int, ...]
    is_brief: bool = False
    spread: reports.Spread = "deviation"
    reference: str | None = None
    has_ranks: bool = False
    epoch: reports.Epoch = "last"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `plan.json`.

        Options of a table are left out unless used: the workflow repeats what has another digest.
        """
        unused = Selection((), (), (), ())
        options = ("spread", "reference", "has_ranks", "epoch")
        left_out = {name for name in options if getattr(self, name) == getattr(unused, name)}
        return {key: value for key, value in asdict(self).items() if key not in left_out}


@dataclass(frozen=True)
class SweepPoint:
    """A value of a sweep on one dataset, and the variant with that value."""

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
        tables: selections by table name, in the study's order.
        figures: selections by figure name, in the study's order.
    """

    study: str
    title: str
    runs: tuple[PlannedRun, ...]
    holes: tuple[Hole, ...]
    tables: Mapping[str, Selection]
    figures: Mapping[str, FigureSelection]

    def as_dict(self) -> dict[str, Any]:
        """The plan as `plan.json` holds it; the workflow takes digests of its parts."""
        return {
            "study": self.study,
            "title": self.title,
            "runs": [run.as_dict() for run in self.runs],
            "holes": [{**vars(hole.spec), "reason": hole.reason} for hole in self.holes],
            "tables": {name: part.as_dict() for name, part in self.tables.items()},
            "figures": {name: part.as_dict() for name, part in self.figures.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Read back what `as_dict` returned. Raises KeyError or TypeError for anything else."""
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
        """Read the plan of a study. Raises MissingDataError if the study was not planned."""
        path = Path(paths.STUDY_PLAN.format(study=study))
        if not path.is_file():
            raise runtime.MissingDataError(f"{path} does not exist; run `snakemake`")
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> Plan:
        """Read the plan from a file. Raises SettingsError if the file holds something else."""
        with readable(f"{path}, a study's plan,", "run `microclip plan --config FILE`"):
            return cls.from_dict(loads(path.read_text(encoding="utf-8")))

    def write(self) -> Path:
        """Write the plan where all stages look for it; return the file."""
        target = Path(paths.STUDY_PLAN.format(study=self.study))
        runtime.write_json(target, self.as_dict())
        return target


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with JSON's lists as tuples."""
    return {key: tuple(part) if isinstance(part, list) else part for key, part in values.items()}


@dataclass
class Expansion:
    """Everything that a study needs.

    Attributes:
        runs: all runs, in order of first mention.
        holes: runs that cannot be made, with the reason.
        generated: overrides of the variants that sweeps created, by method and variant.
        points: points of the sweeps, by figure.
    """

    study: StudySettings
    runs: dict[RunSpec, None] = field(default_factory=dict)
    holes: dict[RunSpec, str] = field(default_factory=dict)
    generated: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    points: dict[str, tuple[SweepPoint, ...]] = field(default_factory=dict)
    _files: dict[str, settings.VariantFile] = field(default_factory=dict, repr=False)
    _resolved: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict, repr=False)

    def add(self, method: str, variant: str, part: Selection) -> None:
        """Add a method's runs on a part of the study, or holes if the method has no code."""
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
        """The settings that a variant changes: a sweep's point, or a variant of config/variants."""
        made = self.generated.get((method, variant), self.named(method).get(variant))
        return settings.load_variant(method, variant) if made is None else made

    def resolved(self, method: str, variant: str, dataset: str) -> dict[str, Any]:
        """A method's complete settings; resolved once for all backbones, descriptions and seeds."""
        key = (method, variant, dataset)
        if key not in self._resolved:
            own = self._file(method).datasets.get(variant, {}).get(dataset, {})
            overrides = {**self.overrides(method, variant), **own}
            source = f"variant {variant} of config/variants/{method}.yaml"
            self._resolved[key] = resolved_settings(
                self.study.methods, method, dataset, overrides, source
            )
        return self._resolved[key]

    def named(self, method: str) -> dict[str, dict[str, Any]]:
        """A method's variants in config/variants."""
        return {"default": {}, **self._file(method).variants}

    def _file(self, method: str) -> settings.VariantFile:
        """A method's file in config/variants; each is read once."""
        if method not in self._files:
            self._files[method] = settings.variant_file(method)
        return self._files[method]


def unavailable(method: str) -> str | None:
    """Why a declared method cannot run; None if it can."""
    return None if method in known_methods() else f"method {method} has no code in this release"


def expand(study: StudySettings) -> Expansion:
    """Collect everything that a study needs.

    Raises:
        SettingsError: names the method, variant, table or figure at fault.
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
    table = reports.load_table(selection.name)
    for side in (side for claim in table.claims for side in (claim.first, claim.second)):
        if side.figure is None:  # the figure makes its points
            found.add(side.method, side.variant, selected(found.study, selection))
    for row in table.rows:
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
            variant = _point(found, figure, dataset, value)
            points.append(SweepPoint(dataset, value, variant))
            found.add(figure.plot.method, variant, replace(part, datasets=(dataset,)))
    found.points[figure.name] = tuple(points)


def selected(study: StudySettings, asked: ReportSelection | RunGrid) -> Selection:
    """The requested part of a study; a list that is not given means everything."""
    part = Selection(
        datasets=asked.datasets or study.datasets,
        backbones=asked.backbones or study.backbones,
        descriptions=asked.descriptions or study.descriptions,
        seeds=study.seeds if asked.seeds is None else asked.seeds,
    )
    if isinstance(asked, RunGrid):
        return part
    return replace(
        part,
        is_brief=asked.is_brief,
        spread=asked.spread,
        reference=asked.reference,
        has_ranks=asked.has_ranks,
        epoch=asked.epoch,
    )


def _point(found: Expansion, figure: reports.FigureSettings, dataset: str, value: float) -> str:
    """The variant for a value of a sweep, created if no file declares it."""
    plot, source = figure.plot, f"the values of figure {figure.name}"
    assert isinstance(plot, reports.SweepPlot)
    overrides = {plot.setting: value}
    if plot.setting not in settings_of(plot.method).model_fields:
        raise SettingsError(
            f"{plot.method} has no setting {plot.setting!r}, which the sweep over {plot.prefix} "
            f"changes; known: {', '.join(settings_of(plot.method).model_fields)}"
        )
    # A point equal to the default is the default run, so that it is trained once.
    of_study = found.study.methods
    default = resolved_settings(of_study, plot.method, dataset, {}, source)
    if resolved_settings(of_study, plot.method, dataset, overrides, source) == default:
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


@dataclass(frozen=True)
class Study:
    """A validated study and its runs, in a fixed order and without repetition."""

    settings: settings.StudySettings
    expansion: Expansion

    @cached_property
    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, in order."""
        return tuple(self.expansion.runs)

    @cached_property
    def _settings(self) -> dict[RunSpec, RunSettings]:
        """The settings of all runs: a workflow asks for those of each run several times."""
        return {spec: self._resolve(spec) for spec in self.runs}

    def resolve(self, spec: RunSpec) -> RunSettings:
        """Return the settings of one run: method file -> dataset -> study -> variant."""
        found = self._settings.get(spec)
        return self._resolve(spec) if found is None else found

    def _resolve(self, spec: RunSpec) -> RunSettings:
        method = self.expansion.resolved(spec.method, spec.variant, spec.dataset)
        return RunSettings(
            spec=spec,
            dataset=settings.load_dataset(spec.dataset),
            backbone=settings.load_backbone_settings(spec.backbone),
            descriptions=settings.load_descriptions(spec.descriptions),
            method=method,
            device=self.settings.device,
            precision=self.settings.precision,
            recipe=recipe_of(spec.method, method),
            compile=self.settings.compile,
            further_backbones=tuple(
                map(settings.load_backbone_settings, further_backbones(spec.method, method))
            ),
        )

    def trained_by(self, spec: RunSpec) -> RunSpec | None:
        """The run of this study whose weights `spec` only tests in another way, if there is one."""
        overrides = self.expansion.overrides(spec.method, spec.variant)
        ignored = evaluation_fields(spec.method)
        trained = {key: value for key, value in overrides.items() if key not in ignored}
        if trained == overrides:
            return None
        for variant in self._variants[spec.method]:
            if self.expansion.overrides(spec.method, variant) == trained:
                other = replace(spec, variant=variant)
                if other in self.expansion.runs:
                    return other
        return None

    @cached_property
    def _variants(self) -> dict[str, tuple[str, ...]]:
        """The variants of each method, in the order of the runs."""
        pairs = dict.fromkeys((spec.method, spec.variant) for spec in self.runs)
        return {
            method: tuple(variant for own, variant in pairs if own == method) for method, _ in pairs
        }

    def names(self, field: str) -> tuple[str, ...]:
        """The distinct values of a RunSpec field, in the order of the runs."""
        return tuple(dict.fromkeys(str(getattr(spec, field)) for spec in self.runs))

    def settings_json(self, **spec: str) -> str:
        """The resolved settings of the run that the wildcards name, as JSON.

        The device is left out: running elsewhere must not make Snakemake repeat the run.
        """
        named = RunSpec(**{**spec, "seed": int(spec["seed"])})  # type: ignore[arg-type]
        return self.resolve(named).identity

    def plan(self) -> Plan:
        """What later stages read: runs, holes, and what each table and figure shows."""
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


def load(config: Mapping[str, Any], where: str = DECLARED) -> Study:
    """Load the study of a config mapping; every run is resolved once, so that errors come early.

    `where` names the file for errors.

    Raises:
        SettingsError: names the key or file at fault.
    """
    check_keys(config, where)
    declared = settings.load_study(config, where)
    check_blocks(declared.methods, where)
    for selection in declared.tables:
        check_options(selection, reports.load_table(selection.name))
    for selection in declared.figures:
        check_options(selection, reports.load_figure(selection.name))
    study = Study(declared, expand(declared))
    for spec in study.runs:
        study.resolve(spec)
    return study
