"""The windows that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microclip.data import views
from microclip.data.views import (
    normalise,
    resized_shape,
    resized_window,
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


def test_random_resized_crops_have_torchvisions_areas_and_ratios() -> None:
    """Area 0.08 to 1 of the image, ratio 3/4 to 4/3, both to within a rounded pixel."""
    rng = np.random.default_rng(0)
    windows = [resized_window((300, 400), 32, rng) for _ in range(500)]
    areas = [w.height * w.width / (300 * 400) for w in windows]
    ratios = [w.width / w.height for w in windows]
    assert 0.079 < min(areas) < 0.12
    assert 0.8 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.78
    assert 1.28 < max(ratios) < 1.345
    for w in windows:
        assert 0 <= w.top <= 300 - w.height
        assert 0 <= w.left <= 400 - w.width
        assert (w.to_height, w.to_width, w.y, w.x) == (32, 32, 0, 0)


@pytest.mark.parametrize(("shape", "ratio"), [((400, 8), 3 / 4), ((8, 400), 4 / 3)])
def test_an_image_too_narrow_for_a_crop_gives_the_largest_one_in_its_middle(
    shape: tuple[int, int], ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_ATTEMPTS", 0)
    window = resized_window(shape, 32, np.random.default_rng(0))
    assert window.width / window.height == pytest.approx(ratio, rel=0.1)
    assert abs(2 * window.top + window.height - shape[0]) <= 1
    assert abs(2 * window.left + window.width - shape[1]) <= 1


def test_crops_of_the_squashed_image_stay_inside_the_image() -> None:
    rng = np.random.default_rng(0)
    windows = [resized_window((90, 300), 32, rng, is_squashed=True) for _ in range(200)]
    assert all(0 < w.height <= 90 - w.top and 0 < w.width <= 300 - w.left for w in windows)
    ratios = [w.width / w.height for w in windows]
    assert min(ratios) > 2  # of an image that is 3.3 times as wide as high
    assert whole_window((90, 300), 32, "squash")[:6] == (0, 0, 90, 300, 32, 32)


def test_a_square_image_has_the_same_random_window_as_its_center() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert whole_window((20, 20), 20, "random", rng) == whole_window((20, 20), 20, "center")
