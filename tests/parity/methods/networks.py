"""Networks and steps that come with a method's arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from torch import Tensor

from microclip.model.backbone import Backbone, from_open_clip
from tests.parity.vectors import MethodArrays

BatchT = TypeVar("BatchT")


def backbone_of(arrays: MethodArrays) -> Backbone:
    """Return the network of arrays that hold one under `clip.*`."""
    model = CLIP(
        embed_dim=32,
        vision_cfg={
            "image_size": 32,
            "layers": 2,
            "width": 64,
            "patch_size": 8,
            "head_width": 64,
        },
        text_cfg={"context_length": 12, "vocab_size": 96, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )
    state = {
        name.removeprefix("clip."): arrays[name].float()
        for name in arrays
        if name.startswith("clip.")
    }
    model.load_state_dict(state)
    return from_open_clip(model)


def images_of(pixels: Tensor) -> Tensor:
    """Return uint8 pictures as the network's input."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def decimal(value: Tensor) -> float:
    """Return the short decimal that a stored float32 stands for."""
    return float(f"{float(value):.6g}")


def norms(gradients: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return the norm of each tensor (column) in each step (row)."""
    return torch.stack([torch.stack([one.norm() for one in step.values()]) for step in gradients])


@dataclass
class Recorded(ABC, Generic[BatchT]):
    """The recorded steps of a run, as the trainer reads them; `index` is padded with -1."""

    index: Tensor
    n_epochs: int
    device: torch.device = torch.device("cpu")
    seed: int = 0

    @property
    def n_batches(self) -> int:
        return len(self.index) // self.n_epochs

    @property
    def n_items(self) -> int:
        return int((self.index[: self.n_batches] >= 0).sum())

    def identity(self) -> dict[str, object]:
        return {}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[BatchT]:
        for row in self.index[(first_epoch - 1) * self.n_batches : last_epoch * self.n_batches]:
            yield self.batch(row[row >= 0])

    @abstractmethod
    def batch(self, indices: Tensor) -> BatchT:
        """Return the views of some pictures."""
