"""Print what it costs to start: `--help`, the command line's import, `status`, a run of CLIP.

`python benchmarks/startup.py --before ../other-checkout` measures the other checkout's code in turn
with this one's. Each command is a fresh process; the least of a few rounds counts. *Imports of a
run*: all that a run of CLIP imports before it computes, without MLflow. The first row is Python
alone, the last torch alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PROJECT = ("Snakefile", "config", "environment.yml", "resources", "workflow")
RUN = "import microclip.cli.main, microclip.runner, microclip.methods.clip"
COMMANDS: dict[str, tuple[str, ...]] = {
    "Python": ("-c", "pass"),
    "`microclip --help`": ("-m", "microclip", "--help"),
    "`import microclip.cli.main`": ("-c", "import microclip.cli.main"),
    "`microclip status` of icons-all": ("-m", "microclip", "status", "--config", "{icons}"),
    "`microclip plan --no-calibration` of paper": (
        *("-m", "microclip", "plan", "--no-calibration"),
        *("--config", "config/paper.yaml"),
    ),
    "imports of a run": ("-c", RUN),
    "`import torch`": ("-c", "import torch"),
}


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU and wall seconds, and the most memory that it had."""

    cpu_s: float
    wall_s: float
    peak_mb: float

    def least(self, other: Cost | None) -> Cost:
        """Return the smaller of both, number by number."""
        if other is None:
            return self
        return Cost(*(min(pair) for pair in zip(self.row, other.row, strict=True)))

    @property
    def row(self) -> tuple[float, float, float]:
        """The three numbers."""
        return (self.cpu_s, self.wall_s, self.peak_mb)


def checkout(code: Path) -> dict[str, str]:
    """Return an environment in which `microclip` is another checkout's code."""
    kept = {name: value for name, value in os.environ.items() if "MICROCLIP" not in name}
    return {**kept, "PYTHONPATH": str(code)}


def place(folder: Path, code: Path) -> Path:
    """Return a new folder with links to a checkout's files, so that nothing is written there."""
    made = Path(tempfile.mkdtemp(dir=folder))
    for name in PROJECT:
        (made / name).symlink_to(code / name)
    return made


def measured(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Cost:
    """Run a command and return what it cost. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        if process.returncode or os.waitstatus_to_exitcode(status):
            said.seek(0)
            raise subprocess.CalledProcessError(1, command, said.read()[-2000:])
    megabytes = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(used.ru_utime + used.ru_stime, wall_s, megabytes)


def rivals(arguments: argparse.Namespace) -> dict[str, Path]:
    """The checkouts to compare, by the name of their columns."""
    before = {} if arguments.before is None else {"before": arguments.before.resolve()}
    return {**before, "after": HERE}


def print_row(what: str, found: Mapping[str, Cost]) -> None:
    """Print a row of the Markdown table."""
    cells = [what]
    cells += [f"{cost.cpu_s:.2f}" for cost in found.values()]
    if len(found) == 2:
        before, after = found.values()
        cells.append(f"{before.cpu_s / after.cpu_s:.1f}")
    cells += [f"{cost.wall_s:.2f}" for cost in found.values()]
    cells += [f"{cost.peak_mb:.0f}" for cost in found.values()]
    print("| " + " | ".join(cells) + " |", flush=True)


def print_head(what: str, names: Sequence[str]) -> None:
    """Print the head of the Markdown table."""
    ratio = ["CPU, before / after"] if len(names) == 2 else []
    heads = [what, *(f"CPU s, {name}" for name in names), *ratio]
    heads += [*(f"wall s, {name}" for name in names), *(f"MB, {name}" for name in names)]
    print("| " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * (len(heads) - 1))


def main() -> None:
    """Measure all commands in all checkouts, in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout of the project")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    codes = rivals(arguments)
    print_head("Command", list(codes))
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: place(Path(scratch), code) for name, code in codes.items()}
        icons = {
            name: next(f for f in ("icons-all", "config") if (code / f"config/{f}.yaml").is_file())
            for name, code in codes.items()
        }
        for what, words in COMMANDS.items():
            found: dict[str, Cost] = {}
            for _ in range(arguments.rounds):
                for name, code in codes.items():
                    named = [w.format(icons=f"config/{icons[name]}.yaml") for w in words]
                    cost = measured([sys.executable, *named], folders[name], checkout(code))
                    found[name] = cost.least(found.get(name))
            print_row(what, found)


if __name__ == "__main__":
    main()
