"""How a run reports: to files first, and to MLflow as their mirror.

`history.csv` and `journal.jsonl` in the run's folder are the truth. MLflow shows them: one
experiment per study, one run per RunSpec, continued if the settings are the same, otherwise
replaced. Parameters are what users compare: every setting of the method, and the seed. Tags are
for what only names the data or the machine, so that it does not crowd the columns.

A run goes on whatever MLflow does; `sync` replays what MLflow lacks. History, reporter, mirror and
tracker are one module because they must agree on the rows of an epoch and on when a run is
complete. Only this package and `microclip.export` import mlflow.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import yaml

from microclip import paths, runtime, settings
from microclip.methods.base import settings_of
from microclip.processes import Terminated
from microclip.study import RunSettings

if TYPE_CHECKING:
    from microclip.adaptation.first_batch import FirstBatch
    from microclip.methods.base import Tracker

log = logging.getLogger(__name__)


def write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write `history.csv`, one row per epoch; the columns are those of the last row that has most.

    Not every epoch is tested, so the last row may lack columns.
    """
    widest = max(reversed(rows), key=len)
    with (
        runtime.atomic_path(folder / paths.RUN_HISTORY) as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(
            stream, fieldnames=list(widest), extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def read_history(folder: Path) -> list[dict[str, float]]:
    """Rows of `history.csv`; none if the file does not exist."""
    path = folder / paths.RUN_HISTORY
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            {key: float(value) for key, value in row.items() if value not in ("", None)}
            for row in csv.DictReader(stream)
        ]


class RunClock:
    """Seconds that a run has taken over all its processes; a resumed run counts on."""

    def __init__(self, folder: Path | None = None) -> None:
        """Start counting for this process; `folder` has the history of earlier ones, if any."""
        self._started = time.perf_counter()
        past = [] if folder is None else read_history(folder)
        self._elapsed = {int(r["epoch"]): r.get("elapsed_s", 0.0) for r in past}
        self._before: float | None = None

    def at(self, epoch: int) -> float:
        """Seconds at the end of an epoch."""
        # The first call shows at which epoch the run was resumed, which may be before the last one
        # in the history if the checkpoint is older.
        if self._before is None:
            self._before = self._elapsed.get(epoch - 1, 0.0)
        return self.seconds()

    def seconds(self) -> float:
        """Seconds so far."""
        return (self._before or 0.0) + time.perf_counter() - self._started


def epoch_line(
    epoch: int, n_epochs: int | None, row: Mapping[str, float], shown: Mapping[str, str]
) -> str:
    """One line for people: an epoch's columns in `shown` (column: format), and the time left."""
    parts = [form.format(row[name]) for name, form in shown.items() if name in row]
    if n_epochs and "seconds" in row:
        parts.append(f"about {round((n_epochs - epoch) * row['seconds'])} s left")
    total = "" if n_epochs is None else f"/{n_epochs}"
    return f"epoch {epoch}{total}: " + ", ".join(parts)


class Observer(Protocol):
    """Measures a method during training, with labels or without."""

    @property
    def shown(self) -> Mapping[str, str]:
        """Columns of an epoch that are shown to people, with their formats."""

    def take(self, epoch: int) -> dict[str, float]:
        """Measurements since the last call, by column of the history."""


class EpochReporter:
    """A tracker that adds an observer's measurements to each epoch's row and prints a line."""

    def __init__(
        self,
        tracker: Tracker,
        observer: Observer,
        clock: RunClock,
        *,
        n_epochs: int | None,
        past: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Pass everything on to `tracker`; `past` is what an interrupted process recorded."""
        self._tracker, self._observer = tracker, observer
        self._clock, self._n_epochs = clock, n_epochs
        self._rows = {int(row["epoch"]): dict(row) for row in past}

    @property
    def rows(self) -> list[dict[str, float]]:
        """The history, epoch by epoch."""
        return [self._rows[epoch] for epoch in sorted(self._rows)]

    def first_batch(self, found: FirstBatch) -> None:
        """Pass on what the first batch looks like."""
        self._tracker.first_batch(found)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record a row with the measurements; it replaces this epoch's row and all later ones."""
        elapsed = round(self._clock.at(epoch), 3)
        full = {**row, **self._observer.take(epoch), "elapsed_s": elapsed}
        self._rows = {e: r for e, r in self._rows.items() if e < epoch}
        self._rows[epoch] = {"epoch": epoch, **full}
        self._tracker.epoch(epoch, full)
        self._tracker.message(epoch_line(epoch, self._n_epochs, full, self._observer.shown))

    def message(self, text: str) -> None:
        """Show a line."""
        self._tracker.message(text)


# MLflow reads these when it is imported, here and in its server. Short waits and few retries: a
# server that is down must not hold up a run.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PASSWORD = re.compile(r"//[^/@\s]+@")  # in an address, or in an error message that quotes one


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the SQLite file in this results folder, as an absolute path."""
    default = f"sqlite:///{Path(paths.TRACKING_DATABASE).resolve()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def shown_uri() -> str:
    """The address without a password, safe to print and to write."""
    return _PASSWORD.sub("//", tracking_uri())


def failure(error: BaseException) -> tuple[str, str]:
    """The address and the first line of an error, without passwords."""
    text = _PASSWORD.sub("//", str(error)).splitlines()
    return shown_uri(), text[0] if text else type(error).__name__


def be_quiet() -> None:
    """Set MLflow's environment variables for quiet operation, unless the user has set them."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def serve(port: int) -> None:
    """Serve MLflow's pages on 127.0.0.1 until interrupted; this process becomes the server."""
    be_quiet()
    arguments = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *arguments])


DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's pages show as the description
RUN_NAME = "mlflow.runName"
PARENT = "mlflow.parentRunId"
TAG_LENGTH = 8000  # MLflow's limit, in characters


def parameters(run: RunSettings) -> dict[str, str]:
    """The method's resolved settings and the seed, as MLflow parameters."""
    return {key: str(value) for key, value in {**run.method, "seed": run.spec.seed}.items()}


def changed(run: RunSettings) -> dict[str, Any]:
    """Settings that differ from those in `config/methods/<method>.yaml`."""
    method = run.spec.method
    declared = settings.load_method_file(method).settings
    where = f"config/methods/{method}.yaml"
    usual = settings.validated(settings_of(method), declared, where).model_dump(mode="json")
    return {key: value for key, value in run.method.items() if usual.get(key) != value}


def tags(run: RunSettings) -> dict[str, str]:
    """Tags of a run: its six names, digest and data source, and the version of the code."""
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
    """One line of Markdown that says what the run is."""
    spec = run.spec
    other = _listed(changed(run))
    return (
        f"**{settings.load_method_file(spec.method).title}**, variant `{spec.variant}`, on "
        f"`{spec.dataset}`, seed {spec.seed}. "
        + (
            f"Changed from `config/methods/{spec.method}.yaml`: {other}."
            if other
            else "Settings as declared."
        )
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))


_FILES = (
    paths.RUN_SETTINGS,
    paths.RUN_HISTORY,
    paths.RUN_FIRST_BATCH,
    paths.RUN_PREDICTIONS,
    paths.RUN_WEIGHTS,
    paths.RUN_RECORD,
    paths.RUN_SHOTS,
    paths.RUN_SCORES,
)
_CHUNK = 900  # metrics per request; the server accepts 1,000
_NO_METRICS = ("seed", "recipe", "shared_recipe")
_PAGE = 1000  # runs per answer


def connect() -> Any:
    """Make a client of the store, without contacting it yet."""
    be_quiet()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def init(study: str) -> None:
    """Create the database and the experiment in one process, before parallel runs start.

    SQLite's tables must not be created by two runs at once. If the server cannot be reached, that
    is only reported: the files do not need it.
    """
    try:
        experiment(connect(), study)
    except Exception as error:  # noqa: BLE001  whatever the store raises, runs go on without it
        log.warning("MLflow at %s: %s; runs go on, `microclip sync` later", *failure(error))


def experiment(client: Any, study: str) -> str:
    """Id of a study's experiment, which is created if it does not exist."""
    if found := client.get_experiment_by_name(study):
        return str(found.experiment_id)
    is_own = "MLFLOW_TRACKING_URI" not in os.environ
    root = (Path(paths.TRACKING_ARTIFACTS).resolve() / study).as_uri() if is_own else None
    return str(client.create_experiment(study, artifact_location=root))


def log_metrics(client: Any, run_id: str, metrics: list[Any]) -> None:
    """Log metrics in as few requests as the server allows."""
    for start in range(0, len(metrics), _CHUNK):
        client.log_batch(run_id, metrics=metrics[start : start + _CHUNK])


