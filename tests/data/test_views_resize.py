"""Resizing on bytes and by matrices, compared with Pillow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from microclip.data import views as data_views
from microclip.data.views import (
    Memory,
    OnHost,
    Window,
    axis_weights,
    by_matrices,
    has_kernels,
    normalise,
    normalised_bytes,
    one_by_one,
    pack,
    resize_windows,
    square_windows,
    whole_window,
)

SHAPES = ((40, 57), (33, 33), (90, 61), (20, 31))
SIZE = 24
GREY = 1 / 255


def noise(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def by_pillow(image: np.ndarray, window: Window) -> torch.Tensor:
    region = Image.fromarray(
        image[window.top : window.top + window.height, window.left : window.left + window.width]
    )
    size = (window.to_width, window.to_height)
    resized = np.array(region.resize(size, Image.Resampling.BICUBIC))
    kept = resized[window.y : window.y + SIZE, window.x : window.x + SIZE]
    return torch.from_numpy(kept).permute(2, 0, 1) / 255


def example() -> tuple[list[np.ndarray], list[list[Window]]]:
    rng = np.random.default_rng(3)
    images = [noise(shape, seed) for seed, shape in enumerate(SHAPES)]
    windows = [
        [
            whole_window(shape, SIZE, "random", rng),
            *square_windows(shape, SIZE, 5, scale=(0.5, 0.9), rng=rng),
        ]
        for shape in SHAPES
    ]
    return images, windows


@pytest.mark.parametrize("compute", [one_by_one, lambda *a: by_matrices(*a, device="cpu")])
def test_both_ways_are_within_two_grey_levels_of_pillow(compute) -> None:
    images, windows = example()
    views = compute(images, windows, SIZE)
    expected = torch.stack(
        [
            torch.stack([by_pillow(image, window) for window in own])
            for image, own in zip(images, windows, strict=True)
        ]
    )
    assert views.shape == (4, 6, 3, SIZE, SIZE)
    assert (views - expected).abs().max() <= 2 * GREY + 1e-6
    assert (views - expected).abs().mean() <= 0.5 * GREY


def test_on_the_cpu_windows_are_resized_one_by_one() -> None:
    images, windows = example()
    assert torch.equal(resize_windows(images, windows, SIZE), one_by_one(images, windows, SIZE))


@pytest.mark.parametrize("cached", [1, 3 * 3 * SIZE**2, 2**20])
def test_on_the_cpu_views_are_normalised_as_they_are_made(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_views, "_CACHED_FLOATS", cached)
    images, windows = example()
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    expected = normalise(one_by_one(images, windows, SIZE), mean, std)
    first, others = OnHost(images, windows, SIZE).normalised(mean, std, Memory())
    assert torch.equal(first, expected[:, 0])
    assert torch.equal(others, expected[:, 1:])
    assert others.is_contiguous()  # else the crops are copied before they are encoded


def test_bytes_are_normalised_as_fractions_are() -> None:
    images = torch.arange(5 * 3 * 4 * 4, dtype=torch.int64).remainder(256).byte().view(5, 3, 4, 4)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    found = normalised_bytes(images, mean, std, Memory())
    assert torch.equal(found, normalise(images.float() / 255, mean, std))


def test_memory_is_lent_again_once_no_view_of_it_is_left() -> None:
    memory = Memory()
    first = memory.empty(2, 3)
    place, kept = first.data_ptr(), first[1:]
    del first
    kept.fill_(7)
    other = memory.empty(2, 3)
    other.fill_(0)
    assert (kept == 7).all()
    del kept
    smaller = memory.empty(5)
    assert smaller.data_ptr() == place
    assert memory.empty(2, 3).data_ptr() != place


def test_weights_sum_to_one_and_stay_inside_the_region() -> None:
    weights = axis_weights(torch.tensor([[5.0, 20.0, 8.0, 0.0]]), n_in=40, n_out=8)[0]
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(8))
    assert not weights[:, :5].any()
    assert not weights[:, 25:].any()


def test_a_window_of_the_output_size_changes_nothing() -> None:
    image = noise((SIZE, SIZE), 0)
    window = Window(0, 0, SIZE, SIZE, SIZE, SIZE)
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    for view in (
        one_by_one([image], [[window]], SIZE),
        by_matrices([image], [[window]], SIZE, device="cpu"),
    ):
        torch.testing.assert_close(view[0, 0], expected, atol=1e-6, rtol=0)


LARGE = 2 * data_views._TILE


def large() -> tuple[list[np.ndarray], list[list[Window]]]:
    rng = np.random.default_rng(4)
    shapes = ((130, 190), (150, 112), (301, 220))
    windows = [
        [
            whole_window(shape, LARGE, "random", rng),
            *square_windows(shape, LARGE, 3, scale=(0.5, 0.9), rng=rng),
        ]
        for shape in shapes
    ]
    return [noise(shape, seed) for seed, shape in enumerate(shapes)], windows


def test_tiles_make_the_same_views_with_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    images, windows = large()
    with FlopCounterMode(display=False) as tiled:
        found = by_matrices(images, windows, LARGE, device="cpu")
    assert torch.equal(by_matrices(images[1:], windows[1:], LARGE, device="cpu"), found[1:])
    assert (found - one_by_one(images, windows, LARGE)).abs().max() <= 2 * GREY + 1e-6
    monkeypatch.setattr(data_views, "_TILE", LARGE)
    with FlopCounterMode(display=False) as whole:
        expected = by_matrices(images, windows, LARGE, device="cpu")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert tiled.get_total_flops() < 0.7 * whole.get_total_flops()


def whole_images(images: list[np.ndarray], windows: list[list[Window]]) -> torch.Tensor:
    """All windows of a batch at once, from images padded to one size."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = torch.zeros((len(images), 3, height, width))
    for row, image in enumerate(images):
        padded[row, :, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).movedim(2, 0)
    table = torch.tensor(windows, dtype=torch.float32)
    rows = axis_weights(table[..., [0, 2, 4, 6]], n_in=height, n_out=SIZE)
    columns = axis_weights(table[..., [1, 3, 5, 7]], n_in=width, n_out=SIZE)
    across = torch.einsum("b c h w, b v p w -> b v c h p", padded / 255, columns).clamp(0, 1)
    return torch.einsum("b v o h, b v c h p -> b v c o p", rows, across).clamp(0, 1)


