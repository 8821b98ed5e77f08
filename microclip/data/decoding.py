"""Image files decoded to RGB bytes: one rule for every kind of image, in parallel processes.

Limits are checked from the file's header, before anything is decoded. Colour profiles (ICC) are
ignored, because CLIP was trained on pixels as they are stored.

`decode_all` schedules the work with `concurrent.futures`, but its threads talk to our own
processes. A `ProcessPoolExecutor` would not do: forked from a process with torch's threads, it may
hang; spawned, it runs the user's script again; and one image that crashes its decoder breaks the
whole pool without saying which. Each of our processes is a fresh Python that reads paths from a
pipe: a crash costs one file, which is named, and the process ends when its pipe closes, even after
`kill -9`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import warnings
import zlib
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from microclip import runtime

RULE = 1  # raise it with any change to the bytes: stores made by another rule are refused
MAX_PIXELS = 120_000_000  # 360 MB as RGB; phones reach 108 megapixels, decompression bombs far more
MIN_SIDE_PX = 8
MAX_PROPORTION = 40  # of the sides; a crop of a 30000 x 20 image would be nothing but interpolation

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_REMEDY = "pip install 'microclip[heif]'"
_NOT_READ = {  # drawn by Ghostscript or the system, which is unsafe, or without a decoder in Pillow
    *("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"),
}
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_ANIMATIONS = frozenset({"GIF", "WEBP", "PNG", "AVIF", "HEIF"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
_OTHER_STARTS = (
    (rb"\s*<(!doctype\s+html|html|head|body|!--)", "an HTML page, not an image: get it again"),
    (rb"\s*<(\?xml|svg)", "XML or a drawing (SVG); save it as PNG"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the image; run `git lfs pull`"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL, which is not read; save it as PNG"),
    (rb"8BPS", "a Photoshop file, of a kind that is not read; save it as PNG"),
    (rb"%(!PS|PDF)", "PostScript or PDF, which is not read; save it as PNG"),
)

Pixels = UInt8[np.ndarray, "height width 3"]


class UnreadableError(ValueError):
    """An image file cannot be used; the message says why, without the file's name."""


class Decoded(NamedTuple):
    """An image as RGB bytes, and what it was in the file."""

    pixels: Pixels
    mode: str  # Pillow's: "RGB", "CMYK", ...
    traits: tuple[str, ...] = ()  # of "rotated", "animated", "several pages", "other suffix"


@cache
def formats() -> tuple[str, ...]:
    """Formats that are read: Pillow's own, and HEIF if pillow-heif is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in Image.OPEN if name not in _NOT_READ)


def reads_heif() -> bool:
    """Can .heic images, as phones take them, be read?"""
    return "HEIF" in formats()


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of images, in lower case; .heic is among them even where it cannot be read."""
    read = formats()
    own = {suffix for suffix, name in Image.registered_extensions().items() if name in read}
    return frozenset(own | HEIF_SUFFIXES)


# Formats whose first bytes no other file has; those of PCX, XBM or PPM could begin a text.
_SELF_NAMED = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF", "JPEG2000")


def is_bare_image(path: Path) -> bool:
    """Has the file no suffix, and the first bytes of an image?"""
    if path.suffix:
        return False
    likely = [name for name in _SELF_NAMED if name in formats()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path, formats=likely).close()
    except Exception:  # noqa: BLE001  given any bytes, Pillow may raise anything
        return False
    return True


