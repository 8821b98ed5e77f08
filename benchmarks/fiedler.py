"""Print how the cut by squaring compares with the eigensolver's, on the CPU, as Markdown.

    python benchmarks/fiedler.py

Graphs: tokens around three centres, joined where the dot product is above 0.2, in float64 as in
`normalized_cut`. Both are timed alternately in one process, on one thread. It prints the ratio of
their medians and how often their masks differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from microclip import runtime
from microclip.export.onnx import fiedler_by_squaring
from microclip.model.saliency import affinity, fiedler_vector, salient_side

SIZES = {49: 64, 196: 16}  # patches, and the batch
REPEATS = 9
WIDTH = 16


def graphs(n_patches: int, batch: int) -> Float[Tensor, "batch patch patch"]:
    """Return affinities of clustered tokens."""
    draws = torch.Generator().manual_seed(n_patches)
    centres = 0.4 * torch.randn(batch, 3, WIDTH, generator=draws)
    owner = torch.randint(0, 3, (batch, n_patches, 1), generator=draws).expand(-1, -1, WIDTH)
    noise = 0.3 * torch.randn(batch, n_patches, WIDTH, generator=draws)
    tokens = centres.gather(1, owner) + noise
    return affinity(tokens, tau=0.2, eps=1e-6, normalize=False).double()


def seconds(solve: Callable[[Tensor], Any], given: Tensor) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    solve(given)
    return time.perf_counter() - start


def main() -> None:
    """Print one row per size."""
    runtime.limit_threads(1)
    print(
        "| Patches | Batch | Squaring / eigensolver (time) | Masks that differ | Gap differs by |"
    )
    print("| ---: | ---: | ---: | ---: | ---: |")
    for n_patches, batch in SIZES.items():
        given = graphs(n_patches, batch)
        (own, own_gap), (exact, gap) = fiedler_by_squaring(given), fiedler_vector(given)
        masks = [salient_side(v, threshold="std", sign="seed")[0] for v in (own, exact)]
        n_other = int((masks[0] != masks[1]).any(dim=-1).sum())
        times = [
            (seconds(fiedler_by_squaring, given), seconds(fiedler_vector, given))
            for _ in range(REPEATS)
        ]
        ratio = median(a for a, _ in times) / median(b for _, b in times)
        apart = float((own_gap - gap).abs().max())
        print(f"| {n_patches} | {batch} | {ratio:.1f} | {n_other} of {batch} | {apart:.0e} |")


if __name__ == "__main__":
    main()
