"""Comparison with one reference array."""

from __future__ import annotations

import pytest
from torch import Tensor


class Comparison:
    """Asserts closeness and remembers how close."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def _record(self, name: str, rule: str, tolerance: float, deviation: float) -> None:
        self._node.user_properties.append(("parity", [name, rule, tolerance, deviation]))
        assert deviation <= tolerance, f"{name}: {rule} {deviation:.2e}, allowed {tolerance:.0e}"

    def relative(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """Largest difference over the array's largest absolute value."""
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        scale = theirs.double().abs().max().item() or 1.0
        deviation = (ours.detach().double() - theirs.double()).abs().max().item() / scale
        self._record(name, "rel", tolerance, deviation)

    def absolute(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """Largest difference."""
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        deviation = (ours.detach().double() - theirs.double()).abs().max().item()
        self._record(name, "abs", tolerance, deviation)

    def exact(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Number of entries that differ; none may."""
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        self._record(name, "count", 0, float((ours.long() != theirs.long()).sum()))

    def under(self, rule: str, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """Compare by a rule that a table names."""
        match rule:
            case "relative":
                self.relative(name, ours, theirs, tolerance)
            case "absolute":
                self.absolute(name, ours, theirs, tolerance)
            case "exact":
                self.exact(name, ours, theirs)
            case _:
                raise ValueError(f"unknown rule {rule!r}")

    def adam(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Three-part rule for tensors whose gradient can be mere rounding (README, Tolerances)."""
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        difference = (ours.detach().double() - theirs.double()).abs()
        self._record(name, "max", 2e-3, difference.max().item())
        self._record(name, "mean", 1e-6, difference.mean().item())
        self._record(name, "share > 2e-5", 1e-3, (difference > 2e-5).double().mean().item())
