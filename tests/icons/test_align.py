"""icon-clip is an ordinary open_clip network, it recognises icons, and NCut can cut its tokens."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from microclip import paths
from microclip.icons import align, scenes
from microclip.icons.catalogue import SETS
from microclip.icons.compositor import Compositor
from microclip.icons.pretrain import build_model
from microclip.model.backbone import Backbone, from_open_clip, load_backbone
from microclip.model.saliency import normalized_cut
from microclip.settings import IconSource, load_dataset
from tests.icons.test_pretrain import bank

HOME = paths.project_root() / "resources" / "icon-clip"


@pytest.mark.parametrize("name", ["icon-clip", "icon-clip-2"])
def test_stock_open_clip_loads_it_and_gives_our_embeddings(name: str) -> None:
    open_clip.add_model_config(HOME)
    stock, _, preprocess = open_clip.create_model_and_transforms(
        "icon-clip", pretrained=str(HOME / f"{name}.safetensors")
    )
    stock.eval()
    ours = load_backbone(name)
    images = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    texts = ["a picture of a fox", "a slice of pizza"]
    tokenizer = open_clip.get_tokenizer("icon-clip")
    with torch.no_grad():
        there = stock.encode_image(images, normalize=True)
        words = stock.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(ours.encode_image(images).embedding, there, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_text(texts), words, atol=1e-5, rtol=0)
    assert preprocess.transforms[0].size == 56


@pytest.mark.parametrize("name", ["icon-clip", "icon-clip-2"])
def test_checkpoint_is_small_and_in_half_precision(name: str) -> None:
    path = HOME / f"{name}.safetensors"
    assert path.stat().st_size < 30e6
    n_image = sum(p.numel() for p in load_backbone(name).visual.parameters())
    assert 1e6 < n_image < 3e6


def test_a_truncated_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes((HOME / "icon-clip.safetensors").read_bytes()[:5000])
    described = tmp_path / "cut.yaml"
    described.write_text(
        f"title: cut\nconfig: {HOME / 'icon-clip.json'}\nweights: {tmp_path / 'cut.safetensors'}\n"
    )
    with pytest.raises(ValueError, match=r"cut\.safetensors") as caught:
        load_backbone(str(described))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SETS)
def test_zero_shot_is_neither_hopeless_nor_perfect(name: str) -> None:
    """The committed measurement is between 25 and 80 % on the default size of each set."""
    rows = json.loads((HOME / "zero-shot.json").read_text())
    (row,) = [r for r in rows if r["set"] == name and r["size"] == "default"]
    assert 25 <= row["cls_pct"] <= 80


def test_the_committed_measurement_is_reproduced_on_a_sample() -> None:
    """Flags, two scenes per class: within sampling error of the committed number."""
    rows = json.loads((HOME / "zero-shot.json").read_text())
    (row,) = [r for r in rows if r["set"] == "flags" and r["size"] == "default"]
    backbone = load_backbone("icon-clip")
    dataset = load_dataset("icons-flags")
    assert isinstance(dataset.source, IconSource)
    source = dataset.source.model_copy(update={"train_scenes": 1, "test_scenes": 2})
    names = scenes.class_names("flags", source.classes, source.seed)
    vectors = backbone.encode_text([f"a picture of the {name}" for name in names])
    images, labels = align.scenes_to_test(source, backbone)
    found = align.accuracies(backbone, images, labels, vectors)
    assert abs(found["cls_pct"] - row["cls_pct"]) < 20


def _patches(backbone: Backbone, seed: int) -> torch.Tensor:
    drawn = bank(16)
    composed = Compositor(drawn.rasters, tint=drawn.tint, mirror=drawn.mirror, side=56)(
        torch.arange(16), torch.Generator().manual_seed(seed), 0.7
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.no_grad():
        return backbone.encode_image((composed.images - mean) / std).patches


def test_centring_takes_out_what_the_patches_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "CENTRED", 16)
    monkeypatch.setattr(align, "PART", 16)
    torch.manual_seed(0)
    backbone = from_open_clip(build_model(HOME / "icon-clip.json")).eval()
    with torch.no_grad():
        backbone.visual.ln_post.bias += 3.0
    shared = _patches(backbone, 1).mean((0, 1)).norm()
    align.centre(backbone, bank(16), seed=0)
    assert _patches(backbone, 1).mean((0, 1)).norm() < 0.2 * shared


def test_the_shipped_tokens_can_be_cut() -> None:
    """Before icon-clip 2 was centred, every second image had no cut."""
    dataset = load_dataset("scenes-food-small")
    assert isinstance(dataset.source, IconSource)
    source = dataset.source.model_copy(update={"train_scenes": 1, "test_scenes": 2})
    backbone = load_backbone("icon-clip-2")
    images, _ = align.scenes_to_test(source, backbone)
    with torch.no_grad():
        cut = normalized_cut(backbone.encode_image(images).patches)
    assert cut.degenerate.float().mean() < 0.05
    assert cut.density.mean() < 0.8


def test_aligning_trains_the_text_tower_alone() -> None:
    torch.manual_seed(0)
    backbone = from_open_clip(build_model(HOME / "icon-clip.json")).eval()
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    recipe = align.AlignRecipe(steps=2, batch=4, warmup=1, head_steps=1)
    align.align(backbone, bank(16), recipe)
    moved = {n for n, p in backbone.model.named_parameters() if not torch.equal(p, before[n])}
    assert "text_projection" in moved
    assert not any(name.startswith("visual.") for name in moved)
