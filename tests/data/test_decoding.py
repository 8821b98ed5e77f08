"""Decoding one image file: the rule for each kind, and what is refused before decoding."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.data.decoding import (
    DARK,
    STRETCHED,
    UnreadableError,
    decode,
    decode_all,
    formats,
    suffixes,
    to_rgb,
)
from tests.data import odd_files
from tests.data.odd_files import RED, SIZE, picture


def flat(path: Path) -> np.ndarray:
    """Mean colour of a flat image."""
    pixels = decode(path).pixels
    assert np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 2
    return pixels.reshape(-1, 3).mean(axis=0)


def test_an_ordinary_image_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        picture().save(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            expected = np.asarray(opened.convert("RGB"))
        decoded = decode(tmp_path / name)
        np.testing.assert_array_equal(decoded.pixels, expected)
        assert (decoded.mode, decoded.traits) == ("RGB", ())


@pytest.mark.parametrize("name", odd_files.GOOD)
def test_every_odd_kind_of_image_is_read(tmp_path: Path, name: str) -> None:
    odd_files.GOOD[name](tmp_path / name)
    decoded = decode(tmp_path / name)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape[2] == 3
    if decoded.pixels.shape[:2] == SIZE[::-1]:
        expected = np.asarray(picture(), dtype=float)
        assert abs(decoded.pixels - expected).mean() < 6  # lossy formats, palettes
    if name.startswith("animated"):
        assert decoded.traits == ("animated",)


@pytest.mark.parametrize("name", odd_files.BAD)
def test_an_unusable_file_is_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    make, reason = odd_files.BAD[name]
    make(tmp_path / name)
    with pytest.raises(UnreadableError) as caught:
        decode(tmp_path / name)
    print(f"{name}: {caught.value}")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_not_a_bad_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "gone.jpg")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter
    for name in ("turned.jpg", "turned.png", "turned.tif", "turned.webp"):
        image.save(tmp_path / name, exif=exif)
        decoded = decode(tmp_path / name)
        assert decoded.pixels.shape == (20, 10, 3)
        assert decoded.traits == ("rotated",)


def test_an_image_with_damaged_metadata_is_read(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 20)
    assert decode(tmp_path / "a.jpg").pixels.shape == (40, 50, 3)


@pytest.mark.parametrize("rgb", [(255, 255, 255), (255, 0, 0), RED, (0, 0, 0)])
def test_cmyk_and_ycck_keep_their_colours(tmp_path: Path, rgb: tuple[int, int, int]) -> None:
    Image.new("RGB", (16, 16), rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert abs(flat(tmp_path / "cmyk.jpg") - rgb).max() <= 3
    odd_files.write_ycck(tmp_path / "ycck.jpg", rgb)
    assert abs(flat(tmp_path / "ycck.jpg") - rgb).max() <= 3


def test_a_colour_profile_is_ignored(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    picture().save(tmp_path / "profile.png", icc_profile=b"any profile")
    np.testing.assert_array_equal(
        decode(tmp_path / "plain.png").pixels, decode(tmp_path / "profile.png").pixels
    )


def test_transparency_is_composed_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (9, 9), 0)
    palette.save(tmp_path / "clear.gif", transparency=0)
    assert flat(tmp_path / "clear.gif").tolist() == [255, 255, 255]
    Image.new("L", (9, 9), 7).save(tmp_path / "grey.png", transparency=7)
    assert flat(tmp_path / "grey.png").tolist() == [255, 255, 255]
    half = Image.new("LA", (9, 9), (0, 128))
    assert abs(to_rgb(half).getpixel((0, 0))[0] - 127) <= 1  # type: ignore[index]


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [to_rgb(grey).getpixel((x, 0)) for x in range(3)] == [(v,) * 3 for v in (0, 100, 255)]
    colours = {"bits": 16, "colour": 2, "pixel": b"\x20\xff\x40\x00\x60\x80"}
    odd_files.write_png(tmp_path / "c.png", (9, 9), **colours)
    assert flat(tmp_path / "c.png").tolist() == [0x20, 0x40, 0x60]
    clear = {"bits": 16, "colour": 6, "pixel": b"\x20\0\x40\0\x60\0\0\0"}
    odd_files.write_png(tmp_path / "a.png", (9, 9), **clear)
    assert flat(tmp_path / "a.png").tolist() == [255, 255, 255]


def test_float_and_wide_grey_are_read_by_their_range(tmp_path: Path) -> None:
    for values, expected in (
        (np.float32(0.5), 128),  # all within [0, 1]: a share of white
        (np.float32(100.0), 100),
        (np.float32(1e9), 255),
        (np.float32("nan"), 0),
        (np.int32(100), 100),
        (np.int32(257 * 100), 100),  # beyond 255: 16 bits in 32
        (np.int32(-5), 0),
    ):
        Image.fromarray(np.full((9, 9), values)).save(tmp_path / "wide.tif")
        assert flat(tmp_path / "wide.tif").tolist() == [expected] * 3, values


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_black_and_white_and_lab_keep_their_colours(tmp_path: Path) -> None:
    Image.new("1", (9, 9), 1).save(tmp_path / "white.png")
    assert flat(tmp_path / "white.png").tolist() == [255, 255, 255]
    Image.new("LAB", (9, 9), (255, 128, 128)).save(tmp_path / "lab.tif")
    assert flat(tmp_path / "lab.tif").min() >= 250


def test_a_shorter_side_above_the_canvas_is_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600)).save(tmp_path / "big.png")
    assert decode(tmp_path / "big.png", 448).pixels.shape == (448, 672, 3)
    assert decode(tmp_path / "big.png", 600).pixels.shape == (600, 900, 3)
    assert decode(tmp_path / "big.png").pixels.shape == (600, 900, 3)


def test_an_image_with_a_wrong_suffix_is_read_and_noted(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png", format="JPEG")
    assert decode(tmp_path / "a.png").traits == ("other suffix",)


def test_formats_that_other_programs_would_render_are_not_read() -> None:
    assert not {"EPS", "WMF", "PDF"} & set(formats())
    assert {".jpg", ".png", ".webp", ".tif", ".avif", ".heic", ".jfif"} <= suffixes()
    assert not {".pdf", ".eps", ".txt", ".mp4", ".svg"} & suffixes()


def test_without_pillow_heif_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    """In a separate Python process that cannot import the package."""
    odd_files.GOOD["telephone.heic"](tmp_path / "a.heic")
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from pathlib import Path\n"
        "from microclip.data.decoding import decode\n"
        "from microclip.data.files import image_files\n"
        "for ask in (lambda: decode(Path('a.heic')), lambda: image_files(Path())):\n"
        "    try: ask()\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    print(done.stdout)
    first, second = done.stdout.splitlines()
    assert first == "HEIC, which needs pillow-heif: pip install 'microclip[heif]'"
    assert second.startswith("No images in . (looked for jpg, png, webp")
    assert "found 1 .heic: install pillow-heif" in second


def chunk(kind: bytes, content: bytes, *, is_damaged: bool = False) -> bytes:
    check = zlib.crc32(kind + content) ^ is_damaged
    return len(content).to_bytes(4) + kind + content + check.to_bytes(4)


LARGE = zlib.compress(bytes(3_000_000))
TEXTS = {
    "a profile of 3 MB": chunk(b"iCCP", b"printer\0\0" + LARGE),
    "a compressed comment of 3 MB": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "an international comment of 3 MB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "70 comments of 1 MB": 70 * chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000))),
    "a comment with a wrong checksum": chunk(b"tEXt", b"Comment\0x", is_damaged=True),
    "a profile of another compression": chunk(b"iCCP", b"printer\0\7" + LARGE),
    "an orientation with a wrong checksum": chunk(b"eXIf", b"MM\0*", is_damaged=True),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("is_last", [False, True])
def test_a_png_is_read_whatever_its_profile_and_texts_are(
    tmp_path: Path, text: bytes, is_last: bool
) -> None:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    plain = stream.getvalue()
    place = plain.rindex(b"IEND") - 4 if is_last else 33  # after the header
    (tmp_path / "big.png").write_bytes(plain[:place] + text + plain[place:])
    (tmp_path / "plain.png").write_bytes(plain)
    found = decode(tmp_path / "big.png")
    np.testing.assert_array_equal(found.pixels, decode(tmp_path / "plain.png").pixels)


def test_an_orientation_beside_a_large_profile_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (20, 30)).save(stream, "PNG", exif=exif)
    plain = stream.getvalue()
    (tmp_path / "a.png").write_bytes(plain[:33] + TEXTS["a profile of 3 MB"] + plain[33:])
    found = decode(tmp_path / "a.png")
    assert found.pixels.shape == (20, 30, 3)
    assert "rotated" in found.traits


def test_a_png_cut_short_is_refused_with_or_without_a_large_profile(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    plain = stream.getvalue()
    (tmp_path / "a.png").write_bytes(plain[:33] + TEXTS["a profile of 3 MB"] + plain[33:-400])
    with pytest.raises(UnreadableError):
        decode(tmp_path / "a.png")


def test_a_tiff_that_pillow_does_not_read_is_not_called_no_image(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.index((277).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[place + 8] = 5  # samples a pixel
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnreadableError, match="of a kind that Pillow does not read"):
        decode(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("white", "is_dark"), [(4095, True), (1023, True), (65535, False)])
def test_12_bit_values_in_a_16_bit_file_are_noted(
    tmp_path: Path, suffix: str, white: int, is_dark: bool
) -> None:
    values = np.linspace(0, white, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert (DARK in decode(tmp_path / f"a.{suffix}").traits) is is_dark


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("n_processes", [0, 1])
def test_stretch_gives_12_bit_values_the_levels_of_16_bits(
    tmp_path: Path, suffix: str, n_processes: int
) -> None:
    shares = np.linspace(0, 1, 400).reshape(20, 20)
    files = [tmp_path / f"{white}.{suffix}" for white in (4095, 65535)]
    for file in files:
        Image.fromarray((shares * int(file.stem)).astype(np.uint16)).save(file)
    dark, usual = decode_all(files, stretch=True, n_processes=n_processes)
    assert not isinstance(dark, UnreadableError)
    assert not isinstance(usual, UnreadableError)
    assert (dark.traits, usual.traits) == ((STRETCHED,), ())
    assert dark.pixels.max() == 255
    np.testing.assert_allclose(dark.pixels, usual.pixels, atol=1)
    np.testing.assert_array_equal(usual.pixels, decode(files[1]).pixels)


def test_12_bit_values_in_16_bit_colour_are_noted(tmp_path: Path) -> None:
    for name, white in (("dark", 4095), ("usual", 65535)):
        rows = np.linspace(0, white, 20 * 20 * 3).astype(">u2").reshape(20, 60)
        data = b"".join(b"\0" + row.tobytes() for row in rows)
        head = (20).to_bytes(4) * 2 + bytes((16, 2, 0, 0, 0))
        body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert DARK in decode(tmp_path / "dark.png").traits
    assert DARK in decode(tmp_path / "dark.png", stretch=True).traits
    assert DARK not in decode(tmp_path / "usual.png").traits


def test_a_dark_picture_of_8_bits_is_not_noted(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (3, 2, 1)).save(tmp_path / "a.png")
    Image.new("L", (20, 20), 3).save(tmp_path / "b.png")
    assert decode(tmp_path / "a.png").traits == decode(tmp_path / "b.png").traits == ()
