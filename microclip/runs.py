"""A run: its identity, and all the settings that it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microclip import paths, settings


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
