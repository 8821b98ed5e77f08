"""Print what a dry run costs: `snakemake -n` of the shipped studies, and of one of 5,000 runs.

`python benchmarks/dag.py --before ../other-checkout` measures the other checkout's code and rules
in turn with this one's. The rows *bare* are Snakemake alone: a workflow of as many jobs with one
output each, no input and no code of ours. The least of a few rounds counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from startup import HERE, Cost, checkout, measured, place, print_head, print_row, rivals

STUDIES = ("icons-seeds", "six", "paper")
SEEDS = 23  # of the paper's study: 5,024 runs
SNAKEMAKE = (sys.executable, "-m", "snakemake")
DRY = (*SNAKEMAKE, "--dry-run", "--quiet", "--cores", "1")
COUNT = (
    "import sys, pathlib; from microclip import settings, study;"
    "print(len(study.load(settings.read_yaml(pathlib.Path(sys.argv[1]))).runs))"
)


def many(folder: Path) -> Path:
    """Write the paper's study with many seeds."""
    values = yaml.safe_load((HERE / "config" / "paper.yaml").read_text(encoding="utf-8"))
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump({**values, "study": "many", "seeds": list(range(SEEDS))}))
    return path


def n_runs(config: Path) -> int:
    """Number of a study's runs."""
    words = [sys.executable, "-c", COUNT, str(config)]
    return int(subprocess.check_output(words, cwd=HERE, env=checkout(HERE)))


def bare(folder: Path, n_jobs: int) -> Path:
    """Write a workflow of `n_jobs` jobs that do nothing."""
    made = folder / f"bare-{n_jobs}"
    made.mkdir()
    (made / "Snakefile").write_text(
        f'rule all:\n    input: expand("out/{{i}}", i=range({n_jobs}))\n\n'
        'rule one:\n    output: "out/{i}"\n    shell: "touch {output}"\n'
    )
    return made


def main() -> None:
    """Measure all studies in all checkouts, in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout of the project")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    codes = rivals(arguments)
    print_head("Dry run", list(codes))
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: place(Path(scratch), code) for name, code in codes.items()}
        version = [measured((*SNAKEMAKE, "--version"), HERE, checkout(HERE)) for _ in range(2)]
        print_row("`snakemake --version`", dict.fromkeys(codes, version[0].least(version[1])))
        configs = [HERE / "config" / f"{name}.yaml" for name in STUDIES]
        for config in [*configs, many(Path(scratch))]:
            n = n_runs(config)
            floor = measured(DRY, bare(Path(scratch), n), checkout(HERE))
            print_row(f"bare, {n:,} jobs", dict.fromkeys(codes, floor))
            found: dict[str, Cost] = {}
            for _ in range(arguments.rounds):
                for name, code in codes.items():
                    words = (*DRY, "--configfile", str(config))
                    cost = measured(words, folders[name], checkout(code))
                    found[name] = cost.least(found.get(name))
            print_row(f"`{config.stem}`, {n:,} runs", found)


if __name__ == "__main__":
    main()