def test_what_a_window_does_not_read_does_not_matter() -> None:
    images, windows = example()
    found = by_matrices(images, windows, SIZE, device="cpu")
    torch.testing.assert_close(found, whole_images(images, windows), atol=1e-6, rtol=0)


def test_a_view_depends_neither_on_its_batch_nor_on_the_pieces() -> None:
    images, windows = example()
    together = by_matrices(images, windows, SIZE, device="cpu")
    for piece_bytes in (1, 300_000):
        pieces = by_matrices(images, windows, SIZE, device="cpu", piece_bytes=piece_bytes)
        assert torch.equal(pieces, together)
    for row, (image, own) in enumerate(zip(images, windows, strict=True)):
        assert torch.equal(by_matrices([image], [own], SIZE, device="cpu")[0], together[row])


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most memory that torch had allocated on the CPU at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        compute()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def test_one_long_image_in_a_batch_does_not_enlarge_the_peak() -> None:
    rng = np.random.default_rng(0)
    shapes = [(96, 128)] * 7 + [(96, 40 * 96)]
    images = [noise(shape, 0) for shape in shapes]
    windows = [
        [
            whole_window(shape, SIZE, "random", rng),
            *square_windows(shape, SIZE, 3, scale=(0.5, 0.9), rng=rng),
        ]
        for shape in shapes
    ]
    piece = 2 * 2**20
    result = len(images) * 4 * 3 * SIZE * SIZE * 4
    peak = peak_bytes(lambda: by_matrices(images, windows, SIZE, device="cpu", piece_bytes=piece))
    packed = sum(image.nbytes for image in images)
    assert peak <= piece + result + packed + 2**16
    # Padded to the longest image, the batch's planes alone would take more than that.
    assert len(images) * 3 * 96 * 40 * 96 * 4 > 8 * piece


def test_only_pixels_that_a_window_reads_are_sent() -> None:
    image = noise((30, 1200), 0)
    window = whole_window((30, 1200), SIZE, "center")
    packed = pack([image], [[window]], SIZE, device=torch.device("cpu"))
    assert len(packed.pixels) < 30 * 40
    np.testing.assert_array_equal(packed.pixels[:2], image[0, 600 - 18 : 600 - 16])


def test_pixels_for_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing can be pinned, so the test sees what is asked for."""
    asked = []
    empty = torch.empty

    def note(*shape: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", note)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("table") or self)
    images, windows = example()
    packed = pack(images, windows, SIZE, device=torch.device("cuda"))
    assert asked == [True, "table"]
    here = replace(packed, device=torch.device("cpu")).views()
    assert torch.equal(here, by_matrices(images, windows, SIZE, device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_device_agrees_with_the_cpu() -> None:
    images, windows = example()
    on_device = resize_windows(images, windows, SIZE, device="cuda").cpu()
    assert (on_device - one_by_one(images, windows, SIZE)).abs().max() <= 2 * GREY + 1e-6


INTERPRETED = """
import torch
from microclip.data import resize_kernels
from microclip.data.views import by_matrices, pack
from tests.data.test_views_resize import LARGE, SIZE, example, large

resize_kernels._ROWS = 64  # an interpreter's time is that of its programs: few large ones
for (images, windows), size in ((example(), SIZE), (large(), LARGE)):
    windows = [own[:2] for own in windows]
    packed = pack(images, windows, size, device=torch.device("cpu"), by_kernels=True)
    in_pieces = packed.views(2**15)
    expected = by_matrices(images, windows, size, device="cpu")
    torch.testing.assert_close(in_pieces, expected, atol=1e-5, rtol=0)
    if size == SIZE:
        assert torch.equal(in_pieces, packed.views())
"""


def test_kernels_give_the_views_of_the_matrices() -> None:
    pytest.importorskip("triton")
    # A process of its own: Triton interprets only what is imported with this variable set.
    on_the_cpu = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=on_the_cpu)


def test_without_triton_a_gpu_resizes_by_matrices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "microclip.data.resize_kernels", raising=False)
    monkeypatch.delattr("microclip.data.resize_kernels", raising=False)
    assert not has_kernels.__wrapped__(torch.device("cuda"))
    assert "by matrix products" in caplog.text
