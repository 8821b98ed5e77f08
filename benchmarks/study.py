"""Measure a whole study, and draw its jobs over time.

`run` runs a small study (icons-food-tiny; by default clip, cupl and three seeds of microCLIP with
two epochs, a table and a figure) with the code of each TREE in turn, and prints a Markdown table:
CPU and wall seconds by rule and by process, and memory. A tree is a checkout; what follows its ":"
is an environment variable that it gets, so that `warm=. off=.:MICROCLIP_WARM=off` compares a tree
with itself. CPU seconds by process are sampled, so some of very short processes are missing there;
the sum is what the system counted. Memory is the proportional set size (PSS) of all processes
together, where shared pages count once.

`timeline` draws any workflow's log as a chart: one bar per job, one row per job that ran beside
others. Snakemake writes the log, with times in whole seconds, to `.snakemake/log`.

    python benchmarks/study.py run before=/path/to/old/checkout after=.
    python benchmarks/study.py timeline .snakemake/log/*.snakemake.log --out timeline.svg
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

_LINKED = ("Snakefile", "workflow", "resources", "environment.yml")
_SAMPLE_S = 0.2
_STARTED = re.compile(r"Job (\d+): ")
_FINISHED = re.compile(r"Finished jobid: (\d+) \(Rule: (\w+)\)")
_TIME = re.compile(r"\[(\w{3} \w{3} +\d+ [\d:]+ \d{4})\]")


@dataclass(frozen=True)
class Job:
    """A job of a workflow; times in seconds since the first one began."""

    rule: str
    begin: float
    end: float


def jobs_of(log: Path) -> list[Job]:
    """Read the jobs from Snakemake's log, in the order of their beginnings."""
    begun: dict[str, datetime] = {}
    found: list[tuple[str, datetime, datetime]] = []
    now = datetime.min  # noqa: DTZ901  the log names no time zone
    for line in log.read_text(encoding="utf-8").splitlines():
        if match := _TIME.fullmatch(line):
            now = datetime.strptime(match[1], "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007
        elif match := _STARTED.match(line):
            begun[match[1]] = now
        elif (match := _FINISHED.match(line)) and match[1] in begun:
            found.append((match[2], begun[match[1]], now))
    first = min((begin for _, begin, _ in found), default=now)
    jobs = [Job(r, (b - first).total_seconds(), (e - first).total_seconds()) for r, b, e in found]
    return sorted(jobs, key=lambda job: job.begin)


def lanes(jobs: Sequence[Job]) -> list[list[Job]]:
    """Sort jobs into rows in which no two overlap, as few as possible."""
    rows: list[list[Job]] = []
    for job in jobs:
        free = [row for row in rows if row[-1].end <= job.begin]
        if free:
            free[0].append(job)
        else:
            rows.append([job])
    return rows


def draw(log: Path, out: Path) -> None:
    """Draw the timeline of a workflow's log; the suffix of `out` decides the format."""
    from matplotlib import pyplot as plt

    jobs = jobs_of(log)
    rules = list(dict.fromkeys(job.rule for job in jobs))
    colours = {rule: plt.get_cmap("tab20")(i % 20) for i, rule in enumerate(rules)}
    rows = lanes(jobs)
    figure, axes = plt.subplots(figsize=(11, 2.4 + 0.5 * len(rows)), layout="constrained")
    for number, row in enumerate(rows):
        for job in row:
            width = max(job.end - job.begin, 0.3)  # a job of less than a second is still seen
            bar = (job.begin, width)
            axes.broken_barh(
                [bar], (number - 0.4, 0.8), color=colours[job.rule], ec="white", lw=0.3
            )
    spent = Counter[str]()
    for job in jobs:
        spent[job.rule] += round(job.end - job.begin)
    for rule in rules:
        count = sum(job.rule == rule for job in jobs)
        axes.barh([0], [0], color=colours[rule], label=f"{rule}: {count} jobs, {spent[rule]} s")
    axes.set_yticks(range(len(rows)), [f"row {number + 1}" for number in range(len(rows))])
    axes.set_xlabel("seconds since the first job began")
    axes.set_title(f"{len(jobs)} jobs in {max((job.end for job in jobs), default=0):.0f} s")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


@dataclass
class Sampled:
    """What was seen of a study's processes.

    Attributes:
        cpu_s: by process, its kind and the CPU seconds when it was last seen.
        peak_mib: the greatest PSS of all together.
    """

    cpu_s: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)
    peak_mib: float = 0.0

    def watch(self, place: Path, is_over: threading.Event) -> None:
        """Sample the processes that work in a folder."""
        while not is_over.wait(_SAMPLE_S):
            self.peak_mib = max(self.peak_mib, sum(self._look(place)))

    def _look(self, place: Path) -> Iterator[float]:
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) != place:
                    continue
                times = process.cpu_times()
                key = (process.pid, process.create_time())
                self.cpu_s[key] = (kind_of(process), times.user + times.system)
                pss = Path(f"/proc/{process.pid}/smaps_rollup").read_text().split("Pss:")[1]
                yield int(pss.split()[0]) / 1024
            except (psutil.Error, OSError, IndexError):
                continue

    def by_kind(self) -> dict[str, float]:
        """CPU seconds by kind of process."""
        found: dict[str, float] = defaultdict(float)
        for kind, seconds in self.cpu_s.values():
            found[kind] += seconds
        return found


