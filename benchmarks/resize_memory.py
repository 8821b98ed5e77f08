"""Print the memory that resizing a batch takes, at once and in pieces.

`python benchmarks/resize_memory.py` computes views of 224 px on the CPU, with the GPU's code, and
adds up what torch allocates. *At once* pads all images of a batch to the tallest and widest one, as
was done before; it is not run where its planes alone exceed 4 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from microclip.data.views import Window, axis_weights, by_matrices, square_windows, whole_window

SIZE, MIB = 224, 2**20
PIECES = (64 * MIB, 512 * MIB)
Shape = tuple[int, int]
CASES: tuple[tuple[str, list[Shape], int], ...] = (
    ("4 images of 448 x 597, weak view and 8 crops", [(448, 597)] * 4, 8),
    ("4 images of 672 x 896, weak view and 8 crops", [(672, 896)] * 4, 8),
    ("32 images of 448 x 597, test view", [(448, 597)] * 32, 0),
    ("31 such and one of 448 x 17920, test view", [(448, 597)] * 31 + [(448, 17920)], 0),
)


def at_once(images: Sequence[np.ndarray], windows: Sequence[Sequence[Window]]) -> Tensor:
    """All windows from images padded to one size."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = torch.zeros((len(images), height, width, 3), dtype=torch.uint8)
    for row, image in enumerate(images):
        padded[row, : image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    planes = padded.permute(0, 3, 1, 2).float() / 255
    table = torch.tensor(windows, dtype=torch.float32)
    rows = axis_weights(table[..., [0, 2, 4, 6]], n_in=height, n_out=SIZE)
    columns = axis_weights(table[..., [1, 3, 5, 7]], n_in=width, n_out=SIZE)
    across = torch.einsum("b c h w, b v p w -> b v c h p", planes, columns)
    return torch.einsum("b v o h, b v c h p -> b v c o p", rows, across.clamp(0, 1)).clamp(0, 1)


def peak_mib(compute: Callable[[], object]) -> float:
    """The most memory that torch had allocated at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        compute()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes)) / MIB


def main() -> None:
    """Compare both ways on each case."""
    rng = np.random.default_rng(0)
    for what, shapes, n_crops in CASES:
        images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
        windows = [
            [
                whole_window(shape, SIZE, "random", rng),
                *square_windows(shape, SIZE, n_crops, scale=(0.5, 0.9), rng=rng),
            ]
            for shape in shapes
        ]
        planes = 12 * len(shapes) * max(s[0] for s in shapes) * max(s[1] for s in shapes)
        before = "not run"
        if planes < 4 * 2**30:
            before = f"{peak_mib(lambda i=images, w=windows: at_once(i, w)):.0f}"
        after = [
            peak_mib(
                lambda i=images, w=windows, p=piece: by_matrices(
                    i, w, SIZE, device="cpu", piece_bytes=p
                )
            )
            for piece in PIECES
        ]
        result = len(shapes) * (1 + n_crops) * 3 * SIZE * SIZE * 4 / MIB
        cells = [what, f"{result:.0f}", f"{planes / MIB:.0f}", before]
        print("| " + " | ".join([*cells, *(f"{peak:.0f}" for peak in after)]) + " |", flush=True)


if __name__ == "__main__":
    main()
