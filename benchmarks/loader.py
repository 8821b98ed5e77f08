"""Print how many views a CPU makes per second, ours and as the released code loads them, in turn.

The official loader opens the file for each image and makes ten views with Pillow: a random crop of
the resized image, timm's strong view, eight squares; written here from the method's description.
Ours makes the same kinds of views from the image store, which is decoded once (its own column).
`PYTHONPATH=<another copy> python benchmarks/loader.py` measures that copy in our column.

Usage: python benchmarks/loader.py [rounds]
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as pil

import microclip
from microclip.data.augmentation import StrongTransform
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewRecipe
from microclip.data.store import open_store, write_store

SIZE, N_CROPS = 224, 8
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
KINDS = (("JPEG of 500 x 375", 500, 375, 16), ("JPEG of 2000 x 1500", 2000, 1500, 16))
BICUBIC = pil.InterpolationMode.BICUBIC


def write_photographs(folder: Path, width: int, height: int, n: int) -> list[Path]:
    """Write soft noise with grain: as large a file as a photograph's."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = (soft + rng.integers(-8, 9, soft.shape)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files


def official(file: Path, strong: StrongTransform, size: int = SIZE) -> list[torch.Tensor]:
    """The ten views of an image, normalised, one at a time by Pillow."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    resized = pil.resize(image, size, BICUBIC)
    top, left = (random.randint(0, side - size) for side in (resized.height, resized.width))
    views = [pil.to_tensor(pil.crop(resized, top, left, size, size)), strong(image).float() / 255]
    for _ in range(N_CROPS):
        side = int(random.uniform(0.5, 0.9) * min(image.size))
        top, left = random.randint(0, image.height - side), random.randint(0, image.width - side)
        square = pil.resized_crop(image, top, left, side, side, [size, size], BICUBIC)
        views.append(pil.to_tensor(square))
    return [pil.normalize(view, MEAN, STD) for view in views]


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(folder: Path, kind: tuple[str, int, int, int], n_rounds: int) -> str:
    """One row of the table."""
    name, width, height, n = kind
    files = write_photographs(folder, width, height, n)
    decoding, _ = seconds(lambda: write_store(files, folder / "store", "made"))
    images = UnlabelledImages(open_store(folder / "store"), tuple(range(n)))
    recipe = ViewRecipe(seed=0, size=SIZE, mean=MEAN, std=STD, n_crops=N_CROPS)
    views = TrainingViews(images, recipe, batch_size=n, n_workers=0)
    strong = StrongTransform(SIZE)
    ways: dict[str, Callable[[], object]] = {
        "official": lambda: [torch.stack(official(file, strong)) for file in files],
        "ours": lambda: sum(len(batch.indices) for batch in views.batches(1, 2)),
    }
    epochs = {"official": 1, "ours": 2}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(n_rounds + 1):  # the first round warms up
        for way, action in ways.items():
            taken[way].append(seconds(action))
    n_views = n * (2 + N_CROPS)
    cpu, wall = (
        {way: statistics.median(t[k] for t in taken[way][1:]) / epochs[way] for way in ways}
        for k in (0, 1)
    )
    return (
        f"| {name} | {n_views / cpu['official']:.0f} | {n_views / cpu['ours']:.0f} | "
        f"{cpu['official'] / cpu['ours']:.1f} | {wall['official'] / wall['ours']:.1f} | "
        f"{1000 * decoding / n:.0f} |"
    )


def main(n_rounds: int = 3) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{Path(microclip.__file__).parent.parent.name}, one thread, median of {n_rounds}\n")
    print("| Images | Official (views/CPU s) | Ours | CPU ratio | Wall ratio | Store, once (ms) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(Path(folder), kind, n_rounds), flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
