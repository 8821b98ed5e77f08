"""Which label wins, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microclip.adaptation.pseudo_labels import (
    aggregate_knowledge,
    fused_similarity,
    mix_knowledge,
)

GLOBAL = torch.tensor([[1.0, 0.0]])
LOCAL = torch.tensor([[0.6, 0.8]])
# unit rows (0.995037, 0.099504) and (0.447214, 0.894427)
ROWS = torch.tensor([[10.0, 1.0], [1.0, 2.0]])
PRIOR = torch.tensor([[0.80, 0.925]])


def test_feature_fusion_is_the_logit_fusion_enlarged() -> None:
    """The mean (0.8, 0.4) has length sqrt(0.8), so features are larger by 1 / sqrt(0.8)."""
    features = fused_similarity(GLOBAL, LOCAL, ROWS)
    logits = fused_similarity(GLOBAL, LOCAL, ROWS, mode="logits")
    torch.testing.assert_close(features, torch.tensor([[0.934488, 0.8]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, torch.tensor([[0.835831, 0.715542]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(features / logits, torch.full((1, 2), 0.8**-0.5))


def test_the_two_fusions_can_choose_different_classes() -> None:
    """0.5 * (0.8 + 0.934488) beats 0.5 * (0.925 + 0.8); with logits 0.817916 loses to 0.820271."""
    labels = {}
    for mode in ("features", "logits"):
        fused = fused_similarity(GLOBAL, LOCAL, ROWS, mode=mode)
        labels[mode] = aggregate_knowledge(PRIOR, fused, 0.5).labels.tolist()
    assert labels == {"features": [0], "logits": [1]}


def test_confidence_is_the_winning_similarity() -> None:
    found = aggregate_knowledge(PRIOR, torch.tensor([[0.2, 0.1]]), 0.25)
    assert found.labels.tolist() == [0]
    torch.testing.assert_close(found.confidence, torch.tensor([0.25 * 0.8 + 0.75 * 0.2]))


def test_extreme_shares_ignore_the_other_side() -> None:
    generator = torch.Generator().manual_seed(0)
    prior, own, other = torch.randn(3, 6, 4, generator=generator)
    for gamma, side in ((1, prior), (0, own)):
        found = aggregate_knowledge(prior, own, gamma)
        assert torch.equal(found.labels, side.argmax(dim=-1))
    assert torch.equal(
        aggregate_knowledge(prior, own, 1).labels, aggregate_knowledge(prior, other, 1).labels
    )
    assert torch.equal(
        aggregate_knowledge(prior, own, 0).labels, aggregate_knowledge(other, own, 0).labels
    )


def test_labels_carry_no_gradient() -> None:
    own = torch.randn(2, 3, requires_grad=True)
    found = aggregate_knowledge(torch.randn(2, 3), own, 0.5)
    assert not found.confidence.requires_grad


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_share_outside_its_range_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        mix_knowledge(PRIOR, PRIOR, gamma)


def test_unknown_mode_is_refused() -> None:
    mode: Any = "tokens"
    with pytest.raises(Exception, match="mode"):
        fused_similarity(GLOBAL, LOCAL, ROWS, mode=mode)
