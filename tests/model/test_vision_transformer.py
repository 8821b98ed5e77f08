"""A tower's blocks as functions; what the whole tower computes is in test_backbone.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microclip.model.vision_transformer import patches_by_product


@pytest.mark.parametrize("has_bias", [False, True])
def test_patches_by_a_product_are_the_convolutions(has_bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 24, kernel_size=8, stride=8, bias=has_bias)
    images = torch.randn(2, 3, 32, 32)
    expected = conv(images).flatten(2).mT
    torch.testing.assert_close(patches_by_product(conv, images), expected, atol=1e-5, rtol=0)
