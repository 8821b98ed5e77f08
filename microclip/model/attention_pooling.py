"""Saliency-oriented attention pooling: one fine-grained token out of all patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class AttentionPooling(nn.Module):
    """Single-head attention of one query over the patches and an empty token.

    Source: Eq. 5, arXiv:2510.02270v1. The three maps have no bias and start as the identity. The
    empty token is a constant zero vector: it scores 0 and adds nothing, so it only shortens the
    pooled vector. With `learnable_empty` it is trained.

    Departs: fidelity.md#empty-token.
    """

    empty: Tensor

    def __init__(self, d: int, *, learnable_empty: bool = False) -> None:
        """Create identity maps for tokens of width `d`."""
        super().__init__()
        self.query = _identity_map(d)
        self.key = _identity_map(d)
        self.value = _identity_map(d)
        empty = torch.zeros(d)
        if learnable_empty:
            self.empty = nn.Parameter(empty)
        else:
            self.register_buffer("empty", empty)

    def forward(
        self,
        query: Float[Tensor, "batch width"],
        tokens: Float[Tensor, "batch patch width"],
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patch+1"]]:
        """Return the pooled vector and the softmax weights, the empty token's last.

        The key and value maps are linear, so they are applied once an image instead of once a
        patch: the key map to the query, the value map to the weighted mean of the patches.
        """
        width = query.shape[-1]
        probe = functional.linear(self.query(query), self.key.weight.mT) / width**0.5
        scores = torch.einsum("b n d, b d -> b n", tokens, probe)
        empty_score = (probe @ self.empty.to(probe.dtype))[:, None]
        weights = torch.cat([scores, empty_score], dim=-1).softmax(dim=-1)
        mixed = torch.einsum("b n, b n d -> b d", weights[:, :-1].to(tokens.dtype), tokens)
        return self.value(mixed + weights[:, -1:] * self.empty), weights


def _identity_map(width: int) -> nn.Linear:
    linear = nn.Linear(width, width, bias=False)
    nn.init.eye_(linear.weight)
    return linear
