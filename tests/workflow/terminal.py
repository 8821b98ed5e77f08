"""A terminal for a program: what people would see, without the codes for colours and cursor."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def watch(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a program on a terminal of 100 x 40; return its exit code and all that was drawn."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    process = subprocess.Popen(
        words,
        cwd=folder,
        env={**environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the last program that had the terminal has ended
            break
        if not read:
            break
        drawn += read
    os.close(ours)
    return process.wait(timeout=60), _CODES.sub("", drawn.decode("utf-8", "replace"))
