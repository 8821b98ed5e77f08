"""Images that come inside other files (parquet, shards, binaries, videos), written out as files.

A file takes its name only once it is whole, so a killed process leaves none half-written; it is not
forced to the disk one by one, which would take minutes for 60,000 small images. An empty file, as a
power cut may leave it, counts as not there.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from microclip import runtime

IMAGES = "images"  # below the dataset's folder
_STARTS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)
_NO_IMAGE = ".bin"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def image_suffix(content: bytes) -> str:
    """Return the suffix of an image file by its first bytes, ".bin" if they are of none.

    What is no image is written all the same, under its own name, so that whoever decodes it can
    name it.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _STARTS if content.startswith(start)), _NO_IMAGE)


def images_written(folder: Path) -> dict[str, Path]:
    """Return the images that are in a folder already, by their names without suffix."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            Path(entry.name).stem: folder / entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.stat().st_size
        }


def write_image(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all; its folder must be there.

    Raises: ResourceError if the disk or the quota is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise runtime.ResourceError(
            f"no room for {path} ({error.strerror}, {shutil.disk_usage(path.parent).free} bytes "
            "free); free some and run it again, the images written so far are kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG file's bytes: nothing is lost, little time is spent on size."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def image_name(index: int) -> str:
    """Return the file name, without suffix, of the n-th image of a file."""
    return f"{index:07}"


def parts_note(ignored: Iterable[str], parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line on the parts of a hub's copy that the card does not use, if there are any."""
    names = sorted(set(ignored))
    if not names:
        return ()
    return (f"parts of the copy left out: {', '.join(names)}; used: {', '.join(parts)}",)
