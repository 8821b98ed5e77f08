"""The strong views: what they are made of, and the seed that decides them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from microclip.data.augmentation import (
    SimSiamTransform,
    StrongTransform,
    _posterize,
    strong_transform,
    strong_view,
)


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


def test_simsiams_view_has_lafters_steps_and_is_always_blurred() -> None:
    transform = SimSiamTransform(32)
    crop, flip, jitter, grey = transform.steps
    assert (crop.scale, crop.ratio) == ((0.2, 1.0), (3 / 4, 4 / 3))
    assert (flip.p, jitter.p, grey.p) == (0.5, 0.8, 0.2)
    colours = jitter.transforms[0]
    assert colours.brightness == colours.contrast == colours.saturation == (0.6, 1.4)
    assert colours.hue == (-0.1, 0.1)
    board = (255 * (np.indices((64, 64)).sum(axis=0) // 8 % 2)).astype(np.uint8)
    pixels = np.repeat(board[:, :, None], 3, axis=2)
    for seed in range(20):
        view = strong_view(pixels, transform, seed=seed)
        assert view.shape == (3, 32, 32)
        assert len(view.unique()) > 2, "a board of two levels has edges once it is blurred"
    assert torch.equal(view, strong_view(pixels, transform, seed=seed))


def test_an_unknown_kind_of_strong_view_is_refused() -> None:
    assert isinstance(strong_transform("simsiam", 8), SimSiamTransform)
    with pytest.raises(ValueError, match="'randaugment' or 'simsiam', got 'cutmix'"):
        strong_transform("cutmix", 8)  # type: ignore[arg-type]
