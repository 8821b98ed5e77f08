"""Frozen maps are prepared once, give the same numbers, and follow their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from microclip.model import frozen_linear
from microclip.model.frozen_linear import WORTH_PACKING, linear, packed
from tests.model.networks import tiny_backbone

WIDE = WORTH_PACKING
has_onednn = pytest.mark.skipif(not frozen_linear._has_onednn(), reason="torch without oneDNN")


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        name = function.__name__.split(".")[0]
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def frozen(*shape: int) -> nn.Parameter:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return nn.Parameter(values, requires_grad=False)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_under_autocast_a_frozen_weight_is_cast_once_and_the_numbers_are_autocasts() -> None:
    tokens, weight, bias = torch.randn(3, 5, 8), frozen(12, 8), frozen(12)
    with autocast():
        expected = functional.linear(tokens, weight[4:], bias[4:])
        first = linear(tokens, weight, bias, slice(4, None))
        half = tokens.bfloat16()
        with Operations() as seen:
            again = linear(half, weight, bias, slice(4, None))
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert "_to_copy" not in seen.counts


def test_a_trained_weight_keeps_its_gradient_under_autocast() -> None:
    weight = nn.Parameter(torch.randn(4, 8))
    with autocast():
        linear(torch.randn(2, 8), weight, None).sum().backward()
    assert weight.grad is not None


def test_a_whole_backbone_gives_autocasts_numbers_whatever_was_cast_before() -> None:
    images = torch.randn(3, 3, 32, 32)
    network, other = tiny_backbone(), tiny_backbone()
    other.load_state_dict(network.state_dict())
    network.requires_grad_(requires_grad=False)
    with torch.no_grad(), autocast():
        other.requires_grad_(requires_grad=True)  # so that nothing is prepared
        plain = other.encode_image(images)
        for _ in range(2):
            found = network.encode_image(images)
            assert torch.equal(found.embedding, plain.embedding)
            assert torch.equal(found.patches, plain.patches)


@pytest.mark.parametrize("change", ["in place", "load", "data"])
def test_a_changed_weight_is_prepared_again(change: str) -> None:
    layer = nn.Linear(WIDE, WIDE).requires_grad_(requires_grad=False)
    tokens = torch.randn(4, WIDE)

    def both() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), packed():
            fast = linear(tokens, layer.weight, layer.bias)
        with autocast():
            return fast, linear(tokens, layer.weight, layer.bias)

    before = both()
    fresh = torch.randn(WIDE, WIDE)
    match change:
        case "in place":
            layer.weight.copy_(fresh)
        case "load":
            layer.load_state_dict({"weight": fresh, "bias": layer.bias})
        case _:
            layer.weight.data = fresh  # as `Module.to` does
    expected = functional.linear(tokens, fresh, layer.bias)
    torch.testing.assert_close(both()[0], expected, atol=1e-3, rtol=0)
    assert not torch.equal(both()[1], before[1])


@has_onednn
def test_wide_frozen_maps_are_packed_once_and_only_where_it_is_asked_for() -> None:
    tokens, weight, bias = torch.randn(2, 50, WIDE), frozen(3 * WIDE, WIDE), frozen(3 * WIDE)
    rows = slice(WIDE, 3 * WIDE)
    plain = functional.linear(tokens, weight[rows], bias[rows])
    with torch.no_grad():
        assert torch.equal(linear(tokens, weight, bias, rows), plain)
        with packed(), Operations() as first:
            found = linear(tokens, weight, bias, rows)
        with packed(), Operations() as second:
            again = linear(tokens, weight, bias, rows)
        assert torch.equal(linear(tokens, weight, bias, rows), plain)
    torch.testing.assert_close(found, plain, atol=2e-4, rtol=0)
    assert torch.equal(found, again)
    assert first.counts["_reorder_linear_weight"] == 1
    assert second.counts == {"slice": 1, "_linear_pointwise": 1}


def test_nothing_is_packed_for_a_gradient_or_a_narrow_map() -> None:
    narrow, wide = frozen(WIDE - 1, WIDE), frozen(WIDE, WIDE)
    tokens = torch.randn(4, WIDE)
    with packed():
        with torch.no_grad():
            expected = functional.linear(tokens, narrow)
            assert torch.equal(linear(tokens, narrow, None), expected)
        with Operations() as seen:
            linear(tokens.requires_grad_(), wide, None).sum().backward()
    assert tokens.grad is not None
    assert "_linear_pointwise" not in seen.counts


@has_onednn
def test_packed_bits_do_not_depend_on_which_batch_came_first() -> None:
    tokens, values = torch.randn(40, WIDE), torch.randn(WIDE, WIDE)
    found = []
    for warm_up in (1, 33):
        weight = nn.Parameter(values.clone(), requires_grad=False)
        with torch.no_grad(), packed():
            linear(torch.randn(warm_up, WIDE), weight, None)
            found.append(linear(tokens, weight, None))
    assert torch.equal(*found)


def test_prepared_copies_are_dropped_with_their_weight() -> None:
    before = len(frozen_linear._prepared)
    weight = frozen(4, 8)
    with autocast():
        linear(torch.randn(2, 8), weight, None)
    assert len(frozen_linear._prepared) == before + 1
    del weight
    assert len(frozen_linear._prepared) == before
