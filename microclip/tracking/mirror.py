"""MLflow as a mirror of runs: it shows what their files say, and may be missing.

One experiment per study, one MLflow run per run, continued if the settings are the same, otherwise
replaced. A workflow has one mirror process, so that SQLite has one writer: `Follower` reads the
journals of the planned runs while they are written. A run that is started by hand has a mirror
process to itself. What a mirror could not show, `sync` copies later; no run waits for any of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from microclip import paths, runtime
from microclip.data.manifest import read_manifest
from microclip.processes import ELSEWHERE, MIRROR, Companion
from microclip.settings.base import say_once
from microclip.study import SPEC, RunSettings, RunSpec
from microclip.tracking.database import make_own_database
from microclip.tracking.run import (
    FILES,
    Announcement,
    Ended,
    EpochEnded,
    JournalReader,
    MachineUsed,
    Started,
    read_history,
    read_machine,
    read_scores_file,
    title,
)

log = logging.getLogger(__name__)

# MLflow reads these when it is imported, here and in its server. Short waits and few retries: a
# server that is down must not hold up a run.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which would print a password in it
    "GIT_PYTHON_REFRESH": "quiet",
}
# MLflow puts the path of its default place for artifacts into SQL as it is; an address has neither
# quotes nor colons. The variable is private: a server sets it for its processes.
_BREAKS_SQL = frozenset("'\":")
_DEFAULT_ARTIFACTS = "_MLFLOW_SERVER_ARTIFACT_ROOT"
_PASSWORD = re.compile(r"//[^/@\s]+@")  # in an address, or in an error message that quotes one


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the SQLite file in this results folder, as an absolute path."""
    database = str(Path(paths.TRACKING_DATABASE).resolve())
    # SQLAlchemy ends a path at "?", with no way to escape it; the relative path has none.
    default = f"sqlite:///{paths.TRACKING_DATABASE if '?' in database else database}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def _warn_of_cut_path(uri: str) -> None:
    """Log a warning if SQLAlchemy takes a part of a database's path for its options."""
    place, mark, options = uri.partition("?")
    is_cut = mark and not all(re.fullmatch(r"\w+=[^/]*", one) for one in options.split("&"))
    if uri.startswith("sqlite:") and is_cut:
        say_once(
            f"MLFLOW_TRACKING_URI: a path ends at '?', so the database is {place} and not "
            f"{shown_uri()}; name one without '?'"
        )


def shown_uri() -> str:
    """The address without a password, safe to print and to write."""
    return _PASSWORD.sub("//", tracking_uri())


def failure(error: BaseException) -> tuple[str, str]:
    """The address and the first line of an error, without passwords."""
    said = _PASSWORD.sub("//", next(iter(str(error).splitlines()), type(error).__name__))
    return shown_uri(), "it does not answer" if "Max retries exceeded" in said else said


def be_quiet() -> None:
    """Set MLflow's environment variables for quiet operation, unless the user has set them."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def serve(port: int) -> None:
    """Serve MLflow's pages on 127.0.0.1 until interrupted; this process becomes the server."""
    be_quiet()
    make_own_database()
    arguments = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *arguments])


PARENT = "mlflow.parentRunId"
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000  # MLflow's limits, in characters
DIGEST_LENGTH = 36  # and of a dataset's digest
_CHUNK = 900  # metrics per request; the server accepts 1,000
_NO_METRICS = frozenset({"seed", "recipe", "shared_recipe", "time"})
_PAGE = 1000  # runs per answer


def connect() -> Any:
    """Make a client of the store; a server is not contacted yet, a file of ours is created."""
    be_quiet()
    artifacts = Path(paths.TRACKING_ARTIFACTS).resolve()
    if not os.environ.get("MLFLOW_TRACKING_URI") and _BREAKS_SQL & set(str(artifacts)):
        os.environ[_DEFAULT_ARTIFACTS] = artifacts.as_uri()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    make_own_database()
    _warn_of_cut_path(tracking_uri())
    return MlflowClient(tracking_uri())


def init(study: str) -> None:
    """Create the database and a study's experiment.

    If the server cannot be reached, that is only reported: the files do not need it.
    """
    try:
        experiment(connect(), study)
    except Exception as error:  # noqa: BLE001  whatever the store raises, runs go on without it
        log.warning("MLflow at %s: %s; runs go on, `microclip sync` later", *failure(error))


