"""CIFAR-100's *binary* release: records of a coarse label, a fine label and 32 x 32 RGB bytes.

The Python release is a pickle, which may run code when it is read, so it is refused. The images
are written once as PNG below `images/`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microclip import runtime
from microclip.data.layouts.base import (
    IMAGES,
    Item,
    Listing,
    check_order,
    image_name,
    images_written,
    lines,
    not_there,
    place,
    png_bytes,
    write_image,
)
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

logger = logging.getLogger(__name__)
NEEDS = (
    "cifar-100-binary/train.bin|cifar-100-python/train",
    "cifar-100-binary/test.bin|cifar-100-python/test",
    "cifar-100-binary/fine_label_names.txt|cifar-100-python/meta",
)
SIDE_PX = 32
RECORD_BYTES = 2 + 3 * SIDE_PX**2  # coarse label, fine label, one plane per colour
_REPORT_EVERY = 10_000


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of `train.bin` and `test.bin`, in the order of their records.

    Raises:
        MissingDataError: a file is missing or was cut short.
        SettingsError: the Python release, names in another order than ours, or a label without a
            name.
    """
    root = place(folder, "cifar-100-binary")
    if not root.is_dir() and place(folder, "cifar-100-python").is_dir():
        raise SettingsError(
            f"{place(folder, 'cifar-100-python')} is the Python release, a pickle, which may run "
            "code and is never loaded; replace it with the folder of cifar-100-binary.tar.gz"
        )
    names = lines(place(root, "fine_label_names.txt"))
    check_order(names, class_names, str(root / "fine_label_names.txt"))
    items: list[Item] = []
    for part in ("test", "train"):
        records = _records(place(root, f"{part}.bin"), names)
        paths = _write(records, folder / IMAGES / part)
        items += [
            Item(path, f"{part}/{path.stem}", int(label), names[label], part)
            for path, label in zip(paths, records[:, 1], strict=True)
        ]
    return Listing(tuple(items))


def _records(path: Path, names: Sequence[str]) -> NDArray[np.uint8]:
    """Map the records of a file, `(image, RECORD_BYTES)`.

    All classes have the same number of records, which reveals a file cut between two records.
    """
    if not path.is_file():
        raise not_there(path)
    size = path.stat().st_size
    if not size or size % RECORD_BYTES:
        raise runtime.MissingDataError(
            f"{path} has {size} bytes, which is not a whole number of {RECORD_BYTES}-byte records; "
            "it was cut short, get the dataset again"
        )
    records = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, RECORD_BYTES)
    counts = np.bincount(records[:, 1], minlength=len(names))
    if len(counts) > len(names):
        raise SettingsError(
            f"{path} has label {len(counts) - 1}, but there are {len(names)} classes; get the "
            "dataset again"
        )
    if counts.min() != counts.max():
        raise runtime.MissingDataError(
            f"{path} has {counts.min()} images of {names[int(counts.argmin())]!r} and "
            f"{counts.max()} of {names[int(counts.argmax())]!r}, but all classes of CIFAR-100 are "
            "equally large; it was cut short, get the dataset again"
        )
    return records


def _write(records: NDArray[np.uint8], folder: Path) -> list[Path]:
    """Write the images that are missing and return the paths of all."""
    folder.mkdir(parents=True, exist_ok=True)
    there = images_written(folder)
    paths = []
    for index, record in enumerate(records):
        name = image_name(index)
        if name not in there:
            pixels = record[2:].reshape(3, SIDE_PX, SIDE_PX).transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels))
            write_image(folder / f"{name}.png", png_bytes(image))
            if index and index % _REPORT_EVERY == 0:
                logger.info("%s: %d of %d images written", folder, index, len(records))
        paths.append(folder / f"{name}.png")
    return paths