def all_runs(client: Any, experiments: list[str], wanted: str = "") -> Iterator[Any]:
    """Yield the runs of experiments that are not deleted; `wanted` is MLflow's filter."""
    token = None
    while experiments:
        page = client.search_runs(experiments, wanted, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def complete_runs(client: Any) -> dict[str, Any]:
    """Runs of all studies that MLflow has completely, by id."""
    known = [found.experiment_id for found in client.search_experiments()]
    runs = all_runs(client, known, "tags.complete = 'true'")
    return {run.info.run_id: run for run in runs}


class Mirror:
    """One MLflow run, found by its name; any failure ends the mirroring but not the run."""

    files: ClassVar[Sequence[str]] = _FILES  # files in the run's folder that become artifacts
    hint: ClassVar[str] = "the run goes on, use `microclip sync` later"  # if MLflow fails

    def __init__(self, settings: RunSettings, study: str) -> None:
        """Find the run with the same settings, or create it."""
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
            log.warning("MLflow at %s: %s; %s", *failure(error), self.hint)
        return self._alive

    def _open(self, study: str) -> None:
        self._mlflow = connect()
        where = experiment(self._mlflow, study)
        # MLflow's filters cannot escape a quote.
        name = self._settings.spec.name.replace("'", "")
        for run in self._mlflow.search_runs([where], f"tags.`mlflow.runName` = '{name}'"):
            same = run.data.tags.get("job_key") == self._settings.digest()
            if same and self.run_id is None and run.data.tags.get("complete") != "true":
                self.run_id = run.info.run_id
                self._mlflow.update_run(self.run_id, status="RUNNING")
                self.last_epoch = int(run.data.metrics.get("epoch", -1))
            else:
                # Of other settings, or complete and now repeated: the new run takes its place.
                self._mlflow.delete_run(run.info.run_id)
        if self.run_id is None:
            created = self._mlflow.create_run(where, tags=tags(self._settings))
            self.run_id = created.info.run_id
            self._log_settings()
            self._log_dataset()

    def _log(self, rows: list[dict[str, Any]]) -> None:
        log_metrics(self._mlflow, str(self.run_id), list(_metrics(rows)))

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
        with warnings.catch_warnings():
            # MLflow warns that the path could have several kinds of source; it is a local file.
            warnings.simplefilter("ignore", UserWarning)
            data = mlflow.data.from_pandas(  # type: ignore[attr-defined]
                frame, source=str(manifest), name=self._settings.spec.dataset
            )
        entry = DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", "train")])
        self._mlflow.log_inputs(self.run_id, datasets=[entry])

    def epochs(self, rows: list[dict[str, float]]) -> None:
        """Log the rows of history that MLflow lacks, in one request."""
        from_here = [row for row in rows if row["epoch"] > self.last_epoch]
        if from_here and self._do(lambda: self._log(from_here)):
            self.last_epoch = int(from_here[-1]["epoch"])

    def finish(self, scores: Mapping[str, Any], folder: Path) -> bool:
        """Log the final numbers and files, check that the files arrived, and close the run."""

        def close() -> None:
            numbers = {k: v for k, v in scores.items() if isinstance(v, int | float)}
            # "seconds" is already the name of an epoch's metric.
            numbers["total_seconds"] = numbers.pop("seconds", 0.0)
            last = {"epoch": max(self.last_epoch, 0), **numbers}
            self._log([last])
            self._mlflow.set_tag(self.run_id, "artifacts", "incomplete")
            files = [folder / name for name in self.files if (folder / name).is_file()]
            for file in files:
                self._mlflow.log_artifact(self.run_id, str(file))
            there = {item.path for item in self._mlflow.list_artifacts(self.run_id)}
            if lost := {file.name for file in files} - there:
                raise OSError(f"artifacts {', '.join(sorted(lost))} did not arrive")
            self._mlflow.set_tag(self.run_id, "artifacts", "complete")
            # Last, and only once the files are there: `sync` trusts this tag.
            self._mlflow.set_tag(self.run_id, "complete", "true")
            self._mlflow.set_terminated(self.run_id, "FINISHED")

        return self._do(close)

    def fail(self, status: str, reason: str) -> None:
        """Mark the run FAILED or KILLED, with the reason."""
        self._do(lambda: self._mlflow.set_tag(self.run_id, "reason", reason))
        self._do(lambda: self._mlflow.set_terminated(self.run_id, status))


def _metrics(rows: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield each row's numbers, its epoch last: MLflow's plots open with the first metric."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for row in rows:
        for key in sorted(row, key="epoch".__eq__):
            if isinstance(row[key], int | float) and key not in _NO_METRICS:
                yield Metric(key, float(row[key]), now, int(row["epoch"]))


class RunTracker:
    """Reports a run to the journal and history in its folder, and to the mirror."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        """Continue the history of an interrupted run, if there is one."""
        self._folder = folder
        self._mirror = mirror
        self._rows = {int(row["epoch"]): row for row in read_history(folder)}

    def first_batch(self, found: FirstBatch) -> None:
        """Write `first_batch.json`, and show its warnings."""
        runtime.write_json(self._folder / paths.RUN_FIRST_BATCH, found.as_dict())
        for line in found.warnings:
            log.warning("%s", line)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record a row of history; it replaces an earlier row of the epoch and all later rows."""
        self._rows = {k: v for k, v in self._rows.items() if k < epoch}
        self._rows[epoch] = {"epoch": epoch, **row}
        write_history(self._folder, list(self._rows.values()))
        self._journal({"event": "epoch", **self._rows[epoch]})
        self._mirror.epochs([self._rows[epoch]])

    def message(self, text: str) -> None:
        """Print a line with the time, on standard error."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
        sys.stderr.flush()

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Close the mirrored run, and record that the mirror is complete."""
        summary = {name: scores[name] for name in ("top1_pct", "verdict") if name in scores}
        self._journal({"event": "finished", **summary})
        if self._mirror.finish(scores, self._folder):
            marker = self._folder / paths.RUN_MIRRORED
            runtime.write_json(marker, marker_of(str(scores["digest"]), self._mirror.run_id))

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Record that the run ended early."""
        self._journal({"event": status.lower(), "reason": reason})
        self._mirror.fail(status, reason)

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Record how the block ended if an error or a signal ended it, and raise that again."""
        try:
            yield
        except (Terminated, KeyboardInterrupt):
            self.fail("KILLED", "interrupted")
            raise
        except Exception as error:
            self.fail("FAILED", " ".join(str(error).split()))
            raise

    def _journal(self, line: Mapping[str, Any]) -> None:
        with (self._folder / paths.RUN_JOURNAL).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **line}) + "\n")