def experiment(client: Any, study: str) -> str:
    """Id of a study's experiment, which is created if it does not exist."""
    if found := client.get_experiment_by_name(study):
        if found.lifecycle_stage == "deleted":  # in MLflow's pages; its name stays taken
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    is_own = not os.environ.get("MLFLOW_TRACKING_URI")
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


def _within(values: Mapping[str, str], limit: int) -> dict[str, str]:
    """Keys and values as MLflow takes them; the run's own files have them whole."""
    return {
        key[:KEY_LENGTH]: value if len(value) <= limit else f"{value[: limit - 1]}…"
        for key, value in values.items()
    }


class Mirror:
    """One MLflow run, found by its six names. Whatever the store raises is passed on."""

    def __init__(self, announced: Announcement) -> None:
        """Find the run with the same settings, or create it."""
        self._files = announced.files
        self.last_epoch = -1  # epoch 0 is the network before training
        self._mlflow = connect()
        where = experiment(self._mlflow, announced.study)
        self.run_id = self._continued(where, announced)
        if not self.run_id:
            tags = _within(announced.tags, TAG_LENGTH)
            self.run_id = str(self._mlflow.create_run(where, tags=tags).info.run_id)
            self._log_settings(announced)
            self._log_dataset(announced.tags)

    def _continued(self, where: str, announced: Announcement) -> str:
        """Id of the run to continue, "" if there is none; others of its names are deleted.

        The names are those of its tags: what MLflow shows as its name was another one before.
        """
        kept = ""
        names = {key: announced.tags[key] for key in SPEC}
        # MLflow's filters cannot escape a quote; these two names are safe, and few runs have both.
        wanted = " and ".join(f"tags.{key} = '{names[key]}'" for key in ("method", "seed"))
        for run in list(all_runs(self._mlflow, [where], f"tags.kind = 'run' and {wanted}")):
            if names != {key: run.data.tags.get(key) for key in SPEC}:
                continue
            # One without parameters was cut short while it was created.
            same = run.data.tags.get("job_key") == announced.digest and bool(run.data.params)
            if same and not kept and run.data.tags.get("complete") != "true":
                kept = str(run.info.run_id)
                self._mlflow.update_run(kept, status="RUNNING", name=announced.name)
                self.last_epoch = int(run.data.metrics.get("epoch", -1))
            else:
                # Of other settings, or complete and now repeated: the new run takes its place.
                self._mlflow.delete_run(run.info.run_id)
        return kept

    def _log_settings(self, announced: Announcement) -> None:
        from mlflow.entities import Param

        named = _within(announced.params, PARAM_LENGTH)
        params = [Param(key, value) for key, value in named.items()]
        self._mlflow.log_batch(self.run_id, params=params)

    def _log_dataset(self, tags: Mapping[str, str]) -> None:
        """Log name and digest of the images, and what a manifest says of them."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name = tags["dataset"]
        manifest = Path(paths.MANIFEST.format(dataset=name))
        if "images" in tags:  # a folder of images, whose name may be that of a dataset
            digest = tags["images"][:DIGEST_LENGTH]
            data = Dataset(name, digest, source_type="local", source=tags["data"])
        elif manifest.is_file():
            data = _manifest_entity(name, manifest)
        else:
            return
        entry = DatasetInput(data, [InputTag("mlflow.data.context", "train")])
        self._mlflow.log_inputs(self.run_id, datasets=[entry])

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log the rows that MLflow lacks, in as few requests as it allows."""
        from_here = [row for row in rows if row["epoch"] > self.last_epoch]
        if from_here:
            log_metrics(self._mlflow, self.run_id, list(_metrics(from_here)))
            self.last_epoch = int(from_here[-1]["epoch"])

    def finish(self, scores: Mapping[str, Any], folder: Path) -> None:
        """Log the final numbers and files, check that the files arrived, and close the run."""
        numbers = {k: v for k, v in scores.items() if isinstance(v, int | float)}
        # "seconds" is already the name of an epoch's metric.
        numbers["total_seconds"] = numbers.pop("seconds", 0.0)
        last = {"epoch": max(self.last_epoch, 0), **numbers}
        log_metrics(self._mlflow, self.run_id, list(_metrics([last])))
        self._mlflow.set_tag(self.run_id, "artifacts", "incomplete")
        files = [folder / name for name in self._files if (folder / name).is_file()]
        for file in files:
            self._mlflow.log_artifact(self.run_id, str(file))
        there = {item.path for item in self._mlflow.list_artifacts(self.run_id)}
        if lost := {file.name for file in files} - there:
            raise OSError(f"artifacts {', '.join(sorted(lost))} did not arrive")
        self._mlflow.set_tag(self.run_id, "artifacts", "complete")
        self._mlflow.set_terminated(self.run_id, "FINISHED")
        # Last, and only once the files are there: `sync` trusts this tag.
        self._mlflow.set_tag(self.run_id, "complete", "true")
        marker = folder / paths.RUN_MIRRORED
        runtime.write_json(marker, marker_of(str(scores["digest"]), self.run_id))

    def fail(self, status: str, reason: str) -> None:
        """Mark the run FAILED or KILLED, with the reason."""
        self._mlflow.set_tag(self.run_id, "reason", reason)
        self._mlflow.set_terminated(self.run_id, status)


