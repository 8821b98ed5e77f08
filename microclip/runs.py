"""A run, its identity and its settings; and the plan of a study, which all later stages read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from microclip import paths, runtime, settings


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
