"""What names a command, and what its folder says of it: new, begun, complete, or another's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from microclip import paths, settings
from microclip.methods.base import recipe_of
from microclip.model.embeddings import backbone_key
from microclip.own_images.core import Options
from microclip.own_images.inputs import Materials, Wishes
from microclip.own_images.record import RECORD
from microclip.runs import RunSettings, RunSpec
from microclip.runtime import sha256
from microclip.settings import SettingsError
from microclip.settings.datasets import DatasetSettings
from microclip.settings.llms import DescriptionSettings

STUDY = "own-images"  # MLflow's experiment


@dataclass(frozen=True)
class OwnSettings(RunSettings):
    """A run's settings, with what one's own images and texts are."""

    inputs: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for YAML or JSON; without where the images lie."""
        values = super().as_dict()
        values["dataset"]["source"] = {"kind": "folder"}
        return {**values, "inputs": self.inputs}


def named(
    wishes: Wishes, materials: Materials, method_settings: BaseModel, options: Options
) -> OwnSettings:
    """Return the settings that name a command; equal ones give equal weights and predictions."""
    backbone = settings.load_backbone_settings(wishes.backbone)
    texts = _texts_identity(wishes)
    method = method_settings.model_dump(mode="json")
    inputs = {
        "images": materials.images_sha256,
        "n_images": len(materials.images),
        "class_names": list(materials.vocabulary.class_names),
        "backbone_key": backbone_key(backbone),
        "texts": texts,
        "labels": materials.labels_sha256,
        "n_label_first": wishes.n_label_first,
    }
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", materials.folder.resolve().name).strip("-._")
    name = name if re.match(r"[A-Za-z0-9]", name) else "images"
    spec = RunSpec(
        dataset=name,
        backbone=wishes.backbone,
        descriptions=texts["kind"],
        method=wishes.method,
        variant=settings.digest([inputs, method, options.model_dump(mode="json")])[:8],
        seed=options.seed,
    )
    return OwnSettings(
        spec=spec,
        dataset=settings.validated(
            DatasetSettings,
            {
                "name": name,
                "title": name,
                "source": {"kind": "folder", "folder": materials.folder},
                "templates": options.templates,
            },
            "the templates",
        ),
        backbone=backbone,
        descriptions=_author(wishes, texts),
        method=method,
        device=options.device,
        precision=options.precision,
        recipe=recipe_of(wishes.method),
        inputs=inputs,
    )


def is_complete(out: Path, wanted: OwnSettings) -> bool:
    """Return whether `out` holds this very command's results; False if it is new or begun.

    Raises:
        SettingsError: `out` holds something else.
    """
    written = out / paths.RUN_SETTINGS
    if not written.is_file():
        strange = [p.name for p in out.iterdir() if not _is_ours(p)] if out.is_dir() else []
        if strange:
            raise SettingsError(
                f"--out {out} holds other files, first {sorted(strange)[0]!r}; name a new or "
                "empty folder"
            )
        return False
    values = settings.read_yaml(written)
    if values.get("digest") != wanted.digest():
        raise SettingsError(
            f"--out {out} belongs to another command ({_difference(values, wanted)}); name "
            "another folder, or remove this one"
        )
    return (out / RECORD).is_file()


def _is_ours(path: Path) -> bool:
    """Return whether a command may have left a file before it was begun."""
    return path.name.startswith(".") or path.name in {
        "bad_files.csv",
        "classes.txt",
        "descriptions.json",
        "descriptions.usage.json",
    }


def _difference(written: dict[str, Any], wanted: OwnSettings) -> str:
    """Return what differs first between two commands, in words."""
    now, then = wanted.as_dict(), written
    if now["spec"]["method"] == (then.get("spec") or {}).get("method"):
        for key, value in now["method"].items():
            if (before := (then.get("method") or {}).get(key)) != value:
                return f"{key} was {before}, is {value}"
    for part in ("spec", "inputs"):
        for key, value in now[part].items():
            before = (then.get(part) or {}).get(key)
            if before != value and key != "variant":
                shown = all(isinstance(v, str | int) and len(str(v)) < 40 for v in (before, value))
                words = key.replace("_", " ")
                return f"{words} was {before}, is {value}" if shown else f"other {words}"
    return "other settings"


def _texts_identity(wishes: Wishes) -> dict[str, Any]:
    if wishes.descriptions is not None:
        known = wishes.descriptions.is_file()
        return {"kind": "file", "sha256": sha256(wishes.descriptions) if known else None}
    if wishes.llm:
        author = settings.load_descriptions(wishes.llm)
        return {"kind": wishes.llm, "domain": wishes.domain, "author": author.identity()}
    return {"kind": "templates"}


def _author(wishes: Wishes, texts: dict[str, Any]) -> DescriptionSettings:
    if wishes.llm:
        return settings.load_descriptions(wishes.llm)
    values = {
        "name": texts["kind"],
        "title": "a file of one's own" if wishes.descriptions else "filled templates",
        "engine": "file",
        "model": "none",
        "prompts": "none",
        "files": "none" if wishes.descriptions is None else wishes.descriptions.name,
    }
    return settings.validated(DescriptionSettings, values, "the descriptions")
