"""The forward pass against open_clip's own, and the files it is loaded from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional

from microclip.model.backbone import Backbone, from_open_clip, load_backbone

from .networks import (
    CONFIG,
    images,
    tiny_backbone,
    tiny_clip,
    tiny_custom_text_clip,
)

TOWERS: dict[str, Any] = {
    "plain": lambda: tiny_clip(),
    "own text tower": tiny_custom_text_clip,
    "layer scale": lambda: tiny_clip(ls_init_value=0.3),
    "no first norm": lambda: tiny_clip(no_ln_pre=True),
    "norm after pooling": lambda: tiny_clip(final_ln_after_pool=True),
    "custom block": lambda: tiny_clip(block_type="custom"),
    "one layer": lambda: tiny_clip(layers=1),
}


@pytest.mark.parametrize("tower", TOWERS)
def test_embedding_is_that_of_open_clip(tower: str) -> None:
    network, batch = TOWERS[tower](), images(3)
    backbone = from_open_clip(network)
    with torch.no_grad():
        theirs = network.encode_image(batch, normalize=True)
        torch.testing.assert_close(backbone.encode_image(batch).embedding, theirs)
        torch.testing.assert_close(backbone.encode_global(batch), theirs)


def test_images_taken_in_slices_without_gradient_give_the_same() -> None:
    backbone, batch = tiny_backbone(), images(70)  # more than two slices
    whole = backbone.encode_image(batch)
    with torch.no_grad():
        sliced = backbone.encode_image(batch)
        torch.testing.assert_close(backbone.encode_global(batch), sliced.embedding)
    for name in ("embedding", "cls", "patches"):
        torch.testing.assert_close(getattr(sliced, name), getattr(whole, name))


def test_missing_projection_leaves_the_width() -> None:
    network = tiny_clip()
    network.visual.proj = None
    backbone = from_open_clip(network)
    assert backbone.embedding_dim == backbone.width == 32
    tokens = backbone.encode_image(images(2))
    torch.testing.assert_close(tokens.embedding, functional.normalize(tokens.cls, dim=-1))


def test_patches_are_the_last_block_with_identity_attention() -> None:
    backbone, batch = tiny_backbone(), images(2)
    visual = backbone.visual
    with torch.no_grad():
        hidden = visual._embeds(batch)
        hidden = visual.transformer.resblocks[0](hidden)
        block = visual.transformer.resblocks[1]
        attention, width = block.attn, backbone.width
        normed = block.ln_1(hidden)
        value = (
            normed @ attention.in_proj_weight[2 * width :].T + attention.in_proj_bias[2 * width :]
        )
        between = hidden + value @ attention.out_proj.weight.T + attention.out_proj.bias
        expected = visual.ln_post(between + block.mlp(block.ln_2(between)))[:, 1:]
        torch.testing.assert_close(backbone.encode_image(batch).patches, expected)


def test_value_path_of_one_token_is_the_block_itself() -> None:
    """With one key the softmax is 1, so attention passes the value through."""
    backbone = tiny_backbone()
    hidden = torch.randn(3, 1, backbone.width)
    block = backbone.visual.transformer.resblocks[-1]
    with torch.no_grad():
        expected = backbone.visual.ln_post(block(hidden))
        torch.testing.assert_close(backbone._last_block(hidden, with_patches=True), expected)


def test_last_block_attends_from_the_class_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    attend = functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *rest: torch.Tensor, is_causal: bool) -> torch.Tensor:
        rows.append(query.shape[-2])
        return attend(query, *rest, is_causal=is_causal)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    tiny_backbone().encode_image(images(1))
    assert rows == [17, 1]


def test_batch_of_one_is_a_row_of_the_batch() -> None:
    backbone, batch = tiny_backbone(), images(4)
    with torch.no_grad():
        together, alone = backbone.encode_image(batch), backbone.encode_image(batch[2:3])
    torch.testing.assert_close(together.patches[2:3], alone.patches)
    torch.testing.assert_close(together.embedding[2:3], alone.embedding)


def test_record_describes_the_tower() -> None:
    backbone = tiny_backbone()
    assert (backbone.width, backbone.embedding_dim) == (32, 16)
    assert (backbone.patch_grid, backbone.image_size) == ((4, 4), 32)
    assert backbone.encode_image(images(1)).patches.shape == (1, 16, 32)
    assert len(backbone.mean) == len(backbone.std) == 3
    assert backbone.logit_scale == pytest.approx(backbone.model.logit_scale.exp().item())


def test_layer_norms_are_all_of_the_image_tower() -> None:
    names = list(tiny_backbone().layer_norms())
    modules = ["ln_pre"]
    modules += [f"transformer.resblocks.{i}.{norm}" for i in (0, 1) for norm in ("ln_1", "ln_2")]
    modules += ["ln_post"]
    assert names == [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def test_patches_pass_gradient_to_the_layer_norms() -> None:
    backbone = tiny_backbone()
    backbone.encode_image(images(2)).patches.square().sum().backward()
    norms = backbone.layer_norms()
    assert all(parameter.grad is not None for parameter in norms.values())
    assert norms["transformer.resblocks.1.ln_2.bias"].grad.abs().sum() > 0


def test_texts_are_encoded_in_batches_without_gradient() -> None:
    backbone = tiny_backbone()
    texts = ["cat", "dog", "zebra", "ant", "bee"]
    rows = backbone.encode_text(texts, batch_size=2)
    torch.testing.assert_close(rows, backbone.encode_text(texts))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(5))
    assert not rows.requires_grad
    assert backbone.encode_text([]).shape == (0, 16)


def test_default_tokenizer_refuses_another_vocabulary() -> None:
    with pytest.raises(ValueError, match="49408 words, this network 64"):
        from_open_clip(tiny_clip()).encode_text(["cat"])


def test_autocast_keeps_cosines_in_float32() -> None:
    backbone, batch = tiny_backbone(), images(2)
    with torch.no_grad():
        exact = backbone.encode_image(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = backbone.encode_image(batch)
    assert rough.embedding.dtype == torch.float32
    torch.testing.assert_close(rough.embedding.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(rough.embedding, exact.embedding, atol=0.03, rtol=0)


def test_towers_without_patch_tokens_are_refused() -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    with pytest.raises(ValueError, match="open_clip vision transformer, got ModifiedResNet"):
        from_open_clip(CLIP(**{**CONFIG, "vision_cfg": resnet}))
    with pytest.raises(ValueError, match="pools without its class token"):
        from_open_clip(tiny_clip(pool_type="avg"))
    with pytest.raises(ValueError, match="attention of a special kind"):
        from_open_clip(tiny_clip(block_type="custom", qk_norm=True))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="32 x 32 px, got 64 x 64"):
        tiny_backbone().encode_image(torch.zeros(1, 3, 64, 64))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one backbone, `tiny`, and the current directory in it."""
    folder = tmp_path / "config" / "backbones"
    folder.mkdir(parents=True)
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    save_file(tiny_clip().state_dict(), tmp_path / "tiny.safetensors")
    monkeypatch.setenv("MICROCLIP_ROOT", str(tmp_path))
    write(tmp_path, config="tiny.json", weights="tiny.safetensors")
    return tmp_path


