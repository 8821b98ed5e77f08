"""`snakemake --resources gpu=4 --cores 4`: four runs at a time, each with a GPU and its CPUs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fixtures.gpus import PROLOGUE, environment
from tests.workflow import folder

N_GPUS, N_RUNS = 4, 5
WORKFLOW = """
configfile: "config/config.yaml"
include: "workflow/rules/common.smk"

rule all:
    input: expand("out/{n}.json", n=range(%d))

rule run:
    output: "out/{n}.json"
    resources: gpu=GPU_SLOTS
    shell: "python run.py . {output}"
"""
# A run that begins only when all four GPUs have one, but for the fifth, which comes later.
RUN = """
import json, time
from pathlib import Path
chosen = choose()
gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
Path("started", f"{gpu}-{os.getpid()}").touch()
end = time.monotonic() + 300
while len(list(Path("started").iterdir())) < %d and time.monotonic() < end:
    time.sleep(0.05)
found = {"chosen": chosen, "gpu": gpu, "started": len(list(Path("started").iterdir()))}
found |= {name: os.environ.get(f"MICROCLIP_{name}") for name in ("JOBS", "THREADS")}
Path(sys.argv[2]).write_text(json.dumps(found))
"""


def test_four_runs_share_four_gpus_and_all_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder.write(tmp_path / "study", device="auto")
    (place / "Snakefile").unlink()
    (place / "Snakefile").write_text(WORKFLOW % N_RUNS)
    (place / "run.py").write_text(PROLOGUE + RUN % N_GPUS)
    (place / "started").mkdir()
    for name in ("CUDA_VISIBLE_DEVICES", "MICROCLIP_THREADS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", environment(tmp_path, N_GPUS)["PATH"])
    done = folder.snakemake(place, "--cores", "4", "--resources", "gpu=4")
    assert done.returncode == 0, done.stdout
    found = [json.loads(path.read_text()) for path in sorted((place / "out").iterdir())]
    assert [run["chosen"] for run in found] == ["cuda"] * N_RUNS
    assert {run["gpu"] for run in found} == {"0", "1", "2", "3"}
    assert all(run["started"] >= N_GPUS for run in found)  # at once, each with its own
    threads = max(1, len(os.sched_getaffinity(0)) // N_GPUS)
    assert {(run["JOBS"], run["THREADS"]) for run in found} == {("4", str(threads))}
