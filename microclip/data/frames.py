"""The middle frame of a video, by PyAV (extra `video`)."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from PIL import Image

from microclip import runtime

_RIFF_HEADER = 8  # bytes before those that an AVI's header counts


class CutVideoError(ValueError):
    """A video of which a part, or every frame, is missing."""


def middle_frame(path: Path) -> Image.Image:
    """Return frame `n // 2` of the `n` that can be decoded, counted from 0, as RGB.

    Raises:
        CutVideoError: fewer bytes than its header says, or not one frame.
        ResourceError: PyAV is not installed.
    """
    av = _pyav()
    _check_whole(path)
    kept: deque[Any] = deque()  # the second half of those seen
    seen = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise CutVideoError("it has no pictures")
            for packet in container.demux(video=0):
                for frame in _frames(packet, av.error.InvalidDataError):
                    kept.append(frame)
                    seen += 1
                    if seen - len(kept) < seen // 2:
                        kept.popleft()
    except av.error.FFmpegError as error:
        raise CutVideoError(f"it cannot be decoded ({error.strerror})") from error
    if not kept:
        raise CutVideoError("it has not one frame")
    image: Image.Image = kept[0].to_image()
    return image


def _frames(packet: Any, damage: type[Exception]) -> list[Any]:
    """Return the frames that a packet completes; none of one that is damaged, as players do."""
    try:
        return list(packet.decode())
    except damage:
        return []


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise runtime.ResourceError(
            "videos need PyAV, which is not installed: pip install 'microclip[video]'"
        ) from None
    return av


def _check_whole(path: Path) -> None:
    """Hold an AVI's size against what its header says; other files are left to the decoder."""
    size = path.stat().st_size
    if not size:
        raise CutVideoError("it is empty")
    with path.open("rb") as stream:
        header = stream.read(_RIFF_HEADER)
    said = int.from_bytes(header[4:8], "little") + _RIFF_HEADER
    if header[:4] == b"RIFF" and size < said:
        raise CutVideoError(f"it has {size} of {said} bytes")
