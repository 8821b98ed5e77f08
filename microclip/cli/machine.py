"""The verbs about this machine: what is installed on it, and a backbone's weights."""

from __future__ import annotations

import ctypes
import os
import shutil
from typing import Annotated

import typer

from microclip import runtime, settings
from microclip.cli import app, say


@app.command()
def doctor() -> None:
    """List what is installed on this machine, and what is missing."""
    record = runtime.record()
    packages = record["packages"].items()
    found: list[tuple[str, bool | None]] = [
        (f"{name} {version or ''}", version is not None) for name, version in packages
    ]
    for name in settings.known("backbones"):
        backbone = settings.load_backbone_settings(name)
        note, is_there = _weights_of(backbone)
        found.append((f"backbone {name}{note}", is_there))
    found += [(f"python {record['python']}, {record['cpus']} CPUs", True), _gpus()]
    for text, there in found:
        print(f"{_STATES[there]:8} {text}".rstrip())
    raise typer.Exit(3 if any(there is False for _, there in found) else 0)


_STATES = {True: "ok", False: "missing", None: "left out"}


def _gpus() -> tuple[str, bool]:
    """The GPUs that torch computes on; False if there is one that it cannot use.

    torch takes seconds to import, so it is asked only where there are a GPU and a driver.
    """
    listed, named = runtime.visible_gpus(), os.environ.get(_VISIBLE)
    if not listed:
        why = "no GPU"
        if named is not None:
            why = f"{_VISIBLE} is {named!r} and names no GPU"
        elif _has_driver():
            why = "there is a driver, but nvidia-smi lists no GPU"
        return f"{why}: the icon studies run on CPU", True
    gpus = f"GPU {', '.join(listed)} is listed"
    if not _has_driver():  # so the variable lists it
        return (
            f"{gpus} in {_VISIBLE}, but there is no driver: neither nvidia-smi nor {_DRIVER}; "
            "install it, or unset the variable to run on CPU",
            False,
        )
    import torch

    if not torch.cuda.is_available():
        return (
            f"{gpus}, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it; "
            "update the driver or reinstall torch for it",
            False,
        )
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    for number, name in enumerate(names):
        try:
            torch.ones(8, device=f"{_CUDA}:{number}").sum().item()
        except RuntimeError as error:  # it is full, or torch was not built for it
            said = str(error).strip().partition("\n")[0]
            return (
                f"GPU {number}, {name}, is there, but torch computes nothing on it: {said}",
                False,
            )
    return f"torch computes on {', '.join(names)}", True


_CUDA = "cuda"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = "libcuda.so.1"  # the driver's own library, which torch loads


def _has_driver() -> bool:
    """Is a driver of NVIDIA's installed? Some containers have its library, but no nvidia-smi."""
    if shutil.which("nvidia-smi"):
        return True
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def _weights_of(backbone: settings.BackboneSettings) -> tuple[str, bool | None]:
    """Where a backbone's weights are, and whether a study can use them; None: nothing is wrong."""
    lacking = [path for path in backbone.files.values() if not path.is_file()]
    if backbone.pretrained is None or backbone.model is None:
        if lacking and backbone.is_left_out:
            return f": {backbone.remedy('weights')}", None
        return (f": no {lacking[0]}" if lacking else ""), not lacking
    from microclip.model import weights

    path = weights.locate(weights.published(backbone.model, backbone.pretrained))
    if path is None and weights.is_offline():
        return f", whose weights are not here; `microclip {_FETCH} {backbone.name}`", False
    if path is None:
        return ", whose weights open_clip fetches at first use", True
    kept = weights.recorded(backbone)
    if kept is None:
        return f": {path}", True
    state = f"state {kept.state_sha256[:16]}"
    return f": {path}, {state}{'' if kept.is_of(path) else ' recorded for another file'}", True


_FETCH = "fetch-weights"


@app.command(_FETCH)
def fetch_weights(
    names: Annotated[list[str], typer.Argument(help="files in config/backbones")],
) -> None:
    """Download a backbone's weights, check their hashes and load them once."""
    from microclip.model import weights
    from microclip.model.backbone import load_open_clip

    for name in names:
        backbone = settings.load_backbone_settings(name)
        network, _ = load_open_clip(backbone)
        say(f"{name}: loaded, state sha256 {weights.tensors_sha256(network.state_dict())}")
