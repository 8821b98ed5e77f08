"""Batches depend only on seed, epoch and index."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from microclip import runtime
from microclip.data import loading
from microclip.data.loading import (
    TrainingViews,
    UnlabelledImages,
    ViewBatch,
    ViewRecipe,
    _ahead,
    evaluation_views,
)
from microclip.data.store import open_store, write_store
from microclip.data.views import Packed, pack

RECIPE = ViewRecipe(seed=0, size=16, mean=(0.5,) * 3, std=(0.25,) * 3, n_crops=3)
N = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> UnlabelledImages:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    files = []
    for k in range(N):
        files.append(folder / f"{k}.png")
        pixels = rng.integers(0, 256, (20 + k, 29, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files[-1])
    write_store(files, Path(folder) / "store", "made")
    return UnlabelledImages(open_store(folder / "store"), tuple(range(N)))


def by_image(batches: list[ViewBatch]) -> dict[int, torch.Tensor]:
    found = {}
    for batch in batches:
        assert batch.strong is not None
        views = torch.cat([batch.weak[:, None], batch.strong[:, None], batch.crops], dim=1)
        found.update(dict(zip(batch.indices.tolist(), views, strict=True)))
    return found


def test_an_epoch_shows_every_image_once_and_keeps_the_partial_batch(
    images: UnlabelledImages,
) -> None:
    views = TrainingViews(images, RECIPE, batch_size=3)
    batches = list(views.batches(1, 2))
    assert views.n_batches == 3
    assert [len(batch.indices) for batch in batches] == [3, 3, 1, 3, 3, 1]
    orders = [torch.cat([b.indices for b in part]).tolist() for part in (batches[:3], batches[3:])]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(N))
    assert orders[0] != orders[1]
    assert batches[0].weak.shape == (3, 3, 16, 16)
    assert batches[0].crops.shape == (3, 3, 3, 16, 16)


def test_views_do_not_depend_on_batches_or_workers(images: UnlabelledImages) -> None:
    once = by_image(list(TrainingViews(images, RECIPE, batch_size=3).batches(4, 4)))
    others = by_image(list(TrainingViews(images, RECIPE, batch_size=5, n_workers=2).batches(4, 4)))
    later = by_image(list(TrainingViews(images, RECIPE, batch_size=3).batches(5, 5)))
    for index in range(N):
        assert torch.equal(once[index], others[index])
        assert not torch.equal(once[index], later[index])


def test_earlier_epochs_do_not_matter(images: UnlabelledImages) -> None:
    views = TrainingViews(images, RECIPE, batch_size=4)
    assert torch.equal(list(views.batches(1, 2))[2].weak, next(views.batches(2, 2)).weak)


def test_another_seed_gives_another_draw(images: UnlabelledImages) -> None:
    first = TrainingViews(images, RECIPE, batch_size=N).weak_and_crops(0, [2])
    other = TrainingViews(images, replace(RECIPE, seed=1), batch_size=N).weak_and_crops(0, [2])
    assert not torch.equal(first.crops, other.crops)


def test_no_crops_give_an_empty_axis(images: UnlabelledImages) -> None:
    views = TrainingViews(images, replace(RECIPE, n_crops=0), batch_size=N)
    assert views.weak_and_crops(0, [0, 1]).crops.shape == (2, 0, 3, 16, 16)


def test_test_views_are_the_same_at_each_call(images: UnlabelledImages) -> None:
    for crop in ("center", "random"):
        drawn = [
            torch.cat(list(evaluation_views(images, RECIPE, crop=crop, batch_size=size)))
            for size in (2, 7)
        ]
        assert drawn[0].shape == (N, 3, 16, 16)
        assert torch.equal(*drawn)


GPU = torch.device("cuda")  # nothing is put on it


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (16, 15), (96, 32)])
def test_for_a_gpu_the_other_cpus_draw_strong_views(
    cpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MICROCLIP_WORKERS", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(runtime, "n_cpus", lambda: cpus)
    assert loading.default_workers(GPU) == expected
    assert loading.default_workers(torch.device("cpu")) == 0


def test_batches_for_a_gpu_are_packed_ahead_and_are_the_same(
    images: UnlabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's way, on the CPU: packed by a thread, resized by matrices, in the same order."""
    ahead, threads = loading._ahead, set()

    def prepare(*given: Any, device: torch.device) -> Packed:
        threads.add(threading.current_thread().name)
        return pack(*given, device=device)

    plain = TrainingViews(images, RECIPE, batch_size=3)
    expected = list(plain.batches(1, 2))
    tests = list(evaluation_views(images, RECIPE, crop="center", batch_size=2))
    monkeypatch.setattr(loading, "prepare", prepare)
    monkeypatch.setattr(loading, "_ahead", lambda make, keys, _: ahead(make, keys, GPU))
    found = list(TrainingViews(images, RECIPE, batch_size=3).batches(1, 2))
    assert [batch.indices.tolist() for batch in found] == [b.indices.tolist() for b in expected]
    level = 2 / 255 / 0.25 + 1e-5  # two grey levels, normalised
    for batch, other in zip(found, expected, strict=True):
        torch.testing.assert_close(batch.weak, other.weak, atol=level, rtol=0)
        torch.testing.assert_close(batch.crops, other.crops, atol=level, rtol=0)
        assert torch.equal(some(batch.strong), some(other.strong))
    again = list(evaluation_views(images, RECIPE, crop="center", batch_size=2))
    torch.testing.assert_close(torch.cat(again), torch.cat(tests), atol=level, rtol=0)
    assert threads == {"pixels_0"}


