"""The cut by repeated squaring agrees with the cut by the eigensolver."""

import pytest
import torch
from torch import Tensor

from microclip.export.onnx import cut_by_squaring, fiedler_by_squaring
from microclip.model.saliency import NCutOptions, affinity, fiedler_vector, normalized_cut

WIDTH, BATCH = 16, 60


def tokens(kind: str, n: int) -> Tensor:
    """Patch tokens whose graph has a given structure."""
    draws = torch.Generator().manual_seed(n)
    noise = torch.randn(BATCH, n, WIDTH, generator=draws)
    match kind:
        case "random":
            return 0.35 * noise
        case "clustered":
            centres = 0.4 * torch.randn(BATCH, 3, WIDTH, generator=draws)
            owner = torch.randint(0, 3, (BATCH, n, 1), generator=draws).expand(-1, -1, WIDTH)
            return centres.gather(1, owner) + 0.3 * noise
        case "near-complete":
            return 0.3 + 0.25 * noise
        case "fragmented":
            return 0.12 * noise
        case _:
            return torch.ones(BATCH, n, WIDTH)


def tie(vector: Tensor) -> Tensor:
    """Distance between the largest entries of either sign; at 0, rounding chooses the seed."""
    return (vector.amax(dim=-1) + vector.amin(dim=-1)).abs()


@pytest.mark.parametrize("n", [2, 3, 49, 100])
@pytest.mark.parametrize("kind", ["random", "clustered", "near-complete", "fragmented", "complete"])
def test_masks_match_the_eigensolver_except_where_seeds_tie(kind: str, n: int) -> None:
    given = tokens(kind, n)
    expected, mask = normalized_cut(given), cut_by_squaring(given, NCutOptions())
    assert expected.gap is not None
    assert expected.degenerate is not None
    weights = affinity(given, tau=0.2, eps=1e-6, normalize=False).double()
    vector, gap = fiedler_by_squaring(weights)
    near = (gap - 1e-3).abs() < 1e-9  # close to the limit below which no cut is defined
    is_tied = tie(vector) < 1e-9
    differs = (mask != expected.mask).any(dim=-1)
    print(f"{kind}, {n} patches: {int(differs.sum())} of {BATCH} differ, {int(is_tied.sum())} tied")
    assert not (differs & ~is_tied & ~near).any()
    if n > 2:
        torch.testing.assert_close(gap.float(), expected.gap, atol=1e-6, rtol=0)
    defined = ~expected.degenerate
    cosine = (vector * expected.fiedler).sum(dim=-1).abs()[defined]
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-6, rtol=0)


def test_two_cliques_are_separated_and_the_smaller_is_salient() -> None:
    weights = torch.full((1, 7, 7), 1e-3, dtype=torch.float64)
    weights[:, :2, :2] = weights[:, 2:, 2:] = 1
    vector, gap = fiedler_by_squaring(weights)
    assert vector[0, 0].sign() == vector[0, 1].sign() != vector[0, 2].sign()
    assert float(vector[0, :2].abs().min()) > float(vector[0, 2:].abs().max())
    assert float(gap) > 0.9
    ours, theirs = vector, fiedler_vector(weights)[0]
    torch.testing.assert_close((ours * theirs).sum().abs().item(), 1.0, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        NCutOptions(threshold="mean"),
        NCutOptions(normalize=True, threshold="mean"),
        NCutOptions(tau=0.5, eps=1e-3),
        NCutOptions(min_gap=0.2),
    ],
)
def test_every_option_has_the_same_effect(options: NCutOptions) -> None:
    given = tokens("clustered", 49)
    expected = normalized_cut(
        given,
        tau=options.tau,
        eps=options.eps,
        threshold=options.threshold,
        normalize=options.normalize,
        min_gap=options.min_gap,
    )
    assert torch.equal(cut_by_squaring(given, options), expected.mask)


def test_the_eigensolvers_own_sign_is_refused() -> None:
    with pytest.raises(ValueError, match="sign 'seed'"):
        cut_by_squaring(tokens("random", 9), NCutOptions(sign="as-computed"))
