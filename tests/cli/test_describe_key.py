"""The key of a language model's service never gets into a file, log, error or MLflow record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.llm_server import KEY, Server
from tests.text.asking import asked_project, server, start

__all__ = ["server"]
pytestmark = pytest.mark.usefixtures("shared_warm")


def test_the_key_is_written_nowhere(server: Server, own_project: Path) -> None:
    """The server repeats the key in answers and errors, the client logs at DEBUG, MLflow is on."""
    asked_project(own_project, server.url, concurrency=1)
    server.repeats_key = True
    loud = {"OPENAI_LOG": "debug", "MICROCLIP_ROOT": str(own_project)}
    arguments = ("describe", "shapes", "--descriptions", "asked")
    done = start(*arguments, **loud)
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    server.fault = lambda *_: "revoked"
    (own_project / "images" / "classes.txt").write_text("red_disc\ngreen square\nblue bar\ncone\n")
    failed = start("--debug", *arguments, **loud)
    trace, _ = failed.communicate(timeout=120)
    assert failed.returncode == 1
    assert "Traceback" in trace
    assert "refuses the key" in trace
    assert "provided: [key]" in trace
    found = [path for path in Path.cwd().rglob("*") if path.is_file()]
    names = {path.name for path in found}
    assert {"mlflow.db", "gpt-4o.jsonl", "shapes.json", "shapes.usage.json"} <= names
    assert not [path for path in found if KEY.encode() in path.read_bytes()]
    assert KEY not in said + trace

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{Path('results/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("descriptions")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "asked/shapes"
    assert run.data.params["model"] == "gpt-4o"
    assert run.data.metrics["completion_tokens"] == 900
    assert run.data.metrics["cost_usd"] == pytest.approx(0.00945)
    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert there == {"shapes.json", "shapes.usage.json"}
