"""The image tower by `torch.compile`, on request (`compile` of a study).

The tower's blocks are compiled, a teacher's and a student's, with their backward pass. The rest of
a step is not: eigensolver, draws and losses would split the graph, and they take little of the
time. Fused kernels change the last bits, so the setting is part of a run's identity.

Towers with prompts or low-rank updates, and ReCLIP's own copy of the tower, are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from microclip.model import lora
from microclip.model.backbone import Backbone
from microclip.runtime import ResourceError
from microclip.settings.study import Compile

_MODES = {"default": "default", "cuda-graphs": "reduce-overhead"}
# By gradient, trained tensors, autocast, and whether a batch has one image; torch's own limit is 8.
_MOST_GRAPHS = 32


class CompiledBackbone(Backbone):
    """A backbone whose image tower is compiled at its first use, for batches of any size."""

    def __init__(self, plain: Backbone, mode: str) -> None:
        """Share the network of `plain`."""
        super().__init__(plain.model, plain._tokenizer)
        self.train(plain.training)
        self.mode = mode

    def _tokens(
        self, images: Float[Tensor, "batch 3 rows columns"], *, with_patches: bool
    ) -> Float[Tensor, "batch kept width"]:
        if lora.is_attached(self.visual):  # its dropout draws from a generator of its own
            return super()._tokens(images, with_patches=with_patches)
        if len(images) > 1:  # torch makes a graph of its own for a batch of one
            # One graph for all sizes: a resumed run, which meets others first, has the same bits.
            torch._dynamo.mark_dynamic(images, 0)
        try:
            kept = _compiled(self.mode, with_patches=with_patches)(self, images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise ResourceError(
                f"compile: {self.mode} fails on this machine ({reason}); install a C++ compiler "
                "(and, for a GPU, triton), or set compile: off"
            ) from error
        # The next replay of a CUDA graph overwrites what the last one returned.
        return kept.clone() if self.mode == "cuda-graphs" else kept


def compiled(backbone: Backbone, mode: str) -> Backbone:
    """Return a backbone of the same network, its image tower compiled unless `mode` is "off".

    Raises:
        ValueError: no such mode.
    """
    if mode not in get_args(Compile):
        raise ValueError(f"compile must be one of {', '.join(get_args(Compile))}; got {mode!r}")
    return backbone if mode == "off" else CompiledBackbone(backbone, mode)


# Functions, not bound methods: a copy of a backbone must run its own weights.
def _all_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    return Backbone._tokens(backbone, images, with_patches=True)


def _class_token(backbone: Backbone, images: Tensor) -> Tensor:
    return Backbone._tokens(backbone, images, with_patches=False)


@cache
def _compiled(mode: str, *, with_patches: bool) -> Callable[[Backbone, Tensor], Tensor]:
    compile_: Any = torch.compile  # whose declared types lack the limit
    found: Callable[[Backbone, Tensor], Tensor] = compile_(
        _all_tokens if with_patches else _class_token,
        mode=_MODES[mode],
        fullgraph=True,
        recompile_limit=_MOST_GRAPHS,
    )
    return found
