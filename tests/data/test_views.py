"""The windows that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microclip.data.views import (
    normalise,
    resized_shape,
    square_windows,
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


def test_normalising_agrees_with_hand_calculation() -> None:
    image = torch.tensor([0.5, 0.25, 1.0])[:, None, None]
    out = normalise(image, (0.5, 0.5, 0.5), (0.5, 0.25, 0.1))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, -1.0, 5.0]))