def marker_of(digest: str, run_id: str | None) -> dict[str, str | None]:
    """Content of the marker file: that MLflow has the scores of this digest, and in which run."""
    return {"uri": shown_uri(), "run_id": run_id, "digest": digest}


def find_mirrored(folder: Path, digest: str, there: Mapping[str, Any]) -> Any | None:
    """The MLflow run that a run's folder names, if it is among `there` with these scores."""
    marker = folder / paths.RUN_MIRRORED
    known = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    run_id = str(known.get("run_id"))
    return there.get(run_id) if known == marker_of(digest, run_id) else None


def open_tracker(
    settings: RunSettings, folder: Path, study: str, mirror: type[Mirror] = Mirror
) -> RunTracker:
    """Make the tracker of a run, its folder, and `settings.yaml` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    # A marker of an earlier run in this folder says nothing about this one.
    (folder / paths.RUN_MIRRORED).unlink(missing_ok=True)
    values = {"digest": settings.digest(), "study": study, **settings.as_dict()}
    runtime.write_text(folder / paths.RUN_SETTINGS, yaml.safe_dump(values, sort_keys=False))
    return RunTracker(folder, mirror(settings, study))


def sync(results: Path) -> tuple[int, int]:
    """Replay complete runs that MLflow lacks or has lost; return (replayed, failed).

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    try:
        there = complete_runs(connect())
    except Exception as error:
        hint = "start it, then run `microclip sync`"
        raise runtime.ServiceError(f"MLflow at {': '.join(failure(error))}; {hint}") from error
    done = failed = 0
    for scored in sorted(results.glob(f"runs/**/{paths.RUN_SCORES}")):
        folder = scored.parent
        scores = json.loads(scored.read_text(encoding="utf-8"))
        if find_mirrored(folder, str(scores["digest"]), there) is not None:
            continue
        values = yaml.safe_load((folder / paths.RUN_SETTINGS).read_text(encoding="utf-8"))
        mirror = Mirror(RunSettings.from_dict(values), values["study"])
        mirror.epochs(read_history(folder))
        if mirror.finish(scores, folder):
            marker = folder / paths.RUN_MIRRORED
            runtime.write_json(marker, marker_of(str(scores["digest"]), mirror.run_id))
            done += 1
        else:
            failed += 1
    return done, failed
