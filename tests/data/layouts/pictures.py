"""Small real image files for the copies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(name: str, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """An image that depends only on `name`: eight by eight blocks of colour, enlarged."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def write(path: Path, size: tuple[int, int] = (40, 32)) -> Path:
    """Write an image file; its content depends on its name and the last two folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture("/".join(path.parts[-2:]), size).save(path)
    return path
