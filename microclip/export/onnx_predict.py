"""Classify images with an exported model; numpy, Pillow and onnxruntime are all it needs.

    python onnx_predict.py IMAGE_OR_FOLDER [IMAGE_OR_FOLDER ...]

It reads the `model.onnx` beside it. The model's metadata says how to prepare images and what the
classes are called; `preprocess.json` has the same content. Of a folder, all images below it are
taken, without links and hidden files. A file that is no usable image is named on standard error,
the others are classified, and the exit code is 2.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 120_000_000  # as `microclip predict`; Pillow has limits for each kind of file beside
MAX_PROPORTION = 40  # of the sides: a longer strip would fill the memory once it is resized
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20  # profiles and comments of sound files are larger than 1


def prepare(path: Path, how: dict[str, Any]) -> np.ndarray:
    """An image as [3, size, size]: shorter side resized to `size`, centre crop, normalised.

    Raises:
        ValueError: it is too large, or a strip. Pillow raises others for what it cannot read.
    """
    if not path.is_file():  # a pipe would never end
        raise ValueError("no such file" if not path.exists() else "a pipe or a device, not a file")
    with Image.open(path) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_PROPORTION * min(width, height):
            raise ValueError(
                f"{width} x {height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read, "
                f"and one side may be at most {MAX_PROPORTION} times the other"
            )
        opened.load()
        try:
            image = ImageOps.exif_transpose(opened)
        except Exception:  # noqa: BLE001  the pixels of an image with damaged metadata are whole
            image = opened.copy()
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image, size = image.convert("RGB"), how["size"]
    if min(image.size) > how["max_shorter_side"]:
        scale = how["max_shorter_side"] / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    width, height = (int(size * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    square = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return np.moveaxis((square - np.float32(how["mean"])) / np.float32(how["std"]), -1, 0)


def images_of(named: Path) -> Iterator[Path]:
    """The file itself, or the images below a folder, sorted."""
    if not named.is_dir():
        yield named
        return
    known = Image.registered_extensions()
    for folder, inner, names in os.walk(named):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for path in (Path(folder, name) for name in sorted(names)):
            is_hidden = path.name.startswith(".") or path.is_symlink()
            if not is_hidden and (path.suffix.lower() in known or is_bare_image(path)):
                yield path


def is_bare_image(path: Path) -> bool:
    """Has the file no suffix, and the first bytes of an image?"""
    if path.suffix or not path.is_file():
        return False
    try:
        Image.open(path, formats=["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]).close()
    except Exception:  # noqa: BLE001  given any bytes, Pillow may raise anything
        return False
    return True


def reason(error: Exception) -> str:
    """Why an image cannot be read, on one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, UnidentifiedImageError):
        said = "no image that Pillow knows"
    return " ".join(said.split())[:300] or type(error).__name__


def main(files: list[str]) -> int:
    """Print the two most probable classes of each image; return the exit code."""
    if not files:
        sys.exit("usage: python onnx_predict.py IMAGE_OR_FOLDER [IMAGE_OR_FOLDER ...]")
    model = Path(__file__).resolve().with_name("model.onnx")
    if not model.is_file():
        sys.exit(f"{model} does not exist; this script belongs beside it")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    how, classes = json.loads(metadata["preprocess"]), json.loads(metadata["classes"])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a pipe may lack a name's letters
    n_read = n_bad = 0
    for path in (path for named in files for path in images_of(Path(named))):
        shown = str(path) if str(path).isprintable() else ascii(str(path))[1:-1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata, and of sizes limited above
                image = prepare(path, how)
        except Exception as error:  # noqa: BLE001  Pillow's readers raise anything
            print(f"{shown}: cannot be read: {reason(error)}", file=sys.stderr)
            n_bad += 1
            continue
        ((row,),) = session.run(["probabilities"], {"images": image[None]})
        best = np.argsort(-row, kind="stable")[:2]
        print(f"{shown}: {', '.join(f'{classes[label]} {row[label]:.2f}' for label in best)}")
        n_read += 1
    if not n_read and not n_bad:
        print(f"no image in {', '.join(files)}", file=sys.stderr)
    return 2 if n_bad or not n_read else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # as of `| head`, which wants no more lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python writes the rest, and fails again
        sys.exit(1)
