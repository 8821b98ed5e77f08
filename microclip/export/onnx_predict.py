"""Classify images with an exported model; numpy, Pillow and onnxruntime are all it needs.

    python onnx_predict.py IMAGE [IMAGE ...]

It reads the `model.onnx` beside it. The model's metadata says how to prepare images and what the
classes are called; `preprocess.json` has the same content.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(path: Path, how: dict[str, Any]) -> np.ndarray:
    """An image as [3, size, size]: shorter side resized to `size`, centre crop, normalised."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
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


def main(files: list[str]) -> None:
    """Print the two most probable classes of each file."""
    if not files:
        sys.exit("usage: python onnx_predict.py IMAGE [IMAGE ...]")
    model = Path(__file__).resolve().with_name("model.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    how, classes = json.loads(metadata["preprocess"]), json.loads(metadata["classes"])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a pipe may lack a name's letters
    images = np.stack([prepare(Path(file), how) for file in files])
    (probabilities,) = session.run(["probabilities"], {"images": images})
    for file, row in zip(files, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:2]
        print(f"{file}: {', '.join(f'{classes[label]} {row[label]:.2f}' for label in best)}")


if __name__ == "__main__":
    main(sys.argv[1:])
