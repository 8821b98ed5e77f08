"""MLflow's SQLite file in the results folder, which is there whole or not at all.

MLflow makes its tables by dozens of changes, in seconds. Killed between two of them, it leaves a
file that it refuses from then on.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from microclip import paths

_CONTENT = {"runs": 0, "experiments": 1, "registered_models": 0}  # rows of a store without work


def make_own_database() -> None:
    """Make the results folder's, unless MLFLOW_TRACKING_URI names another store."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        with contextlib.suppress(Exception):  # MLflow itself says what is wrong with the place
            make_database(Path(paths.TRACKING_DATABASE))


def make_database(path: Path) -> None:
    """Make the file if there is none, or one that was left half-made."""
    if not path.is_file():
        _create(path, replaces=False)
    elif _is_empty(path) and not _is_whole(path):
        _create(path, replaces=True)


def _create(path: Path, *, replaces: bool) -> None:
    """Make the tables in another file, then give it the name; another process may be first."""
    import sqlalchemy
    from mlflow.store.db import utils

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = path.parent / Path(name).name  # as relative as the path: addresses have no "?"
    engine = sqlalchemy.create_engine(f"sqlite:///{temporary}")
    try:
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()
        if replaces:
            temporary.replace(path)
            return
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
        except OSError:  # a disk without hard links
            if not path.exists():
                temporary.replace(path)
    finally:
        engine.dispose()
        temporary.unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    """Is there nothing in it that anybody made? A file that cannot be read counts as in use."""
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


def _is_whole(path: Path) -> bool:
    """Has it all changes of this MLflow's tables?"""
    from mlflow.store.db import utils

    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            found = database.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.DatabaseError:
            return False
    latest = utils._get_latest_schema_revision()  # type: ignore[no-untyped-call]
    return bool(found == [(latest,)])