def decode(path: Path, canvas_px: int | None = None, *, stretch: bool = False) -> Decoded:
    """Return an image as RGB bytes; a shorter side above `canvas_px` is reduced to it, bicubic.

    EXIF orientation is applied. The first frame or page is used (for an animated PNG, the picture
    that other programs show). Modes: transparency (RGBA, LA, PA, transparent colour) is composited
    on white; 16-bit grey is divided by 257; 32-bit integer grey is clipped to [0, 255], or treated
    as 16-bit grey if a value is larger; float grey is clipped to [0, 255], or treated as a share of
    white if all values are in [0, 1]; of 16-bit colour, Pillow gives the upper byte; CMYK and YCCK
    are read as Adobe writes them, inverted in a JPEG; all others (L, P, 1, YCbCr, LAB, HSV) are
    Pillow's conversion. With `stretch`, a 16-bit grey image without a value above 4095, as of a
    12-bit camera, has 4095 for white.

    Raises:
        FileNotFoundError: the file is gone.
        UnreadableError: it is not an image, cut short, or beyond the limits above.
    """
    try:
        with warnings.catch_warnings():
            # These warn of odd metadata, and of large images, which MAX_PIXELS limits already.
            warnings.simplefilter("ignore")
            return _decode(path, canvas_px, stretch=stretch)
    except (UnreadableError, FileNotFoundError):
        raise
    except Exception as error:  # given any bytes, decoders may raise anything: the file is unusable
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            if (plain := _without_metadata(path)) is not None:
                return _decode(path, canvas_px, plain, stretch=stretch)
        raise UnreadableError(_reason(path, error)) from error


_PNG = b"\x89PNG\r\n\x1a\n"
_METADATA = {b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf", b"pHYs", b"sPLT", b"hIST"}
_METADATA |= {b"bKGD", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"cICP", b"mDCV", b"cLLI", b"iDOT"}
_TURNED_BY = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts with an orientation
_MAX_KEPT = 1 << 16  # bytes of such a text


def _without_metadata(path: Path) -> bytes | None:
    """A PNG file without what Pillow refuses it for: profiles or texts too large, or damaged.

    Pillow unpacks at most 1 MB of each, and takes a wrong checksum there for a broken file. Its
    pixels are whole all the same. None if the file is no PNG or has nothing to leave out.
    """
    content = path.read_bytes() if path.is_file() else b""
    if not content.startswith(_PNG):
        return None
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(content):
        kind = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4])
        chunk = content[start:end]
        is_whole = zlib.crc32(chunk[4:-4]).to_bytes(4) == chunk[-4:]
        turns = kind == b"eXIf" or chunk[8:].startswith(_TURNED_BY)
        if kind not in _METADATA or (turns and is_whole and len(chunk) <= _MAX_KEPT):
            kept.append(chunk)
        start = end
    plain = b"".join([*kept, content[start:]])
    return plain if len(plain) < len(content) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB, by the rule of `decode`."""
    if image.mode.startswith("I;16"):
        # 65535 / 257 is exactly 255, so white stays white.
        return _grey(np.asarray(image).astype(np.uint32) // 257)
    if image.mode == "I":
        values = np.asarray(image, dtype=np.int64)
        _check_range(values, 65535)
        return _grey(values // 257 if values.size and values.max() > 255 else values)
    if image.mode == "F":
        reals = np.nan_to_num(np.asarray(image, dtype=np.float64))
        _check_range(reals, 255)
        is_share = bool(reals.size) and reals.min() >= 0 and reals.max() <= 1
        return _grey(np.rint(reals * 255) if is_share else reals)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _check_range(values: np.ndarray, most: int) -> None:
    """Refuse values most of which would become black or white without a word.

    A few values beyond the range, as resizing leaves them, are clipped.

    Raises:
        UnreadableError: with the range that was found and the expected one.
    """
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    lost = np.mean((values < 0) | (values > most)) if values.size else 0.0
    if values.size and values.min() < values.max() and (lost > 0.5 or (low < 0 and high <= 1)):
        known = "0 to 1 or 0 to 255" if most == 255 else f"0 to {most}"
        raise UnreadableError(f"values from {low:g} to {high:g}, expected {known}; scale them")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def _decode(
    path: Path, canvas_px: int | None, content: bytes | None = None, *, stretch: bool
) -> Decoded:
    """Decode a file, or `content` in its place."""
    if path.exists() and not path.is_file():  # opening a pipe would block forever
        raise UnreadableError("a folder" if path.is_dir() else "a pipe or a device, not a file")
    source = path if content is None else io.BytesIO(content)
    with Image.open(source, formats=formats()) as opened:
        _check_size(*opened.size)
        mode = opened.mode
        is_deep = mode.startswith("I") or any(";16" in str(tile[-1]) for tile in opened.tile)
        is_rotated = _orientation(opened) in range(2, 9)  # may load the image, and empty `tile`
        opened.load()
        turned = _upright(opened)
        traits: tuple[str, ...] = ("rotated",) if is_rotated else ()
        if is_deep and _is_dark(turned):
            is_stretched = stretch and turned.mode.startswith("I")
            traits += (STRETCHED if is_stretched else DARK,)
            turned = _stretched(turned) if is_stretched else turned
        image = to_rgb(turned)
        traits += _traits(path, opened)
    shorter = min(image.size)
    if canvas_px is not None and shorter > canvas_px:
        size = [max(1, round(side * canvas_px / shorter)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return Decoded(np.asarray(image), mode, traits)


DARK = "12-bit values in 16 bits"
STRETCHED = f"{DARK}, stretched"


def darkness(counts: Mapping[str, int]) -> str:
    """A warning of `DARK` images among the counts of traits; "" if there are none."""
    if not (n_dark := counts.get(DARK, 0)):
        return ""
    held = "16-bit image holds" if n_dark == 1 else "16-bit images hold"
    return (
        f"{n_dark} {held} no value above 4095 of 65535, as of a 12-bit camera: nearly black; "
        "grey ones are brightened by `microclip adapt --stretch` (`stretch: true`"
        " in a dataset's source), colour by `magick IN.tif -evaluate multiply 16 OUT.png`"
    )


def _is_dark(image: Image.Image) -> bool:
    """Are all values of a 16-bit image below a sixteenth of white, as a 12-bit camera's are?"""
    values = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA"):  # of 16-bit colour, Pillow gives the upper byte
        values = values[..., : 1 if image.mode == "LA" else 3]  # without the transparency
        return int(values.max(initial=0)) < 16
    return (255 if image.mode == "I" else 0) < int(values.max(initial=0)) < 4096