def _manifest_entity(name: str, manifest: Path) -> Any:
    """A dataset as MLflow stores it, with the columns of its manifest."""
    import mlflow.data
    import pandas as pd

    frame = pd.read_csv(manifest, dtype=str)
    # The project's own digest, as in `run.json`: sets with other images differ in it.
    digest = read_manifest(name).images_sha256[:DIGEST_LENGTH]
    with warnings.catch_warnings():
        # MLflow warns that the path could have several kinds of source; it is a local file.
        warnings.simplefilter("ignore", UserWarning)
        data = mlflow.data.from_pandas(  # type: ignore[attr-defined]
            frame, source=str(manifest), name=name, digest=digest
        )
    return data._to_mlflow_entity()


def _past(folder: Path) -> list[dict[str, float]]:
    """A run's epochs as its files have them, each with what the machine did."""
    machine = read_machine(folder)
    return [{**machine.get(int(row["epoch"]), {}), **row} for row in read_history(folder)]


def _metrics(rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield each row's numbers: MLflow's plots open with the first, so accuracies come first."""
    from mlflow.entities import Metric

    for row in rows:
        when = int(1000 * row.get("time", time.time()))
        for key in sorted(row, key=lambda key: (key.startswith("system/"), key == "epoch")):
            if isinstance(row[key], int | float) and key not in _NO_METRICS:
                yield Metric(key, float(row[key]), when, int(row["epoch"]))


def marker_of(digest: str, run_id: str | None) -> dict[str, str | None]:
    """Content of the marker file: that MLflow has the scores of this digest, and in which run."""
    return {"uri": shown_uri(), "run_id": run_id, "digest": digest}


def find_mirrored(folder: Path, digest: str, there: Mapping[str, Any]) -> Any | None:
    """The MLflow run that a run's folder names, if it is among `there` with these scores."""
    marker = folder / paths.RUN_MIRRORED
    try:
        known = json.loads(marker.read_text(encoding="utf-8"))
        run_id = str(known["run_id"])
    except (OSError, ValueError, LookupError, TypeError):  # none, or a damaged one
        return None
    return there.get(run_id) if known == marker_of(digest, run_id) else None


_POLL_S = 1.0
_PAUSE_S = 30.0  # after a failure, so that a server that is down is not asked all the time
_TRIES = 3  # then a run is left to `sync`, so that it does not hold up the others
HINT = "the runs go on, `microclip sync` copies what is missing"
_DEAD = "its process ended without a word: killed, or out of memory"


def sizes(folders: Sequence[Path]) -> dict[str, int]:
    """Bytes of each run's journal now: where a mirror that starts now begins to read."""
    journals = {str(folder): folder / paths.RUN_JOURNAL for folder in folders}
    return {name: path.stat().st_size if path.is_file() else 0 for name, path in journals.items()}


@dataclass
class _Followed:
    """A run's journal, and what MLflow lacks of it.

    Attributes:
        rows: of epochs, with what the machine did in them.
        machine: what it did in an epoch whose row is not yet there.
        end: how this run ended; None while it runs.
    """

    folder: Path
    journal: JournalReader
    announced: Announcement | None = None
    process: tuple[str, int] = ("", 0)  # host, process id
    rows: list[dict[str, float]] = field(default_factory=list)
    machine: dict[int, dict[str, float]] = field(default_factory=dict)
    end: Ended | None = None
    mirror: Mirror | None = None
    n_failures: int = 0

    def read(self) -> None:
        """Take in what was written since the last call."""
        is_dead = self._is_dead()  # before the reading: a process writes its end, then ends
        for event in self.journal.read():
            match event:
                case Started():
                    self._start(event)
                    is_dead = False  # that was the process before this one
                case MachineUsed():
                    self.machine[event.epoch] = event.row
                case EpochEnded():
                    self.rows.append({**self.machine.pop(event.epoch, {}), **event.row})
                case Ended():
                    self.end = event
        if is_dead and self.end is None:
            self.end = self._scores() or Ended("killed", {"reason": _DEAD})

    def _start(self, event: Started) -> None:
        self.announced = event.announced
        self.process = (event.host, event.pid)
        self.rows, self.machine, self.end, self.mirror, self.n_failures = [], {}, None, None, 0

    def _is_dead(self) -> bool:
        """Has this machine no such process any more? That of another machine is not known."""
        import psutil

        host, pid = self.process
        is_open = self.announced is not None and self.end is None
        return is_open and host == platform.node() and not psutil.pid_exists(pid)

    def _scores(self) -> Ended | None:
        """The scores, if the process was killed between writing them and saying so."""
        path = self.folder / paths.RUN_SCORES
        assert self.announced is not None
        if not path.is_file():
            return None
        try:
            found = read_scores_file(path)
        except runtime.MissingDataError as error:
            log.warning("%s", error)
            return None
        is_own = found.get("digest") == self.announced.digest
        return Ended("finished", found) if is_own else None

    @property
    def is_shown(self) -> bool:
        """Does MLflow have all that the journal says?"""
        return self.announced is None or not (self.mirror is None or self.rows or self.end)

    def show(self) -> None:
        """Bring MLflow up to date."""
        assert self.announced is not None
        if self.mirror is None:
            self.mirror = Mirror(self.announced)
        if self.rows:
            first, when = self.rows[0]["epoch"], self.rows[0]["time"]
            past = _past(self.folder) if first > self.mirror.last_epoch + 1 else []
            # Before the first row here, in their order: MLflow sorts points by time.
            missed = [
                {**row, "time": when + (row["epoch"] - first) / 1000}
                for row in past
                if row["epoch"] < first
            ]
            self.mirror.epochs([*missed, *self.rows])
            self.rows = []
        if self.end is not None:
            if self.end.status == "finished":
                numbers = {k: v for k, v in self.end.values.items() if k != "time"}
                self.mirror.epochs(_past(self.folder))  # if the run was begun again there
                self.mirror.finish(numbers, self.folder)
            else:
                self.mirror.fail(self.end.status.upper(), self.end.reason)
            self.announced = None

    def failed(self) -> None:
        """Begin with the run anew next time, or leave it to `sync`."""
        self.mirror = None
        self.n_failures += 1
        if self.n_failures == _TRIES:
            self.announced = None


class Follower:
    """Shows runs in MLflow while they write their journals."""

    def __init__(self, journals: Mapping[str, int], hint: str = HINT) -> None:
        """Follow the journals of these folders, each from a byte on.

        `hint` is what a warning says if MLflow fails.
        """
        self._hint = hint
        self._runs = [
            _Followed(Path(folder), JournalReader(Path(folder), position))
            for folder, position in journals.items()
        ]
        self._retry_at = 0.0
        self._has_warned = False

    def look(self) -> None:
        """Read what is new, and show it unless the store failed a moment ago."""
        for run in self._runs:
            with contextlib.suppress(OSError):  # a network disk that is away for a moment
                run.read()
        if time.monotonic() >= self._retry_at:
            self._show()

    def close(self) -> bool:
        """Read and show the rest; return whether MLflow has everything."""
        for _ in range(2):  # a run that fails by itself comes last the second time
            self._retry_at = 0.0
            self.look()
        return all(run.is_shown and run.n_failures < _TRIES for run in self._runs)

    def _show(self) -> None:
        lacking = [run for run in self._runs if not run.is_shown]
        for run in sorted(lacking, key=lambda run: run.n_failures):
            try:
                run.show()
            except Exception as error:  # noqa: BLE001  whatever the store raises, the files are there
                if not self._has_warned:
                    log.warning("MLflow at %s: %s; %s", *failure(error), self._hint)
                self._has_warned = True
                run.failed()
                self._retry_at = time.monotonic() + _PAUSE_S
                return


def follow(journals: Mapping[str, int], closing: int, hint: str = HINT) -> bool:
    """Follow journals until the file descriptor `closing` is closed at its other end.

    The system closes it, too, when the process there ends, however it ends.

    Returns:
        Whether MLflow has everything that the journals say.
    """
    import select

    follower = Follower(journals, hint)
    while not (select.select([closing], [], [], _POLL_S)[0] and not os.read(closing, 1)):
        follower.look()
    return follower.close()


_WAIT_S = 60.0  # for the mirror of one run, after the run: importing MLflow alone can take 30


def start(folders: Sequence[Path], *arguments: str) -> Companion:
    """Start a process that shows what runs write to their journals from now on."""
    mirror = Companion("mirror", *arguments)
    mirror.send(json.dumps(sizes(folders)))
    return mirror


@contextlib.contextmanager
def beside(folder: Path, hint: str = HINT) -> Iterator[None]:
    """Show a run in MLflow while the block makes it, unless it belongs to a workflow."""
    if os.environ.get(MIRROR):
        yield
        return
    mirror = start([folder], "--hint", hint)
    try:
        yield
    finally:
        mirror.close(_WAIT_S)


_LINKED_S = 10.0  # usually 2 are enough


def wait(folders: Sequence[Path]) -> None:
    """Wait for the workflow's mirror process, if it runs, to show all complete runs.

    Not long: what it is late with is missing from the links of a page, nothing more.
    """
    import psutil

    end = time.monotonic() + _LINKED_S
    mirror = os.environ.get(MIRROR, "")
    done = [folder for folder in folders if (folder / paths.RUN_SCORES).is_file()]
    while time.monotonic() < end:
        is_here = mirror.isdigit() and psutil.pid_exists(int(mirror))
        if not is_here and mirror != ELSEWHERE:
            return
        if all((folder / paths.RUN_MIRRORED).is_file() for folder in done):
            return
        time.sleep(0.1)


def sync(results: Path) -> tuple[int, int]:
    """Replay complete runs that MLflow lacks or has lost; return (replayed, failed).

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    make_own_database()  # what it raises says more than that MLflow cannot be reached
    try:
        there = complete_runs(connect())
    except Exception as error:
        hint = "start it, then run `microclip sync`"
        raise runtime.ServiceError(f"MLflow at {': '.join(failure(error))}; {hint}") from error
    done = failed = 0
    for scored in sorted(results.glob(f"runs/**/{paths.RUN_SCORES}")):
        try:
            scores = read_scores_file(scored)
            shown = find_mirrored(scored.parent, str(scores.get("digest")), there)
            if shown is not None:
                _rename(shown)
                continue
            _replay(scored.parent, scores)
            done += 1
        except runtime.MissingDataError as error:
            log.warning("%s", error)
            failed += 1
        except Exception as error:  # noqa: BLE001  the next run may work
            log.warning("MLflow at %s: %s; use `microclip sync` later", *failure(error))
            failed += 1
    return done, failed


def _rename(run: Any) -> None:
    """Give a run of an older version today's name."""
    name = title(RunSpec.of(run.data.tags))
    if run.info.run_name != name:
        connect().update_run(run.info.run_id, name=name)


def _replay(folder: Path, scores: Mapping[str, Any]) -> None:
    """Show a complete run."""
    values = yaml.safe_load((folder / paths.RUN_SETTINGS).read_text(encoding="utf-8"))
    mirror = Mirror(Announcement.of(RunSettings.from_dict(values), values["study"], FILES))
    mirror.epochs(_past(folder))
    mirror.finish(scores, folder)
