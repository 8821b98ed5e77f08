"""Where MLflow is, what is kept quiet about it, and how its pages are served."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from microclip import paths

_QUIET = {  # set before mlflow is imported, here and in the server
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PASSWORD = re.compile(r"//[^/@\s]+@")  # in an address, also within an error's text


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the SQLite file of this results folder, absolute."""
    default = f"sqlite:///{Path(paths.TRACKING_DATABASE).resolve()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def shown_uri() -> str:
    """Return the address without a password, as it may be printed and written."""
    return _PASSWORD.sub("//", tracking_uri())


def failure(error: BaseException) -> tuple[str, str]:
    """Return the address and an error's first line, without passwords."""
    text = _PASSWORD.sub("//", str(error)).splitlines()
    return shown_uri(), text[0] if text else type(error).__name__


def be_quiet() -> None:
    """Set what MLflow reads from the environment, unless the user has set it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def serve(port: int) -> None:
    """Serve MLflow's pages on 127.0.0.1 until interrupted; this process becomes the server."""
    be_quiet()
    arguments = ["-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *arguments])