def _stretched(image: Image.Image) -> Image.Image:
    """A grey image whose white is 4095, as one whose white is 65535."""
    values = np.asarray(image).clip(0, 4095).astype(np.uint32)
    return Image.fromarray((values * 65535 // 4095).astype(np.uint16))


def _check_size(width: int, height: int) -> None:
    shown = f"{width} x {height} px"
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{shown}; at most {MAX_PIXELS // 10**6} megapixels are read")
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadableError(f"{shown}; the shorter side must be at least {MIN_SIDE_PX} px")
    if max(width, height) > MAX_PROPORTION * min(width, height):
        raise UnreadableError(f"{shown}; one side may be at most {MAX_PROPORTION} times the other")


def _orientation(opened: Image.Image) -> int:
    with contextlib.suppress(Exception):  # an image with damaged metadata can still be used
        return int(opened.getexif().get(_ORIENTATION, 1))
    return 1


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # as above; the pixels are already loaded
        return ImageOps.exif_transpose(image)
    return image


def _traits(path: Path, opened: Image.Image) -> tuple[str, ...]:
    """Note what is unusual about an opened file; called last, because it may seek."""
    found = []
    name = str(opened.format)
    named = Image.registered_extensions().get(path.suffix.lower(), name)
    if {named, name} not in ({name}, {"JPEG", "MPO"}, {"BMP", "DIB"}):
        found.append("other suffix")
    with contextlib.suppress(Exception):  # a damaged second frame does not matter
        if getattr(opened, "is_animated", False) and name != "MPO":
            found.append("animated" if name in _ANIMATIONS else "several pages")
    return tuple(found)


def _reason(path: Path, error: Exception) -> str:
    """Say in one line why a file cannot be read."""
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
            return "needs more memory than this machine has"
        case _:
            return " ".join(str(error).split()) or type(error).__name__


def _what_instead(path: Path) -> str:
    """Say what a file is that Pillow does not recognise as an image."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "empty (0 bytes)"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not reads_heif():
        return f"HEIC, which needs pillow-heif: {HEIF_REMEDY}"
    if head[:4] in _TIFF:
        return (
            "a TIFF file that is damaged, or of a kind that Pillow does not read (such as many or "
            "64-bit channels); save it as PNG"
        )
    for start, reason in _OTHER_STARTS:
        if re.match(start, head, re.IGNORECASE):
            return reason
    return "not an image, or one with a damaged beginning"


FILES_A_PROCESS = 48  # fewer are decoded in the 0.4 s that a process takes to start
_AHEAD = 3  # decoded images per process that may wait for the caller; this bounds the memory
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_PACKAGES = str(Path(__file__).resolve().parents[2])

Result = Decoded | UnreadableError
Results = Generator[Result, None, None]


def n_processes_for(n_files: int) -> int:
    """Number of decoding processes: MICROCLIP_THREADS or the CPUs; none for a few files."""
    n = min(runtime.n_cpus(), n_files // FILES_A_PROCESS)
    return n if n > 1 and sys.executable else 0


def decode_all(
    files: Sequence[Path],
    *,
    canvas_px: int | None = None,
    stretch: bool = False,
    n_processes: int | None = None,
    has_pixels: bool = True,
) -> Results:
    """Yield each file decoded (see `decode`), or why it cannot be, in order.

    With `n_processes` 0 this process decodes; None chooses (`n_processes_for`). The bytes are the
    same. Without `has_pixels` the images are empty, which is enough to learn if they can be read.

    Raises:
        MissingDataError: a file is gone.
        ResourceError: a decoding process was killed from outside; the message names its file.
    """
    n = n_processes_for(len(files)) if n_processes is None else n_processes
    order = _Order(canvas_px, stretch=stretch, has_pixels=has_pixels)
    if n == 0:
        return (_decode_here(path, order) for path in files)
    return _decode_in_processes(files, n, order)


def _decode_here(path: Path, order: _Order) -> Result:
    try:
        return decode(path, order.canvas_px, stretch=order.stretch)
    except UnreadableError as error:
        return error
    except FileNotFoundError:
        raise _gone(path) from None


@dataclass(frozen=True)
class _Order:
    """What a process shall do with its files: sent as words before each path."""

    canvas_px: int | None
    stretch: bool
    has_pixels: bool

    def line(self, path: Path) -> bytes:
        """A line of a process's standard input; the path is in hexadecimal."""
        canvas = "-" if self.canvas_px is None else str(self.canvas_px)
        levels = "s" if self.stretch else "-"
        kind = "d" if self.has_pixels else "v"
        words = (kind, canvas, levels, os.fsencode(path.absolute()).hex())
        return " ".join(words).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> tuple[_Order, Path]:
        """Read back what `line` returned."""
        kind, canvas, levels, path = line.decode().split()
        canvas_px = None if canvas == "-" else int(canvas)
        order = cls(canvas_px, stretch=levels == "s", has_pixels=kind == "d")
        return order, Path(os.fsdecode(bytes.fromhex(path)))


def _decode_in_processes(files: Sequence[Path], n: int, order: _Order) -> Results:
    """Yield results in order; at most `_AHEAD` images per process are being decoded or waiting."""
    idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
    decoders = [_Decoder() for _ in range(n)]
    for decoder in decoders:
        idle.put(decoder)

    def ask(path: Path) -> Result:
        decoder = idle.get()
        try:
            return decoder.decode(path, order)
        finally:
            idle.put(decoder)

    waiting: deque[Future[Result]] = deque()
    rest = iter(files)
    try:
        with ThreadPoolExecutor(n) as pool:
            try:
                waiting.extend(pool.submit(ask, path) for path in islice(rest, _AHEAD * n))
                while waiting:
                    yield waiting.popleft().result()
                    waiting.extend(pool.submit(ask, path) for path in islice(rest, 1))
            finally:
                for future in waiting:
                    future.cancel()
                for decoder in decoders:
                    decoder.kill()  # or the pool would wait for threads that wait for an answer
    finally:
        for decoder in decoders:
            decoder.close()


@dataclass(frozen=True)
class _Answer:
    """A process's answer about a file: a line of JSON, followed by the pixels."""

    is_gone: bool = False
    reason: str | None = None  # why the file cannot be read
    mode: str = ""
    traits: tuple[str, ...] = ()
    height: int = 0
    width: int = 0


class _Decoder:
    """A decoding process; a new one replaces it if a file crashes it."""

    def __init__(self) -> None:
        self._process = _start()

    def decode(self, path: Path, order: _Order) -> Result:
        """Return the process's answer for a file. Raises as `decode_all`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(order.line(path))
            process.stdin.flush()
            line = process.stdout.readline()
            answer = _Answer(**json.loads(line)) if line.endswith(b"\n") else None
            n_bytes = answer.height * answer.width * 3 if answer else 0
            data = process.stdout.read(n_bytes)
        except OSError:  # the pipe broke: it has ended
            answer, data, n_bytes = None, b"", 0
        if answer is None or len(data) != n_bytes:
            return self._dead(path)
        if answer.is_gone:
            raise _gone(path)
        if answer.reason is not None:
            return UnreadableError(answer.reason)
        pixels = np.frombuffer(data, np.uint8).reshape(answer.height, answer.width, 3)
        return Decoded(pixels, answer.mode, tuple(answer.traits))

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()

    def close(self) -> None:
        """Wait until it has ended and close the pipes."""
        self._process.communicate()

    def _dead(self, path: Path) -> UnreadableError:
        """Blame the file if the process crashed; raise ResourceError if it was killed."""
        code = self._process.wait()
        if -code in _CRASHES:
            self._process = _start()
            return UnreadableError(f"crashes its decoder ({signal.Signals(-code).name})")
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise runtime.ResourceError(
            f"the process that decoded {path} ended {how}; if memory ran out, "
            "try again with MICROCLIP_THREADS=1"
        )


def _start() -> subprocess.Popen[bytes]:
    # -P keeps modules in the working folder from shadowing Python's own.
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # decoders print there about odd files; the answer says it all
        env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGES, *inherited])},
    )


def _gone(path: Path) -> runtime.MissingDataError:
    return runtime.MissingDataError(f"image {path} is gone; fetch the dataset again")


def _serve() -> None:
    """Decode the files named on standard input until it is closed.

    A line is "d" (decode) or "v" (verify: no pixels are sent back), the canvas, "s"
    (stretch) or "-", and a path.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the asking process, which ends us
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # a library that prints must not corrupt an answer
        for line in sys.stdin.buffer:
            order, path = _Order.read(line)
            _reply(answers, path, order)


def _reply(answers: BinaryIO, path: Path, order: _Order) -> None:
    pixels = np.empty((0, 0, 3), np.uint8)
    try:
        decoded = decode(path, order.canvas_px, stretch=order.stretch)
    except FileNotFoundError:
        answer = _Answer(is_gone=True)
    except UnreadableError as error:
        answer = _Answer(reason=str(error))
    else:
        if order.has_pixels:
            pixels = np.ascontiguousarray(decoded.pixels)
        height, width = pixels.shape[:2]
        answer = _Answer(mode=decoded.mode, traits=decoded.traits, height=height, width=width)
    answers.write(json.dumps(asdict(answer)).encode() + b"\n")
    answers.write(pixels.data)  # the buffer itself, to save a copy
    answers.flush()


if __name__ == "__main__":
    _serve()
