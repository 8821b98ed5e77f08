"""What a workflow's events and its runs' journals say: jobs by stage, running runs, time left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microclip.tracking.run import Announcement

RUNS = "runs"
_REPORTS = "tables and figures"
_STAGES = {
    "fetch_dataset": "images",
    "store_images": "images",
    "describe": "texts",
    "embed_descriptions": "texts",
    "encode_images": "features",
    "check_zero_shot": "features",
    "adapt": RUNS,
}
_ORDER = ("images", "texts", "features", RUNS, _REPORTS)


def stage_of(rule: str) -> str:
    """The stage that a rule's jobs are counted in."""
    return _STAGES.get(rule, _REPORTS)


class Journal:
    """What a run's journal says of its progress.

    Attributes:
        n_epochs: how many it trains; None for methods that do not say.
        row: the last epoch's numbers.
        accuracy_pct: the last test's, fused over the classifier's heads.
    """

    def __init__(self, folder: Path) -> None:
        from microclip.tracking.run import JournalReader

        self._reader = JournalReader(folder)
        self._digest = ""
        self._begin()

    def _begin(self) -> None:
        self.n_epochs: int | None = None
        self.row: Mapping[str, float] = {}
        self.accuracy_pct: float | None = None

    def read(self) -> None:
        """Take in what was written since the last call."""
        from microclip.tracking.run import EpochEnded, Started

        for event in self._reader.read():
            match event:
                case Started():
                    self._start(event.announced)
                case EpochEnded():
                    self.row = event.row
                    self.accuracy_pct = event.row.get("test_fused_pct", self.accuracy_pct)

    def _start(self, announced: Announcement) -> None:
        if announced.digest != self._digest:
            self._begin()
        self._digest = announced.digest
        given = announced.params.get("epochs", "")
        self.n_epochs = int(given) if given.isdigit() else None

    @property
    def epoch(self) -> int | None:
        """The last epoch that ended."""
        return int(self.row["epoch"]) if self.row else None

    def left_s(self, now: float) -> float | None:
        """Seconds that it still trains, by its last epoch; None if that cannot be said."""
        if self.n_epochs is None or "seconds" not in self.row:
            return None
        left = (self.n_epochs - self.row["epoch"]) * self.row["seconds"]
        return max(0.0, left - max(0.0, now - self.row["time"]))


@dataclass
class Job:
    """A job that was started; a run's has its folder, and its journal."""

    rule: str
    text: str
    log: tuple[str, ...]
    started: float
    folder: Path | None = None
    journal: Journal | None = None

    @classmethod
    def of(cls, record: Any) -> Job:
        """The job that Snakemake's record of the kind JOB_INFO is about."""
        wildcards = dict(record.wildcards or {})
        text = record.rule_msg or " ".join([record.rule_name, *map(str, wildcards.values())])
        job = cls(record.rule_name, str(text), tuple(map(str, record.log or ())), time.time())
        scores = [Path(path) for path in record.output or () if Path(path).name == "scores.json"]
        if stage_of(job.rule) == RUNS and scores:
            job.folder = scores[0].parent
            job.journal = Journal(job.folder)
            job.text = "{method}/{variant} on {dataset}, seed {seed}".format_map(wildcards)
        return job

    def last_line(self) -> str:
        """The error in its log, or else the last line; "" if it has none."""
        for name in self.log:
            try:
                lines = Path(name).read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                continue
            if said := [line.strip() for line in lines if line.strip()]:
                ours = [line for line in said if line.startswith("microclip:")]
                return (ours or said)[-1]
        return ""


class Pace:
    """How long runs take, from those that are done: seconds an image, by method."""

    def __init__(self, study: str) -> None:
        """Read the study's plan and the scores of its runs."""
        from microclip import paths
        from microclip import study as studies

        self._n_images: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {}
        self.waiting: dict[Path, studies.RunSpec] = {}
        self._predicted: dict[str, float] = {}
        if not Path(paths.STUDY_PLAN.format(study=study)).is_file():
            return
        for run in studies.Plan.read(study).runs:
            scores = _json(run.spec.folder / paths.RUN_SCORES)
            is_done = (scores.get("digest"), scores.get("recipe")) == (run.digest, run.recipe)
            if is_done:
                self._take(run.spec.method, run.spec.dataset, scores)
            else:
                self.waiting[run.spec.folder] = run.spec
        predicted = _json(Path(paths.PREDICTION.format(study=study))).get("runs", {})
        self._predicted = {name: float(one["seconds"]) for name, one in predicted.items()}

    def done(self, folder: Path) -> None:
        """A run is complete: take in what it took."""
        spec = self.waiting.pop(folder, None)
        if spec is not None:
            self._take(spec.method, spec.dataset, _json(folder / "scores.json"))

    def expected_s(self, folder: Path) -> float | None:
        """Seconds that a run should take: as done runs of its method, or as `plan` predicted."""
        spec = self.waiting.get(folder)
        if spec is None:
            return None
        taken = self._seconds.get(spec.method)
        if taken:
            return sum(taken) / len(taken) * self._images(spec.dataset)
        return self._predicted.get(spec.name)

    def _take(self, method: str, dataset: str, scores: Mapping[str, Any]) -> None:
        if "seconds" in scores:
            pace = float(scores["seconds"]) / self._images(dataset)
            self._seconds.setdefault(method, []).append(pace)

    def _images(self, dataset: str) -> int:
        """Images of a fetched dataset; 1 if it is not fetched."""
        from microclip import paths

        if dataset not in self._n_images:
            try:
                with Path(paths.MANIFEST.format(dataset=dataset)).open("rb") as lines:
                    self._n_images[dataset] = max(1, sum(1 for _ in lines) - 1)
            except OSError:
                return 1  # it may be fetched later
        return self._n_images[dataset]


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one if it is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@dataclass(frozen=True)
class TimeLeft:
    """Seconds for all runs that are left; `is_whole` is False if some cannot be estimated."""

    seconds: float
    is_whole: bool


