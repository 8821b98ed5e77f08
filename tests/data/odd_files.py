"""Real files of every odd kind, as cameras, browsers and careless copying produce them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, PngImagePlugin

SIZE = (50, 40)
RED = (237, 28, 36)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Soft noise, which every format keeps almost unchanged."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(40, 216, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def cut(path: Path) -> Path:
    """Cut a file to half its length."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def write_ycck(path: Path, rgb: tuple[int, int, int]) -> None:
    """Write a flat four-channel JPEG as Photoshop does: inverted YCCK, Adobe's transform 2."""
    inks = tuple(255 - value for value in rgb)  # C, M and Y, which take red, green and blue's place
    flat = Image.new("RGB", (16, 16), inks).convert("YCbCr")
    black = Image.new("L", (16, 16), 255)  # inverted: none
    channels = [band.point(lambda v: 255 - v) for band in (*flat.split(), black)]
    # Pillow inverts again as it writes CMYK, so that the file holds Y, Cb, Cr and 255 - K.
    Image.merge("CMYK", channels).save(path, quality=100, subsampling=0)
    data = bytearray(path.read_bytes())
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    data[place] = 2
    path.write_bytes(data)


def write_png(path: Path, size: tuple[int, int], *, bits: int, colour: int, pixel: bytes) -> Path:
    """Write a flat PNG by hand, with as many rows as `pixel` fills: for kinds that Pillow lacks.

    Rows that are missing make it a damaged one, which is of no account if it is refused unread.
    """
    rows = b"".join(b"\0" + pixel * size[0] for _ in range(min(size[1], 9)))
    with path.open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            PngImagePlugin.putchunk(stream, kind, data)
    return path


def _heic(path: Path) -> None:
    pillow_heif.from_pillow(picture()).save(path)


def _frames(path: Path) -> None:
    picture().save(path, save_all=True, append_images=[picture(1)], **_lossless(path))


def _lossless(path: Path) -> dict[str, bool]:
    return {"lossless": True} if path.suffix == ".webp" else {}


def _plain(path: Path) -> None:
    picture().save(path)


def _ramp(low: float, high: float, kind: type) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 400).reshape(20, 20).astype(kind))


def _grey16(path: Path) -> None:
    Image.fromarray(np.full((9, 9), 257 * 100, dtype=np.uint16)).save(path)


GOOD: dict[str, Callable[[Path], object]] = {
    "plain.jpg": _plain,
    "plain.png": _plain,
    "plain.webp": _plain,
    "plain.bmp": _plain,
    "plain.tif": _plain,
    "plain.avif": _plain,
    "plain.jp2": _plain,
    "plain.tga": _plain,
    "telephone.heic": _heic,
    "animated.gif": _frames,
    "animated.webp": _frames,
    "animated.png": _frames,
    "pages.tif": _frames,
    "cmyk.jpg": lambda path: picture().convert("CMYK").save(path),
    "grey16.png": _grey16,
    "alpha.png": lambda path: Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(path),
    "jpeg-named.png": lambda path: picture().save(path, format="JPEG"),
}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.touch(), "empty (0 bytes)"),
    "page.jpg": (
        lambda path: path.write_text("<!DOCTYPE html><title>404</title>"),
        "an HTML page, not an image",
    ),
    "drawing.png": (lambda path: path.write_text("<svg xmlns='x'/>"), "SVG"),
    "pointer.jpg": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "words.jpg": (lambda path: path.write_text("not a picture"), "not an image"),
    "dot.png": (lambda path: Image.new("L", (1, 1)).save(path), "1 x 1 px"),
    "long.png": (lambda path: Image.new("RGB", (30_000, 2)).save(path), "30000 x 2 px"),
    "thin.png": (
        lambda path: Image.new("RGB", (4000, 20)).save(path),
        "4000 x 20 px; one side may be at most 40 times the other",
    ),
    "large.png": (
        lambda path: write_png(path, (12_000, 12_000), bits=8, colour=0, pixel=b"\0"),
        "12000 x 12000 px; at most 120 megapixels",
    ),
    "bomb.png": (
        lambda path: write_png(path, (30_000, 30_000), bits=8, colour=0, pixel=b"\0"),
        "900 megapixels; at most 120 megapixels",
    ),
    "wide.tif": (
        lambda path: _ramp(0, 2**31 - 1, np.int32).save(path),
        "values from 0 to 2.14748e+09, expected 0 to 65535; scale them",
    ),
    "reals.tif": (
        lambda path: _ramp(0, 60_000, np.float32).save(path),
        "values from 0 to 60000, expected 0 to 1 or 0 to 255; scale them",
    ),
    "signed.tif": (lambda path: _ramp(-1, 1, np.float32).save(path), "values from -1 to 1, "),
    "xl.png": (lambda path: path.write_bytes(b"\xff\x0a" + bytes(40)), "JPEG XL"),
    "layers.png": (lambda path: path.write_bytes(b"8BPS\0\1" + bytes(60)), "a Photoshop file"),
    "script.jpg": (lambda path: picture().save(path, format="EPS"), "PostScript"),
    **{
        f"cut{suffix}": (
            lambda path: cut(path) if path.write_bytes(_bytes(path.suffix)) else None,
            "",
        )
        for suffix in (".jpg", ".png", ".gif", ".webp", ".bmp", ".tif", ".avif", ".heic")
    },
}


def _bytes(suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == ".heic":
        pillow_heif.from_pillow(picture()).save(stream)
    else:
        picture().save(stream, format=Image.registered_extensions()[suffix])
    return stream.getvalue()


def write_all(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write every kind; return the good and the bad files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in GOOD.items():
        make(folder / name)
    for name, (make, _) in BAD.items():
        make(folder / name)
    return sorted(folder / name for name in GOOD), sorted(folder / name for name in BAD)
