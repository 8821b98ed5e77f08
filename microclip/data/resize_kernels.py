"""The resizing of `views` as two Triton kernels, for a GPU.

Each reads only the pixels that have a weight, and computes the weights where it needs them: neither
indices nor matrices of weights are written to memory, which is what `views.by_matrices` spends its
time on. The first resizes the rows that a window reads, from bytes; the second resizes columns.
Results differ from those of the matrices in the last bits of float32.

Triton is imported at the top: import this only where it is installed (torch for CUDA brings it).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, UInt8
from torch import Tensor

COLUMNS = 13  # of a table: those of `views.Packed`, first row in `half`, rows read
_ROWS = 8  # rows of a program: they share their weights


@triton.jit
def _weight(x, centre, stretch):
    """Keys' cubic kernel with a = -0.5, as `views.axis_weights`."""
    d = tl.abs((x.to(tl.float32) + 0.5 - centre) / stretch)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return tl.where(d < 1.0, near, tl.where(d < 2.0, far, 0.0))


@triton.jit
def _inputs(own, outputs):
    """Centre of each output, stretch, and its first and last input, of four columns of a table."""
    length = tl.load(own + 1)
    scale = length.to(tl.float32) / tl.load(own + 2).to(tl.float32)
    stretch = tl.maximum(scale, 1.0)
    centre = (outputs + tl.load(own + 3).to(tl.float32) + 0.5) * scale
    begin = tl.floor(centre - 2.0 * stretch + 0.5).to(tl.int64)
    end = tl.floor(centre + 2.0 * stretch + 0.5).to(tl.int64)
    return centre, stretch, tl.maximum(begin, 0), tl.minimum(end, length)


@triton.jit(do_not_specialize=["first", "base"])
def _across(
    pixels,
    table,
    half,
    first,
    base,
    size: tl.constexpr,
    taps: tl.constexpr,
    n_rows: tl.constexpr,
    n_columns: tl.constexpr,
    table_columns: tl.constexpr,
):
    """Resize some rows of a window: bytes to values in [0, 1]."""
    own = table + (first + tl.program_id(0)).to(tl.int64) * table_columns
    rows = tl.program_id(1) * n_rows + tl.arange(0, n_rows)
    outputs = tl.arange(0, n_columns)
    centre, stretch, begin, end = _inputs(own + 7, outputs.to(tl.float32))
    is_row = rows < tl.load(own + 12)
    starts = tl.load(own + 1) + rows.to(tl.int64) * tl.load(own + 2) + tl.load(own + 7)
    total = tl.zeros((n_columns,), tl.float32)
    red = tl.zeros((n_rows, n_columns), tl.float32)
    green = tl.zeros((n_rows, n_columns), tl.float32)
    blue = tl.zeros((n_rows, n_columns), tl.float32)
    for k in range(taps):
        x = begin + k
        is_near = (x < end) & (outputs < size)
        weight = tl.where(is_near, _weight(x, centre, stretch), 0.0)
        total += weight
        place = pixels + (starts[:, None] + x[None, :]) * 3
        is_read = is_row[:, None] & is_near[None, :]
        red += weight[None, :] * tl.load(place, mask=is_read, other=0).to(tl.float32)
        green += weight[None, :] * tl.load(place + 1, mask=is_read, other=0).to(tl.float32)
        blue += weight[None, :] * tl.load(place + 2, mask=is_read, other=0).to(tl.float32)
    total = tl.where(outputs < size, total, 1.0)[None, :] * 255.0
    target = (tl.load(own + 11) - base + rows.to(tl.int64))[:, None] * (3 * size) + outputs[None, :]
    is_kept = is_row[:, None] & (outputs < size)[None, :]
    tl.store(half + target, tl.clamp(red / total, 0.0, 1.0), mask=is_kept)
    tl.store(half + target + size, tl.clamp(green / total, 0.0, 1.0), mask=is_kept)
    tl.store(half + target + 2 * size, tl.clamp(blue / total, 0.0, 1.0), mask=is_kept)


@triton.jit(do_not_specialize=["first", "base"])
def _down(
    half,
    table,
    out,
    first,
    base,
    size: tl.constexpr,
    taps: tl.constexpr,
    n_rows: tl.constexpr,
    n_columns: tl.constexpr,
    table_columns: tl.constexpr,
):
    """Resize the columns of some rows of one channel of a view."""
    own = table + (first + tl.program_id(0)).to(tl.int64) * table_columns
    channel = tl.program_id(2)
    outputs = tl.program_id(1) * n_rows + tl.arange(0, n_rows)
    columns = tl.arange(0, n_columns)
    centre, stretch, begin, end = _inputs(own + 3, outputs.to(tl.float32))
    start = tl.load(own + 11) - base + tl.load(own + 3)
    total = tl.zeros((n_rows,), tl.float32)
    view = tl.zeros((n_rows, n_columns), tl.float32)
    for k in range(taps):
        y = begin + k
        is_near = (y < end) & (outputs < size)
        weight = tl.where(is_near, _weight(y, centre, stretch), 0.0)
        total += weight
        place = half + ((start + y)[:, None] * 3 + channel) * size + columns[None, :]
        is_read = is_near[:, None] & (columns < size)[None, :]
        view += weight[:, None] * tl.load(place, mask=is_read, other=0.0)
    total = tl.where(outputs < size, total, 1.0)
    place = (tl.load(own) * 3 + channel) * size
    target = out + (place + outputs)[:, None] * size + columns[None, :]
    is_kept = (outputs < size)[:, None] & (columns < size)[None, :]
    tl.store(target, tl.clamp(view / total[:, None], 0.0, 1.0), mask=is_kept)


def resize(
    pixels: UInt8[Tensor, "pixel 3"],
    table: Int[Tensor, "window 13"],
    out: Float[Tensor, "window 3 size size"],
    half: Float[Tensor, "row 3 size"],
    piece: tuple[int, int, int, int, int],
) -> None:
    """Write the views of some windows into `out`.

    Args:
        pixels: of all images, one after another.
        table: as in `views.Packed`, and the first row of each window in a column of all, and how
            many rows it reads.
        out: of all windows.
        half: room for the rows that these windows read.
        piece: the first window and the one after the last; their first row; most rows that one of
            them reads; inputs that an output may need at most, a power of two.
    """
    begin, end, base, most_rows, taps = piece
    size = out.shape[-1]
    sizes = (size, taps, _ROWS, triton.next_power_of_2(size), COLUMNS)
    on_half: Any = _across[(end - begin, triton.cdiv(most_rows, _ROWS))]
    on_half(pixels, table, half, begin, base, *sizes)
    on_out: Any = _down[(end - begin, triton.cdiv(size, _ROWS), 3)]
    on_out(half, table, out, begin, base, *sizes)


def works(device: torch.device) -> bool:
    """Whether the kernels can be built and run on this device: a window that changes nothing."""
    pixels = torch.arange(12, dtype=torch.uint8, device=device).view(4, 3)
    row = [0, 0, 2, 0, 2, 2, 0, 0, 2, 2, 0, 0, 2]
    table = torch.tensor([row], device=device)
    out, half = torch.zeros(1, 3, 2, 2, device=device), torch.zeros(2, 3, 2, device=device)
    resize(pixels, table, out, half, (0, 1, 0, 2, 8))
    expected = pixels.view(2, 2, 3).permute(2, 0, 1) / 255
    return bool((out[0] - expected).abs().max() < 1e-5)
