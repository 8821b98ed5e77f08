"""The image tower by `torch.compile` and CUDA graphs, on request (`compile` of a study).

The tower's blocks are compiled, a teacher's and a student's, with their backward pass: one block,
whose code all of them share, and the last one, which keeps fewer tokens. With "cuda-graphs" the
whole tower is recorded once for each size of batch, and replayed by one call of the host, which
otherwise starts some hundred kernels slower than a GPU ends them. The rest of a step is neither:
eigensolver, draws and losses would split the graph, and they take little of the time. Fused kernels
change the last bits, so the setting is part of a run's identity.

Towers with prompts or low-rank updates, and ReCLIP's own copy of the tower, are left as they are.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from microclip.model import lora
from microclip.model.backbone import Backbone
from microclip.model.vision_transformer import enter_tower, finish_tower, run_block
from microclip.runtime import ResourceError
from microclip.settings.study import Compile

# By gradient, trained tensors, autocast, and whether a batch has one image; torch's own limit is 8.
_MOST_CODES = 32
# Sizes of batches, each with and without gradient or patches; a recording keeps its own memory.
_MOST_RECORDINGS = 16
_WARM_UPS = 3  # before recording: libraries choose their kernels and allocate what they keep

Run = Callable[[Tensor], Tensor]
Given = ParamSpec("Given")
Result = TypeVar("Result")


class CompiledBackbone(Backbone):
    """A backbone whose image tower is compiled at its first use, for batches of any size."""

    def __init__(self, plain: Backbone, mode: str) -> None:
        """Share the network of `plain`."""
        super().__init__(plain.model, plain._tokenizer)
        self.train(plain.training)
        self.mode = mode
        self._recordings: dict[Hashable, Recording] = {}
        self._may_record = mode == "cuda-graphs"
        self._weights: list[nn.Parameter] = []  # collecting them takes almost a millisecond

    def __getstate__(self) -> dict[str, Any]:
        """Leave recordings out: a copy has other weights."""
        return {**self.__dict__, "_recordings": {}, "_weights": []}

    def fused(self, function: Callable[Given, Result]) -> Callable[Given, Result]:
        """Return `function` compiled, on a GPU: its many small kernels cost the host more."""
        is_eager = self.device.type != "cuda" or lora.is_attached(self.visual)
        return function if is_eager else partial(_compiled, function, mode=self.mode)

    def _tokens(
        self, images: Float[Tensor, "batch 3 rows columns"], *, with_patches: bool
    ) -> Float[Tensor, "batch kept width"]:
        run: Run = partial(super()._tokens, with_patches=with_patches)
        if lora.is_attached(self.visual):  # its dropout draws from a generator of its own
            return run(images)
        if self.n_parts > 1:
            # Memory is short, and a part of a batch is computed again in the backward pass, which
            # a recording is not.
            self._stop_recording()
        if not self._may_record or images.device.type != "cuda" or images.requires_grad:
            return run(images)
        return self._replayed(run, images, with_patches=with_patches)

    def _entered(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch token width"]:
        if lora.is_attached(self.visual):
            return super()._entered(images)
        return _compiled(enter_tower, self.visual, images, mode=self.mode)

    def _block(
        self, block: nn.Module, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        if lora.is_attached(self.visual):
            return super()._block(block, hidden)
        return _compiled(run_block, block, hidden, mode=self.mode)

    def _last_block(
        self, hidden: Float[Tensor, "batch token width"], *, with_patches: bool
    ) -> Float[Tensor, "batch kept width"]:
        if lora.is_attached(self.visual):
            return super()._last_block(hidden, with_patches=with_patches)
        finish = _all_tokens if with_patches else _class_token
        return _compiled(finish, self.visual, hidden, mode=self.mode)

    def _apply(self, *given: Any, **options: Any) -> Any:
        """Move or cast the weights, which recordings read where they were."""
        self._recordings, self._weights = {}, []
        return super()._apply(*given, **options)  # type: ignore[no-untyped-call]

    def _stop_recording(self) -> None:
        if self._recordings:
            torch.cuda.synchronize()  # one may still run on another stream
        self._recordings.clear()
        self._may_record = False

    def _replayed(self, run: Run, images: Tensor, *, with_patches: bool) -> Tensor:
        """Return the tokens of a recording, made now if there is none for such a batch."""
        weights = self._weights = self._weights or list(self.visual.parameters())
        is_learning = torch.is_grad_enabled() and any(each.requires_grad for each in weights)
        key = (
            images.shape,
            images.dtype,
            with_patches,
            is_learning,
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
            *((each.data_ptr(), each.requires_grad) for each in weights),
        )
        found = self._recordings.get(key)
        if found is None:
            if len(self._recordings) >= _MOST_RECORDINGS:
                return run(images)
            trained = [each for each in weights if each.requires_grad] if is_learning else []
            with suppress(torch.OutOfMemoryError):
                found = self._recordings[key] = Recording(run, images, trained)
            if found is None:  # a recording keeps its memory, which single passes share
                self._stop_recording()
                return run(images)
        # What a backward pass needs, the next forward pass would overwrite.
        return run(images) if found.is_awaited else found(images)


def compiled(backbone: Backbone, mode: str) -> Backbone:
    """Return a backbone of the same network, its image tower compiled unless `mode` is "off".

    Raises:
        ValueError: no such mode.
    """
    if mode not in get_args(Compile):
        raise ValueError(f"compile must be one of {', '.join(get_args(Compile))}; got {mode!r}")
    return backbone if mode == "off" else CompiledBackbone(backbone, mode)


class Recording:
    """A function of images as CUDA graphs, its backward pass too if weights are trained."""

    def __init__(self, run: Run, images: Tensor, trained: list[nn.Parameter]) -> None:
        """Record `run` for images of this shape; `trained` get gradients."""
        self.trained = trained
        self.n_replays = 0
        self._awaited: weakref.ref[object] | None = None
        self._images = images.detach().clone()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        is_caching = torch.is_autocast_cache_enabled()
        # A cast that autocast remembers from before would be missing in the recording.
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        try:
            self._record(run)
        finally:
            torch.set_autocast_cache_enabled(is_caching)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the tokens of images."""
        if not self.trained:
            return self.replay(images)
        tokens: Tensor = _Replayed.apply(self, images, *self.trained)
        return tokens

    @property
    def is_awaited(self) -> bool:
        """True while the backward pass of the last forward pass may still be asked for."""
        return self._awaited is not None and self._awaited() is not None

    def replay(self, images: Tensor, awaited: object = None) -> Tensor:
        """Run the forward pass; a backward pass may follow as long as `awaited` exists."""
        self._images.copy_(images)
        self._forward.replay()
        self.n_replays += 1
        self._awaited = None if awaited is None else weakref.ref(awaited)
        return self._kept.detach().clone()  # the next replay overwrites it

    def replay_backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Run the backward pass, and return the gradients of what is trained."""
        self._given.copy_(gradient)
        self._backward.replay()
        self._awaited = None
        parts = torch.split(self._gradients.clone(), [each.numel() for each in self.trained])
        return tuple(p.view_as(each) for p, each in zip(parts, self.trained, strict=True))

    def _record(self, run: Run) -> None:
        gc.collect()  # within a capture it could end another recording
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                kept = run(self._images)
                if not kept.requires_grad:
                    self.trained = []
                    continue
                found = torch.autograd.grad(
                    kept, self.trained, torch.zeros_like(kept), allow_unused=True
                )
                # The joint projection, say, is read after the tower.
                used = [k for k, gradient in enumerate(found) if gradient is not None]
                self.trained = [self.trained[k] for k in used]
                del found
            del kept
        here.wait_stream(aside)
        # By thread: another one packs the next batches' pixels into pinned memory meanwhile. On a
        # stream of its own: what is recorded on one stream may share cuBLAS's memory, and the
        # recordings of crops and weak view run side by side.
        how: Any = {"stream": aside, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._forward, **how):
            self._kept = run(self._images)
        if self.trained:
            self._given = torch.zeros_like(self._kept)
            pool = self._forward.pool()
            with torch.cuda.graph(self._backward, pool, **how):
                found = torch.autograd.grad(self._kept, self.trained, self._given)
                self._gradients = torch.cat([each.flatten() for each in found])


class _Replayed(torch.autograd.Function):
    """A recording as one operation, whose gradients go to the weights that it reads."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, images: Tensor, *trained: Tensor) -> Tensor:
        tokens = recording.replay(images, ctx)
        ctx.recording, ctx.number = recording, recording.n_replays
        # Autograd then refuses a second backward pass, and weights that have changed since.
        ctx.save_for_backward(*trained)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == len(ctx.recording.trained)  # the look is what checks them
        if ctx.number != ctx.recording.n_replays:
            raise RuntimeError("the recording has been replayed since this forward pass")
        return (None, None, *ctx.recording.replay_backward(gradient))


