"""A tracking server that never answers, and one that dies half-way: the run's files do not wait."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip import paths, runtime
from microclip.tracking import mirror
from microclip.tracking.run import open_tracker
from tests.fixtures.project import settings_of
from tests.fixtures.tracking import runs


@pytest.fixture
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_costs_one_warning_and_sync_catches_up(
    work: Path,
    silent: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of("clip")
    folder = settings.spec.folder
    tracker = open_tracker(settings, folder, "tiny")
    scores = {"digest": settings.digest(), "top1_pct": 44.0}
    runtime.write_json(folder / paths.RUN_SCORES, scores)
    tracker.finish(scores)  # the run is over before any server is asked
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="microclip"):
        patch.setenv("MLFLOW_TRACKING_URI", silent)
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        follower = mirror.Follower({str(folder): 0})
        assert not follower.close()
        with pytest.raises(runtime.ServiceError, match="start it, then run `microclip sync`"):
            mirror.sync(Path("results"))
    said = [record for record in caplog.records if "microclip sync" in record.getMessage()]
    assert len(said) == 1
    assert mirror.sync(Path("results")) == (1, 0)
    [run] = runs()
    assert run.info.status == "FINISHED"


def test_an_upload_that_dies_half_way_is_incomplete_and_then_made_whole(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    settings = settings_of("clip")
    folder = settings.spec.folder
    tracker = open_tracker(settings, folder, "tiny")
    scores = {"digest": settings.digest(), "top1_pct": 44.0}
    runtime.write_json(folder / paths.RUN_SCORES, scores)
    tracker.finish(scores)
    upload, sent = MlflowClient.log_artifact, list[str]()

    def dies(self: MlflowClient, run_id: str, file: str) -> None:
        if sent:
            raise ConnectionResetError("connection reset by peer")
        sent.append(file)
        upload(self, run_id, file)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", dies)
        assert not mirror.Follower({str(folder): 0}).close()
    [run] = runs()
    assert (run.info.status, run.data.tags["artifacts"]) == ("RUNNING", "incomplete")
    assert mirror.sync(Path("results")) == (1, 0)
    [run] = runs()
    assert (run.info.status, run.data.tags["artifacts"]) == ("FINISHED", "complete")
