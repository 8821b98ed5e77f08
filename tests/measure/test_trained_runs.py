"""Token maps over the patches, and the steps of a cut."""

from __future__ import annotations

import pytest
import torch

from microclip.measure.masks import examine
from microclip.measure.trained_runs import (
    class_token_map,
    enlarge,
    enlarge_mask,
    min_max,
    pooling_map,
    token_maps,
)
from microclip.model.backbone import ImageTokens, from_open_clip
from microclip.model.saliency import NCutOptions
from microclip.model.token_fusion import TokenFusion
from tests.model.networks import tiny_clip

# two of one direction, four of another: z is (0.632455 twice, -0.223607 four times) or its negative
TWO_CLIQUES = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 4)[None]


def test_the_global_map_is_the_cosine_with_the_class_token() -> None:
    patches = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]]])
    tokens = ImageTokens(torch.ones(1, 1), torch.tensor([[5.0, 0.0]]), patches)
    expected = torch.tensor([[1.0, 0.0, -1.0, 0.7071068]])
    torch.testing.assert_close(class_token_map(tokens), expected)


def test_the_local_map_excludes_the_empty_token() -> None:
    attention = torch.tensor([[0.2, 0.3, 0.5]])
    torch.testing.assert_close(pooling_map(attention), torch.tensor([[0.2, 0.3]]))


def test_each_map_is_scaled_separately_and_a_flat_one_becomes_zero() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    expected = torch.tensor([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(min_max(maps), expected)


def test_maps_are_enlarged_linearly_between_patch_centres() -> None:
    maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(1, 4, 4)
    torch.testing.assert_close(enlarge(maps, 4), expected)


def test_masks_are_enlarged_patch_by_patch() -> None:
    masks = torch.tensor([[[True, False], [False, True]]])
    expected = [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, True],
        [False, False, True, True],
    ]
    assert enlarge_mask(masks, 4)[0].tolist() == expected


def test_token_maps_come_from_the_classifiers_own_features() -> None:
    tower = from_open_clip(tiny_clip())
    fusion = TokenFusion(tower, torch.randn(3, tower.embedding_dim))
    images = torch.randn(2, 3, tower.image_size, tower.image_size)
    maps = token_maps(fusion, images)
    with torch.no_grad():
        seen = fusion(images)
    rows, columns = tower.patch_grid
    assert maps.local_map.shape == maps.global_map.shape == maps.mask.shape == (2, rows, columns)
    torch.testing.assert_close(maps.local_map[1, 1, 0], seen.attention[1, columns])
    torch.testing.assert_close(maps.output.logits, seen.logits)
    total = maps.local_map.sum(dim=(1, 2)) + seen.attention[:, -1]
    torch.testing.assert_close(total, torch.ones(2))
    assert torch.equal(maps.mask.flatten(1), seen.saliency.mask)
    assert bool((maps.global_map.abs() <= 1 + 1e-6).all())


@pytest.mark.parametrize(("threshold", "level"), [("std", 0.442069), ("mean", 0.061748)])
def test_a_cut_is_examined_step_by_step(threshold: str, level: float) -> None:
    cut = examine(TWO_CLIQUES, NCutOptions(threshold=threshold))  # type: ignore[arg-type]
    sign = -1.0 if bool(cut.is_flipped[0]) else 1.0
    expected = torch.tensor([0.632455] * 2 + [-0.223607] * 4, dtype=torch.float64)
    torch.testing.assert_close(sign * cut.vector[0], expected, atol=1e-4, rtol=0)
    of_this_sign = level if threshold == "std" else sign * level
    assert float(cut.level[0]) == pytest.approx(of_this_sign, abs=1e-4)
    assert cut.mask_before[0].tolist() == (cut.vector[0] > of_this_sign).tolist()
    assert cut.saliency.mask[0].tolist() == [True, True, False, False, False, False]


def test_equal_tokens_have_no_defined_cut() -> None:
    cut = examine(torch.ones(1, 5, 2), NCutOptions())
    assert cut.saliency.degenerate is not None
    assert bool(cut.saliency.degenerate[0])
    assert bool(cut.saliency.mask.all())
