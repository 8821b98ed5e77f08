"""The parts of pretraining: seeded scenes, captions and targets."""

import random

import torch

from microclip.icons.catalogue import FRAMES, caption, keyword_caption, sentence, words
from microclip.icons.pretrain import Compositor, Recipe, backgrounds, paste, placement, rate


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


def test_captions_are_seeded_and_contain_the_name() -> None:
    first, again = (
        [caption("red fox", ("animal", "orange"), (("qua",),), random.Random(7)) for _ in range(1)]
        for _ in range(2)
    )
    assert first == again
    rng = random.Random(0)
    for _ in range(200):
        assert "red fox" in caption("red fox", ("animal",), (("qua",), ("zum",)), rng)
    assert "animal" in keyword_caption("fox", ("animal",), rng)
    assert sentence("fox", (), (("qua",),), rng).endswith(".")
    assert all(frame.count("{}") == 1 for frame in FRAMES)


def test_words_exclude_numbers_and_stop_words() -> None:
    assert words("flag of the Côte-d'Ivoire 2") == ["flag", "côte", "ivoire"]


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    recipe = Recipe(steps=100, warmup=10, peak_lr=1.0)
    assert rate(0, recipe) == 0.1
    assert rate(9, recipe) == 1.0
    assert abs(rate(55, recipe) - 0.5) < 1e-9
    assert rate(99, recipe) < 1e-3
