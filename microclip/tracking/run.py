"""How a run reports: to files, which are the truth.

`history.csv` has a row per epoch; `journal.jsonl` says what happened when, and all that a mirror
such as MLflow needs to show the run while it trains. Whoever reads a journal does so by
`JournalReader`: the mirror (`tracking/mirror.py`), `microclip status` and the workflow's live view.
A run itself imports no MLflow and waits for none. History, clock, reporter and tracker are one
module because they must agree on the rows of an epoch.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import yaml

from microclip import paths, runtime, settings
from microclip.methods.base import settings_of
from microclip.processes import Terminated
from microclip.study import RunSettings, RunSpec
from microclip.tracking.machine import MachineUse

if TYPE_CHECKING:
    from microclip.adaptation.first_batch import FirstBatch
    from microclip.methods.base import Tracker

log = logging.getLogger(__name__)


def read_scores_file(path: Path) -> dict[str, Any]:
    """Read a run's `scores.json`.

    Raises:
        MissingDataError: the file is not there, or is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise runtime.MissingDataError(f"no {path}; run `snakemake`") from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise runtime.MissingDataError(
            f"{path} is damaged; delete it, and `snakemake` runs it again"
        )
    return found


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
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                # An epoch is written as it was before: a resumed run has the same file.
                {k: int(float(v)) if k == "epoch" else float(v) for k, v in row.items() if v}
                for row in csv.DictReader(stream)
            ]
    except (ValueError, TypeError) as error:
        raise settings.SettingsError(
            f"{path} is damaged ({error}); delete it: the run continues from its checkpoint, and "
            "its history begins there"
        ) from error


def check_written(folder: Path, name: str) -> None:
    """Check that a file of a complete run still has the bytes that the run wrote.

    The hashes are in `run.json`; runs from before they were recorded are not checked.

    Raises:
        MissingDataError: the file, or `run.json` itself, is damaged.
    """
    record, scores = folder / paths.RUN_RECORD, folder / paths.RUN_SCORES
    if not (record.is_file() and scores.is_file()):
        return
    try:
        said = dict(json.loads(record.read_text(encoding="utf-8")).get("files", {})).get(name)
        damaged = folder / name
        is_whole = said is None or (damaged.is_file() and runtime.sha256(damaged) == said)
    except (ValueError, TypeError, AttributeError):
        damaged, is_whole = record, False
    if not is_whole:
        raise runtime.MissingDataError(
            f"{damaged} is damaged: its bytes are not those that the run wrote; run `snakemake "
            f"--cores 1 --resources gpu=1 --forcerun {scores}`"
        )


def check_complete(folder: Path) -> None:
    """Check that a folder is that of a complete run of a study: its scores are written last.

    Raises:
        MissingDataError: the run is not complete.
        SettingsError: the folder is one of `adapt`, whose images have no test set.
    """
    if (folder / paths.ADAPTED).is_file():
        why = "there are no labels, so no accuracy to compare; label_these_first.csv names those to"
        why += f" label, and `microclip adapt … --labels FILE` writes {paths.RUN_SCORES}"
        if (folder / paths.RUN_SCORES).is_file():
            why = f"{paths.RUN_SCORES} there has its accuracy beside zero-shot's"
        raise settings.SettingsError(
            f"{folder} is a folder of `microclip adapt`, no run of a study: {why}; to compare "
            "methods, make the images a dataset of a study (docs/your-own-images.md)"
        )
    if not (folder / paths.RUN_SCORES).is_file():
        raise runtime.MissingDataError(
            f"run {folder} is not complete: it has no {paths.RUN_SCORES}; run `snakemake` for it"
        )


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


NAME = "mlflow.runName"  # tags that MLflow's pages know
DESCRIPTION = "mlflow.note.content"


@dataclass(frozen=True)
class Announcement:
    """What a run says of itself when it starts: all that MLflow shows of it besides numbers.

    Attributes:
        digest: of its settings; a run with the same one is continued.
        params: what users compare, every setting of the method and the seed.
        tags: what only names the data or the machine, so that it does not crowd the columns.
        files: names of the files in its folder that become artifacts.
    """

    study: str
    name: str
    digest: str
    params: dict[str, str]
    tags: dict[str, str]
    files: tuple[str, ...]

    @classmethod
    def of(cls, run: RunSettings, study: str, files: Sequence[str]) -> Announcement:
        """The announcement of a run with these settings, by the code that runs now."""
        return cls(study, title(run.spec), run.digest(), parameters(run), tags(run), tuple(files))


