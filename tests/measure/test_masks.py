"""The dense CRF that refines masks for display."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from microclip.measure import masks
from microclip.measure.masks import CrfOptions, exact_mean_field, refine

FAR = 1e9  # px: all pixels are near each other
ALIKE = CrfOptions(bilateral_px=FAR, smooth_weight=0.0, steps=1)


def grey(*levels: float) -> torch.Tensor:
    """A picture one pixel high."""
    return torch.tensor(levels)[None, :, None].repeat(1, 1, 3)


def test_distant_pixels_do_not_influence_each_other() -> None:
    # kernels are the identity: ln(0.7 / 0.3) + (10 + 3) (0.7 - 0.3) = 6.0473 after one step
    found = exact_mean_field(grey(0, 0), torch.tensor([[True, False]]), CrfOptions(steps=1))
    likely = 1 / (1 + math.exp(-6.0473))
    assert found[0].tolist() == pytest.approx([likely, 1 - likely], abs=1e-5)


def test_pixels_of_one_colour_take_the_majoritys_label() -> None:
    # each receives (0.7 + 0.7 + 0.3) / 3 = 0.5667 for the mask, 0.4333 against it; weight 10:
    # the third pixel has -ln(0.7 / 0.3) + 10 (0.5667 - 0.4333) = 0.4860, the others 2.1806
    found = exact_mean_field(grey(9, 9, 9), torch.tensor([[True, True, False]]), ALIKE)
    expected = [1 / (1 + math.exp(-value)) for value in (2.1806, 2.1806, 0.4860)]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_pixel_of_another_colour_keeps_its_label() -> None:
    # it only counts itself: -ln(0.7 / 0.3) + 10 (0.3 - 0.7) = -4.8473
    found = exact_mean_field(grey(0, 0, 255), torch.tensor([[True, True, False]]), ALIKE)
    assert float(found[0, 2]) == pytest.approx(1 / (1 + math.exp(4.8473)), abs=1e-5)


def test_blocks_and_separate_axes_equal_the_sum_over_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    height, width = 5, 7
    picture = (255 * torch.rand(height, width, 3)).round()
    mask = torch.rand(height, width) > 0.6
    options = CrfOptions(bilateral_px=300.0, bilateral_levels=90.0, smooth_px=60.0, steps=3)
    monkeypatch.setattr(masks, "_BLOCK_ENTRIES", 4 * height * width)  # several blocks
    found = exact_mean_field(picture, mask, options)
    assert torch.allclose(found, _by_pairs(picture, mask, options), atol=1e-5)


def _by_pairs(picture: torch.Tensor, mask: torch.Tensor, options: CrfOptions) -> torch.Tensor:
    height, width = mask.shape
    scale = min(height, width) / 224
    places = [(y, x) for y in range(height) for x in range(width)]
    kernels = []
    for weight, px, levels in (
        (options.bilateral_weight, options.bilateral_px, options.bilateral_levels),
        (options.smooth_weight, options.smooth_px, math.inf),
    ):
        kernel = torch.empty(len(places), len(places), dtype=torch.float64)
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                near = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (px * scale) ** 2
                alike = float((picture[a] - picture[b]).double().square().sum()) / levels**2
                kernel[i, j] = math.exp(-(near + alike) / 2)
        norm = kernel.sum(dim=1).rsqrt()
        kernels.append(weight * norm[:, None] * kernel * norm[None])
    likely = torch.where(mask.flatten(), options.certainty, 1 - options.certainty).double()
    unary = torch.stack([1 - likely, likely], dim=1).log()
    probability = unary.softmax(dim=1)
    for _ in range(options.steps):
        probability = (unary + sum(k @ probability for k in kernels)).softmax(dim=1)
    return probability[:, 1].reshape(height, width).float()


def two_halves(side: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """A picture that is dark on the left, a mask that misses the edge, and the correct mask."""
    picture = np.full((side, side, 3), 230, dtype=np.uint8)
    picture[:, : side // 2] = 20
    right = torch.zeros(side, side, dtype=torch.bool)
    right[:, : side // 2] = True
    mask = torch.zeros_like(right)
    mask[side // 8 :, : side // 2 + side // 8] = True
    return picture, mask, right


@pytest.mark.parametrize("side", [32, 100])  # 100: computed at 40 px and scaled back
def test_the_exact_field_moves_a_mask_to_the_edge_of_the_picture(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "EXACT_MAX_PX", 40)
    picture, mask, right = two_halves(side)
    found = refine(picture, mask)
    assert found.shape == right.shape
    assert float((mask == right).float().mean()) < 0.9
    assert float((found == right).float().mean()) > 0.98


@pytest.mark.parametrize("certainty", [0.5, 1.0])
def test_a_certainty_of_a_half_or_one_is_refused(certainty: float) -> None:
    with pytest.raises(ValueError, match="certainty must be in"):
        CrfOptions(certainty=certainty)
