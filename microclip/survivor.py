"""A command that pays for answers outlives its own end: it works in a process of its own.

The process that was typed only waits. If it is killed, even by `kill -9`, the worker hears that,
sends nothing more, keeps the answers that are under way, and ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_MARK = "MICROCLIP_WORKER"  # set in the worker: "1" where it shall watch for the other's end
_command: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Note the command as it was typed."""
    _command[:] = arguments


def is_worker() -> bool:
    """Return whether this process is the one that works."""
    return _MARK in os.environ


def work() -> int:
    """Run the same command as a worker in a session of its own; return its exit code.

    Ctrl-C and SIGTERM are passed on, as often as they come.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "microclip", *_command],
        stdin=subprocess.PIPE,  # closed by the system when this process ends, however it does
        start_new_session=True,
        env={**os.environ, _MARK: "1"},
    )
    while True:
        try:
            code = worker.wait()
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGINT)
        except BaseException:  # SIGTERM, as cli/main.py raises it
            worker.terminate()
        else:
            return code if code >= 0 else 128 - code


def watch() -> None:
    """End this process in order, as by SIGTERM, when the one that waits for it is gone."""
    if os.environ.get(_MARK) == "1":
        threading.Thread(target=_end_with_the_other, daemon=True).start()


def _end_with_the_other() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
