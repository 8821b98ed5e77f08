"""The weighted mean of an image's crops."""

from __future__ import annotations

import torch
from torch.nn import functional

from microclip.adaptation.multi_view import aggregate_views, view_weights

WHOLE = torch.tensor([[1.0, 0.0]])
VIEWS = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]])


def test_weights_are_the_softmax_of_the_cosines() -> None:
    """Relevances 1, 0.6 and 0."""
    expected = torch.tensor([[0.490629, 0.328879, 0.180492]])
    torch.testing.assert_close(view_weights(WHOLE, VIEWS), expected, atol=1e-6, rtol=0)


def test_aggregate_is_the_normalised_weighted_sum() -> None:
    """Sum (0.687956, 0.443595), divided by its length 0.818572."""
    expected = torch.tensor([[0.840434, 0.541913]])
    torch.testing.assert_close(aggregate_views(WHOLE, VIEWS), expected, atol=1e-6, rtol=0)


def test_order_of_views_does_not_matter_and_images_stay_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    views = functional.normalize(torch.randn(3, 5, 8, generator=generator), dim=-1)
    together = aggregate_views(whole, views)
    torch.testing.assert_close(together, aggregate_views(whole, views[:, [4, 2, 0, 1, 3]]))
    torch.testing.assert_close(together[1:2], aggregate_views(whole[1:2], views[1:2]))
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))


def test_one_view_is_returned_as_it_is() -> None:
    torch.testing.assert_close(aggregate_views(WHOLE, VIEWS[:, 1:2]), VIEWS[:, 1])


def test_high_temperature_is_the_plain_mean() -> None:
    torch.testing.assert_close(
        view_weights(WHOLE, VIEWS, temperature=1e6), torch.full((1, 3), 1 / 3), atol=1e-6, rtol=0
    )
