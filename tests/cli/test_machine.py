"""`microclip doctor`: packages, backbones and the GPU, and torch only where there is a driver."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from microclip import runtime
from microclip.cli import machine, main
from tests.fixtures import gpus

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "no GPU: the icon studies run on CPU"


def test_doctor_lists_versions_and_backbones(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "backbone tiny\n" in said


def test_doctor_says_where_weights_are_or_that_they_are_fetched_at_first_use(
    own_project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(own_project / "hub"))
    monkeypatch.setenv("HOME", str(own_project))
    for switch in ("MICROCLIP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    (own_project / "config/backbones/public.yaml").write_text(
        "{title: Public, model: ViT-B-32, pretrained: openai}\n"
    )
    assert main.main(["doctor"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "ok       backbone public, whose weights open_clip fetches at first use" in said
    monkeypatch.setenv("MICROCLIP_OFFLINE", "1")
    assert main.main(["doctor"]) == 3
    said = capsys.readouterr().out.splitlines()
    way = "whose weights are not here; `microclip fetch-weights public`"
    assert f"missing  backbone public, {way}" in said
    placed = own_project / ".cache" / "clip" / "ViT-B-32.pt"
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"")
    assert main.main(["doctor"]) == 0
    assert f"ok       backbone public: {placed}" in capsys.readouterr().out.splitlines()


def last_line(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of the doctor, and what it says of GPUs."""
    code = main.main(["doctor"])
    return code, capsys.readouterr().out.splitlines()[-1]


@pytest.fixture
def one_gpu(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with its driver, whose work the CPU does."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runtime, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(machine, "_has_driver", lambda: True)
    monkeypatch.setattr(machine, "_CUDA", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Simulated GPU")


@pytest.mark.usefixtures("one_gpu")
def test_doctor_says_whether_torch_can_use_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last_line(capsys) == (0, "ok       torch computes on Simulated GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, said = last_line(capsys)
    assert code == 3
    assert said.startswith("missing  GPU 0 is listed, but torch ")


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_on_which_torch_fails_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(torch, "ones", fail)
    code, said = last_line(capsys)
    assert code == 3
    assert said == (
        "missing  GPU 0, Simulated GPU, is there, but torch computes nothing on it: "
        "CUDA error: no kernel image is available"
    )


@pytest.mark.usefixtures("one_gpu")
def test_doctor_says_why_no_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "visible_gpus", list)
    on_cpu = "the icon studies run on CPU"
    assert last_line(capsys) == (
        0,
        f"ok       there is a driver, but nvidia-smi lists no GPU: {on_cpu}",
    )
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    assert last_line(capsys) == (0, f"ok       {NO_GPU}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert last_line(capsys) == (
        0,
        f"ok       CUDA_VISIBLE_DEVICES is '' and names no GPU: {on_cpu}",
    )


def doctor(folder: Path, *, driver: bool, **variables: str) -> tuple[str, bool]:
    """What the doctor says of GPUs in a process of its own; did it import torch?

    Its torch only says that it cannot use a GPU: the real one takes seconds to import.
    """
    fake = folder / "modules" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(
        "from types import SimpleNamespace\n"
        "__version__ = '0.0'\n"
        "version = SimpleNamespace(cuda='0')\n"
        "cuda = SimpleNamespace(is_available=lambda: False, is_initialized=lambda: False)\n"
    )
    given = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    given["PATH"] = str(folder / "bin")
    if driver:
        gpus.write_driver(folder / "bin", 1)
    program = (
        "import sys; from microclip.cli.main import main; main(['doctor']);"
        "heavy = {'torch', 'torchvision', 'open_clip', 'timm', 'numpy'} & set(sys.modules);"
        "print(*sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={
            **given,
            **variables,
            "PYTHONPATH": f"{fake.parent}{os.pathsep}{ROOT}",
            "MICROCLIP_ROOT": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert f"ok       torch {importlib.metadata.version('torch')}\n" in done.stdout
    assert "backbone vit-b-32" in done.stdout
    *_, said, heavy = done.stdout.splitlines()
    return said, "torch" in heavy.split()


def has_driver() -> bool:
    return machine._has_driver()


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_without_a_driver_torch_is_not_imported(tmp_path: Path) -> None:
    assert doctor(tmp_path / "bare", driver=False) == (f"ok       {NO_GPU}", False)
    said, imports_torch = doctor(tmp_path / "named", driver=False, CUDA_VISIBLE_DEVICES="0")
    assert said.startswith("missing  GPU 0 is listed in CUDA_VISIBLE_DEVICES, but there is no ")
    assert not imports_torch


def test_with_a_driver_torch_is_asked(tmp_path: Path) -> None:
    said, imports_torch = doctor(tmp_path, driver=True)
    assert said.startswith("missing  GPU 0 is listed, but torch 0.0 (CUDA 0) cannot use it;")
    assert imports_torch


def test_a_driver_is_known_by_its_program_or_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(machine, "_DRIVER", "no-such-library.so")
    assert not machine._has_driver()
    monkeypatch.setattr(machine, "_DRIVER", None)  # the program's own symbols: always there
    assert machine._has_driver()
    monkeypatch.setattr(machine, "_DRIVER", "no-such-library.so")
    gpus.write_driver(tmp_path / "bin", 1)
    assert machine._has_driver()