def _without(jobs: Mapping[int, Job], number: int) -> dict[int, Job]:
    return {key: job for key, job in jobs.items() if key != number}


@dataclass
class Progress:
    """A workflow so far.

    Snakemake's thread writes what the view's thread reads: dictionaries are replaced, not changed.

    Attributes:
        planned: jobs by stage, in their order.
        done: finished jobs by stage.
        running: jobs by their number.
        failed: those that ended with an error, and were not tried again.
        stopped: those that an interruption ended.
    """

    planned: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    running: dict[int, Job] = field(default_factory=dict)
    failed: dict[int, Job] = field(default_factory=dict)
    stopped: dict[int, Job] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    is_interrupted: bool = False
    _pace: Pace | None = None

    def plan(self, stats: Mapping[str, int]) -> None:
        """Take in how many jobs of which rule there are."""
        counts = dict.fromkeys(_ORDER, 0)
        for rule, number in stats.items():
            if rule not in ("total", "all"):  # `all` does nothing itself
                counts[stage_of(rule)] += number
        self.planned = {name: number for name, number in counts.items() if number}
        self.started = time.time()

    @property
    def counts(self) -> tuple[int, int]:
        """How many jobs are done, and how many there are."""
        return sum(self.done.values()), sum(self.planned.values())

    @property
    def is_complete(self) -> bool:
        """Whether every job is done."""
        done, planned = self.counts
        return done >= planned

    def start(self, number: int, job: Job) -> None:
        """A job begins."""
        self.running = {**self.running, number: job}
        self.failed = _without(self.failed, number)
        if job.folder is not None and self._pace is None:
            self._pace = Pace(os.environ.get("MICROCLIP_STUDY", ""))

    def finish(self, number: int) -> Job | None:
        """A job is done; return it, or None if it is only the target `all`."""
        job = self.running.get(number)
        self.running = _without(self.running, number)
        if job is None or job.rule == "all":
            return None
        stage = stage_of(job.rule)
        self.done = {**self.done, stage: self.done.get(stage, 0) + 1}
        if job.folder is not None and self._pace is not None:
            self._pace.done(job.folder)
        return job

    def fail(self, number: int) -> Job | None:
        """A job ended with an error: return it; or by an interruption: return None."""
        job = self.running.get(number)
        self.running = _without(self.running, number)
        if job is None:
            return None
        if self.is_interrupted or "microclip: interrupted" in job.last_line():
            self.stopped = {**self.stopped, number: job}
            return None
        self.failed = {**self.failed, number: job}
        return job

    def read(self) -> None:
        """Read what running runs wrote."""
        for job in self.running.values():
            if job.journal is not None:
                job.journal.read()

    def time_left(self) -> TimeLeft | None:
        """Time until the last run is done; None before the first run."""
        if self._pace is None:
            return None
        now = time.time()
        current = {job.folder: job for job in self.running.values() if job.folder is not None}
        known = [self._left_s(job, now) for job in current.values()]
        waiting = [folder for folder in list(self._pace.waiting) if folder not in current]
        others = [self._pace.expected_s(folder) for folder in waiting]
        # A command may ask for some of the study's runs only.
        n_others = self.planned.get(RUNS, 0) - self.done.get(RUNS, 0) - len(current)
        ended = (*self.failed.values(), *self.stopped.values())
        n_others -= sum(job.folder is not None for job in ended)
        found = [seconds for seconds in others if seconds is not None]
        mean = sum(found) / len(found) if found else 0.0
        total = sum(seconds for seconds in known if seconds is not None) + mean * max(0, n_others)
        is_known = n_others <= 0 or (bool(others) and None not in others)
        is_whole = None not in known and is_known
        return TimeLeft(total / max(1, len(current)), is_whole)

    def _left_s(self, job: Job, now: float) -> float | None:
        assert job.journal is not None
        assert job.folder is not None
        assert self._pace is not None
        left = job.journal.left_s(now)
        if left is not None:
            return left
        expected = self._pace.expected_s(job.folder)
        return None if expected is None else max(0.0, expected - (now - job.started))
