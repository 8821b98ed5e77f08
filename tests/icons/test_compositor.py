"""Pretraining's scenes: seeded, as they say, and changed as timm's RandAugment changes them."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from microclip.icons import compositor as module
from microclip.icons.compositor import (
    GEOMETRIC,
    POINTWISE,
    Compositor,
    Crops,
    backgrounds,
    moved,
    paste,
    placement,
    rand_augment,
    recoloured,
)

TIMM = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)


def bank() -> torch.Tensor:
    drawings = torch.zeros(3, 64, 64, 4, dtype=torch.uint8)
    for i in range(3):
        drawings[i, ..., i] = 255
        drawings[i, 8:56, 8:56, 3] = 255
    return drawings


def compositor() -> Compositor:
    none = torch.zeros(3, dtype=torch.bool)
    return Compositor(bank(), tint=none, mirror=~none, side=56)


def test_the_same_generator_gives_the_same_scenes() -> None:
    index = torch.tensor([0, 1, 2])
    draw = compositor()
    a, b = (draw(index, torch.Generator().manual_seed(5), 1.0) for _ in range(2))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.foreground, b.foreground)
    other = draw(index, torch.Generator().manual_seed(6), 1.0)
    assert not torch.equal(a.images, other.images)


def test_scenes_are_images_and_show_the_drawing() -> None:
    scenes = compositor()(torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0), 0.0)
    assert scenes.images.shape == (3, 3, 56, 56)
    assert scenes.images.min() >= 0
    assert scenes.images.max() <= 1
    share = scenes.foreground.mean((1, 2, 3))
    assert bool((share > 0.2).all())
    for i in range(3):
        inside = scenes.images[i][:, scenes.foreground[i, 0] > 0.99].mean(1)
        assert int(inside.argmax()) == i


def test_an_identity_placement_pastes_the_drawing_as_it_is() -> None:
    theta = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    drawing = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    drawing[:, :3] *= drawing[:, 3:]
    canvas = torch.full((1, 3, 16, 16), 0.5)
    pasted, alpha = paste(canvas, drawing, theta)
    torch.testing.assert_close(alpha, drawing[:, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        pasted, drawing[:, :3] + 0.5 * (1 - drawing[:, 3:]), atol=1e-5, rtol=0
    )


def test_placement_inside_keeps_the_centre_in_view() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.full((64,), 0.5)
    theta = placement(scale, generator, flip=torch.ones(64), inside=True)
    middle = -torch.linalg.solve(theta[:, :, :2], theta[:, :, 2:])[..., 0]
    assert bool((middle.abs() <= 0.75).all())


def test_backgrounds_differ_and_stay_in_range() -> None:
    images = backgrounds(16, 56, torch.Generator().manual_seed(0))
    assert images.shape == (16, 3, 56, 56)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert float(images.std(0).mean()) > 0.05


def test_a_crop_is_the_window_of_the_whole_scene() -> None:
    theta = torch.tensor([[[1.3, 0.2, 0.1], [-0.2, 1.3, 0.3]]])
    drawing = torch.rand(1, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    crops = Crops(half=torch.tensor([[0.5, 0.5]]), centre=torch.tensor([[0.25, -0.5]]))
    whole, _ = paste(torch.zeros(1, 3, 80, 80), drawing, theta)
    window, _ = paste(torch.zeros(1, 3, 40, 40), drawing, crops.of(theta))
    torch.testing.assert_close(window, whole[:, :, 0:40, 30:70], atol=1e-5, rtol=0)


def test_crops_have_the_area_and_ratio_of_strong_views_and_stay_inside() -> None:
    crops = Crops.draw(500, torch.Generator().manual_seed(0), share=0.6)
    area = crops.half.prod(1)
    is_whole = (crops.half == 1).all(1)
    assert 0.3 < float(is_whole.float().mean()) < 0.5
    assert float(area.min()) >= 0.25  # 0.3, but for windows that would leave the scene
    ratio = crops.half[:, 0] / crops.half[:, 1]
    assert 0.74 < float(ratio.min()) < float(ratio.max()) < 1.34
    assert float((crops.centre.abs() + crops.half).max()) <= 1 + 1e-6


@pytest.fixture
def picture() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (7, 7, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(coarse.numpy()).resize((56, 56), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("name", "theirs"), zip((*POINTWISE, *GEOMETRIC), TIMM, strict=True), ids=lambda name: name
)
def test_each_operation_is_timms(
    name: str, theirs: str, sign: int, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    level = auto_augment.LEVEL_TO_ARG[theirs]
    arguments = level(9, {"translate_pct": 0.45}) if level else ()
    options = {"fillcolor": (0, 0, 0), "resample": Image.Resampling.BILINEAR}
    changed = auto_augment.NAME_TO_OP[theirs](
        picture, *arguments, **(options if name in GEOMETRIC else {})
    )
    expected = torch.from_numpy(np.array(changed)).permute(2, 0, 1).float()
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None] / 255
    nine, signed = torch.tensor([9.0]), torch.tensor([float(sign)])
    if name in GEOMETRIC:
        found = 255 * moved(image, name, signed * nine / 10)[0]
        # Bilinear sampling shades the edge of the filling, where Pillow leaves it hard.
        assert float((found - expected).abs().median()) <= 1
    else:
        found = 255 * recoloured(image, name, nine, signed)[0]
        assert float((found - expected).abs().max()) < 2


def test_augmentation_is_seeded_and_leaves_the_other_images() -> None:
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    coverage = torch.ones(40, 1, 16, 16)
    (a, cover), (b, _) = (
        rand_augment(images, coverage, torch.Generator().manual_seed(3), share=0.5)
        for _ in range(2)
    )
    assert torch.equal(a, b)
    changed = (a != images).flatten(1).any(1)
    # Half are chosen; of these a quarter get no operation.
    assert 8 <= int(changed.sum()) <= 22
    assert bool((cover.flatten(1).min(1).values[~changed] == 1).all())
    none, _ = rand_augment(images, coverage, torch.Generator().manual_seed(3), share=0.0)
    assert torch.equal(none, images)


def test_coverage_moves_with_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTWISE", ())
    monkeypatch.setattr(module, "GEOMETRIC", ("translate_x",) * 15)
    shade = torch.zeros(30, 1, 16, 16)
    shade[..., 6:10] = 1
    images, coverage = rand_augment(
        shade.expand(-1, 3, -1, -1), shade, torch.Generator().manual_seed(0), share=1.0
    )
    torch.testing.assert_close(images[:, :1], coverage)
    assert not torch.equal(coverage, shade)


def test_unknown_operations_are_refused() -> None:
    image, one = torch.zeros(1, 3, 8, 8), torch.ones(1)
    with pytest.raises(ValueError, match="rotate"):
        moved(image, "twist", one)
    with pytest.raises(ValueError, match="invert"):
        recoloured(image, "negate", one, one)
