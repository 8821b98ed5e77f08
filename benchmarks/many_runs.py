"""Make the runs of a study in a few processes on one machine, without Snakemake and MLflow.

    python benchmarks/many_runs.py CONFIG [--processes 8] [--device auto|cpu|cuda]
        [--until SECONDS] [--choose FIGURE] [--pack FILE.tar.gz] [--solver auto|cpu|gpu]

For a machine that has neither of them, or on which one short run after the other leaves a GPU idle:
it prepares the data, then P processes share the GPU (or the CPUs) and make one run after the other,
by the runner that the workflow's jobs call, into the same folders. `snakemake` finds these runs
done, and makes tables and figures of them. What is done is not made again. Seeds come in order, so
that a stop leaves whole seeds. A line is printed for each finished run; the processes write theirs,
epoch by epoch, to `logs/many_runs/`. Public datasets pass no zero-shot gate here.

--until stops SECONDS after the start: no run begins that is not expected to end before, and what
still trains then is ended. Its folder has no scores, and the next call resumes its checkpoint.

--choose makes the runs of a sweep on its first dataset before all others, takes the value with the
best mean accuracy on the test images, and sets it for all runs. Write the printed value into the
study's file before running Snakemake.

--pack writes what tables and figures read of the finished runs, without weights and checkpoints;
`tar -xmf FILE` unpacks it where Snakemake is to find it. Make the data there before, by `snakemake
--until embed_descriptions encode_images`: with -m the runs are newer than the data.

--solver says what solves the cut's eigenproblems on a GPU: torch below 2.12 solves them there one
after the other, so `auto` sends them to the CPU then. Both compute in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean
from typing import Any

from microclip import paths, processes, runtime, settings, study, warm
from microclip.measure import scores
from microclip.methods.base import SHARED_RECIPE
from microclip.processes import Terminated
from microclip.settings import reports
from microclip.study import PlannedRun, RunSettings, RunSpec, Study

# Spawned, not forked: this process starts CUDA to reserve the GPU, and its children may not then.
_SPAWN = multiprocessing.get_context("spawn")
# Several are forks of one that is spawned, and imports for all of them.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["microclip.model.embeddings", "microclip.runner", "open_clip"])
_LOGS = Path("logs/many_runs")
_LEFT_OUT = {paths.RUN_WEIGHTS, ".lock"}  # of a run's folder, when it is packed
_GRACE_S = 20.0  # for a process to end


@dataclass(frozen=True)
class Job:
    """A run to make; `after` is the run whose weights it only tests."""

    settings: RunSettings
    study: str
    evaluate_every: int
    after: RunSpec | None = None

    @property
    def spec(self) -> RunSpec:
        """The run's names."""
        return self.settings.spec


@dataclass(frozen=True)
class Made:
    """What became of a job: its accuracy, or the error that ended it."""

    seconds: float
    top1_pct: float = 0.0
    error: str = ""


# ---- the processes that make runs


def work(jobs: connection.Connection, log: Path, *, is_solved_on_cpu: bool) -> None:
    """Make the runs that come through `jobs`, until its other end is closed."""
    processes.listen(warm.ENDING)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    runtime.use_all_cpus()
    if is_solved_on_cpu:
        solve_on_cpu()
    try:
        while True:
            jobs.send(made(jobs.recv()))
    except (EOFError, Terminated, KeyboardInterrupt):
        return


def made(job: Job) -> Made:
    """Make one run as the workflow's job does."""
    from microclip import runner
    from microclip.tracking.run import open_tracker

    out, began = job.spec.folder, time.perf_counter()
    try:
        with processes.exclusive(out):
            (out / paths.RUN_SCORES).unlink(missing_ok=True)  # of other settings
            tracker = open_tracker(job.settings, out, job.study)
            with tracker.recording_failure():
                found = runner.run(
                    job.settings,
                    out,
                    tracker,
                    None if job.after is None else job.after.folder,
                    evaluate_every=job.evaluate_every,
                )
            tracker.finish(found.as_dict())
    except Exception as error:  # noqa: BLE001  the next run may do better
        return Made(time.perf_counter() - began, error=" ".join(str(error).split()))
    return Made(time.perf_counter() - began, found.top1_pct)


def solve_on_cpu() -> None:
    """Let the CPU solve a GPU's eigenproblems."""
    import torch

    solve = torch.linalg.eigh

    def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = solve(matrix.cpu())
        return values.to(matrix.device), vectors.to(matrix.device)

    torch.linalg.eigh = eigh


