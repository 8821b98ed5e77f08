"""Embeddings by the frozen tower, shared by a workflow's runs: the same bytes, within a bound."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microclip import paths, runner, warm
from microclip.measure import frozen
from microclip.measure.frozen import FrozenEmbeddings
from microclip.model.backbone import Backbone, load_backbone
from microclip.runtime import ResourceError
from microclip.study import RunSettings
from tests.fixtures.project import CLASSES, N_TEST, Journal, prepare, settings_of

METHODS: dict[str, dict[str, Any]] = {
    "coop": {"shots": 1, "epochs": 2, "n_context": 4},  # tested on frozen embeddings alone
    "microclip": {},
    "dpa": {"epochs": 2, "batch_size": 4},  # trains the tower in place
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a warm process."""
    made = tmp_path / "warm"
    made.mkdir(mode=0o700)
    monkeypatch.setenv(warm.VARIABLE, str(made))
    return made


def shared_in(folder: Path) -> list[Path]:
    """The shared files there; other files say which images were checked."""
    return list(folder.glob("*.frozen"))


def written(out: Path) -> dict[str, Any]:
    """What a run wrote, without the time that it took."""
    scores = json.loads((out / paths.RUN_SCORES).read_text())
    names = (paths.RUN_PREDICTIONS, paths.RUN_WEIGHTS)
    return {
        "scores": json.dumps({**scores, "seconds": 0}).encode(),
        **{name: (out / name).read_bytes() for name in names},
    }


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each batch that a tower encodes from now on, whole or globally."""
    found: list[int] = []
    encode = Backbone._encode

    def counting(self: Backbone, images: Tensor, **options: Any) -> Tensor:
        found.append(len(images))
        return encode(self, images, **options)

    monkeypatch.setattr(Backbone, "_encode", counting)
    return found


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_the_same_bytes_whether_it_shares_or_not(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(method, **METHODS[method])
    prepare(settings)
    encoded: dict[str, int] = {}
    with monkeypatch.context() as patch:
        patch.setenv(warm.VARIABLE, "off")
        batches = counted(patch)
        runner.run(settings, Path("alone"), Journal())
        encoded["alone"] = sum(batches)
    assert not shared_in(folder)
    for name in ("first", "second"):
        with monkeypatch.context() as patch:
            batches = counted(patch)
            runner.run(settings, Path(name), Journal())
            encoded[name] = sum(batches)
    assert written(Path("alone")) == written(Path("first")) == written(Path("second"))
    n_passes = 2 if method == "coop" else 1  # zero-shot, and what CoOp is tested on
    assert encoded["alone"] == encoded["first"]
    assert encoded["first"] - encoded["second"] == n_passes * N_TEST * len(CLASSES)
    assert len(shared_in(folder)) == n_passes


@pytest.mark.usefixtures("project")
def test_methods_share_with_one_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("microclip", "dpa"):
        settings = settings_of(method, **METHODS[method])
        prepare(settings)
        runner.run(settings, Path(method), Journal())
    assert len(shared_in(folder)) == 1


def one(settings: RunSettings) -> FrozenEmbeddings:
    return FrozenEmbeddings.of(settings, load_backbone(settings.backbone, "cpu"))


def is_shared(first: FrozenEmbeddings, second: FrozenEmbeddings, batch_size: int = 128) -> bool:
    """Does the second get what the first computed with batches of 128? Begins with no file."""
    for path in shared_in(Path(os.environ[warm.VARIABLE])):
        path.unlink()
    first.get(128, lambda: torch.ones(2, 3))
    return bool(second.get(batch_size, lambda: torch.zeros(2, 3)).any())


@pytest.fixture
def settings(project: Path, folder: Path) -> RunSettings:
    found = settings_of("microclip")
    prepare(found)
    return found


def test_only_what_decides_the_same_bits_is_shared(
    settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_shared(one(settings), one(settings))
    assert not is_shared(one(settings), one(settings), batch_size=256)
    assert not is_shared(one(settings), one(replace(settings, compile="default")))
    other = settings.dataset.model_copy(update={"title": "Other"})
    assert not is_shared(one(settings), one(replace(settings, dataset=other)))
    threads = torch.get_num_threads()
    first = one(settings)
    torch.set_num_threads(threads + 1)
    try:
        assert not is_shared(first, one(settings))
    finally:
        torch.set_num_threads(threads)
    first = one(settings)
    monkeypatch.setenv(warm.VARIABLE, "off")
    assert not is_shared(first, one(settings))


@pytest.mark.usefixtures("folder")
def test_a_trained_tower_neither_takes_nor_leaves_anything(settings: RunSettings) -> None:
    tower = load_backbone(settings.backbone, "cpu")
    trained = FrozenEmbeddings.of(settings, tower)
    with torch.no_grad():
        next(tower.visual.parameters()).data.add_(1e-3)
    assert not is_shared(trained, one(settings))
    assert is_shared(one(settings), one(settings))
    assert not is_shared(one(settings), trained)


@pytest.mark.parametrize("limit", ["MOST_BYTES", "ALL_BYTES"])
def test_what_is_too_large_is_not_kept(
    settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(frozen, limit, 23)  # a byte less than the tensor has
    assert not is_shared(one(settings), one(settings))
    assert not shared_in(folder)
    monkeypatch.setattr(frozen, limit, 24)
    assert is_shared(one(settings), one(settings))


def test_all_files_together_are_bounded(
    settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "ALL_BYTES", 1000)
    for batch_size in range(1, 30):
        one(settings).get(batch_size, lambda: torch.ones(25))
    assert 0 < sum(path.stat().st_size for path in shared_in(folder)) <= 1000 + 100


def test_a_damaged_file_and_a_full_disk_cost_only_time(
    settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_shared(one(settings), one(settings))
    (path,) = shared_in(folder)
    for content in (b"", b"x" * 100, path.read_bytes()[:-1]):
        path.write_bytes(content)
        assert torch.equal(one(settings).get(128, lambda: torch.zeros(2)), torch.zeros(2))
    path.unlink()

    def fail(*_: object) -> None:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(frozen.runtime, "atomic_path", fail)
    assert not is_shared(one(settings), one(settings))


def test_what_is_taken_may_be_changed(settings: RunSettings, folder: Path) -> None:
    compute: Callable[[], Tensor] = lambda: torch.ones(3)  # noqa: E731
    for _ in range(3):
        found = one(settings).get(1, compute)
        assert torch.equal(found, torch.ones(3))
        found.zero_()
