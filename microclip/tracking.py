"""Where a run reports: files first, MLflow as their mirror.

`history.csv` and `journal.jsonl` in the run's folder are the truth. MLflow shows them: one
experiment a study, one run a RunSpec, continued under the same settings, else replaced. Whatever
MLflow does, a run goes on; `sync` replays what it lacks. The only module that imports mlflow.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml

from microclip import paths, runtime
from microclip.history import read_history, write_history
from microclip.study import RunSettings

log = logging.getLogger(__name__)

_QUIET = {  # before mlflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_ARTIFACTS = (
    paths.RUN_SETTINGS,
    paths.RUN_HISTORY,
    paths.RUN_PREDICTIONS,
    paths.RUN_WEIGHTS,
    paths.RUN_RECORD,
    paths.RUN_SCORES,
)
_PASSWORD = re.compile(r"//[^/@\s]+@")  # in an address, also within an error's text
_CHUNK = 900  # metrics in one request; the server takes 1,000


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the SQLite file of this results folder, absolute."""
    default = f"sqlite:///{Path(paths.TRACKING_DATABASE).resolve()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def _client() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def init(study: str) -> None:
    """Create database and experiment in one process, before runs start side by side.

    A server out of reach is reported and left alone: the files do without it.
    """
    try:
        _experiment(_client(), study)
    except Exception as error:  # noqa: BLE001  whatever the store raises, runs go on without it
        log.warning("MLflow at %s: %s; runs go on, `microclip sync` later", *_failure(error))


def _failure(error: BaseException) -> tuple[str, str]:
    text = _PASSWORD.sub("//", str(error)).splitlines()
    return _PASSWORD.sub("//", tracking_uri()), text[0] if text else type(error).__name__


def _experiment(client: Any, study: str) -> str:
    if found := client.get_experiment_by_name(study):
        return str(found.experiment_id)
    is_own = "MLFLOW_TRACKING_URI" not in os.environ
    root = (Path(paths.TRACKING_ARTIFACTS).resolve() / study).as_uri() if is_own else None
    return str(client.create_experiment(study, artifact_location=root))


def parameters(settings: RunSettings) -> dict[str, str]:
    """Return the resolved settings as MLflow parameters: the method's own, and the dataset's."""
    source = settings.dataset.source.model_dump(mode="json")
    flat = {f"data.{key}": value for key, value in source.items()}
    flat |= {**settings.method, "precision": settings.precision, "seed": settings.spec.seed}
    return {key: str(value) for key, value in flat.items()}


def tags(settings: RunSettings) -> dict[str, str]:
    """Return the run's six names, what names its settings, and the code's version."""
    spec = settings.spec
    return {
        "mlflow.runName": spec.name,
        **{name: str(value) for name, value in asdict(spec).items()},
        "job_key": settings.digest(),
        "mlflow.source.git.commit": str(runtime.record()["commit"]),
    }


class Mirror:
    """One MLflow run, found again by its name; every failure ends the mirroring, not the run."""

    def __init__(self, settings: RunSettings, study: str) -> None:
        """Find the run of the same settings or create it."""
        self._alive = True
        self._settings = settings
        self.last_epoch = -1  # epoch 0 is the network before training
        self.run_id: str | None = None
        self._do(lambda: self._open(study))

    def _do(self, action: Callable[[], None]) -> bool:
        if not self._alive:
            return False
        try:
            action()
        except Exception as error:  # noqa: BLE001  a mirror must never stop a run
            self._alive = False
            hint = "the run goes on, `microclip sync` later"
            log.warning("MLflow at %s: %s; %s", *_failure(error), hint)
        return self._alive

    def _open(self, study: str) -> None:
        self._mlflow = _client()
        experiment = _experiment(self._mlflow, study)
        name = self._settings.spec.name.replace("'", "")
        for run in self._mlflow.search_runs([experiment], f"tags.`mlflow.runName` = '{name}'"):
            same = run.data.tags.get("job_key") == self._settings.digest()
            if same and self.run_id is None and run.data.tags.get("complete") != "true":
                self.run_id = run.info.run_id
                self._mlflow.update_run(self.run_id, status="RUNNING")
                self.last_epoch = int(run.data.metrics.get("epoch", -1))
            else:
                self._mlflow.delete_run(run.info.run_id)
        if self.run_id is None:
            created = self._mlflow.create_run(experiment, tags=tags(self._settings))
            self.run_id = created.info.run_id
            self._log_settings()
            self._log_dataset()

    def _log(self, metrics: list[Any]) -> None:
        for start in range(0, len(metrics), _CHUNK):
            self._mlflow.log_batch(self.run_id, metrics=metrics[start : start + _CHUNK])

    def _log_settings(self) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in parameters(self._settings).items()]
        self._mlflow.log_batch(self.run_id, params=params)

    def _log_dataset(self) -> None:
        manifest = Path(paths.MANIFEST.format(dataset=self._settings.spec.dataset))
        if not manifest.is_file():
            return
        import mlflow.data
        import pandas as pd
        from mlflow.entities import DatasetInput, InputTag

        frame = pd.read_csv(manifest, dtype=str)
        with warnings.catch_warnings():  # the source is a local file, whatever else it could be
            warnings.simplefilter("ignore", UserWarning)
            data = mlflow.data.from_pandas(  # type: ignore[attr-defined]
                frame, source=str(manifest), name=self._settings.spec.dataset
            )
        entry = DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", "train")])
        self._mlflow.log_inputs(self.run_id, datasets=[entry])

    def epochs(self, rows: list[dict[str, float]]) -> None:
        """Log rows of history that are not there yet, in one request."""
        from_here = [row for row in rows if row["epoch"] > self.last_epoch]
        if from_here and self._do(lambda: self._log(list(_metrics(from_here)))):
            self.last_epoch = int(from_here[-1]["epoch"])

    def finish(self, scores: Mapping[str, Any], folder: Path) -> bool:
        """Log final numbers and files, check that they arrived, and close the run."""

        def close() -> None:
            numbers = {k: v for k, v in scores.items() if isinstance(v, int | float)}
            numbers["total_seconds"] = numbers.pop("seconds", 0.0)  # "seconds" is an epoch's
            last = {"epoch": max(self.last_epoch, 0), **numbers}
            self._log(list(_metrics([last])))
            self._mlflow.set_tag(self.run_id, "artifacts", "incomplete")
            files = [folder / name for name in _ARTIFACTS if (folder / name).is_file()]
            for file in files:
                self._mlflow.log_artifact(self.run_id, str(file))
            there = {item.path for item in self._mlflow.list_artifacts(self.run_id)}
            if lost := {file.name for file in files} - there:
                raise OSError(f"artifacts {', '.join(sorted(lost))} did not arrive")
            self._mlflow.set_tag(self.run_id, "artifacts", "complete")
            self._mlflow.set_tag(self.run_id, "complete", "true")
            self._mlflow.set_terminated(self.run_id, "FINISHED")

        return self._do(close)

    def fail(self, status: str, reason: str) -> None:
        """Mark the run FAILED or KILLED, with the reason."""
        self._do(lambda: self._mlflow.set_tag(self.run_id, "reason", reason))
        self._do(lambda: self._mlflow.set_terminated(self.run_id, status))


