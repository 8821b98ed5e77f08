"""Print how much faster a CPU encodes images in slices than all at once, timed alternately.

Usage: python benchmarks/forward_slices.py [backbone] [images] [rounds]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from microclip import runtime
from microclip.model import backbone as backbones


def seconds(action: Callable[[], Tensor]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@torch.no_grad()
def main(name: str = "icon-clip", n_images: int = 512, n_rounds: int = 7) -> None:
    """Print the median times of one step's crops, whole and in slices, and their ratio."""
    runtime.use_all_cpus()
    network = backbones.load_backbone(name)
    size = network.image_size
    images = torch.randn(n_images, 3, size, size, generator=torch.Generator().manual_seed(0))
    sliced = backbones._CPU_SLICE
    taken: dict[int, list[float]] = {n_images: [], sliced: []}
    for _ in range(n_rounds + 1):  # the first round warms up
        for length in taken:
            backbones._CPU_SLICE = length
            taken[length].append(seconds(lambda: network.encode_global(images)))
    whole, parts = (statistics.median(times[1:]) for times in taken.values())
    print(
        f"{name}, {n_images} images, {torch.get_num_threads()} threads: whole {whole:.3f} s, "
        f"slices of {sliced} {parts:.3f} s, ratio {whole / parts:.2f}"
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*arguments[:1], *(int(argument) for argument in arguments[1:]))