# Functions, not bound methods: a copy of a backbone must run its own weights.
def _all_tokens(visual: nn.Module, hidden: Tensor) -> Tensor:
    return finish_tower(visual, hidden, with_patches=True)


def _class_token(visual: nn.Module, hidden: Tensor) -> Tensor:
    return finish_tower(visual, hidden, with_patches=False)


def _compiled(function: Callable[..., Result], owner: Any, *of_batch: Tensor, mode: str) -> Result:
    """Return `function(owner, *of_batch)`, compiled at its first call."""
    for tensor in of_batch:
        if len(tensor) > 1:  # torch makes a graph of its own for a batch of one
            # One graph for all sizes: a resumed run, which meets others first, has the same bits.
            torch._dynamo.mark_dynamic(tensor, 0)
    try:
        found: Result = _compiler(function)(owner, *of_batch)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise ResourceError(
            f"compile: {mode} takes {_MOST_CODES} networks or settings in one process and got "
            "more; train the next ones in a process of their own, or set compile: off"
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"compile: {mode} fails on this machine ({reason}); install a C++ compiler "
            "(and, for a GPU, triton), or set compile: off"
        ) from error
    return found


@cache
def _compiler(function: Callable[..., Result]) -> Callable[..., Result]:
    compile_: Any = torch.compile  # whose declared types lack the limit
    found: Callable[..., Result] = compile_(function, fullgraph=True, recompile_limit=_MOST_CODES)
    return found