def write(project: Path, **content: Any) -> Path:
    path = project / "config" / "backbones" / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_backbone_file_is_found_by_name_and_by_path(project: Path) -> None:
    batch = images(2)
    expected = tiny_clip().encode_image(batch, normalize=True)
    digest = hashlib.sha256((project / "tiny.safetensors").read_bytes()).hexdigest()
    path = write(project, config="tiny.json", weights="tiny.safetensors", sha256=digest, title="T")
    for name in ("tiny", str(path)):
        backbone = load_backbone(name)
        assert isinstance(backbone, Backbone)
        assert not backbone.training
        torch.testing.assert_close(backbone.encode_global(batch), expected)


def test_half_precision_weights_become_float32(project: Path) -> None:
    halves = {name: tensor.half() for name, tensor in tiny_clip().state_dict().items()}
    save_file(halves, project / "tiny.safetensors")
    backbone = load_backbone("tiny")
    assert backbone.visual.proj.dtype == torch.float32
    assert torch.equal(backbone.visual.proj.detach(), halves["visual.proj"].float())


def test_unknown_backbone_lists_the_known_ones(project: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one of \['tiny'\].*got 'tinny'"):
        load_backbone("tinny")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_backbone(str(project / "none.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": "tiny.json", "weigths": "tiny.safetensors"}, "may hold the keys"),
        ({"weights": "tiny.safetensors"}, "exactly one of 'model' and 'config'"),
        ({"config": "tiny.json"}, "exactly one of 'pretrained' and 'weights'"),
        ({"config": "tiny.json", "pretrained": "openai"}, "'pretrained' goes with 'model'"),
        ({"config": "tiny.json", "weights": "tiny.bin"}, "do not exist"),
        ({"config": "tiny.json", "weights": "tiny.json"}, "must be a .safetensors file"),
        (
            {"config": "tiny.json", "weights": "tiny.safetensors", "sha256": "00"},
            "must have sha256 00, got",
        ),
        ({"config": "none.json", "weights": "tiny.safetensors"}, "does not exist"),
        ({"model": "ViT-Z-32", "weights": "tiny.safetensors"}, "knows no model 'ViT-Z-32'"),
        ({"model": "ViT-B-32", "pretrained": "nobody"}, "has the tags"),
        ({"model": "ViT-B-32", "pretrained": "metaclip_400m"}, "QuickGELU mismatch"),
    ],
)
def test_faults_of_a_backbone_file_are_one_sentence(
    project: Path, content: dict[str, str], message: str
) -> None:
    write(project, **content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_backbone("tiny")
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(project: Path) -> None:
    path = project / "tiny.safetensors"
    content = path.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"is truncated: {length} of .* bytes; delete it"):
            load_backbone("tiny")


