"""Print how much faster several processes decode images for the store than one.

`python benchmarks/decode_store.py [FOLDER]` takes the images of a folder, or makes 1,000 JPEGs of
640 x 480. Both ways decode all images three times, alternately; the fastest round of each counts,
since other work may slow the machine. CPU seconds include those of the decoding processes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from microclip.data.decoding import Decoded, decode_all, n_processes_for
from microclip.data.files import image_files

ROUNDS = 3
N_MADE = 1000


def make(folder: Path) -> None:
    """Write JPEGs of soft noise, about as large as photographs on the web."""
    rng = np.random.default_rng(0)
    for number in range(N_MADE):
        noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:04}.jpg", quality=88)


def measure(files: list[Path], n_processes: int) -> tuple[float, float, str]:
    """Return wall seconds, CPU seconds and the hash of all pixels."""
    sha256 = hashlib.sha256()
    wall, before = time.perf_counter(), os.times()
    for result in decode_all(files, canvas_px=448, n_processes=n_processes):
        if isinstance(result, Decoded):
            sha256.update(result.pixels.tobytes())
    wall, after = time.perf_counter() - wall, os.times()
    return wall, sum(after[:4]) - sum(before[:4]), sha256.hexdigest()


def main() -> None:
    """Measure both ways alternately and print their ratio."""
    with tempfile.TemporaryDirectory() as name:
        if len(sys.argv) < 2:
            make(Path(name))
        files = image_files(Path(sys.argv[1] if len(sys.argv) > 1 else name))
        n = max(2, n_processes_for(len(files)))
        rounds = [(measure(files, 0), measure(files, n)) for _ in range(ROUNDS)]
    hashes = {way[2] for both in rounds for way in both}
    assert len(hashes) == 1, "the bytes depend on the number of processes"
    one, many = (min(both[k][0] for both in rounds) for k in (0, 1))
    cpu_one, cpu_many = (min(both[k][1] for both in rounds) for k in (0, 1))
    print(f"{len(files)} images, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, same bytes")
    print(f"one process:  {one:6.2f} s ({len(files) / one:.0f} images/s), CPU {cpu_one:.2f} s")
    print(f"{n} processes:  {many:6.2f} s ({len(files) / many:.0f} images/s), CPU {cpu_many:.2f} s")
    print(f"ratio {one / many:.2f}")


if __name__ == "__main__":
    main()
