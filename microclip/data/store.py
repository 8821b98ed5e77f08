"""Images decoded once into one file of bytes, then read by memory map.

`pixels.bin` holds the images one after another, `index.npy` where each begins and its size, and
`store.json`, written last, the hashes of both and of the list that they were made from. Neither
file names nor classes are in the store: who holds it cannot read a label.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps

from microclip import paths, runtime
from microclip.settings import SettingsError

logger = logging.getLogger(__name__)

MAX_SHORTER_SIDE_PX = 448
_PIXELS, _INDEX, _RECORD = "pixels.bin", "index.npy", "store.json"
_SHOWN = 3  # unreadable images named in an error
_verified: set[tuple[str, int, int]] = set()  # stores whose bytes this process has hashed

Pixels = UInt8[np.ndarray, "height width 3"]


def decode(path: Path) -> tuple[Pixels, str]:
    """Return an image as RGB bytes, and the Pillow mode that it was stored in.

    EXIF orientation is applied. The first frame of an animation is taken. Rule for modes:
    transparency (RGBA, LA, PA, a transparent palette entry) is laid on white; 16-bit grey is
    divided by 257; other integer and float grey is cut to [0, 255]; the rest (L, P, 1, CMYK,
    YCbCr, LAB, HSV) is Pillow's conversion. A shorter side above 448 px is reduced, bicubic.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: Pillow cannot read the file.
    """
    with Image.open(path) as opened:
        mode = opened.mode
        image = to_rgb(ImageOps.exif_transpose(opened))
    shorter = min(image.size)
    if shorter > MAX_SHORTER_SIDE_PX:
        size = [max(1, round(side * MAX_SHORTER_SIDE_PX / shorter)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return np.asarray(image), mode


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB, by the rule of `decode`."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageStore:
    """Decoded images of any size, read-only."""

    folder: Path
    sha256: str  # of the pixels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._index)

    def pixels(self, row: int) -> Pixels:
        """Return one image as a read-only view of the file."""
        offset, height, width = (int(value) for value in self._index[row])
        return self._bytes[offset : offset + height * width * 3].reshape(height, width, 3)

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        index: NDArray[np.int64] = np.load(self.folder / _INDEX, allow_pickle=False)
        return index

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / _PIXELS, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped file behind: a worker process maps it again."""
        return {"folder": self.folder, "sha256": self.sha256}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `__getstate__` left."""
        self.__dict__.update(state)


def build(dataset_name: str) -> Path:
    """Decode a fetched dataset into its store and return `store.json`.

    Raises:
        MissingDataError: the dataset is not fetched, or an image is gone.
        SettingsError: images that cannot be read, by name.
    """
    from microclip.data.datasets import read_manifest  # datasets reads stores: no import cycle

    manifest = read_manifest(dataset_name)
    folder = Path(paths.STORE.format(dataset=dataset_name)).parent
    return write_store(manifest.files, folder, manifest.images_sha256)


def write_store(files: Sequence[Path], folder: Path, source_sha256: str) -> Path:
    """Decode `files` in order into a store in `folder`; `source_sha256` names their list.

    Raises:
        MissingDataError: a file is gone.  SettingsError: files that cannot be read, by name.
    """
    record = folder / _RECORD
    record.unlink(missing_ok=True)
    sha256, offset = hashlib.sha256(), 0
    index: list[tuple[int, int, int]] = []
    modes: Counter[str] = Counter()
    unreadable: list[str] = []
    with runtime.atomic_path(folder / _PIXELS) as target:
        with target.open("wb") as stream:
            for file in files:
                pixels = _decoded(file, modes, unreadable)
                if pixels is None or unreadable:
                    continue
                data = pixels.tobytes()
                index.append((offset, pixels.shape[0], pixels.shape[1]))
                offset += stream.write(data)
                sha256.update(data)
        if unreadable:
            raise SettingsError(_complaint(unreadable, len(files)))
    with runtime.atomic_path(folder / _INDEX) as target, target.open("wb") as stream:
        np.save(stream, np.array(index, dtype=np.int64).reshape(-1, 3))
    logger.info("decoded %d images (%.1f MiB), modes %s", len(index), offset / 2**20, dict(modes))
    runtime.write_json(
        record,
        {
            "n_images": len(index),
            "bytes": offset,
            "pixels_sha256": sha256.hexdigest(),
            "index_sha256": runtime.sha256(folder / _INDEX),
            "source_sha256": source_sha256,
            "modes": dict(sorted(modes.items())),
        },
    )
    return record


def open_store(folder: Path, source_sha256: str | None = None) -> ImageStore:
    """Return a store, its size and source checked now and its bytes once a process.

    Raises:
        MissingDataError: there is none.
        SettingsError: made from another list of images, cut short or altered.
    """
    record = folder / _RECORD
    if not record.is_file():
        raise runtime.MissingDataError(
            f"image store {record} is not there; run `microclip store-images {folder.name}`"
        )
    said = json.loads(record.read_text(encoding="utf-8"))
    if source_sha256 is not None and said["source_sha256"] != source_sha256:
        raise SettingsError(
            f"image store {folder} was made from other images (expected {source_sha256[:12]}, "
            f"got {said['source_sha256'][:12]}); run `microclip store-images {folder.name}` again"
        )
    pixels = folder / _PIXELS
    size = pixels.stat().st_size if pixels.is_file() else 0
    if size != said["bytes"]:
        raise _damaged(pixels, f"{said['bytes']} bytes", f"{size} bytes")
    _verify_once(pixels, said["pixels_sha256"])
    _verify_once(folder / _INDEX, said["index_sha256"])
    return ImageStore(folder, said["pixels_sha256"])


def _decoded(file: Path, modes: Counter[str], unreadable: list[str]) -> Pixels | None:
    """Return an image, or note why it cannot be read."""
    if not file.is_file():
        raise runtime.MissingDataError(f"image {file} is gone; fetch the dataset again")
    try:
        pixels, mode = decode(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        unreadable.append(f"{file} ({' '.join(str(error).split())})")
        return None
    modes[mode] += 1
    return pixels


def _complaint(unreadable: list[str], n_files: int) -> str:
    shown = "; ".join(unreadable[:_SHOWN])
    more = ", …" if len(unreadable) > _SHOWN else ""
    return (
        f"{len(unreadable)} of {n_files} images cannot be read: {shown}{more}; "
        "replace or remove them, then fetch the dataset again"
    )


def _verify_once(path: Path, sha256: str) -> None:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key in _verified:
        return
    found = runtime.sha256(path)
    if found != sha256:
        raise _damaged(path, f"sha256 {sha256[:12]}", found[:12])
    _verified.add(key)


def _damaged(path: Path, expected: str, got: str) -> SettingsError:
    return SettingsError(
        f"{path} is damaged: expected {expected}, got {got}; "
        f"run `microclip store-images {path.parent.name}` again"
    )
