"""What descriptions cost, in MLflow: one experiment, a run for each model and dataset.

The usage file beside the descriptions is the truth. A run that shows it already is left alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microclip import runtime, tracking
from microclip.settings import digest
from microclip.tracking_server import failure, shown_uri

log = logging.getLogger(__name__)

EXPERIMENT = "descriptions"
_SUFFIX = ".usage.json"
_PARAMETERS = ("model", "engine", "prompts", "service")
_METRICS = ("classes", "answers", "answers_used", "prompt_tokens", "completion_tokens", "cost_usd")


def mirror(usage_file: Path) -> bool:
    """Show a usage file and its descriptions in MLflow; return whether that was done.

    MLflow out of reach is no error: `microclip sync` shows it later.
    """
    values = json.loads(usage_file.read_text(encoding="utf-8"))
    marker = usage_file.with_name(usage_file.name.removesuffix(_SUFFIX) + ".mirrored.json")
    shown = {"uri": shown_uri(), "digest": digest(values)}
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == shown:
        return True
    try:
        _show(usage_file, values)
    except Exception as error:  # noqa: BLE001  whatever the store raises, the files are there
        log.warning("MLflow at %s: %s; `microclip sync` shows the costs later", *failure(error))
        return False
    runtime.write_json(marker, shown)
    return True


def _show(usage_file: Path, values: Mapping[str, Any]) -> None:
    client = tracking.connect()
    where = tracking.experiment(client, EXPERIMENT)
    stem = usage_file.name.removesuffix(_SUFFIX)
    name = f"{values['descriptions']}/{values['dataset'] or stem}".replace("'", "")
    for old in client.search_runs([where], f"tags.`mlflow.runName` = '{name}'"):
        client.delete_run(old.info.run_id)
    run = client.create_run(where, run_name=name, tags={"kind": "descriptions"}).info.run_id
    for key in _PARAMETERS:
        client.log_param(run, key, values[key])
    numbers = {key: values[key] for key in _METRICS} | {"quarantined": len(values["quarantined"])}
    last = values["last_command"]
    numbers |= {key: last[key] for key in last if key != "faults"}
    numbers |= {f"faults.{key.replace(' ', '-')}": n for key, n in last["faults"].items()}
    for key, value in numbers.items():
        if value is not None:
            client.log_metric(run, key, float(value))
    for file in (usage_file, usage_file.with_name(f"{stem}.json")):
        if file.is_file():
            client.log_artifact(run, str(file))
    client.set_terminated(run, "FINISHED")


def sync(results: Path) -> tuple[int, int]:
    """Show what MLflow lacks of all usage files; return (files, files that could not be shown)."""
    files = sorted(results.glob(f"descriptions/*/*{_SUFFIX}"))
    return len(files), sum(not mirror(file) for file in files)