@dataclass(frozen=True)
class Started:
    """A process has begun or continued the run, at a time in seconds since 1970."""

    time: float
    host: str
    pid: int
    announced: Announcement


@dataclass(frozen=True)
class EpochEnded:
    """An epoch's row of the history, and the time."""

    epoch: int
    row: dict[str, float]


@dataclass(frozen=True)
class MachineUsed:
    """What the machine did in an epoch: written before that epoch's row."""

    epoch: int
    row: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """The run is complete, and `values` are its scores; or it ended early, for a reason."""

    status: Literal["finished", "failed", "killed"]
    values: dict[str, Any]

    @property
    def reason(self) -> str:
        """Why it ended early."""
        return str(self.values.get("reason", ""))


Event = Started | EpochEnded | MachineUsed | Ended


def _event(line: bytes) -> Event | None:
    """What a line of a journal says; None if it says nothing that a run says.

    So it is with half a line, which a killed process or a full disk leaves.
    """
    try:
        values = dict(json.loads(line.decode(errors="replace")))
        event, when = values.pop("event"), float(values["time"])
        match event:
            case "started":
                return Started(when, str(values["host"]), int(values["pid"]), _announced(values))
            case "epoch":
                return EpochEnded(int(values["epoch"]), values)
            case "machine":
                return MachineUsed(int(values["epoch"]), values)
            case "finished" | "failed" | "killed":
                return Ended(event, values)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return None


_REMEMBERED = 200  # bytes of a journal, enough for the time that its last line begins with


def _announced(values: Mapping[str, Any]) -> Announcement:
    known = {each.name: values[each.name] for each in fields(Announcement)}
    given = {
        "params": {key: str(value) for key, value in dict(known["params"]).items()},
        "tags": {key: str(value) for key, value in dict(known["tags"]).items()},
        "files": tuple(map(str, known["files"])),
    }
    return Announcement(**{**known, **given})


class JournalReader:
    """Reads a run's journal while it is written, or afterwards: every reader's way to it.

    A last line that is not yet whole waits for its end. A journal that was cut or replaced is read
    from its start.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        """Begin at a byte of the journal in a run's folder; neither needs to be there yet."""
        self._path = folder / paths.RUN_JOURNAL
        self._position = position
        self._before = b""  # the last bytes before the position

    def read(self) -> list[Event]:
        """What was written since the last call; nothing while the file cannot be read."""
        found = (_event(line) for line in self._lines())
        return [event for event in found if event is not None]

    def _lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as stream:
                # A file system may give a new file the old one's number: compare bytes.
                is_shorter = stream.seek(0, os.SEEK_END) < self._position
                stream.seek(self._position - len(self._before))
                text = stream.read()
                if is_shorter or not text.startswith(self._before):
                    self._position, self._before = 0, b""
                    stream.seek(0)
                    text = stream.read()
        except OSError:  # not there yet, or no more; or a network disk that is away for a moment
            return []
        new = text[len(self._before) :]
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        self._before = (self._before + whole)[-_REMEMBERED:]
        return whole.split(b"\n")


def read_machine(folder: Path) -> dict[int, dict[str, float]]:
    """What the machine did, by epoch: as with the history, a repeated epoch replaces later ones."""
    digest, rows = "", dict[int, dict[str, float]]()
    for event in JournalReader(folder).read():
        match event:
            case Started():
                rows = rows if event.announced.digest == digest else {}
                digest = event.announced.digest
            case MachineUsed():
                rows = {epoch: row for epoch, row in rows.items() if epoch < event.epoch}
                rows[event.epoch] = event.row
    return rows


def title(spec: RunSpec) -> str:
    """A run's name in MLflow: what differs between runs comes first, as it shows little more."""
    return "{method}/{variant}/{dataset}/seed-{seed}/{backbone}/{descriptions}".format(**vars(spec))


def parameters(run: RunSettings) -> dict[str, str]:
    """The method's resolved settings and the seed, as MLflow parameters."""
    return {key: str(value) for key, value in {**run.method, "seed": run.spec.seed}.items()}


