"""A study as the list of its runs, and a run as its resolved settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microclip import paths, settings
from microclip.methods.registry import known_methods, reads_of, recipe_of, settings_of

__all__ = ["RunSettings", "RunSpec", "Study", "expand", "load", "reads_of"]


@dataclass(frozen=True, order=True)
class RunSpec:
    """The identity of one run: six names that are also the six folders of its results."""

    dataset: str
    backbone: str
    descriptions: str
    method: str
    variant: str = "default"
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Return the run's folder, relative to the working directory."""
        return Path(paths.RUN.format(**asdict(self)))

    @property
    def name(self) -> str:
        """Return the run's name in MLflow: its path below `results/runs`."""
        return self.folder.relative_to("results/runs").as_posix()


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
            "dataset": self.dataset.model_dump(mode="json", exclude={"title", "methods"}),
            "backbone": self.backbone.model_dump(mode="json", exclude={"title"}),
            "descriptions": self.descriptions.model_dump(mode="json", exclude={"title"}),
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
class Study:
    """A validated study and its runs, in a fixed order, each once."""

    settings: settings.StudySettings
    runs: tuple[RunSpec, ...]

    def resolve(self, spec: RunSpec) -> RunSettings:
        """Return the settings of one run: method file -> dataset -> study -> variant."""
        dataset = settings.load_dataset(spec.dataset)
        layers = {
            f"config/methods/{spec.method}.yaml": settings.load_method_file(spec.method).settings,
            f"config/datasets/{spec.dataset}.yaml": dataset.methods.get(spec.method, {}),
            "the study": self.settings.methods.get(spec.method, {}),
            f"config/variants/{spec.method}.yaml": settings.load_variant(spec.method, spec.variant),
        }
        model = settings_of(spec.method)
        merged: dict[str, Any] = {}
        for where, layer in layers.items():
            merged |= layer
            resolved = settings.validated(model, merged, where)
        return RunSettings(
            spec=spec,
            dataset=dataset,
            backbone=settings.load_backbone_settings(spec.backbone),
            descriptions=settings.load_descriptions(spec.descriptions),
            method=resolved.model_dump(mode="json"),
            device=self.settings.device,
            precision=self.settings.precision,
            recipe=recipe_of(spec.method),
        )

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

    def plan(self) -> dict[str, Any]:
        """Return the runs with what names their settings: what `scores.csv` is checked against."""
        runs = [{"name": spec.name, **asdict(spec), **_identity(self, spec)} for spec in self.runs]
        return {"study": self.settings.study, "title": self.settings.title, "runs": runs}


def _identity(study: Study, spec: RunSpec) -> dict[str, Any]:
    resolved = study.resolve(spec)
    return {"digest": resolved.digest(), "recipe": resolved.recipe}


def expand(study: settings.StudySettings) -> tuple[RunSpec, ...]:
    """Return the runs of a study, each once; a method without randomness runs with one seed."""
    found: dict[RunSpec, None] = {}
    for grid in study.runs:
        for method in grid.methods:
            seeds = grid.seeds if grid.seeds is not None else study.seeds
            if not settings.load_method_file(method).seeded:
                seeds = (0,)
            for dataset, backbone, descriptions, variant, seed in itertools.product(
                grid.datasets or study.datasets,
                grid.backbones or study.backbones,
                grid.descriptions or study.descriptions,
                grid.variants,
                seeds,
            ):
                found[RunSpec(dataset, backbone, descriptions, method, variant, seed)] = None
    return tuple(found)


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
    study = Study(declared, expand(declared))
    for spec in study.runs:
        study.resolve(spec)
    for table in declared.tables:
        settings.load_table(table)
    return study
