"""Hand-made graphs, degenerate graphs and invariants of the cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.model.saliency import (
    affinity,
    fiedler_vector,
    laplacian,
    normalized_cut,
    released_vector,
    salient_side,
)

TWO_AND_FOUR = torch.tensor([[1.0, 0]] * 2 + [[0, 1.0]] * 4)[None]


def random_tokens(batch: int, noise: float = 0.1) -> Tensor:
    """Two groups of patches in noise: graphs with a clear gap."""
    generator = torch.Generator().manual_seed(0)
    tokens = noise * torch.randn(batch, 20, 12, generator=generator)
    tokens[:, :7, 0] += 1
    tokens[:, 7:, 1] += 1
    return tokens


def test_two_cliques_give_the_hand_computed_vector() -> None:
    """Volumes 4 and 16: the vector is constant on each clique and orthogonal to the degrees.

    Entries are proportional to sqrt(degree) / volume: sqrt(2) / 4 against sqrt(4) / 16, opposite
    signs. Scaled to unit norm: sqrt(2/5) = 0.632456 and -1 / (2 sqrt(5)) = -0.223607.
    """
    cut = normalized_cut(TWO_AND_FOUR)
    expected = torch.tensor([[0.4**0.5] * 2 + [-0.5 * 0.2**0.5] * 4])
    torch.testing.assert_close(cut.fiedler, expected, atol=2e-6, rtol=0)
    assert cut.fiedler.std().item() == pytest.approx(0.442069, abs=1e-5)
    assert cut.fiedler.mean().item() == pytest.approx(0.061748, abs=1e-5)
    assert cut.mask.tolist() == [[True, True, False, False, False, False]]
    assert not cut.degenerate.any()


def test_mean_rule_ignores_the_sign_and_std_rule_does_not() -> None:
    vector = normalized_cut(TWO_AND_FOUR).fiedler
    for sign in ("seed", "as-computed"):
        for z in (vector, -vector):
            mask, oriented = salient_side(z, threshold="mean", sign=sign)
            assert mask.tolist() == [[True, True, False, False, False, False]]
            torch.testing.assert_close(oriented, vector)
    assert salient_side(vector, threshold="std", sign="as-computed")[0].sum() == 2
    assert salient_side(-vector, threshold="std", sign="as-computed")[0].sum() == 6
    assert salient_side(-vector, threshold="std", sign="seed")[0].sum() == 2


def test_thresholds_on_a_given_vector() -> None:
    """Squares sum to 1 and entries to 0, so the deviation is sqrt(1 / 5) = 0.447214."""
    z = torch.tensor([[0.738025, 0.276759, 0.046127, -0.322886, -0.369012, -0.369012]])
    assert z.std().item() == pytest.approx(0.2**0.5, abs=1e-5)
    first, every = [[0]], [[0, 1, 2, 3, 4, 5]]

    def chosen(vector: Tensor, **rule: Any) -> list[list[int]]:
        return [salient_side(vector, **rule)[0][0].nonzero().flatten().tolist()]

    assert chosen(z, threshold="std", sign="as-computed") == first
    assert chosen(-z, threshold="std", sign="as-computed") == every
    assert chosen(-z, threshold="std", sign="seed") == first
    assert chosen(z, threshold="mean", sign="seed") == [[0, 1, 2]]


def test_complete_graph_has_one_zero_and_ones() -> None:
    weights = affinity(torch.ones(1, 5, 3), tau=0.2, eps=1e-6, normalize=False)
    spectrum = torch.linalg.eigvalsh(laplacian(weights)[0])[0]
    torch.testing.assert_close(spectrum, torch.tensor([0.0, 1, 1, 1, 1]), atol=1e-5, rtol=0)


def test_null_vector_is_exact_and_deflation_keeps_the_rest() -> None:
    weights = affinity(random_tokens(3), tau=0.2, eps=1e-6, normalize=False).double()
    matrix, null = laplacian(weights)
    assert (matrix @ null[..., None]).abs().max() < 1e-12
    spectrum = torch.linalg.eigvalsh(matrix)
    vector, gap = fiedler_vector(weights)
    rayleigh = torch.einsum("bi,bij,bj->b", vector, matrix, vector)
    torch.testing.assert_close(rayleigh, spectrum[:, 1])
    torch.testing.assert_close(gap, spectrum[:, 2] - spectrum[:, 1])


@pytest.mark.parametrize("threshold", ["std", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_permuting_patches_permutes_the_mask(threshold: Any, normalize: bool) -> None:
    tokens = random_tokens(6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    plain = normalized_cut(tokens, threshold=threshold, normalize=normalize)
    shuffled = normalized_cut(tokens[:, order], threshold=threshold, normalize=normalize)
    assert torch.equal(plain.mask[:, order], shuffled.mask)
    torch.testing.assert_close(plain.fiedler[:, order], shuffled.fiedler)


def test_batch_of_one_is_a_row_of_the_batch() -> None:
    tokens = random_tokens(5)
    together = normalized_cut(tokens)
    for row in range(5):
        alone = normalized_cut(tokens[row : row + 1])
        assert torch.equal(alone.mask[0], together.mask[row])
        torch.testing.assert_close(alone.fiedler[0], together.fiedler[row])


def test_planted_group_is_found() -> None:
    mask = normalized_cut(random_tokens(4, noise=0.05), threshold="mean").mask
    assert mask[:, :7].all()
    assert not mask[:, 7:].any()


def test_float32_solver_agrees_where_the_cut_is_defined() -> None:
    tokens = random_tokens(8)
    exact, single = normalized_cut(tokens), normalized_cut(tokens, solver_dtype=torch.float32)
    assert torch.equal(exact.mask, single.mask)
    torch.testing.assert_close(exact.fiedler, single.fiedler, atol=1e-5, rtol=0)


def test_as_computed_is_the_released_solver() -> None:
    """Written out as in the released code: float32, no shift, 1e-6 beside each root."""
    tokens = random_tokens(8)
    weights = torch.where(tokens @ tokens.mT > 0.2, 1.0, 1e-6)
    degrees = weights.sum(dim=-1)
    half = torch.diag_embed(1 / (degrees.sqrt() + 1e-6))
    _, vectors = torch.linalg.eigh(half @ (torch.diag_embed(degrees) - weights) @ half)
    second = vectors[:, :, 1]
    mask = second > second.std(dim=-1, keepdim=True)
    mask ^= ~mask.gather(-1, second.abs().argmax(dim=-1, keepdim=True))
    cut = normalized_cut(tokens, sign="as-computed", min_gap=0)
    assert torch.equal(cut.mask, mask)
    for dtype in (torch.float32, torch.float64):  # it has its own
        same = normalized_cut(tokens, sign="as-computed", min_gap=0, solver_dtype=dtype)
        assert torch.equal(same.fiedler, cut.fiedler)


def test_a_complete_graph_has_no_second_vector_of_its_own() -> None:
    """Its second eigenvalue has multiplicity 48: which vector comes out is the solver's affair.

    The masks recorded for the released code have 1, 45, 47 and 47 of 49 patches, for four equal
    graphs in one batch. Ours of the rule "seed" keeps all patches.
    """
    tokens = torch.ones(4, 49, 8)
    vector, gap = released_vector(affinity(tokens, tau=0.2, eps=1e-6, normalize=False))
    assert gap.abs().max() < 1e-5
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(vector.sum(dim=-1), torch.zeros(4), atol=1e-5, rtol=0)
    released = normalized_cut(tokens, sign="as-computed", min_gap=0)
    assert released.mask.any(dim=-1).all()
    assert released.degenerate is not None
    assert released.degenerate.all()  # the graph's property, not the rule's
    assert normalized_cut(tokens).mask.all()


def test_cosine_graph_ignores_lengths() -> None:
    tokens = random_tokens(2)
    scaled = tokens * torch.linspace(0.1, 5, 20)[:, None]
    assert torch.equal(
        normalized_cut(tokens, normalize=True).mask, normalized_cut(scaled, normalize=True).mask
    )


@pytest.mark.parametrize(
    "tokens",
    [torch.ones(1, 9, 4), torch.zeros(1, 9, 4), 3 * torch.eye(9)[None]],
    ids=["all alike", "all zero", "all orthogonal"],
)
def test_graph_without_a_defined_cut_keeps_every_patch(tokens: Tensor) -> None:
    cut = normalized_cut(tokens)
    assert cut.mask.all()
    assert cut.degenerate.all()
    assert cut.gap.abs().max() < 1e-6
    assert cut.fiedler.isfinite().all()


def test_two_equal_cliques_keep_every_patch() -> None:
    """Entries are +-1/sqrt(n), the deviation is larger, so nothing exceeds it."""
    tokens = torch.tensor([[1.0, 0]] * 4 + [[0, 1.0]] * 4)[None]
    for sign in ("seed", "as-computed"):
        assert normalized_cut(tokens, sign=sign).mask.all()


def test_gap_rule_can_be_turned_off() -> None:
    cut = normalized_cut(torch.ones(1, 9, 4), min_gap=0.0)
    assert cut.fiedler.isfinite().all()
    assert cut.mask.any()


def test_two_patches_have_a_cut() -> None:
    cut = normalized_cut(torch.eye(2)[None])
    assert cut.mask.any()
    assert cut.gap.isinf().all()


def test_broken_tokens_stay_in_their_image() -> None:
    tokens = random_tokens(3)
    expected = normalized_cut(tokens)
    broken = tokens.clone()
    broken[1, 4] = torch.nan
    broken[1, 5] = torch.inf
    cut = normalized_cut(broken)
    assert cut.fiedler.isfinite().all()
    assert cut.mask.any(dim=1).all()
    assert torch.equal(cut.mask[[0, 2]], expected.mask[[0, 2]])


def test_broken_tokens_are_named_on_request() -> None:
    tokens = random_tokens(3)
    tokens[1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] of a batch of 3"):
        normalized_cut(tokens, check_finite=True)
    normalized_cut(random_tokens(3), check_finite=True)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patch >= 2.*got \(1, 1, 4\)"):
        normalized_cut(torch.ones(1, 1, 4))


def test_unknown_rules_are_refused() -> None:
    vector = torch.ones(1, 3)
    rules: Any = {"threshold": "median", "sign": "seed"}
    with pytest.raises(Exception, match="threshold"):
        salient_side(vector, **rules)
    rules = {"threshold": "std", "sign": "plus"}
    with pytest.raises(Exception, match="sign"):
        salient_side(vector, **rules)


def test_autocast_and_gradient_do_not_reach_the_cut() -> None:
    tokens = random_tokens(3).requires_grad_()
    expected = normalized_cut(tokens)
    assert not expected.fiedler.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = normalized_cut(tokens)
    assert torch.equal(inside.mask, expected.mask)
    assert torch.equal(inside.fiedler, expected.fiedler)
    assert normalized_cut(tokens.detach().bfloat16()).fiedler.dtype == torch.float32
