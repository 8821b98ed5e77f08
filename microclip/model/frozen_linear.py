"""Frozen linear maps, prepared once for the way they are computed, not at each use.

Autocast casts a frozen weight at every use, because it only remembers weights that are trained:
here it is cast once. In float32 on a CPU oneDNN multiplies faster by a weight in its own layout.
That changes the last bits, so only a teacher asks for it (`packed`), and only for wide maps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

WORTH_PACKING = 512  # smallest side of a map; ViT-B/32's gain 7 to 13 %, icon-clip's less
# oneDNN chooses the layout by the number of rows. It is fixed, so that the layout, and the last
# bits with it, never depend on which batch came first.
_PACKED_FOR = 1600  # rows: 32 images of 50 tokens
_is_packed: ContextVar[bool] = ContextVar("is_packed", default=False)


class _Prepared(NamedTuple):
    """A prepared copy, and what its weight looked like then."""

    state: tuple[Hashable, ...]
    copy: Tensor


_prepared: Any = WeakTensorKeyDictionary()  # weight -> {(form, rows): _Prepared}


@contextmanager
def packed() -> Iterator[None]:
    """Multiply by packed weights inside, where no gradient is asked for."""
    token = _is_packed.set(True)
    try:
        yield
    finally:
        _is_packed.reset(token)


def linear(
    tokens: Float[Tensor, "*lead in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    rows: slice = slice(None),
) -> Float[Tensor, "*lead some_out"]:
    """Return `tokens @ weight[rows].T + bias[rows]`, under autocast too."""
    is_frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    if is_frozen and not torch.compiler.is_compiling():
        if torch.is_autocast_enabled(tokens.device.type):
            own = None if bias is None else _cast(bias, rows)
            return functional.linear(tokens, _cast(weight, rows), own)
        if _is_packed.get() and _may_pack(tokens, weight):
            own = None if bias is None else bias[rows]
            result: Tensor = torch.ops.mkldnn._linear_pointwise(
                tokens, _packed(weight, rows), own, "none", [], ""
            )
            return result
    return functional.linear(tokens, weight[rows], None if bias is None else bias[rows])


def _may_pack(tokens: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and tokens.device.type == weight.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and min(weight.shape) >= WORTH_PACKING
        and _has_onednn()
    )


@cache
def _has_onednn() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight")
    found = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(found) and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _cast(weight: Tensor, rows: slice) -> Tensor:
    """The rows in autocast's type; as they are if autocast would leave them so."""
    if weight.dtype != torch.float32:
        return weight[rows]
    dtype = torch.get_autocast_dtype(weight.device.type)
    return _once(weight, rows, dtype, lambda own: own.to(dtype))


def _packed(weight: Tensor, rows: slice) -> Tensor:
    """The rows in oneDNN's layout."""

    def pack(own: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(own.contiguous(), _PACKED_FOR)
        return packed

    return _once(weight, rows, "packed", pack)


def _once(
    weight: Tensor, rows: slice, form: Hashable, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return `prepare(weight[rows])`, made again only if the weight has changed."""
    key, state = (form, rows.start, rows.stop), _state(weight)
    known = _prepared.setdefault(weight, {})
    if key not in known or known[key].state != state:
        known[key] = _Prepared(state, prepare(weight.detach()[rows]))
        if weight.device.type == "cuda":  # another stream may read it before this one has made it
            torch.cuda.current_stream(weight.device).synchronize()
    copy: Tensor = known[key].copy
    return copy


def _state(weight: Tensor) -> tuple[Hashable, ...]:
    """Differs after any change: in place, by `load_state_dict`, or by `.to`."""
    return weight._version, weight.data_ptr(), weight.dtype, weight.device
