"""One image file as RGB bytes: a rule for every kind of image, and what is refused.

Limits are checked from the file's header, before anything is decoded. Colour profiles (ICC) are
ignored: CLIP was trained on pixels as they are stored.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

RULE = 1  # raised when an image's bytes change by it: stores made by another rule are refused
MAX_SHORTER_SIDE_PX = 448
MAX_PIXELS = 120_000_000  # 360 MB as RGB; telephones reach 108 megapixels, bombs far more
MIN_SIDE_PX = 8
MAX_PROPORTION = 40  # of the sides: resizing would blow up 30000 x 20 to nothing that was there

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_REMEDY = "pip install 'microclip[heif]'"
_NOT_READ = {  # Ghostscript or the system would draw these, or Pillow has no decoder for them
    *("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"),
}
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_ANIMATIONS = frozenset({"GIF", "WEBP", "PNG", "AVIF", "HEIF"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_OTHER_STARTS = (
    (rb"\s*<(!doctype\s+html|html|head|body|!--)", "an HTML page, not an image: get it again"),
    (rb"\s*<(\?xml|svg)", "XML or a drawing (SVG); save it as PNG"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the image; run `git lfs pull`"),
    (rb"%(!PS|PDF)", "PostScript or PDF, which is not read; save it as PNG"),
)

Pixels = UInt8[np.ndarray, "height width 3"]


class UnreadableError(ValueError):
    """An image file that cannot be used; the message is the reason, without the file's name."""


class Decoded(NamedTuple):
    """An image as RGB bytes, and what it was in the file."""

    pixels: Pixels
    mode: str  # Pillow's: "RGB", "CMYK", ...
    traits: tuple[str, ...] = ()  # of "rotated", "animated", "several pages", "other suffix"


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are read: Pillow's own, and HEIF if pillow-heif is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in Image.OPEN if name not in _NOT_READ)


def reads_heif() -> bool:
    """Return whether telephones' .heic images can be read."""
    return "HEIF" in formats()


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes that images have, in lower case; .heic among them in any case."""
    read = formats()
    own = {suffix for suffix, name in Image.registered_extensions().items() if name in read}
    return frozenset(own | HEIF_SUFFIXES)


def decode(path: Path) -> Decoded:
    """Return an image as RGB bytes.

    EXIF orientation is applied. Of an animation or of several pages the first is taken (of an
    animated PNG the picture that other programs show). Rule for modes: transparency (RGBA, LA, PA,
    a transparent colour) is laid on white; 16-bit grey is divided by 257; 32-bit integer grey is
    cut to [0, 255], or taken as 16-bit grey if it goes beyond; float grey is cut to [0, 255], or
    taken as a share of white if all of it is in [0, 1]; of 16-bit colour Pillow gives the upper
    byte; CMYK and YCCK are read as Adobe writes them, inverted in a JPEG; the rest (L, P, 1, YCbCr,
    LAB, HSV) is Pillow's conversion. A shorter side above 448 px is reduced, bicubic.

    Raises:
        FileNotFoundError: the file is gone.  UnreadableError: it is no image, cut short, or beyond
            the limits above.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of large images: see MAX_PIXELS
            return _decode(path)
    except (UnreadableError, FileNotFoundError):
        raise
    except Exception as error:  # decoders meet any bytes: whatever they raise, the file is unfit
        raise UnreadableError(_reason(path, error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB, by the rule of `decode`."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint32) // 257)
    if image.mode == "I":
        values = np.asarray(image, dtype=np.int64)
        return _grey(values // 257 if values.size and values.max() > 255 else values)
    if image.mode == "F":
        reals = np.nan_to_num(np.asarray(image, dtype=np.float64))
        is_share = bool(reals.size) and reals.min() >= 0 and reals.max() <= 1
        return _grey(np.rint(reals * 255) if is_share else reals)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def _decode(path: Path) -> Decoded:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UnreadableError("a folder" if path.is_dir() else "a pipe or a device, no file")
    with Image.open(path, formats=formats()) as opened:
        _check_size(*opened.size)
        mode, is_rotated = opened.mode, _orientation(opened) in range(2, 9)
        opened.load()
        image = to_rgb(_upright(opened))
        traits = (("rotated",) if is_rotated else ()) + _traits(path, opened)
    shorter = min(image.size)
    if shorter > MAX_SHORTER_SIDE_PX:
        size = [max(1, round(side * MAX_SHORTER_SIDE_PX / shorter)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return Decoded(np.asarray(image), mode, traits)


def _check_size(width: int, height: int) -> None:
    shown = f"{width} x {height} px"
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{shown}; at most {MAX_PIXELS // 10**6} megapixels are read")
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadableError(f"{shown}; the shorter side must have at least {MIN_SIDE_PX} px")
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise UnreadableError(f"{shown}; one side may be {MAX_PROPORTION} times the other")


def _orientation(opened: Image.Image) -> int:
    with contextlib.suppress(Exception):  # damaged metadata do not spoil an image
        return int(opened.getexif().get(_ORIENTATION, 1))
    return 1


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # likewise; the pixels are loaded
        return ImageOps.exif_transpose(image)
    return image


def _traits(path: Path, opened: Image.Image) -> tuple[str, ...]:
    """Return what is to be told of an opened file; called last, since it may seek."""
    found = []
    name = str(opened.format)
    named = Image.registered_extensions().get(path.suffix.lower(), name)
    if {named, name} not in ({name}, {"JPEG", "MPO"}, {"BMP", "DIB"}):
        found.append("other suffix")
    with contextlib.suppress(Exception):  # a damaged second frame is of no account
        if getattr(opened, "is_animated", False) and name != "MPO":
            found.append("animated" if name in _ANIMATIONS else "several pages")
    return tuple(found)


def _reason(path: Path, error: Exception) -> str:
    """Return why a file cannot be read, one line."""
    match error:
        case PermissionError():
            return "no permission to read it"
        case Image.DecompressionBombError():
            number = re.search(r"\((\d+) pixels\)", str(error))
            n_pixels = int(number[1]) if number else 2 * MAX_PIXELS
            return (
                f"{n_pixels / 1e6:.0f} megapixels; at most {MAX_PIXELS // 10**6} "
                "megapixels are read"
            )
        case UnidentifiedImageError():
            return _what_instead(path)
        case MemoryError():
            return "needs more memory than there is"
        case _:
            return " ".join(str(error).split()) or type(error).__name__


def _what_instead(path: Path) -> str:
    """Return what a file is that Pillow takes for no image."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "empty (0 bytes)"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not reads_heif():
        return f"HEIC, which needs pillow-heif: {HEIF_REMEDY}"
    for start, reason in _OTHER_STARTS:
        if re.match(start, head, re.IGNORECASE):
            return reason
    return "no image, or one whose beginning is damaged"
