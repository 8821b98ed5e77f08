"""The benchmark that follows [FG]: it trains as microCLIP does, but for what a way changes."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from microclip import runner
from tests.fixtures import benchmarks
from tests.fixtures.project import Journal, load_study, prepare

SHORT = ["--backbone", "tiny", "--epochs", "2", "--batch-size", "4", "--tested", "12"]


@pytest.fixture
def local_head() -> ModuleType:
    return benchmarks.load("local_head")


def trained(local_head: ModuleType, way: str) -> Sequence[dict[str, float]]:
    options = local_head.parsed(["shapes", *SHORT])
    case = local_head.Case("shapes", way, 1e-2, 0, options)
    rows: Sequence[dict[str, float]] = local_head.train(case, "cpu")
    return rows


@pytest.mark.usefixtures("project")
def test_every_way_trains_microclip_with_what_it_changes(local_head: ModuleType) -> None:
    declared = load_study(("microclip",), microclip={"n_crops": 8, "learning_rate": 1e-2})
    settings = declared.resolve(declared.runs[0])
    prepare(settings)
    journal = Journal()
    runner.run(settings, Path("run"), journal)
    rows = trained(local_head, "default")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for epoch, row in enumerate(rows):
        own = journal.rows[epoch]
        tested = [own[f"test_{head}_pct"] for head in ("fused", "global", "local")]
        assert [row[head] for head in ("fused", "global", "local")] == pytest.approx(tested)
        assert row.get("pseudo_mix_pct") == own.get("pseudo_mix_pct")
        assert 0 <= row["entropy"] <= 1
        assert 0 < row["mask"] <= 1
    assert rows[0]["query"] == rows[0]["key"] == rows[0]["value"] == 0
    last = {way: trained(local_head, way)[-1] for way in ("frozen-maps", "slow-maps", "local-loss")}
    drift = {way: row["value"] for way, row in last.items()}
    assert drift["frozen-maps"] == 0 < drift["slow-maps"] < rows[-1]["value"] / 5
    assert drift["local-loss"] != rows[-1]["value"]
    # A part that never moved makes no difference when it is put back.
    assert last["frozen-maps"]["restored_maps"] == last["frozen-maps"]["local"]
    alone = trained(local_head, "rho-0")
    assert [row["fused"] for row in alone] == [row["local"] for row in alone]
    still = trained(local_head, "frozen-norms")
    assert still[-1]["restored_norms"] == still[-1]["local"]


@pytest.mark.usefixtures("project")
def test_the_table_and_the_file_have_each_run() -> None:
    arguments = ["shapes", *SHORT, "--ways", "default", "--rates", "1e-2", "--by-epoch"]
    script = benchmarks.BENCHMARKS / "local_head.py"
    done = subprocess.run(
        [sys.executable, script, *arguments, "--out", "rows.csv", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    cells = lines[2].strip("| ").split(" | ")
    assert len(cells) == len(lines[0].strip("| ").split(" | "))
    assert cells[:4] == ["shapes", "default", "0.01", "0"]
    assert "shapes, default, rate 0.01, seed 0:" in lines
    with Path("rows.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert cells[6] == f"{float(rows[0]['local']):.1f} → {float(rows[2]['local']):.1f}"
