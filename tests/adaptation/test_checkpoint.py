"""Checkpoints: whole, of the right settings, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from microclip.adaptation.checkpoint import (
    Checkpoint,
    load,
    optimizer_tensors,
    restore_optimizer,
    save,
)
from microclip.settings import SettingsError


def trained(n_steps: int) -> tuple[nn.Linear, AdamW]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = AdamW(layer.parameters(), lr=0.1)
    for _ in range(n_steps):
        step(layer, optimizer)
    return layer, optimizer


def step(layer: nn.Linear, optimizer: AdamW) -> None:
    optimizer.zero_grad()
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


def written(folder: Path, key: str = "k") -> Path:
    layer, optimizer = trained(2)
    state = Checkpoint(3, dict(layer.state_dict()), optimizer_tensors(optimizer))
    return save(folder, state, key)


def test_the_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    written(tmp_path)
    found = load(tmp_path, "k")
    assert found is not None
    assert found.epoch == 3
    layer, optimizer = trained(0)
    layer.load_state_dict(dict(found.weights))
    restore_optimizer(optimizer, found.optimizer)
    step(layer, optimizer)
    unbroken, _ = trained(3)
    assert torch.equal(layer.weight, unbroken.weight)


def test_the_random_state_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(7)
    save(tmp_path, Checkpoint(1, {"w": torch.ones(1)}, {}, {"losses/previous": torch.ones(2)}), "k")
    expected = torch.rand(3)
    found = load(tmp_path, "k")
    assert found is not None
    torch.set_rng_state(found.rng)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(found.part("losses")["previous"], torch.ones(2))


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert load(tmp_path / "nothing", "k") is None


def test_a_checkpoint_of_other_settings_is_left_alone_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path)
    assert load(tmp_path, "other") is None
    assert "other settings" in caplog.text


def test_a_truncated_or_altered_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for broken in (whole[:50], whole[:-8], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(SettingsError, match=r"last\.safetensors is damaged .* delete it") as e:
            load(tmp_path, "k")
        assert "\n" not in str(e.value)


def test_a_write_that_fails_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]