def changed(run: RunSettings) -> dict[str, Any]:
    """Settings that differ from those in `config/methods/<method>.yaml`; none without that file."""
    method = run.spec.method
    if method not in settings.known("methods"):  # a run that was typed by hand
        return {}
    declared = settings.load_method_file(method).settings
    where = f"config/methods/{method}.yaml"
    usual = settings.validated(settings_of(method), declared, where).model_dump(mode="json")
    return {key: value for key, value in run.method.items() if usual.get(key) != value}


def tags(run: RunSettings) -> dict[str, str]:
    """Tags of a run: its six names, digest and data source, and the version of the code."""
    values = run.as_dict()
    images = values.get("inputs", {}).get("images")
    return {
        NAME: title(run.spec),
        "kind": "run",
        **{name: str(value) for name, value in asdict(run.spec).items()},
        "changed": _listed(changed(run)) or "nothing",
        "precision": run.precision,
        **({} if run.compile == "off" else {"compile": run.compile}),
        "data": json.dumps(values["dataset"]["source"]),
        # Only runs on your own folder have this; a dataset's digest is in its manifest.
        **({"images": images} if images else {}),
        "job_key": run.digest(),
        "mlflow.source.git.commit": str(runtime.output("git", "rev-parse", "HEAD")),
        DESCRIPTION: description(run),
    }


def description(run: RunSettings) -> str:
    """One line of Markdown that says what the run is."""
    spec = run.spec
    other = _listed(changed(run))
    is_declared = spec.method in settings.known("methods")
    title = settings.load_method_file(spec.method).title if is_declared else spec.method
    return f"**{title}**, variant `{spec.variant}`, on `{spec.dataset}`, seed {spec.seed}. " + (
        f"Changed from `config/methods/{spec.method}.yaml`: {other}."
        if other
        else "Settings as declared."
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))


FILES = (
    paths.RUN_SETTINGS,
    paths.RUN_HISTORY,
    paths.RUN_FIRST_BATCH,
    paths.RUN_PREDICTIONS,
    paths.RUN_WEIGHTS,
    paths.RUN_RECORD,
    paths.RUN_SHOTS,
    paths.RUN_SCORES,
)


class RunTracker:
    """Reports a run to the journal and history in its folder."""

    def __init__(self, folder: Path) -> None:
        """Continue the history of an interrupted run, if there is one."""
        self._folder = folder
        self._usage = MachineUse()
        self._rows = {int(row["epoch"]): row for row in read_history(folder)}

    def start(self, announced: Announcement) -> None:
        """Record that this process begins or continues the run."""
        self._journal(
            {"event": "started", "pid": os.getpid(), "host": platform.node(), **asdict(announced)}
        )

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
        # Not in the history: these depend on the machine, and on what else it does.
        self._journal({"event": "machine", "epoch": epoch, **self._usage.take()})
        self._journal({"event": "epoch", **self._rows[epoch]})

    def message(self, text: str) -> None:
        """Print a line with the time, on standard error."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
        sys.stderr.flush()

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Record that the run is complete, with its final numbers.

        A disk that is full just now takes nothing away: the scores are written, and a mirror reads
        them where the journal ends without a word.
        """
        try:
            self._journal({"event": "finished", **scores})
        except OSError as error:
            log.warning("the run is complete, but its journal is not (%s)", error)

    def fail(self, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """Record that the run ended early."""
        self._journal({"event": status.lower(), "reason": reason})

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
        text = json.dumps({"time": round(time.time(), 3), **line}) + "\n"
        with (self._folder / paths.RUN_JOURNAL).open("ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a killed process, or a full disk, left half a line
                    text = "\n" + text
            stream.write(text.encode())


def open_tracker(
    settings: RunSettings, folder: Path, study: str, files: Sequence[str] = FILES
) -> RunTracker:
    """Make the tracker of a run, its folder, and `settings.yaml` in it.

    `files` are the names of those in the folder that a mirror copies when the run is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A marker of an earlier run in this folder says nothing about this one.
    (folder / paths.RUN_MIRRORED).unlink(missing_ok=True)
    values = {"digest": settings.digest(), "study": study, **settings.as_dict()}
    runtime.write_text(folder / paths.RUN_SETTINGS, yaml.safe_dump(values, sort_keys=False))
    tracker = RunTracker(folder)
    tracker.start(Announcement.of(settings, study, files))
    return tracker