def test_weights_of_another_network_are_refused(project: Path) -> None:
    path, state = project / "tiny.safetensors", tiny_clip().state_dict()
    save_file({k: v for k, v in state.items() if k != "visual.proj"}, path)
    with pytest.raises(ValueError, match="names differ, first 'visual.proj'"):
        load_backbone("tiny")
    save_file({**state, "visual.proj": torch.zeros(32, 8)}, path)
    with pytest.raises(ValueError, match=r"shape \(32, 16\), got \(32, 8\)"):
        load_backbone("tiny")
    save_file({**state, "visual.proj": torch.full((32, 16), torch.nan)}, path)
    with pytest.raises(ValueError, match="'visual.proj'.*is not finite"):
        load_backbone("tiny")


def test_weights_that_name_the_other_gelu_are_refused(project: Path) -> None:
    path, state = project / "tiny.safetensors", tiny_clip().state_dict()
    save_file(state, path, metadata={"quick_gelu": "false"})
    with pytest.raises(ValueError, match="QuickGELU mismatch"):
        load_backbone("tiny")
    save_file(state, path, metadata={"quick_gelu": "true"})
    load_backbone("tiny")


def test_named_architecture_with_local_weights_is_built_like_open_clips(project: Path) -> None:
    """A small named architecture stands for the real ones: same builder, same tokenizer."""
    (project / "tiny-test-net.json").write_text(
        json.dumps({**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 49408}})
    )
    open_clip.add_model_config(project / "tiny-test-net.json")
    network = open_clip.create_model("tiny-test-net", pretrained=None)
    save_file(network.state_dict(), project / "tiny.safetensors")
    write(project, model="tiny-test-net", weights="tiny.safetensors")
    backbone = load_backbone("tiny")
    assert backbone.encode_text(["a photo of a cat."]).shape == (1, 16)
