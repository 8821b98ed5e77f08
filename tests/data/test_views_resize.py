"""Resizing on bytes and by matrices, compared with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from microclip.data.views import (
    Window,
    axis_weights,
    by_matrices,
    one_by_one,
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_device_agrees_with_the_cpu() -> None:
    images, windows = example()
    on_device = resize_windows(images, windows, SIZE, device="cuda").cpu()
    assert (on_device - one_by_one(images, windows, SIZE)).abs().max() <= 2 * GREY + 1e-6
