"""Low-rank updates of attention's maps, with a matrix pair and a dropout draw for each map.

Ours and not peft's: an attention packs query, key and value in one weight, which peft updates as
one map of a common rank, without dropout; here each of them has its own pair and its own draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

MAPS = ("q", "k", "v", "o")
_PLACE = "low_rank"  # attribute of an attention that has updates


@dataclass(frozen=True)
class LowRankOptions:
    """Form of the updates.

    Attributes:
        maps: the updated ones among query, key, value and output projection.
        scaling: the update is alpha / sqrt(rank), or alpha / rank, times up @ down.
        dropout: share of a map's inputs that its update does not see, while training.
    """

    rank: int = 2
    alpha: float | int = 1.0
    scaling: Literal["sqrt", "linear"] = "sqrt"
    dropout: float | int = 0.25
    maps: tuple[str, ...] = ("q", "k", "v")

    @property
    def factor(self) -> float:
        """What up @ down is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "sqrt" else self.rank)


class InputDropout(nn.Module):
    """Dropout that draws from a generator of its own, one mask at each call.

    Attributes:
        generator: on the device of the inputs; None: the global one.
    """

    def __init__(self, rate: float | int) -> None:
        """Drop inputs with probability `rate`."""
        super().__init__()
        self.rate = float(rate)
        self.generator: torch.Generator | None = None

    def forward(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the inputs, some of them zero and the others enlarged; all of them in a test."""
        if not self.training or self.rate == 0:
            return inputs
        kept = torch.empty_like(inputs).bernoulli_(1 - self.rate, generator=self.generator)
        return inputs * kept / (1 - self.rate)


class LowRank(nn.Module):
    """The updates of one attention: gamma * up @ down @ dropout(input), for each updated map."""

    def __init__(
        self,
        width: int,
        options: LowRankOptions,
        dropout: nn.Module,
        generator: torch.Generator,
    ) -> None:
        """Draw `down` from U(-1/sqrt(width), 1/sqrt(width)); `up` is zero, so nothing changes yet.

        Source: MaxZanella/CLIP-LoRA (Kaiming's uniform distribution with a = sqrt(5)).
        """
        super().__init__()
        self.factor = options.factor
        self.dropout = dropout
        bound = 1 / math.sqrt(width)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name in options.maps:
            drawn = torch.rand(options.rank, width, generator=generator)
            self.down[name] = nn.Parameter((2 * drawn - 1) * bound)
            self.up[name] = nn.Parameter(torch.zeros(width, options.rank))

    def forward(self, name: str, inputs: Float[Tensor, "*lead width"]) -> Tensor | None:
        """Return what is added to a map's output; None if the map has no update."""
        if name not in self.up:
            return None
        low = functional.linear(self.dropout(inputs), self.down[name])
        return self.factor * functional.linear(low, self.up[name])

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """Return what the update adds to a map's weight where nothing is dropped."""
        added: Tensor = self.factor * self.up[name] @ self.down[name]
        return added


def updated(
    attention: Any, inputs: Float[Tensor, "*lead width"], first: int, outputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the outputs of an attention's maps number `first` and following, with their updates.

    `attention` may have none; then nothing is changed.
    """
    own = getattr(attention, _PLACE, None)
    if own is None:
        return tuple(outputs)
    added = (own(MAPS[first + place], inputs) for place in range(len(outputs)))
    pairs = zip(outputs, added, strict=True)
    return tuple(out if update is None else out + update for out, update in pairs)


def attach(attention: Any, update: LowRank) -> None:
    """Give an attention its updates, in place of those that it may have."""
    setattr(attention, _PLACE, update)


def is_attached(tower: Any) -> bool:
    """True if an attention of the tower has updates; asked several times a step."""
    return any(hasattr(block.attn, _PLACE) for block in tower.transformer.resblocks)


_TWELVE = {
    "bottom": range(4),
    "mid": range(4, 8),
    "up": range(8, 12),
    "half-up": range(6, 12),
    "half-bottom": range(6),
    "all": range(12),
    "top3": range(9, 12),
}
_TWENTY_FOUR = {
    "half-up": range(12, 24),
    "half-bottom": range(12),
    "all": range(24),
}
Position = Literal["bottom", "mid", "up", "half-up", "half-bottom", "all", "top3"]


def placed_layers(position: Position, n_layers: int) -> tuple[int, ...]:
    """Return the blocks, counted from 0, that a position stands for in a tower.

    Source: the tables of MaxZanella/CLIP-LoRA for towers of 12 blocks, and of 24 (ViT-L/14, where
    it defines three positions). "all" is every block of any tower; the other positions of a tower
    of another depth are those of 12 blocks, as far as it has them.

    Raises:
        ValueError: the tower has no such blocks, or 24 blocks and no such position.
    """
    if position == "all":
        return tuple(range(n_layers))
    table = _TWENTY_FOUR if n_layers == 24 else _TWELVE
    found = tuple(layer for layer in table.get(position, ()) if layer < n_layers)
    if not found:
        known = [name for name, own in table.items() if own.start < n_layers]
        raise ValueError(
            f"position {position!r} has no block in a tower of {n_layers}; use one of {known}"
        )
    return found
