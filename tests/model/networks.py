"""Small random networks for tests."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from microclip.model.backbone import Backbone, from_open_clip

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "patch_size": 8,
        "head_width": 16,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def tiny_clip(kind: type[nn.Module] = CLIP, *, seed: int = 0, **vision: Any) -> Any:
    """Return a network of 4 x 4 patches in which no bias is zero and no gain is one."""
    torch.manual_seed(seed)
    network = kind(**{**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], **vision}})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def tiny_backbone(seed: int = 0, **vision: Any) -> Backbone:
    return from_open_clip(tiny_clip(seed=seed, **vision), tokenizer=letters)


def tiny_custom_text_clip() -> Any:
    return tiny_clip(CustomTextCLIP)


def letters(texts: list[str]) -> torch.Tensor:
    """Tokenise by letters; the end token is the largest id, as the text tower expects."""
    rows = torch.zeros(len(texts), 8, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [62, *(1 + ord(letter) % 60 for letter in text[:6]), 63]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
