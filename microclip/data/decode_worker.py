"""The other end of `decoders.py`: a process that decodes the files it is named, one at a time.

A line of standard input is "d" (decode) or "v" (verify: no pixels are sent back) and a path in
hexadecimal. The answer is a line of JSON and the bytes of the pixels. It ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from microclip.data.decoding import UnreadableError, decode


def main() -> None:
    """Answer until standard input is closed, by the other process or by its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # libraries that print must not spoil an answer
        for line in sys.stdin.buffer:
            _answer(answers, Path(os.fsdecode(bytes.fromhex(line[1:].decode()))), line[:1] == b"d")


def _answer(answers: BinaryIO, path: Path, is_wanted: bool) -> None:  # noqa: FBT001
    pixels = np.empty((0, 0, 3), np.uint8)
    said: dict[str, Any] = {}
    try:
        decoded = decode(path)
    except FileNotFoundError:
        said = {"gone": True}
    except UnreadableError as error:
        said = {"reason": str(error)}
    else:
        said = {"mode": decoded.mode, "traits": decoded.traits, "shape": (0, 0)}
        if is_wanted:
            pixels = np.ascontiguousarray(decoded.pixels)
            said["shape"] = pixels.shape[:2]
    answers.write(json.dumps(said).encode() + b"\n")
    answers.write(pixels.data)  # as they are, without a copy
    answers.flush()


if __name__ == "__main__":
    main()