def some(views: torch.Tensor | None) -> torch.Tensor:
    assert views is not None
    return views


def test_the_thread_stays_a_little_ahead_and_ends_with_its_reader() -> None:
    made: list[int] = []
    is_made = threading.Semaphore(0)

    def make(key: int) -> int:
        made.append(key)
        is_made.release()
        return key

    reader = _ahead(make, range(100), GPU)
    assert next(reader) == 0
    for _ in range(3):
        assert is_made.acquire(timeout=60)
    reader.close()
    assert made == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pixels")]


def test_an_error_in_the_thread_reaches_the_reader() -> None:
    reader = _ahead(lambda key: 1 // key, [1, 0], GPU)
    assert next(reader) == 1
    with pytest.raises(ZeroDivisionError):
        next(reader)


def test_for_a_cpu_a_batch_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []
    reader = _ahead(lambda key: made.append(key), range(3), torch.device("cpu"))
    next(reader)
    assert made == [0]


def test_augmented_views_are_flipped_half_of_the_time_and_drawn_by_epoch_and_index(
    images: UnlabelledImages,
) -> None:
    recipe = replace(RECIPE, weak="augmented", n_crops=0)
    drawn = [recipe.is_flipped(epoch, index) for epoch in range(40) for index in range(5)]
    assert 70 < sum(drawn) < 130
    plain = replace(RECIPE, weak="center")
    assert not any(plain.is_flipped(epoch, 0) for epoch in range(40))

    def batches(size: int) -> dict[int, torch.Tensor]:
        views = TrainingViews(images, recipe, batch_size=size, is_strong=False)
        return {
            index: view
            for batch in views.batches(3, 3)
            for index, view in zip(batch.indices.tolist(), batch.weak, strict=True)
        }

    once, again = batches(3), batches(7)
    assert all(torch.equal(once[index], again[index]) for index in range(N))


def test_a_flip_is_that_of_the_same_crop(
    images: UnlabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = TrainingViews(images, replace(RECIPE, weak="augmented"), batch_size=N)
    found = []
    for is_flipped in (False, True):
        monkeypatch.setattr(ViewRecipe, "is_flipped", lambda *_, flip=is_flipped: flip)
        found.append(views.weak_and_crops(1, [0, 1]))
    assert torch.equal(found[0].weak.flip(-1), found[1].weak)
    assert torch.equal(found[0].crops, found[1].crops)


def test_only_chosen_images_are_shown_under_their_own_numbers(images: UnlabelledImages) -> None:
    views = TrainingViews(images, RECIPE, batch_size=2, chosen=[5, 1, 4], is_strong=False)
    batches = list(views.batches(1, 1))
    assert (views.n_items, views.n_batches) == (3, 2)
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == [1, 4, 5]
    assert all(batch.strong is None for batch in batches)
    whole = TrainingViews(images, RECIPE, batch_size=2, is_strong=False)
    assert "chosen" in views.identity()
    assert "chosen" not in whole.identity()
