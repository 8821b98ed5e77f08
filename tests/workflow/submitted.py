"""What the tests of all clusters share: a long study, and the comparison with a local run."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.folder import RUN

TRAINED = RUN / "microclip/default/seed-0"
LONG = {
    "runs": [{"methods": ["microclip"]}],
    "tables": [],
    "methods": {"microclip": {"epochs": 3000, "batch_size": 8}},
    "evaluate_every": 1000,
}
# Files with the same bytes wherever the study of two seeds was run, and how many there are.
SAME_BYTES = pytest.mark.parametrize(
    ("pattern", "least"),
    [
        ("results/tiny/tables/*", 4),
        ("results/tiny/ledger.*", 2),
        ("results/runs/**/adapted.safetensors", 4),
        ("results/runs/**/predictions.parquet", 4),
    ],
)


def check_bytes(local: Path, there: Path, pattern: str, least: int) -> None:
    """The files are there, at least as many, with the bytes of the local run."""
    found = [
        {str(f.relative_to(place)): f.read_bytes() for f in place.glob(pattern)}
        for place in (local, there)
    ]
    assert len(found[0]) >= least
    assert found[0] == found[1]


def check_scores(local: Path, there: Path) -> None:
    """All runs have the scores of the local run, and so has their table."""
    found = [path.relative_to(local) for path in local.glob(f"{RUN}/**/scores.json")]
    assert len(found) == 4
    for path in (Path("results/tiny/scores.csv"), *found):
        assert without_times(local / path) == without_times(there / path)


def check_mirrored(place: Path) -> list[str]:
    """MLflow has the four runs, finished; their ids."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'results/mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], "tags.kind = 'run'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    return [run.info.run_id for run in runs]


def without_times(path: Path) -> list[dict[str, Any]]:
    """The rows of a table or the one of a JSON file, without what differs from day to day."""
    if path.suffix == ".json":
        rows = [json.loads(path.read_text())]
    else:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in ("seconds", "elapsed_s")} for row in rows]


def n_epochs(place: Path) -> int:
    """The epochs in the history of the long run so far, the network before training included."""
    history = place / TRAINED / "history.csv"
    return len(without_times(history)) if history.is_file() else 0


def check_history(place: Path) -> None:
    """Each epoch of the long run is in its history once."""
    rows = without_times(place / TRAINED / "history.csv")
    assert [int(float(row["epoch"])) for row in rows] == list(range(len(rows)))


def ends(place: Path) -> list[str]:
    """The starts and ends of the long run's processes, as its journal has them."""
    journal = place / TRAINED / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.is_file() else []
    events = [json.loads(line)["event"] for line in lines]
    return [event for event in events if event not in ("epoch", "machine")]
