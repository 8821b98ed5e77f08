"""Reads the reference numbers and builds our networks from them.

The arrays of the methods compared with microCLIP lie in a folder of their own, `METHODS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor

from microclip.model.backbone import Backbone, Tokenizer, from_open_clip
from microclip.model.token_fusion import TokenFusion

_GIVEN = os.environ.get("MICROCLIP_PARITY_DIR")
FOLDER = Path(_GIVEN or Path(__file__).parent / "data")
METHODS = Path(_GIVEN or Path(__file__).parent) / "methods"
MODELS = ("a", "b")
read: set[str] = set()  # arrays of the methods that the present test has looked at


@cache
def meta() -> dict[str, Any]:
    return json.loads((FOLDER / "meta.json").read_text())


@cache
def config(model: str) -> dict[str, Any]:
    return json.loads(_network(model, "json").read_text())


def _network(model: str, suffix: str) -> Path:
    """Networks "a" and "b" serve all; a network of one method's arrays lies beside them."""
    own = METHODS / f"clip_{model}.{suffix}"
    return own if own.is_file() else FOLDER / own.name


@cache
def arrays(stem: str) -> dict[str, Tensor]:
    """Return all arrays of one file, as tensors."""
    with np.load(FOLDER / f"{stem}.npz") as opened:
        return {name: torch.from_numpy(np.array(opened[name])) for name in opened.files}


class MethodArrays:
    """The arrays of one method, by name; remembers which of them are looked at."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __getitem__(self, name: str) -> Tensor:
        read.add(self.key(name))
        return self._all()[name]

    def __contains__(self, name: str) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def key(self, name: str) -> str:
        """Return what reports call an array: the core has an array file of the same name."""
        return f"methods/{self.method}.{name}"

    def text(self, name: str) -> list[str]:
        """Return the lines of a text, which is stored as UTF-8 bytes."""
        return bytes(self[name].numpy()).decode().split("\n")

    def _all(self) -> dict[str, Tensor]:
        return _method_arrays(self.method)


@cache
def _method_arrays(method: str) -> dict[str, Tensor]:
    with np.load(METHODS / f"{method}.npz") as opened:
        return {name: torch.from_numpy(np.array(opened[name])) for name in opened.files}


def build_backbone(model: str, tokenizer: Tokenizer | None = None) -> Backbone:
    """Return a fresh reference network (training changes it)."""
    network = CLIP(**config(model)["open_clip"])
    network.load_state_dict(load_file(_network(model, "safetensors")))
    return from_open_clip(network, tokenizer)


def build_fusion(model: str, **options: Any) -> TokenFusion:
    """Return TokenFusion on a fresh network, with the reference's random parameters."""
    parameters = arrays(f"params_{model}")
    fusion = TokenFusion(build_backbone(model), parameters["init_classifier"], **options)
    with torch.no_grad():
        fusion.pooling.query.weight.copy_(parameters["W_q"])
        fusion.pooling.key.weight.copy_(parameters["W_k"])
        fusion.pooling.value.weight.copy_(parameters["W_v"])
        if fusion.options.learnable_empty:
            fusion.pooling.empty.copy_(parameters["empty_token"][0])
    return fusion


def normalised(pixels: Tensor, model: str) -> Tensor:
    """Return uint8 images as the network's input."""
    mean = torch.tensor(config(model)["image_mean"]).view(3, 1, 1)
    std = torch.tensor(config(model)["image_std"]).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def our_name(reference: str) -> str:
    """Return our name of a trained tensor."""
    known = {
        "query_proj.linear.weight": "pooling.query.weight",
        "key_proj.linear.weight": "pooling.key.weight",
        "value_proj.linear.weight": "pooling.value.weight",
    }
    return known.get(reference, reference.replace("clip_model.visual.", "visual."))


def trained(fusion: TokenFusion, model: str) -> dict[str, torch.nn.Parameter]:
    """Return the trained tensors under the reference's names, in its order."""
    ours = fusion.trained_parameters()
    names = meta()["trainable"][model]
    assert {our_name(name) for name in names} == set(ours)
    return {name: ours[our_name(name)] for name in names}
