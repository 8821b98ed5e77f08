"""Attention pooling by hand, against the plain formula, and its invariants."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from microclip.model.attention_pooling import AttentionPooling

TOKENS = torch.tensor([[[2.0, 0], [0, 2.0]]])
QUERY = torch.tensor([[1.0, 0]])


def random_pooling(width: int = 6, *, learnable_empty: bool = False) -> AttentionPooling:
    torch.manual_seed(0)
    pooling = AttentionPooling(width, learnable_empty=learnable_empty)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.normal_()
    return pooling


def test_identity_maps_give_the_hand_computed_weights() -> None:
    """Scores 2/sqrt(2) and 0, and 0 for the empty token."""
    pooled, weights = AttentionPooling(2)(QUERY, TOKENS)
    expected = torch.tensor([[0.672842, 0.163579, 0.163579]])
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    direction = functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(direction, torch.tensor([[0.971696, 0.236236]]), atol=1e-6, rtol=0)
    without_empty = (QUERY @ TOKENS[0].T / 2**0.5).softmax(dim=-1) @ TOKENS[0]
    ratio = pooled.norm() / without_empty.norm()
    assert ratio.item() == pytest.approx(0.836421, abs=1e-6)


@pytest.mark.parametrize("learnable_empty", [False, True])
def test_result_is_that_of_the_plain_formula(learnable_empty: bool) -> None:
    pooling = random_pooling(learnable_empty=learnable_empty)
    query, tokens = torch.randn(3, 6), torch.randn(3, 5, 6)
    extended = torch.cat([tokens, pooling.empty.expand(3, 1, -1)], dim=1)
    scores = torch.einsum("bd,bnd->bn", pooling.query(query), pooling.key(extended)) / 6**0.5
    expected = torch.einsum("bn,bnd->bd", scores.softmax(dim=-1), pooling.value(extended))
    pooled, weights = pooling(query, tokens)
    torch.testing.assert_close(weights, scores.softmax(dim=-1))
    torch.testing.assert_close(pooled, expected)


def test_zero_empty_token_changes_only_the_length() -> None:
    pooling = random_pooling()
    query, tokens = torch.randn(3, 6), torch.randn(3, 5, 6)
    pooled, weights = pooling(query, tokens)
    kept = weights[:, :-1] / weights[:, :-1].sum(dim=-1, keepdim=True)
    expected = pooling.value(torch.einsum("bn,bnd->bd", kept, tokens))
    torch.testing.assert_close(
        functional.normalize(pooled, dim=-1), functional.normalize(expected, dim=-1)
    )


def test_permuting_patches_changes_nothing_but_their_weights() -> None:
    pooling = random_pooling()
    query, tokens = torch.randn(2, 6), torch.randn(2, 5, 6)
    order = torch.tensor([3, 1, 4, 0, 2])
    pooled, weights = pooling(query, tokens)
    again, shuffled = pooling(query, tokens[:, order])
    torch.testing.assert_close(pooled, again)
    torch.testing.assert_close(weights[:, order], shuffled[:, :-1])


def test_empty_token_is_constant_unless_asked() -> None:
    assert set(dict(AttentionPooling(4).named_parameters())) == {
        "query.weight",
        "key.weight",
        "value.weight",
    }
    learnable = AttentionPooling(4, learnable_empty=True)
    assert "empty" in dict(learnable.named_parameters())
    assert learnable.empty.abs().sum() == 0
    assert torch.equal(learnable.key.weight, torch.eye(4))


def test_zero_query_spreads_evenly() -> None:
    _, weights = AttentionPooling(2)(torch.zeros(1, 2), TOKENS)
    torch.testing.assert_close(weights, torch.full((1, 3), 1 / 3))
