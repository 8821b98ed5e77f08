"""Images written out of container files: suffixes by content, whole files, a full disk."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from microclip.data.layouts.base import image_suffix, images_written, png_bytes
from tests.data.layouts import pictures


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("JPEG", ".jpg"),
        ("PNG", ".png"),
        ("WEBP", ".webp"),
        ("GIF", ".gif"),
        ("BMP", ".bmp"),
        ("TIFF", ".tif"),
    ],
)
def test_the_suffix_follows_the_content(kind: str, suffix: str) -> None:
    stream = io.BytesIO()
    pictures.picture("a").save(stream, kind)
    assert image_suffix(stream.getvalue()) == suffix


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"RIFF\0\0\0\0AVI LIST"])
def test_other_content_gets_the_suffix_bin(content: bytes) -> None:
    assert image_suffix(content) == ".bin"


def test_png_is_lossless() -> None:
    image = pictures.picture("a")
    with Image.open(io.BytesIO(png_bytes(image))) as again:
        assert again.tobytes() == image.tobytes()


def test_hidden_and_empty_files_count_as_missing(tmp_path: Path) -> None:
    for name, content in ((".0000001.png.77", b"x"), ("0000002.png", b""), ("0000003.png", b"x")):
        (tmp_path / name).write_bytes(content)
    assert images_written(tmp_path) == {"0000003": tmp_path / "0000003.png"}
    assert images_written(tmp_path / "elsewhere") == {}


def test_a_full_disk_is_named_and_leaves_no_partial_file(tmp_path: Path) -> None:
    """A real process that may not write files longer than a kilobyte."""
    code = (
        "import pathlib, resource; from microclip.data.layouts.base import write_image\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        f"write_image(pathlib.Path({str(tmp_path)!r}) / 'a.png', b'x' * 4096)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "ResourceError: no room for" in done.stderr
    assert "the images written so far are kept" in done.stderr
    assert list(tmp_path.iterdir()) == []
