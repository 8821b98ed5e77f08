"""Many image files decoded side by side, given back in order.

`concurrent.futures` schedules the work, but its threads talk to processes of ours. A
`ProcessPoolExecutor` would not do: forked from a process that runs torch's threads it may hang,
spawned it runs the user's script again, and one image that crashes its decoder breaks the whole
pool without saying which. Here each process is a fresh Python that reads paths from a pipe: a crash
costs one file, which is named, and the process ends when its pipe closes, even after `kill -9`.
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
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from microclip import runtime
from microclip.data.decoding import Decoded, UnreadableError, decode

FILES_A_PROCESS = 48  # fewer are decoded before a process has started (about 0.4 s)
_AHEAD = 3  # images a process that may wait to be taken: what bounds the memory
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_PACKAGES = str(Path(__file__).resolve().parents[2])

Result = Decoded | UnreadableError
Results = Generator[Result, None, None]


def n_processes_for(n_files: int) -> int:
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
    n = n_processes_for(len(files)) if n_processes is None else n_processes
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


@dataclass(frozen=True)
class _Answer:
    """What a process says of a file, a line of JSON; the pixels follow it."""

    is_gone: bool = False
    reason: str | None = None  # why the file cannot be read
    mode: str = ""
    traits: tuple[str, ...] = ()
    height: int = 0
    width: int = 0


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
            answer = _Answer(**json.loads(line)) if line.endswith(b"\n") else None
            n_bytes = answer.height * answer.width * 3 if answer else 0
            data = process.stdout.read(n_bytes)
        except OSError:  # the pipe broke: it has ended
            answer, data, n_bytes = None, b"", 0
        if answer is None or len(data) != n_bytes:
            return self._dead(path)
        if answer.is_gone:
            raise _gone(path)
        if answer.reason is not None:
            return UnreadableError(answer.reason)
        pixels = np.frombuffer(data, np.uint8).reshape(answer.height, answer.width, 3)
        return Decoded(pixels, answer.mode, tuple(answer.traits))

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
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what decoders print of odd files; the reason is answered
        env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGES, *inherited])},
    )


def _gone(path: Path) -> runtime.MissingDataError:
    return runtime.MissingDataError(f"image {path} is gone; fetch the dataset again")


def _serve() -> None:
    """Decode what standard input names until it is closed, by the other process or by its end.

    A line is "d" (decode) or "v" (verify: no pixels are sent back) and a path in hexadecimal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # libraries that print must not spoil an answer
        for line in sys.stdin.buffer:
            path = Path(os.fsdecode(bytes.fromhex(line[1:].decode())))
            _reply(answers, path, has_pixels=line[:1] == b"d")


def _reply(answers: BinaryIO, path: Path, *, has_pixels: bool) -> None:
    pixels = np.empty((0, 0, 3), np.uint8)
    try:
        decoded = decode(path)
    except FileNotFoundError:
        answer = _Answer(is_gone=True)
    except UnreadableError as error:
        answer = _Answer(reason=str(error))
    else:
        if has_pixels:
            pixels = np.ascontiguousarray(decoded.pixels)
        height, width = pixels.shape[:2]
        answer = _Answer(mode=decoded.mode, traits=decoded.traits, height=height, width=width)
    answers.write(json.dumps(asdict(answer)).encode() + b"\n")
    answers.write(pixels.data)  # as they are, without a copy
    answers.flush()


if __name__ == "__main__":
    _serve()