def kind_of(process: psutil.Process) -> str:
    """The verb that a process runs; a child of the warm process has it in its short name."""
    command = process.cmdline()
    if process.name().startswith("microclip "):
        return process.name().removeprefix("microclip ")
    if command[1:3] == ["-m", "microclip"]:
        return command[3][:5]
    return "snakemake" if "snakemake" in " ".join(command[:3]) else "other"


def study(epochs: int) -> dict[str, Any]:
    """The study that is measured."""
    return {
        "study": "measured",
        "datasets": ["icons-food-tiny"],
        "backbones": ["icon-clip"],
        "descriptions": ["shipped"],
        "seeds": [0, 1, 2],
        "runs": [{"methods": ["clip", "cupl", "microclip"]}],
        "methods": {"microclip": {"epochs": epochs, "batch_size": 32}},
        "tables": [{"name": "table1", "is_brief": True}],
        "figures": ["figure4"],
        "device": "cpu",
    }


@dataclass(frozen=True)
class Measured:
    """One run of the study."""

    wall_s: float
    cpu_s: float
    jobs: list[Job]
    sampled: Sampled


def measure(tree: Path, variables: dict[str, str], *, epochs: int, cores: int) -> Measured:
    """Run the study with the code of a tree, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="measured-") as name:
        place = Path(name)
        for linked in _LINKED:
            (place / linked).symlink_to(tree / linked)
        shutil.copytree(tree / "config", place / "config")
        (place / "config/config.yaml").write_text(yaml.safe_dump(study(epochs)), encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MICROCLIP_", "MLFLOW_"))}
        sampled, is_over = Sampled(), threading.Event()
        watching = threading.Thread(target=sampled.watch, args=(place, is_over))
        watching.start()
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", str(cores), "--resources", "gpu=1"],
            cwd=place,
            env={**kept, "PYTHONPATH": str(tree), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        wall_s, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        is_over.set()
        watching.join()
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        [log] = (place / ".snakemake/log").glob("*.snakemake.log")
        return Measured(wall_s, cpu_s, jobs_of(log), sampled)


def compare(trees: dict[str, tuple[Path, dict[str, str]]], arguments: argparse.Namespace) -> None:
    """Measure the trees in turn, and print the table."""
    found: dict[str, list[Measured]] = defaultdict(list)
    for _ in range(arguments.repeats):
        for name, (tree, variables) in trees.items():
            one = measure(tree, variables, epochs=arguments.epochs, cores=arguments.cores)
            found[name].append(one)
    best = {name: min(runs, key=lambda one: one.cpu_s) for name, runs in found.items()}
    rules = list(dict.fromkeys(job.rule for one in best.values() for job in one.jobs))
    print("| |", " | ".join(best), "|")
    print("| --- |", " ---: |" * len(best))

    def row(title: str, cells: Sequence[str]) -> None:
        print("|", title, "|", " | ".join(cells), "|")

    for rule in rules:
        own = [[job for job in one.jobs if job.rule == rule] for one in best.values()]
        walls = [sum(job.end - job.begin for job in jobs) for jobs in own]
        row(f"{rule}, wall s", [f"{w:.0f} in {len(j)}" for w, j in zip(walls, own, strict=True)])
    kinds = sorted({kind for one in best.values() for kind in one.sampled.by_kind()})
    for kind in kinds:
        cells = [f"{one.sampled.by_kind().get(kind, 0):.1f}" for one in best.values()]
        row(f"processes `{kind}`, CPU s", cells)
    row("all, CPU s", [f"{one.cpu_s:.1f}" for one in best.values()])
    row("all, wall s", [f"{one.wall_s:.1f}" for one in best.values()])
    row("peak memory of all, PSS, MiB", [f"{one.sampled.peak_mib:.0f}" for one in best.values()])
    first = next(iter(best.values()))
    row("CPU, ratio to the first", [f"{first.cpu_s / one.cpu_s:.2f}" for one in best.values()])


def _tree(text: str) -> tuple[str, tuple[Path, dict[str, str]]]:
    name, _, rest = text.partition("=")
    folder, _, variable = rest.partition(":")
    key, _, value = variable.partition("=")
    return name, (Path(folder).resolve(), {key: value} if key else {})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True, dest="verb")
    running = verbs.add_parser("run")
    running.add_argument("trees", nargs="+", type=_tree, metavar="NAME=TREE[:VARIABLE=VALUE]")
    running.add_argument("--repeats", type=int, default=1)
    running.add_argument("--epochs", type=int, default=2)
    running.add_argument("--cores", type=int, default=1)
    drawing = verbs.add_parser("timeline")
    drawing.add_argument("log", type=Path)
    drawing.add_argument("--out", type=Path, default=Path("timeline.svg"))
    arguments = parser.parse_args()
    if arguments.verb == "run":
        compare(dict(arguments.trees), arguments)
    else:
        draw(arguments.log, arguments.out)


if __name__ == "__main__":
    main()
