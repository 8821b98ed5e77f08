"""A study as the list of its runs, and a run as its resolved settings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microclip import paths, settings
from microclip.methods.registry import known_methods, recipe_of, settings_of


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
        """Return plain values, ready for YAML or JSON."""
        return {
            "spec": asdict(self.spec),
            "dataset": self.dataset.model_dump(mode="json"),
            "backbone": self.backbone.model_dump(mode="json"),
            "descriptions": self.descriptions.model_dump(mode="json"),
            "method": self.method,
            "device": self.device,
            "precision": self.precision,
            "recipe": self.recipe,
        }

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