def _metrics(rows: list[dict[str, Any]]) -> Iterator[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("seed", "recipe", "shared_recipe"):
                yield Metric(key, float(value), now, int(row["epoch"]))


class RunTracker:
    """What a run reports to: the journal and history of its folder, and the mirror."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        """Take up the history that an interrupted run left."""
        self._folder = folder
        self._mirror = mirror
        self._rows = {int(row["epoch"]): row for row in read_history(folder)}

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record a row of history; the same epoch written again replaces it and what follows."""
        self._rows = {k: v for k, v in self._rows.items() if k < epoch}
        self._rows[epoch] = {"epoch": epoch, **row}
        write_history(self._folder, list(self._rows.values()))
        self._journal({"event": "epoch", **self._rows[epoch]})
        self._mirror.epochs([self._rows[epoch]])

    def message(self, text: str) -> None:
        """Show a line to whoever watches."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
        sys.stderr.flush()

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Close the mirrored run; remember that the mirror is whole."""
        self._journal({"event": "finished", "top1_pct": scores["top1_pct"]})
        if self._mirror.finish(scores, self._folder):
            marker = self._folder / paths.RUN_MIRRORED
            runtime.write_json(marker, mirrored(scores, self._mirror.run_id))

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Record that the run ended early."""
        self._journal({"event": status.lower(), "reason": reason})
        self._mirror.fail(status, reason)

    def _journal(self, line: Mapping[str, Any]) -> None:
        with (self._folder / paths.RUN_JOURNAL).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **line}) + "\n")


def mirrored(scores: Mapping[str, Any], run_id: str | None) -> dict[str, str | None]:
    """Return what says that the mirror holds these scores, and in which of its runs."""
    where = {"uri": _PASSWORD.sub("//", tracking_uri()), "run_id": run_id}
    return {**where, "digest": str(scores["digest"])}


def open_tracker(settings: RunSettings, folder: Path, study: str) -> RunTracker:
    """Return the tracker of a run whose folder it creates; `settings.yaml` is written first."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"digest": settings.digest(), "study": study, **settings.as_dict()}
    runtime.write_text(folder / paths.RUN_SETTINGS, yaml.safe_dump(values, sort_keys=False))
    return RunTracker(folder, Mirror(settings, study))


def sync(results: Path) -> tuple[int, int]:
    """Replay complete runs that the mirror lacks; return (replayed, failed)."""
    done = failed = 0
    for scored in sorted(results.glob(f"runs/**/{paths.RUN_SCORES}")):
        folder = scored.parent
        scores = json.loads(scored.read_text(encoding="utf-8"))
        marker = folder / paths.RUN_MIRRORED
        known = json.loads(marker.read_text()) if marker.is_file() else {}
        if known == mirrored(scores, known.get("run_id")):
            continue
        values = yaml.safe_load((folder / paths.RUN_SETTINGS).read_text(encoding="utf-8"))
        mirror = Mirror(RunSettings.from_dict(values), values["study"])
        mirror.epochs(read_history(folder))
        if mirror.finish(scores, folder):
            runtime.write_json(marker, mirrored(scores, mirror.run_id))
            done += 1
        else:
            failed += 1
    return done, failed


def serve(port: int) -> None:
    """Serve MLflow's pages on 127.0.0.1 until interrupted; this process becomes the server."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    arguments = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *arguments])
