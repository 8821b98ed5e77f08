"""What descriptions cost, in MLflow: one experiment, a run for each model and dataset.

The usage file beside the descriptions is the truth. A run that shows it already is left alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from microclip import runtime
from microclip.settings import digest
from microclip.tracking import run as tracking
from microclip.tracking_server import failure, shown_uri

if TYPE_CHECKING:
    from microclip.text.generated import Usage

log = logging.getLogger(__name__)

DESCRIPTIONS = "descriptions"  # the experiment
_USAGE = ".usage.json"


def mirror_usage(usage_file: Path) -> bool:
    """Show a usage file and its descriptions in MLflow; return whether that was done.

    MLflow out of reach is no error: `microclip sync` shows it later.
    """
    usage: Usage = json.loads(usage_file.read_text(encoding="utf-8"))
    marker = usage_file.with_name(usage_file.name.removesuffix(_USAGE) + ".mirrored.json")
    shown = {"uri": shown_uri(), "digest": digest(usage)}
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == shown:
        return True
    try:
        _show_usage(usage_file, usage)
    except Exception as error:  # noqa: BLE001  whatever the store raises, the files are there
        log.warning("MLflow at %s: %s; `microclip sync` shows the costs later", *failure(error))
        return False
    runtime.write_json(marker, shown)
    return True


def _show_usage(usage_file: Path, usage: Usage) -> None:
    client = tracking.connect()
    where = tracking.experiment(client, DESCRIPTIONS)
    stem = usage_file.name.removesuffix(_USAGE)
    name = f"{usage['descriptions']}/{usage['dataset'] or stem}".replace("'", "")
    for old in client.search_runs([where], f"tags.`mlflow.runName` = '{name}'"):
        client.delete_run(old.info.run_id)
    run = client.create_run(where, run_name=name, tags={"kind": "descriptions"}).info.run_id
    client.log_param(run, "model", usage["model"])
    client.log_param(run, "engine", usage["engine"])
    client.log_param(run, "prompts", usage["prompts"])
    client.log_param(run, "service", usage["service"])
    for key, value in _usage_metrics(usage).items():
        if value is not None:
            client.log_metric(run, key, float(value))
    for file in (usage_file, usage_file.with_name(f"{stem}.json")):
        if file.is_file():
            client.log_artifact(run, str(file))
    client.set_terminated(run, "FINISHED")


def _usage_metrics(usage: Usage) -> Mapping[str, float | None]:
    """Return the numbers of a usage file by the names that MLflow shows."""
    last = usage["last_command"]
    return {
        "classes": usage["classes"],
        "answers": usage["answers"],
        "answers_used": usage["answers_used"],
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cost_usd": usage["cost_usd"],
        "quarantined": len(usage["quarantined"]),
        "estimated_requests": last["estimated_requests"],
        "estimated_prompt_tokens": last["estimated_prompt_tokens"],
        "estimated_completion_tokens": last["estimated_completion_tokens"],
        "estimated_cost_usd": last["estimated_cost_usd"],
        "requests_sent": last["requests_sent"],
        "spent_usd": last["spent_usd"],
        **{f"faults.{name.replace(' ', '-')}": n for name, n in last["faults"].items()},
    }


def sync_usage(results: Path) -> tuple[int, int]:
    """Show what MLflow lacks of all usage files; return (files, files that could not be shown)."""
    files = sorted(results.glob(f"descriptions/*/*{_USAGE}"))
    return len(files), sum(not mirror_usage(file) for file in files)
