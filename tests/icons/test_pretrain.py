"""Pretraining: seeded hard scenes, losses that ask for what they say, exact resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microclip import paths
from microclip.icons.captions import caption_of
from microclip.icons.catalogue import Bank
from microclip.icons.pretrain import (
    HardScenes,
    Recipe,
    Targets,
    Tower,
    build_model,
    pretrain,
    rate,
)
from microclip.model.backbone import from_open_clip, unit_norm

CONFIG = paths.project_root() / "resources" / "icon-clip" / "icon-clip.json"
RECIPE = Recipe(steps=4, batch=6, warmup=1)


def bank(n: int = 8) -> Bank:
    generator = torch.Generator().manual_seed(0)
    rasters = torch.randint(256, (n, 64, 64, 4), dtype=torch.uint8, generator=generator)
    none = torch.zeros(n, dtype=torch.bool)
    return Bank(
        rasters=rasters,
        concepts=[],
        concept=torch.tensor([0, 1, *[-1] * (n - 2)]),
        vocabulary=["red", "round"],
        word_index=torch.zeros(n, 1, dtype=torch.long),
        word_weight=torch.ones(n, 1),
        tint=none,
        mirror=~none,
        sampling=torch.full((n,), 1 / n),
        captions=[caption_of(f"thing {i}", (), {}, is_benchmark=False) for i in range(n)],
        subject=torch.arange(n).clamp(max=n - 2),  # the last two drawings show one emoji
    )


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower(from_open_clip(build_model(CONFIG)), 2, 2)


def test_a_step_always_gives_the_same_batch_and_shows_each_drawing_twice() -> None:
    scenes = HardScenes(bank(), RECIPE, tower().backbone)
    (a, cover, kept, targets), (b, *_) = scenes(3), scenes(3)
    assert torch.equal(a, b)
    assert not torch.equal(a, scenes(2)[0])
    assert a.shape == (12, 3, 56, 56)
    assert cover.shape == (12, 49)
    assert kept is None  # the last quarter of training sees all patches
    assert torch.equal(targets.concept[:6], targets.concept[6:])
    first = scenes(0)[2]
    assert first is not None
    assert first.shape == (12, 25)


def _targets(n: int, same: torch.Tensor | None = None) -> Targets:
    words = torch.tensor([[1.0, 0.0]]).expand(2 * n, 2)
    same = torch.zeros(n, n, dtype=torch.bool) if same is None else same
    return Targets(words, torch.full((2 * n,), -1), same, torch.ones(2 * n))


def test_instances_are_matched_across_scenes_and_heads() -> None:
    model, generator = (
        tower().requires_grad_(requires_grad=False),
        torch.Generator().manual_seed(1),
    )
    own = unit_norm(torch.randn(5, 1, 128, generator=generator)).expand(5, 2, 128)
    seen, apart = torch.ones(10), torch.zeros(5, 5, dtype=torch.bool)
    matched = model._instances(torch.cat([own, own]), apart, seen)
    mixed = model._instances(torch.cat([own, own.roll(1, 0)]), apart, seen)
    assert float(matched) < 0.1 < float(mixed)


def test_drawings_of_one_emoji_are_no_negatives_of_each_other() -> None:
    model, generator = (
        tower().requires_grad_(requires_grad=False),
        torch.Generator().manual_seed(1),
    )
    own = unit_norm(torch.randn(5, 1, 128, generator=generator)).repeat(1, 2, 1)
    own[1] = own[0]
    seen, same = torch.ones(10), torch.zeros(5, 5, dtype=torch.bool)
    apart = float(model._instances(torch.cat([own, own]), same, seen))
    same[0, 1] = same[1, 0] = True
    assert float(model._instances(torch.cat([own, own]), same, seen)) < 0.5 * apart


def test_a_patch_must_agree_with_the_other_scene_where_the_drawing_is() -> None:
    model = tower().requires_grad_(requires_grad=False)
    cls = unit_norm(torch.randn(2, 128, generator=torch.Generator().manual_seed(1)))
    coverage = torch.tensor([[1.0, 0.0]] * 2)
    right = torch.stack([cls.roll(1, 0), -cls.roll(1, 0)], 1)
    seen = torch.ones(2)
    good = float(model._places(right, cls, coverage, seen))
    assert good < float(model._places(right.flip(1), cls, coverage, seen))


def test_scenes_without_their_drawing_teach_nothing() -> None:
    model = tower().requires_grad_(requires_grad=False)
    scenes = HardScenes(bank(), RECIPE, model.backbone)
    images, cover, kept, targets = scenes(0)
    hidden = Targets(targets.words, targets.concept, targets.same, torch.ones(12))
    hidden.seen[0] = hidden.seen[6] = 0
    other = images.clone()
    other[0] = other[6] = 0
    # As a negative it still counts for other instances; words, concepts and places ignore it.
    a, b = (model(each, cover, kept, hidden).detach() for each in (images, other))
    assert torch.allclose(a[:4], b[:4], atol=1e-6)
    assert torch.allclose(a[5], b[5], atol=1e-6)


def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, steps=2)  # Muon is slow on a CPU

    def run(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        if stop_at is not None:
            monkeypatch.setattr(HardScenes, "__call__", _stopping(HardScenes.__call__, stop_at))
            with pytest.raises(KeyboardInterrupt):
                pretrain(CONFIG, folder, bank(), recipe, save_every=1)
            monkeypatch.undo()
        return pretrain(CONFIG, folder, bank(), recipe, save_every=1).state_dict()

    whole, resumed = run(tmp_path / "a"), run(tmp_path / "b", stop_at=1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def _stopping(draw, stop_at: int):  # type: ignore[no-untyped-def]
    def stopped(self: HardScenes, step: int) -> object:
        if step == stop_at:
            raise KeyboardInterrupt
        return draw(self, step)

    return stopped


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    assert rate(0, steps=100, warmup=10) == 0.1
    assert rate(9, steps=100, warmup=10) == 1.0
    assert abs(rate(55, steps=100, warmup=10) - 0.5) < 1e-9
    assert rate(99, steps=100, warmup=10) < 1e-3
