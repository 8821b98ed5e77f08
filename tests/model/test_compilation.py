"""A compiled tower gives the same numbers but for rounding, whatever its weights and batches."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder

from microclip.model import compilation, lora
from microclip.model.compilation import CompiledBackbone, compiled
from microclip.model.token_fusion import TokenFusion
from microclip.runtime import ResourceError, generator
from tests.model.networks import images, tiny_backbone


def needs_a_compiler() -> None:
    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError as error:
        pytest.skip(f"torch.compile needs a C++ compiler on a CPU: {str(error).splitlines()[0]}")


def towers(seed: int = 0) -> tuple[Any, Any]:
    """The same network twice, plain and compiled."""
    return tiny_backbone(seed, layers=1), compiled(tiny_backbone(seed, layers=1), "default")


def test_off_is_the_backbone_itself_and_another_mode_is_refused() -> None:
    plain = tiny_backbone(layers=1)
    assert compiled(plain, "off") is plain
    with pytest.raises(ValueError, match="one of off, default, cuda-graphs; got 'fast'"):
        compiled(plain, "fast")


def test_a_training_step_by_the_compiled_tower_has_the_same_logits_and_gradients() -> None:
    needs_a_compiler()
    classifier = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    plain, fast = (TokenFusion(tower, classifier) for tower in towers())
    before = counters["stats"]["unique_graphs"]
    for n_images in (4, 3):
        expected, found = (fusion(images(n_images)).logits for fusion in (plain, fast))
        assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-5)
        for logits in (expected, found):
            logits.logsumexp(dim=-1).sum().backward()
    gradients = fast.trained_parameters()
    for name, parameter in plain.trained_parameters().items():
        assert parameter.grad is not None
        assert gradients[name].grad.numpy() == pytest.approx(parameter.grad.numpy(), abs=1e-4)
    # What enters the first block, and the last block: one code each, for batches of any size.
    assert counters["stats"]["unique_graphs"] == before + 2


@torch.no_grad()
def test_a_copy_of_a_compiled_backbone_runs_its_own_weights() -> None:
    needs_a_compiler()
    plain, fast = towers()
    other, _ = towers(seed=1)
    twin = copy.deepcopy(fast)
    twin.load_state_dict(other.state_dict())
    before = counters["stats"]["unique_graphs"]
    for tower, own in ((fast, plain), (twin, other)):
        expected = own.encode_global(images(3))
        assert tower.encode_global(images(3)).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert counters["stats"]["unique_graphs"] == before + 2


def test_all_blocks_of_a_tower_share_one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced only: whether C++ is made of it is not the point."""
    traced = cache(lambda function: torch.compile(function, fullgraph=True, backend="eager"))
    monkeypatch.setattr(compilation, "_compiler", traced)
    plain = tiny_backbone(layers=4)
    fast, given = compiled(plain, "default"), images(3)
    before = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(fast.kept_tokens(given), plain.kept_tokens(given), rtol=0, atol=0)
    assert counters["stats"]["unique_graphs"] == before + 3  # before, one of three, the last block


def test_low_rank_updates_are_computed_without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = towers()
    for tower in (plain, fast):
        update = lora.LowRank(
            32, lora.LowRankOptions(dropout=0), torch.nn.Identity(), generator(0, "lora")
        )
        with torch.no_grad():
            update.up["q"].add_(1)
        lora.attach(tower.visual.transformer.resblocks[0].attn, update)
    monkeypatch.setattr(compilation, "_compiler", None)
    assert isinstance(fast, CompiledBackbone)
    with torch.no_grad():
        assert torch.equal(fast.encode_global(images(2)), plain.encode_global(images(2)))


def test_a_machine_that_cannot_compile_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> object:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand much more")

    monkeypatch.setattr(compilation, "_compiler", lambda _: fails)
    _, fast = towers()
    said = r"compile: default fails on this machine \(no C\+\+ compiler\); .* set compile: off"
    with pytest.raises(ResourceError, match=said):
        fast.encode_global(images(2))


class NoGraph:
    """A recording without a GPU: it counts what it is asked for."""

    def __init__(self, run: Any, images: torch.Tensor, trained: list[Any]) -> None:
        del trained
        self.run, self.n_images = run, len(images)
        self.is_awaited, self.n_replays = False, 0
        if self.n_images == 5:
            raise torch.OutOfMemoryError("too large")

    def __call__(self, images: torch.Tensor) -> Any:
        self.n_replays += 1
        return self.run(images)


@torch.no_grad()
def test_each_size_of_batch_is_recorded_once_until_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "Recording", NoGraph)
    fast: Any = compiled(tiny_backbone(layers=1), "cuda-graphs")
    ran: list[int] = []

    def replayed(n: int) -> None:
        fast._replayed(lambda given: ran.append(len(given)), images(n), with_patches=True)

    for n in (4, 3, 4, 4):
        replayed(n)
    made = list(fast._recordings.values())
    assert [(each.n_images, each.n_replays) for each in made] == [(4, 3), (3, 1)]
    made[0].is_awaited = True  # its backward pass is due: a replay would overwrite what it needs
    replayed(4)
    assert made[0].n_replays == 3
    fast.double().float()  # weights have moved
    assert not fast._recordings
    replayed(4)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    replayed(5)
    assert (fast._recordings, fast._may_record) == ({}, False)
    assert ran == [4, 3, 4, 4, 4, 4, 5]
