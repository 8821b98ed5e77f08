"""What crosses between host and GPU in a step, seen on tensors that only pretend to be on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microclip.adaptation import checkpoint, multi_view
from microclip.adaptation.training import EpochTotals, FiniteGuard
from microclip.data.loading import TrainingViews, ViewBatch
from microclip.data.views import Memory, _by_channel, pack
from microclip.methods.microclip import KnowledgeTeacher, MicroClipSettings
from microclip.model.token_fusion import TokenFusion
from tests.adaptation.test_training import RECIPE, C, Noise, assembled
from tests.model.networks import tiny_backbone

BATCH = 4
GPU = torch.device("cuda")


class Crossings(TorchDispatchMode):
    """Notes each operation with tensors on both sides, and if it leaves the host free."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[int, ...], bool]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if {tensor.device.type for tensor in tensors} == {"cpu", "cuda"}:
            is_free = bool((kwargs or {}).get("non_blocking"))
            self.found.append((tuple(tensors[-1].shape), is_free))
        return result


@pytest.fixture
def pretence(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without values, which raise if a value is asked for; no kernel runs on them."""
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # modules are made in place
    monkeypatch.setattr(torch.autograd, "backward", lambda *_, **__: None)  # needs a real driver
    monkeypatch.setattr(checkpoint, "state_hash", lambda _: "no values to hash")
    stream = Mock(spec=["wait_stream"])
    monkeypatch.setattr(multi_view, "_second_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    yield FakeTensorMode(allow_non_fake_inputs=True)
    _by_channel.cache_clear()  # of constants without values


@pytest.mark.parametrize("prior", ["online", "frozen"])
def test_a_step_copies_only_pinned_memory_and_asks_for_no_value(
    prior: Literal["online", "frozen"], pretence: FakeTensorMode
) -> None:
    images, settings = Noise(), MicroClipSettings(epochs=1, batch_size=BATCH, prior=prior)
    is_frozen = prior == "frozen"
    on_host = TrainingViews(images, RECIPE, batch_size=BATCH)
    pixels = [images.pixels(index) for index in range(BATCH)]
    windows = [on_host._windows(1, index, (36, 41)) for index in range(BATCH)]
    packed = pack(pixels, windows, RECIPE.size, device=torch.device("cpu"))
    packed = dataclasses.replace(packed, device=GPU)
    with pretence:
        with GPU:
            fusion = TokenFusion(tiny_backbone(), torch.randn(C, 16))
            knowledge = functional.normalize(torch.randn(C, 16), dim=-1)
            strong = torch.zeros(BATCH, 3, RECIPE.size, RECIPE.size)
            cached = torch.zeros(len(images), C) if is_frozen else None
        views = TrainingViews(images, RECIPE, batch_size=BATCH, device=GPU)
        teacher = KnowledgeTeacher(fusion, knowledge, settings, cached)
        built = assembled(fusion, teacher, views, settings)
        totals, guard = EpochTotals(), FiniteGuard(1)
        for step in range(2):  # the first also copies the constants of the normalisation
            with Crossings() as crossings:
                weak, crops = packed.normalised(RECIPE.mean, RECIPE.std, Memory())
                batch = ViewBatch(torch.arange(BATCH), weak, crops, strong)
                found = built._step(batch, torch.Generator())
                assert found is not None
                teaching, terms = found
                totals.add(BATCH, terms, teaching.measures)
                guard.note(step, terms)
        assert crossings.found == [
            (tuple(packed.pixels.shape), True),
            (tuple(packed.table.shape), True),
            *([((BATCH,), True)] if is_frozen else []),  # the indices, which are pinned too
        ]
        with pytest.raises(DataDependentOutputException):
            guard.check()  # only this, every few steps, asks
