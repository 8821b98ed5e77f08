"""What MLflow shows of a run's settings: columns to compare, tags to filter by, a description.

Parameters are what one compares: every setting of the method, and the seed. What only names the
data and the machine's arithmetic is a tag, so that it does not drown the columns; no setting is
left out, and `settings.yaml` is an artifact of each run.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from microclip import runtime, settings
from microclip.methods.base import settings_of
from microclip.runs import RunSettings

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's pages show as the description
RUN_NAME = "mlflow.runName"
PARENT = "mlflow.parentRunId"
TAG_LENGTH = 8000  # MLflow's limit, in characters


def parameters(run: RunSettings) -> dict[str, str]:
    """Return the method's resolved settings and the seed as MLflow parameters."""
    return {key: str(value) for key, value in {**run.method, "seed": run.spec.seed}.items()}


def changed(run: RunSettings) -> dict[str, Any]:
    """Return the settings that differ from those of `config/methods/<method>.yaml`."""
    method = run.spec.method
    declared = settings.load_method_file(method).settings
    where = f"config/methods/{method}.yaml"
    usual = settings.validated(settings_of(method), declared, where).model_dump(mode="json")
    return {key: value for key, value in run.method.items() if usual.get(key) != value}


def tags(run: RunSettings) -> dict[str, str]:
    """Return the run's six names, what names its settings and data, and the code's version."""
    return {
        RUN_NAME: run.spec.name,
        "kind": "run",
        **{name: str(value) for name, value in asdict(run.spec).items()},
        "changed": _listed(changed(run)) or "nothing",
        "precision": run.precision,
        "data": json.dumps(run.dataset.source.model_dump(mode="json")),
        "job_key": run.digest(),
        "mlflow.source.git.commit": str(runtime.record()["commit"]),
        DESCRIPTION: description(run),
    }


def description(run: RunSettings) -> str:
    """Return a line of Markdown that says what the run is."""
    spec = run.spec
    other = _listed(changed(run))
    return (
        f"**{settings.load_method_file(spec.method).title}**, variant `{spec.variant}`, on "
        f"`{spec.dataset}`, seed {spec.seed}. "
        + (f"Other than `config/methods/{spec.method}.yaml`: {other}." if other else "As declared.")
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))
