"""One image file as RGB bytes: a rule for every kind of image, and what is refused.

Limits are checked from the file's header, before anything is decoded. Colour profiles (ICC) are
ignored: CLIP was trained on pixels as they are stored.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Generator, Sequence
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


FILES_A_PROCESS = 48  # fewer are decoded before a process has started (about 0.4 s)
_AHEAD = 3  # images a process that may wait to be taken: what bounds the memory
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_PACKAGES = str(Path(__file__).resolve().parents[2])

Result = Decoded | UnreadableError
Results = Generator[Result, None, None]


def n_processes_for(n_files: int) -> int:
    """Return how many processes decode: MICROCLIP_THREADS or the CPUs, none for a few files."""
    named = os.environ.get("MICROCLIP_THREADS")
    cpus = int(named) if named else len(os.sched_getaffinity(0))
    n = min(cpus, n_files // FILES_A_PROCESS)
    return n if n > 1 and sys.executable else 0


def decode_all(
    files: Sequence[Path], *, n_processes: int | None = None, has_pixels: bool = True
) -> Results:
    """Yield each file decoded, or why it cannot be, in order; see `decoding.decode`.

    `n_processes` 0 decodes here, None chooses (`count`); the bytes do not depend on it. Without
    `has_pixels` the images are empty: only whether they can be read is asked.

    Raises:
        MissingDataError: a file is gone.
        ResourceError: a process was ended from outside; the message names its file.
    """
    n = n_processes_for(len(files)) if n_processes is None else n_processes
    if n == 0:
        return (_decode_here(path) for path in files)
    return _decode_in_processes(files, n, has_pixels=has_pixels)


def _decode_here(path: Path) -> Result:
    try:
        return decode(path)
    except UnreadableError as error:
        return error
    except FileNotFoundError:
        raise _gone(path) from None


def _decode_in_processes(files: Sequence[Path], n: int, *, has_pixels: bool) -> Results:
    """Yield results in order; `_AHEAD` images a process are under way or wait."""
    idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
    decoders = [_Decoder() for _ in range(n)]
    for decoder in decoders:
        idle.put(decoder)

    def ask(path: Path) -> Result:
        decoder = idle.get()
        try:
            return decoder.decode(path, has_pixels=has_pixels)
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
                    decoder.kill()  # a thread that waits for it hears the end
    finally:
        for decoder in decoders:
            decoder.close()


@dataclass(frozen=True)
class _Answer:
    """What a process says of a file, a line of JSON; the pixels follow it."""

    is_gone: bool = False
    reason: str | None = None  # why the file cannot be read
    mode: str = ""
    traits: tuple[str, ...] = ()
    height: int = 0
    width: int = 0


class _Decoder:
    """A process that decodes; a new one takes its place if a file crashes it."""

    def __init__(self) -> None:
        self._process = _start()

    def decode(self, path: Path, *, has_pixels: bool) -> Result:
        """Return what the process says of a file. Raises as `decode_all`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        order = b"d" if has_pixels else b"v"
        try:
            process.stdin.write(order + os.fsencode(path.absolute()).hex().encode() + b"\n")
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
        """End the process, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """Wait for its end and close the pipes."""
        self._process.communicate()

    def _dead(self, path: Path) -> UnreadableError:
        """Return what a dead process says of its file, if the file is to blame."""
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
    # -P: modules of the working folder are not taken for Python's own.
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what decoders print of odd files; the reason is answered
        env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGES, *inherited])},
    )


def _gone(path: Path) -> runtime.MissingDataError:
    return runtime.MissingDataError(f"image {path} is gone; fetch the dataset again")


def _serve() -> None:
    """Decode what standard input names until it is closed, by the other process or by its end.

    A line is "d" (decode) or "v" (verify: no pixels are sent back) and a path in hexadecimal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # libraries that print must not spoil an answer
        for line in sys.stdin.buffer:
            path = Path(os.fsdecode(bytes.fromhex(line[1:].decode())))
            _reply(answers, path, has_pixels=line[:1] == b"d")


def _reply(answers: BinaryIO, path: Path, *, has_pixels: bool) -> None:
    pixels = np.empty((0, 0, 3), np.uint8)
    try:
        decoded = decode(path)
    except FileNotFoundError:
        answer = _Answer(is_gone=True)
    except UnreadableError as error:
        answer = _Answer(reason=str(error))
    else:
        if has_pixels:
            pixels = np.ascontiguousarray(decoded.pixels)
        height, width = pixels.shape[:2]
        answer = _Answer(mode=decoded.mode, traits=decoded.traits, height=height, width=width)
    answers.write(json.dumps(asdict(answer)).encode() + b"\n")
    answers.write(pixels.data)  # as they are, without a copy
    answers.flush()


if __name__ == "__main__":
    _serve()