def is_better_on_cpu(solver: str) -> bool:
    """Do eigenproblems go from the GPU to the CPU, by what was asked for?"""
    return solver == "cpu" or (solver == "auto" and solves_one_by_one())


def solves_one_by_one() -> bool:
    """Does this torch solve a GPU's batch of eigenproblems one after the other?"""
    import torch

    return torch.__version__ < "2.12"  # compares versions, not letters


# ---- the process that hands them out


@dataclass
class Worker:
    """A process that makes runs, and the job that it has."""

    number: int
    process: BaseProcess
    jobs: connection.Connection
    log: Path
    job: Job | None = None
    is_gone: bool = False

    @classmethod
    def start(cls, number: int, context: BaseContext, *, is_solved_on_cpu: bool) -> Worker:
        """Start a process."""
        ours, theirs = context.Pipe()
        log = _LOGS / f"{number}.log"
        process = context.Process(  # type: ignore[attr-defined]
            target=work, args=(theirs, log), kwargs={"is_solved_on_cpu": is_solved_on_cpu}
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        return cls(number, process, ours, log)

    def begin(self, job: Job) -> None:
        """Hand over a job."""
        self.job = job
        with contextlib.suppress(OSError):  # the process has ended: `take` says so
            self.jobs.send(job)

    def take(self) -> tuple[Job, Made]:
        """Take back the job, and what became of it."""
        job, self.job = self.job, None
        assert job is not None
        try:
            found: Made = self.jobs.recv()
        except (EOFError, OSError):
            self.process.join()
            self.is_gone = True
            found = Made(0.0, error=f"its process ended ({self.process.exitcode}); see {self.log}")
        return job, found

    def ask_to_end(self) -> None:
        """End the run that the process may be making, and let it end."""
        if self.job is not None:
            self.process.terminate()
        self.jobs.close()

    def end(self) -> None:
        """Wait until the process has ended, but not for long."""
        self.process.join(_GRACE_S)
        self.process.kill()


@dataclass
class Place:
    """How many of some runs have ended."""

    of: int
    n: int = 0

    def __str__(self) -> str:
        """Return "12/294"."""
        return f"{self.n}/{self.of}"


@dataclass
class Crew:
    """The processes, and how long runs take. They start when there is something to make."""

    n_processes: int
    is_solved_on_cpu: bool
    began: float
    until: float | None = None
    workers: list[Worker] = field(default_factory=list)
    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: list[RunSpec] = field(default_factory=list)

    def make(self, jobs: Sequence[Job]) -> list[Job]:
        """Make those runs that are not done; return those that time did not allow."""
        done = finished(jobs)
        waiting = [job for job in jobs if job.spec not in done]
        place = Place(len(waiting))
        while waiting or self._busy():
            self._hand_out(waiting, done)
            busy = self._busy()
            ready = connection.wait(list(busy), self._left()) if busy else []
            if not ready:
                return waiting + [one.job for one in busy.values() if one.job is not None]
            for each in ready:
                job, found = busy[each].take()  # type: ignore[index]
                self._report(job, found, place)
                if not found.error:
                    done.add(job.spec)
            self.workers = [one for one in self.workers if not one.is_gone]
        return []

    def end(self) -> None:
        """End the processes, and the runs that they may be making."""
        for worker in self.workers:
            worker.ask_to_end()
        for worker in self.workers:
            worker.end()

    def _busy(self) -> dict[connection.Connection, Worker]:
        return {worker.jobs: worker for worker in self.workers if worker.job is not None}

    def _hand_out(self, waiting: list[Job], done: set[RunSpec]) -> None:
        """Give idle processes the runs that can begin, and start processes for more of them."""
        idle = [worker for worker in self.workers if worker.job is None]
        while (job := self._next(waiting, done)) is not None:
            if not idle and len(self.workers) < self.n_processes:
                number = next(n for n in count() if all(one.number != n for one in self.workers))
                context = _SPAWN if self.n_processes == 1 else _FORKS
                on_cpu = self.is_solved_on_cpu
                self.workers.append(Worker.start(number, context, is_solved_on_cpu=on_cpu))
                idle.append(self.workers[-1])
            if not idle:
                return
            waiting.remove(job)
            idle.pop(0).begin(job)

    def _next(self, waiting: Sequence[Job], done: set[RunSpec]) -> Job | None:
        """The next job that can begin: what it needs is there, and so is the time."""
        left = self._left()
        for job in waiting:
            known = self.taken[job.spec.method]
            is_in_time = left is None or (fmean(known) if known else 0.0) < left
            if is_in_time and (job.after is None or job.after in done):
                return job
        return None

    def _left(self) -> float | None:
        """Seconds until the stop."""
        return None if self.until is None else max(0.0, self.until - self.seconds())

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def _report(self, job: Job, found: Made, place: Place) -> None:
        place.n += 1
        if found.error:
            self.failed.append(job.spec)
            print(f"FAILED {job.spec.name}: {found.error}", flush=True)
            return
        self.taken[job.spec.method].append(found.seconds)
        took = f"{found.top1_pct:.2f} % in {found.seconds:.1f} s"
        print(f"{self.seconds():6.1f} s  {place}  {job.spec.name}  {took}", flush=True)


def planned(declared: Study, device: str) -> list[Job]:
    """The runs of a study, seed by seed."""
    jobs = [
        Job(
            replace(declared.resolve(spec), device=device),
            declared.settings.study,
            declared.settings.evaluate_every,
            declared.trained_by(spec),
        )
        for spec in declared.runs
    ]
    return sorted(jobs, key=lambda job: job.spec.seed)  # stable: else in the study's order


def finished(jobs: Sequence[Job]) -> set[RunSpec]:
    """The runs that are done, with these settings and this code."""
    found = set()
    for job in jobs:
        run = PlannedRun(job.spec, job.settings.digest(), job.settings.recipe)
        try:
            scores.read_score(run, SHARED_RECIPE)
        except runtime.MissingDataError:
            continue
        found.add(job.spec)
    return found


# ---- what runs read


def prepare(declared: Study, device: str) -> None:
    """Make what the runs of a study read: images first, all datasets at once, then embeddings."""
    named, authors = declared.names("dataset"), declared.names("descriptions")
    lacking = [name for name in named if not are_there(name, authors)]
    if lacking:
        with ProcessPoolExecutor(len(lacking), mp_context=_SPAWN) as pool:
            list(pool.map(fetch, lacking, [authors] * len(lacking)))
    shared = (replace(spec, method="", variant="", seed=0) for spec in declared.runs)
    for spec in dict.fromkeys(shared):
        embed(spec, device)


def embed(spec: RunSpec, device: str) -> None:
    """Make a dataset's class vectors, and the embeddings of its images, unless they are there."""
    vectors, features = paths.CLASSIFIER.format(**vars(spec)), paths.FEATURES.format(**vars(spec))
    if Path(vectors).is_file() and Path(features).is_file():
        return
    from microclip.model import embeddings

    dataset = settings.load_dataset(spec.dataset)
    backbone = settings.load_backbone_settings(spec.backbone)
    author = settings.load_descriptions(spec.descriptions)
    embeddings.embed_descriptions(dataset, backbone, author, device=device)
    embeddings.encode_images(dataset, backbone, device)


def are_there(name: str, authors: Sequence[str]) -> bool:
    """Are a dataset's passport, which is written after its store, and descriptions there?"""
    texts = [paths.DESCRIPTIONS.format(descriptions=author, dataset=name) for author in authors]
    return all(Path(file).is_file() for file in (paths.PASSPORT.format(dataset=name), *texts))


def fetch(name: str, authors: Sequence[str]) -> None:
    """Make a dataset's images, store, passport and descriptions, unless they are there."""
    from microclip.data import datasets, passport, store
    from microclip.text import descriptions

    dataset = settings.load_dataset(name)
    if not Path(paths.MANIFEST.format(dataset=name)).is_file():
        datasets.fetch(dataset)
    if not Path(paths.PASSPORT.format(dataset=name)).is_file():
        store.build(name)
        passport.issue(dataset)
    for author in authors:
        if not Path(paths.DESCRIPTIONS.format(descriptions=author, dataset=name)).is_file():
            descriptions.write(dataset, settings.load_descriptions(author))


# ---- a setting chosen on one dataset


@dataclass(frozen=True)
class Sweep:
    """The runs of a figure's sweep on its first dataset, by value."""

    method: str
    setting: str
    dataset: str
    values: dict[float, tuple[RunSpec, ...]]

    @classmethod
    def of(cls, declared: Study, figure: str) -> Sweep:
        """Find the sweep of a figure. Raises SettingsError if the study lists no such sweep."""
        points = declared.expansion.points.get(figure)
        if not points:
            known = ", ".join(declared.expansion.points) or "none"
            raise settings.SettingsError(
                f"--choose {figure}: the study's sweeps are {known}; name one of them"
            )
        plot = reports.load_figure(figure).plot
        assert isinstance(plot, reports.SweepPlot)
        named = points[0].dataset
        values = {
            point.value: tuple(
                spec
                for spec in declared.runs
                if (spec.dataset, spec.method, spec.variant) == (named, plot.method, point.variant)
            )
            for point in points
            if point.dataset == named
        }
        return cls(plot.method, plot.setting, named, values)

    @property
    def runs(self) -> set[RunSpec]:
        """All runs of the sweep."""
        return {spec for own in self.values.values() for spec in own}

    def best(self) -> float:
        """Print each value's mean accuracy over seeds, and return the best value."""
        means = {value: fmean(map(top1_pct, own)) for value, own in self.values.items()}
        for value, mean in means.items():
            print(f"{self.setting} {value:g} on {self.dataset}: {mean:.2f} %", flush=True)
        return max(means, key=means.__getitem__)


def top1_pct(spec: RunSpec) -> float:
    """The accuracy of a finished run."""
    text = (spec.folder / paths.RUN_SCORES).read_text(encoding="utf-8")
    return float(json.loads(text)["top1_pct"])


def with_best(config: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    """The study's configuration with the best value of a sweep for all runs of its method."""
    value = sweep.best()
    print(
        f"chosen: methods: {{{sweep.method}: {{{sweep.setting}: {value:g}}}}}; write it into the "
        "study's file",
        flush=True,
    )
    own = {**config.get("methods", {}).get(sweep.method, {}), sweep.setting: value}
    return {**config, "methods": {**config.get("methods", {}), sweep.method: own}}


# ---- the whole


def pack(jobs: Sequence[Job], done: set[RunSpec], target: Path) -> None:
    """Write the files of finished runs that tables and figures read.

    A run that tests another one's weights comes after it, so that unpacking leaves it the newer.
    """
    n_bytes = 0
    with runtime.atomic_path(target) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for job in sorted(jobs, key=lambda job: job.after is not None):
            for file in _packed(job.spec.folder) if job.spec in done else ():
                packed.add(file)
                n_bytes += file.stat().st_size
    size = target.stat().st_size / 2**20
    each = n_bytes / 1024 / max(1, len(done))
    print(f"wrote {target}: {len(done)} runs, {each:.0f} KiB each, packed {size:.1f} MiB")


def _packed(folder: Path) -> Iterator[Path]:
    """A run's files but for its scores, which are last."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    yield from (folder / name for name in names if name not in {*_LEFT_OUT, paths.RUN_SCORES})
    yield folder / paths.RUN_SCORES


def run(options: argparse.Namespace, began: float) -> int:
    """Make the runs; return the exit code: 1 if one failed."""
    config = settings.read_yaml(options.config)
    declared = study.load(config)
    device = runtime.choose_device(options.device or declared.settings.device)
    threads = max(1, runtime.n_cpus() // options.processes)
    prepare(declared, device)
    print(f"{time.monotonic() - began:6.1f} s  data and embeddings are there", flush=True)
    # What a process inherits: its share of the CPUs.
    os.environ.update(MICROCLIP_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    is_solved_on_cpu = device == "cuda" and is_better_on_cpu(options.solver)
    crew = Crew(options.processes, is_solved_on_cpu, began, options.until)
    jobs, left = planned(declared, device), list[Job]()
    try:
        if options.choose:
            sweep = Sweep.of(declared, options.choose)
            left = crew.make([job for job in jobs if job.spec in sweep.runs])
            if not left and not crew.failed:
                jobs = planned(study.load(with_best(config, sweep)), device)
        if not left and not crew.failed:
            left = crew.make(jobs)
    finally:
        crew.end()
    done = finished(jobs)
    print(f"{crew.seconds():6.1f} s  {len(done)} done, {len(left)} left, {len(crew.failed)} failed")
    if options.pack:
        pack(jobs, done, options.pack)
    return int(bool(crew.failed))


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="the study's YAML file")
    parser.add_argument("--processes", type=int, default=8, help="that share GPU and CPUs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--until", type=float, metavar="SECONDS", help="stop then")
    parser.add_argument("--choose", metavar="FIGURE", help="a sweep whose best value all runs get")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="archive of the finished runs")
    parser.add_argument("--solver", choices=("auto", "cpu", "gpu"), default="auto")
    return parser.parse_args()


def main() -> None:
    """Make the runs of a study."""
    began = time.monotonic()
    processes.listen(warm.ENDING)
    try:
        sys.exit(run(parsed(), began))
    except (settings.SettingsError, runtime.ResourceError, runtime.MissingDataError) as error:
        sys.exit(f"many_runs.py: {error}")


if __name__ == "__main__":
    main()
