"""Many image files decoded side by side, given back in order.

Each process is a Python of its own that is told paths through a pipe, so that a user's script is
not run again in it, no thread is forked, and a decoder that crashes takes one file with it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from microclip import runtime
from microclip.data.decoding import Decoded, UnreadableError, decode

FILES_A_PROCESS = 48  # fewer are decoded before a process has started (about 0.4 s)
_AHEAD = 3  # images a process that may wait to be taken: what bounds the memory
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_PACKAGES = str(Path(__file__).resolve().parents[2])

Result = Decoded | UnreadableError
Results = Generator[Result, None, None]


def count(n_files: int) -> int:
    """Return how many processes decode: MICROCLIP_THREADS or the CPUs, none for a few files."""
    named = os.environ.get("MICROCLIP_THREADS")
    cpus = int(named) if named else len(os.sched_getaffinity(0))
    n = min(cpus, n_files // FILES_A_PROCESS)
    return n if n > 1 and sys.executable else 0


def decode_all(
    files: Sequence[Path], *, n_processes: int | None = None, has_pixels: bool = True
) -> Results:
    """Yield each file decoded, or why it cannot be, in order; see `decoding.decode`.

    `n_processes` 0 decodes here, None chooses (`count`); the bytes do not depend on it. Without
    `has_pixels` the images are empty: only whether they can be read is asked.

    Raises:
        MissingDataError: a file is gone.
        ResourceError: a process was ended from outside; the message names its file.
    """
    n = count(len(files)) if n_processes is None else n_processes
    if n == 0:
        return (_decode_here(path) for path in files)
    return _decode_in_processes(files, n, has_pixels=has_pixels)


def _decode_here(path: Path) -> Result:
    try:
        return decode(path)
    except UnreadableError as error:
        return error
    except FileNotFoundError:
        raise _gone(path) from None


def _decode_in_processes(files: Sequence[Path], n: int, *, has_pixels: bool) -> Results:
    """Yield results in order; `_AHEAD` images a process are under way or wait."""
    idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
    decoders = [_Decoder() for _ in range(n)]
    for decoder in decoders:
        idle.put(decoder)

    def ask(path: Path) -> Result:
        decoder = idle.get()
        try:
            return decoder.decode(path, has_pixels=has_pixels)
        finally:
            idle.put(decoder)

    waiting: deque[Future[Result]] = deque()
    rest = iter(files)
    try:
        with ThreadPoolExecutor(n) as pool:
            try:
                waiting.extend(pool.submit(ask, path) for path in islice(rest, _AHEAD * n))
                while waiting:
                    yield waiting.popleft().result()
                    waiting.extend(pool.submit(ask, path) for path in islice(rest, 1))
            finally:
                for future in waiting:
                    future.cancel()
                for decoder in decoders:
                    decoder.kill()  # a thread that waits for it hears the end
    finally:
        for decoder in decoders:
            decoder.close()


class _Decoder:
    """A process that decodes; a new one takes its place if a file crashes it."""

    def __init__(self) -> None:
        self._process = _start()

    def decode(self, path: Path, *, has_pixels: bool) -> Result:
        """Return what the process says of a file. Raises as `decode_all`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        order = b"d" if has_pixels else b"v"
        try:
            process.stdin.write(order + os.fsencode(path.absolute()).hex().encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            said = json.loads(line) if line.endswith(b"\n") else None
            shape = (*said.get("shape", (0, 0)), 3) if said else (0, 0, 3)
            data = process.stdout.read(shape[0] * shape[1] * 3)
        except OSError:  # the pipe broke: it has ended
            said, data, shape = None, b"", (0, 0, 3)
        if said is None or len(data) != shape[0] * shape[1] * 3:
            return self._dead(path)
        if said.get("gone"):
            raise _gone(path)
        if "reason" in said:
            return UnreadableError(said["reason"])
        pixels = np.frombuffer(data, np.uint8).reshape(shape)
        return Decoded(pixels, said["mode"], tuple(said["traits"]))

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """Wait for its end and close the pipes."""
        self._process.communicate()

    def _dead(self, path: Path) -> UnreadableError:
        """Return what a dead process says of its file, if the file is to blame."""
        code = self._process.wait()
        if -code in _CRASHES:
            self._process = _start()
            return UnreadableError(f"crashes its decoder ({signal.Signals(-code).name})")
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise runtime.ResourceError(
            f"the process that decoded {path} ended {how}; if memory ran out, "
            "try again with MICROCLIP_THREADS=1"
        )


def _start() -> subprocess.Popen[bytes]:
    # -P: modules of the working folder are not taken for Python's own.
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "microclip.data.decode_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what decoders print of odd files; the reason is answered
        env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGES, *inherited])},
    )


def _gone(path: Path) -> runtime.MissingDataError:
    return runtime.MissingDataError(f"image {path} is gone; fetch the dataset again")
