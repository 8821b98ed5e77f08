"""Whether saved tensors are those of a network, name by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_SHOWN = 3  # names in an error


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return in words how `found` differs from `expected` by names and shapes, or None.

    Both counts stand first, then the first few differing names.
    """
    parts = [
        f"{word} {_named(sorted(names))}"
        for word, names in (
            ("missing", expected.keys() - found.keys()),
            ("unknown", found.keys() - expected.keys()),
        )
        if names
    ]
    parts += [
        f"'{name}' has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in sorted(expected.items())
        if name in found and found[name].shape != tensor.shape
    ][:_SHOWN]
    if not parts:
        return None
    return f"{len(found)} tensors where {len(expected)} are expected; {', '.join(parts)}"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return " ".join(f"'{name}'" for name in names[:_SHOWN]) + more
