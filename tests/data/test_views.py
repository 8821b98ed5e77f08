"""The windows that are drawn, and the strong view."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from microclip.data.views import (
    StrongTransform,
    _posterize,
    normalise,
    resized_shape,
    square_windows,
    strong_view,
    whole_window,
)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((200, 300), (224, 336)), ((375, 500), (224, 298)), ((64, 64), (224,) * 2)],
)
def test_the_longer_side_is_rounded_down(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_shape(*shape, 224) == expected
    assert resized_shape(shape[1], shape[0], 224) == expected[::-1]


def test_the_center_window_is_in_the_middle_and_needs_no_generator() -> None:
    window = whole_window((200, 300), 224, "center")
    assert (window.y, window.x) == (0, 56)
    with pytest.raises(ValueError, match="rng"):
        whole_window((200, 300), 224, "random")


def test_random_windows_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    drawn = {whole_window((20, 25), 20, "random", rng).x for _ in range(200)}
    assert drawn == set(range(6))


def test_squares_have_the_published_sides_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    windows = square_windows((60, 100), 32, 500, scale=(0.5, 0.9), rng=rng)
    sides = [window.height for window in windows]
    assert min(sides) == 30
    assert max(sides) == 53  # floor of just under 0.9 * 60
    for window in windows:
        assert window.width == window.height
        assert 0 <= window.top <= 60 - window.height
        assert 0 <= window.left <= 100 - window.width
        assert (window.to_height, window.to_width, window.y, window.x) == (32, 32, 0, 0)


def test_the_strong_transform_is_timms_policy_and_fills_with_black() -> None:
    steps = StrongTransform(32).steps
    names = [type(step).__name__ for step in steps]
    assert names == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    policy = steps[2]
    assert policy.num_layers == 2
    assert len(policy.ops) == 15
    assert all(operation.prob == 0.5 for operation in policy.ops)
    assert all(operation.magnitude == 9 for operation in policy.ops)
    assert all(operation.kwargs["fillcolor"] == (0, 0, 0) for operation in policy.ops)
    assert steps[0].scale == (0.3, 1.0)


def test_a_seed_gives_one_strong_view_and_restores_the_global_generators() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    transform = StrongTransform(32)
    random.seed(5)
    torch.manual_seed(5)
    before = (random.getstate(), torch.get_rng_state())
    views = [strong_view(pixels, transform, seed=seed) for seed in (1, 2, 1)]
    assert views[0].shape == (3, 32, 32)
    assert views[0].dtype == torch.uint8
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_every_magnitude_of_the_policy_can_be_drawn() -> None:
    pixels = np.full((20, 20, 3), 200, dtype=np.uint8)
    transform = StrongTransform(16)
    for seed in range(300):
        strong_view(pixels, transform, seed=seed)


def test_posterizing_to_no_bits_is_black() -> None:
    white = Image.new("RGB", (2, 2), "white")
    assert _posterize(white, 0).getpixel((0, 0)) == (0, 0, 0)
    assert _posterize(white, 1).getpixel((0, 0)) == (128, 128, 128)
    assert _posterize(white, 8) is white


def test_normalising_agrees_with_hand_calculation() -> None:
    image = torch.tensor([0.5, 0.25, 1.0])[:, None, None]
    out = normalise(image, (0.5, 0.5, 0.5), (0.5, 0.25, 0.1))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, -1.0, 5.0]))
