"""One run again and again, each time broken at another of its writes; started by test_writes.py.

Each attempt is a fork of this process, because a kill must be a kill. The second attempt in a
folder is not disturbed. Prints a JSON line for each folder.

Usage: broken_writes.py FOLDER FAULT N [FAULT N ...], FAULT: kill, full, or none.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from microclip import warm
from microclip.cli.main import main

RUN = ("run", "--settings", "../run.json", "--out", "out")


def disturb(fault: str, n: int) -> None:
    """Let the n-th write fail: every file is flushed before its rename, its folder after it."""
    flush, done = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal done
        done += 1
        if done == n and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if done == n and fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    os.fsync = fsync  # type: ignore[assignment]


def attempt(folder: Path, fault: str, n: int) -> tuple[int, str, int]:
    """Run in a fork; return its exit code, what it said, and how often it flushed."""
    said, count = folder / "said.txt", folder / "count.txt"
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.stderr = said.open("w")  # noqa: SIM115  until the process ends
        flush, n_flushed = os.fsync, 0

        def counted(handle: int) -> None:
            nonlocal n_flushed
            n_flushed += 1
            count.write_text(str(n_flushed))
            flush(handle)

        os.fsync = counted  # type: ignore[assignment]
        disturb(fault, n)
        code = main(list(RUN))
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text(), int(count.read_text()) if count.is_file() else 0


def broken(root: Path, fault: str, n: int) -> None:
    """Break a run in a folder of its own, run it again, and say how both went."""
    folder = root / f"{fault}-{n}"
    folder.mkdir()
    (folder / "results").symlink_to(root / "results")
    first = attempt(folder, fault, n)
    left = sorted(path.name for path in (folder / "out").rglob(".*-*"))
    second = attempt(folder, "none", 0)
    print(
        json.dumps({"folder": folder.name, "first": first, "left": left, "second": second}),
        flush=True,
    )


if __name__ == "__main__":
    for name in warm._NEEDED["run"]:  # once, before the forks
        importlib.import_module(name)
    torch.set_num_threads(1)
    os.environ.update(MICROCLIP_THREADS="1", MICROCLIP_MIRROR="workflow")
    faults = iter(sys.argv[2:])
    for each in faults:
        broken(Path(sys.argv[1]), each, int(next(faults)))
