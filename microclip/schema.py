"""JSON schemas of everything under `config/`, for editors; a test keeps them in step."""

from __future__ import annotations

import json
from pathlib import Path

from microclip import runtime
from microclip.settings import (
    BackboneSettings,
    DatasetSettings,
    DescriptionSettings,
    Frozen,
    MethodFile,
    StudySettings,
    VariantFile,
)
from microclip.settings.reports import FigureSettings, TableSettings
from microclip.text.prompt_sets import PromptSet

_NAMED: dict[str, type[Frozen]] = {
    "backbones": BackboneSettings,
    "datasets": DatasetSettings,
    "figures": FigureSettings,
    "llms": DescriptionSettings,
    "methods": MethodFile,
    "prompts": PromptSet,
    "tables": TableSettings,
}


def schemas() -> dict[str, str]:
    """Return each schema's file name and text."""
    models: dict[str, type[Frozen]] = {**_NAMED, "study": StudySettings, "variants": VariantFile}
    found = {}
    for kind, model in sorted(models.items()):
        schema = model.model_json_schema()
        if kind in _NAMED:  # the file's name is the thing's name
            schema["required"] = [key for key in schema["required"] if key != "name"]
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        found[f"{kind}.json"] = json.dumps(schema, indent=1) + "\n"
    return found


def export(folder: Path) -> None:
    """Write all schemas into `folder`."""
    for name, text in schemas().items():
        runtime.write_text(folder / name, text)
