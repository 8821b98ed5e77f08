"""MLflow's SQLite file in the results folder: complete, or not there.

MLflow takes seconds and dozens of changes to create its tables. If it is killed between two of
them, it leaves a file that it refuses ever after.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from microclip import paths
from microclip.settings.errors import ResourceError, SettingsError
from microclip.writing import made

_CONTENT = {"runs": 0, "experiments": 1, "registered_models": 0}  # rows of a store without work


def make_own_database() -> None:
    """Create the results folder's, unless MLFLOW_TRACKING_URI names another store.

    Raises:
        SettingsError: nothing can be written there; MLflow would try again for 100 seconds.
        ResourceError: the disk is full.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        try:
            make_database(Path(paths.TRACKING_DATABASE))
        except (SettingsError, ResourceError):
            raise
        except Exception:  # noqa: BLE001  MLflow itself says what else is wrong
            return


def make_database(path: Path) -> None:
    """Create the file if there is none, or only an incomplete one without content."""
    if path.is_file():
        if not _is_empty(path) or _is_complete(path):
            return
        path.unlink()
    _create(path)


def _create(path: Path) -> None:
    """Create the tables in another file, then give it the name; another process may be first."""
    import sqlalchemy
    from mlflow.store.db import utils

    with made(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
    temporary = path.parent / Path(name).name  # as relative as the path: addresses have no "?"
    engine = sqlalchemy.create_engine(f"sqlite:///{temporary}")
    try:
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        except OSError:  # a disk without hard links
            if not path.exists():
                temporary.replace(path)
    finally:
        engine.dispose()
        temporary.unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    """Has it no run, experiment or model? A file that cannot be read counts as in use."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        for table, most in _CONTENT.items():
            try:
                [(n_rows,)] = database.execute(f"SELECT count(*) FROM {table}")
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    continue
                return False
            except sqlite3.DatabaseError:
                return False
            if n_rows > most:
                return False
    return True


def _is_complete(path: Path) -> bool:
    """Has it the tables of the installed MLflow?"""
    from mlflow.store.db import utils

    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            found = database.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.DatabaseError:
            return False
    latest = utils._get_latest_schema_revision()  # type: ignore[no-untyped-call]
    return bool(found == [(latest,)])
