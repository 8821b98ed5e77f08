"""FLOP, weights and memory of a network: as torch counts them on the network itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from open_clip.model import CLIP
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from microclip.measure import flops
from microclip.measure.flops import Network, network_of
from microclip.model.backbone import from_open_clip
from microclip.model.token_fusion import TokenFusion
from microclip.settings import BackboneSettings, SettingsError, load_backbone_settings

N_CLASSES = 7


def shipped(name: str) -> Network:
    return network_of(load_backbone_settings(name))


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count with plain attention: the fused kernels repeat their forward products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def counted(work: Callable[[], object]) -> int:
    with counting() as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def icon_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(**flops.read_config(load_backbone_settings("icon-clip")))


@pytest.fixture
def images() -> torch.Tensor:
    side = shipped("icon-clip").image_size
    return torch.randn(1, 3, side, side)


def fusion(network: CLIP, **choices: str) -> TokenFusion:
    tower = from_open_clip(network)
    return TokenFusion(tower, torch.randn(N_CLASSES, tower.embedding_dim), **choices)


def test_passes_without_gradient_cost_what_torch_counts(
    icon_clip: CLIP, images: torch.Tensor
) -> None:
    shape, network = shipped("icon-clip"), fusion(icon_clip)
    with torch.no_grad():
        assert counted(lambda: network.backbone.encode_global(images)) == shape.encoded()
        assert counted(lambda: network(images)) == shape.fused(N_CLASSES)
        words = torch.ones(1, shape.context, dtype=torch.long)
        assert counted(lambda: icon_clip.encode_text(words)) == shape.text()


@pytest.mark.parametrize("head", ["fusion", "cls"])
def test_a_step_costs_what_torch_counts(icon_clip: CLIP, images: torch.Tensor, head: str) -> None:
    network = fusion(icon_clip, train_head=head)
    is_fusion = head == "fusion"

    def step() -> None:
        logits = network(images).logits if is_fusion else network.global_similarity(images)
        torch.autograd.backward([logits.sum()])

    expected = shipped("icon-clip").trained(N_CLASSES, reads_patches=is_fusion)
    assert counted(step) == expected


def test_the_backward_pass_costs_one_forward_pass_not_two() -> None:
    """Weights of the blocks are frozen, so only the gradients of activations are computed."""
    shape = shipped("vit-b-32")
    assert 1.95 < shape.trained(100, reads_patches=True) / shape.fused(100) < 2.05


def test_vit_b_32_has_its_151_million_weights() -> None:
    assert shipped("vit-b-32").n_weights() == pytest.approx(151.3e6, rel=0.01)


@pytest.mark.parametrize("name", ["icon-clip", "tiny quick"])
def test_a_step_keeps_what_autograd_saves(name: str) -> None:
    """Within a tenth: the heads and small tensors are left out."""
    config = flops.read_config(load_backbone_settings("icon-clip"))
    if name == "tiny quick":
        config |= {"quick_gelu": True}
    network = fusion(CLIP(**config))
    own = {one.untyped_storage().data_ptr() for one in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = network.backbone.image_size
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(torch.randn(4, 3, side, side)).logits.sum()
    shape = flops.Network(
        **{**vars(shipped("icon-clip")), "is_quick_gelu": bool(config.get("quick_gelu", False))}
    )
    assert loss.requires_grad
    assert sum(kept.values()) / 4 == pytest.approx(shape.saved_bytes(), rel=0.1)


def test_trained_weights_are_counted(icon_clip: CLIP) -> None:
    """Exactly those of the maps and class vectors; LayerNorms to a percent."""
    network = fusion(icon_clip)
    n = sum(one.numel() for one in network.trained_parameters().values())
    assert shipped("icon-clip").n_trained(N_CLASSES) == pytest.approx(n, rel=0.01)


def test_an_architecture_is_read_without_torch() -> None:
    program = (
        "import sys; from microclip.measure.flops import network_of;"
        "from microclip.settings import load_backbone_settings as load;"
        "assert network_of(load('vit-b-16')).tokens == 197;"
        "sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [("ViT-Z", "open_clip knows no model 'ViT-Z'"), ("RN50", "RN50 must describe a vision")],
)
def test_what_is_no_vision_transformer_is_refused(model: str, said: str) -> None:
    backbone = BackboneSettings(name="x", title="X", model=model, pretrained="openai")
    with pytest.raises(SettingsError, match=said):
        network_of(backbone)
