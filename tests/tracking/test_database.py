"""MLflow's database is complete or not there, whenever the process that creates it is killed."""

import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from microclip import paths
from microclip.settings import SettingsError
from microclip.tracking import mirror
from microclip.tracking.database import make_database
from tests.fixtures.tracking import client, own_store


def make_incomplete(path: Path) -> None:
    """Give the tables a version that this MLflow does not know, so that it refuses them."""
    with sqlite3.connect(path) as opened:
        opened.execute("UPDATE alembic_version SET version_num = 'b7c8d9e0f1a2'")
        opened.execute("DELETE FROM experiments")
    opened.close()


def test_an_empty_one_that_is_incomplete_is_replaced(tmp_path: Path, empty_database: Path) -> None:
    with own_store(tmp_path):
        path = Path(paths.TRACKING_DATABASE)
        path.parent.mkdir()
        shutil.copy(empty_database, path)
        make_incomplete(path)
        mirror.init("tiny")
        assert client().get_experiment_by_name("tiny") is not None
        assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_one_with_work_in_it_is_left_alone(tmp_path: Path, empty_database: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)  # it has an experiment
    with sqlite3.connect(path) as opened:
        opened.execute("UPDATE alembic_version SET version_num = 'b7c8d9e0f1a2'")
    opened.close()
    before = path.read_bytes()
    make_database(path)
    assert path.read_bytes() == before
    path.write_bytes(b"no database at all")
    make_database(path)
    assert path.read_bytes() == b"no database at all"


def test_kill_9_during_its_creation_leaves_none(tmp_path: Path) -> None:
    from alembic.runtime.migration import MigrationContext

    path = tmp_path / "mlflow.db"
    if (child := os.fork()) == 0:
        # The tables of the first version are there; the changes begin.
        MigrationContext.run_migrations = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        make_database(path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not path.exists()
    assert list(tmp_path.iterdir())  # its own file, which `microclip unlock` removes
    make_database(path)
    assert path.is_file()


def test_one_of_two_that_are_created_at_once_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            make_database(path)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    before = path.stat().st_ino
    make_database(path)
    assert path.stat().st_ino == before


def test_a_place_that_cannot_be_written_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "results").write_text("")  # MLflow would try for 100 seconds to make files there
    with pytest.raises(
        SettingsError, match=r"mlflow\.db cannot be written: .*results is no folder"
    ):
        mirror.connect()
    with pytest.raises(
        SettingsError, match=r"mlflow\.db cannot be written: .*results is no folder"
    ):
        mirror.sync(tmp_path)
