"""Variables in MATLAB files, read without running any code in them.

scipy crashes on some damaged files, so another process reads them: it imports scipy once and forks
a child for each file. A crash ends the child alone, and its exit code is in the error.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from microclip import runtime
from microclip.data.layouts.base import not_there

# Each line that it reads is a file and names of variables. A child answers with a line of JSON, a
# struct's fields by their names, unless it crashes; its exit code is the line after that.
_READER = """
import json, os, resource, sys
import numpy as np
from scipy.io.matlab import loadmat

def values(path, *names):
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (2**30, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))  # of memory
    read = {}
    for name, found in loadmat(path, squeeze_me=True, variable_names=names).items():
        if name in names:
            found = np.atleast_1d(found)
            fields = {field: found[field].ravel().tolist() for field in found.dtype.names or ()}
            read[name] = fields or found.ravel().tolist()
    return json.dumps({"values": read}, default=lambda value: value.tolist())

for line in sys.stdin:
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print(f"\\n{os.waitstatus_to_exitcode(status)}", flush=True)
        continue
    try:
        answer = values(*json.loads(line))
    except Exception as error:
        said = " ".join(str(error).split())
        answer = json.dumps({"error": f"{type(error).__name__}: {said}"})
    print(answer, end="", flush=True)
    os._exit(0)
"""


class _Reader:
    """The process that reads; it ends with this one."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _READER],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a thread's stack counts as memory
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(self._end)

    def ask(self, path: Path, *names: str) -> dict[str, Any] | None:
        """Return the answer's JSON, or an error; None if somebody has ended the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([str(path), *names]).encode() + b"\n")
            self._process.stdin.flush()
        answer, code = self._process.stdout.readline(), self._process.stdout.readline()
        if not code:
            return None
        if int(code):
            return {"error": f"exit code {int(code)}"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def _end(self) -> None:
        if os.getpid() == self._owner:  # and not a fork, which has inherited this call
            self._process.kill()
            self._process.communicate()


_lock = threading.Lock()
_readers: dict[int, _Reader] = {}  # by process, as a fork must not share its parent's pipes


def _asked(path: Path, *names: str) -> dict[str, Any]:
    """Ask this process's reader, which is started for the first file."""
    own = os.getpid()
    with _lock:
        if own not in _readers:
            _readers[own] = _Reader()
        answer = _readers[own].ask(path, *names)
        if answer is None:
            del _readers[own]  # the next file gets another
            return {"error": "the process that read it was ended"}
    return answer


def matlab_variables(path: Path, *names: str) -> dict[str, Any]:
    """Read variables: each is a list of texts and integers, or a dictionary of a struct's fields.

    Raises: MissingDataError if the file is missing or damaged, or has no such variable.
    """
    if not path.is_file():
        raise not_there(path)
    answer = _asked(path.absolute(), *names)
    values: dict[str, Any] = answer.get("values", {})
    columns = [list(one.values()) if isinstance(one, dict) else [one] for one in values.values()]
    odd = [value for one in columns for column in one for value in column if not _is_entry(value)]
    if odd or "error" in answer:
        said = f"an entry is {odd[0]!r:.60}" if odd else answer["error"]
        raise runtime.MissingDataError(
            f"{path} is damaged or not a MATLAB file ({said}); get the dataset again"
        )
    if missing := [name for name in names if name not in values]:
        raise runtime.MissingDataError(
            f"{path} has no variable {missing[0]!r}, so it is damaged or another file; get the "
            "dataset again"
        )
    return values


def _is_entry(value: object) -> bool:
    """Is it a text or a whole number, which some files have as a float?"""
    return isinstance(value, str) or (isinstance(value, int | float) and value % 1 == 0)
