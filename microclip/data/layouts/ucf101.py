"""UCF101 as its archives unpack: videos or middle frames, and the lists of the official splits.

The videos are `UCF-101/<Class>/v_<Class>_g01_c01.avi`: PyAV (extra `video`) reads the middle frame
of each, which is written once below `images/`. CoOp's frames, `UCF-101-midframes/
<Class_With_Underscores>/v_<Class>_g01_c01.jpg`, are read as they are. The clips are those of split
1 (`ucfTrainTestlist/{train,test}list01.txt`).
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from microclip import runtime
from microclip.data.layouts.base import (
    IMAGES,
    SHOWN,
    SUFFIXES,
    Item,
    Listing,
    images_written,
    labels_by_name,
    lines,
    place,
    png_bytes,
    write_image,
)
from microclip.settings.base import SettingsError, cut
from microclip.settings.datasets import HubRoute

logger = logging.getLogger(__name__)
VIDEOS, FRAMES, LISTS = "UCF-101", "UCF-101-midframes", "ucfTrainTestlist"
_LIST_OF = {"train": "trainlist01.txt", "test": "testlist01.txt"}
NEEDS = (
    f"{FRAMES}|{VIDEOS}",
    f"{LISTS}/classInd.txt",
    *(f"{LISTS}/{name}" for name in _LIST_OF.values()),
)
_VIDEO_SUFFIXES = frozenset({".avi"})
_REPORT_EVERY = 500
_NUMBER = re.compile("[0-9]{1,6}")
_RIFF_HEADER = 8  # bytes that the size in an AVI's header does not count


@dataclass(frozen=True)
class _Clip:
    """A line of a list, such as ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1."""

    key: str  # the class as classInd.txt writes it
    stem: str
    part: str

    @property
    def name(self) -> str:
        return f"{self.key}/{self.stem}"

    @property
    def fold(self) -> str:
        """The key to find its file by: v_HandStandPushups is in the folder HandstandPushups."""
        return _fold(self.key, self.stem)


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the middle frames of split 1's clips.

    Raises:
        MissingDataError: a list or a clip is missing, or a video is cut short.
        SettingsError: the lists contradict each other or our classes.
        ResourceError: there are videos, but PyAV is not installed.
    """
    keys = _classes(place(folder, f"{LISTS}/classInd.txt"))
    labels = labels_by_name(keys.values(), class_names, str(folder / LISTS), spell=_words)
    clips = _clips(folder, keys)
    root = place(folder, FRAMES)
    suffixes = SUFFIXES
    if not root.is_dir():
        root, suffixes = place(folder, VIDEOS), _VIDEO_SUFFIXES
    files = _files(root, suffixes)
    gone = [clip.name for clip in clips if clip.fold not in files]
    if gone:
        raise runtime.MissingDataError(
            f"{len(gone)} of {len(clips)} clips of split 1 are not below {root}: "
            f"{', '.join(map(cut, gone[:SHOWN]))}; the archive was cut short or files were "
            "removed, get it again"
        )
    if suffixes is _VIDEO_SUFFIXES:
        files = _write(clips, files, folder / IMAGES)
    n_others = len(set(files) - {clip.fold for clip in clips})
    notes = _numbered_differently(keys, labels)
    if n_others:
        notes += (f"{n_others} clips that split 1 does not name were left out",)
    return Listing(
        tuple(
            Item(files[clip.fold], clip.name, labels[clip.key], clip.key, clip.part)
            for clip in sorted(clips, key=lambda clip: clip.name)
        ),
        notes,
    )


def _numbered_differently(keys: Mapping[str, str], labels: Mapping[str, int]) -> tuple[str, ...]:
    """A note on classes whose label is not their number less 1: labels go by name, in our order."""
    moved = [(k, n, labels[k]) for n, k in keys.items() if int(n) - 1 != labels[k]]
    if not moved:
        return ()
    shown = ", ".join(
        f"{key} is {number} there and label {label} here" for key, number, label in moved
    )
    return (
        f"{len(moved)} of {len(keys)} classes are numbered differently in classInd.txt: {shown}",
    )


def _words(key: str) -> str:
    """A class's name in words: ApplyEyeMakeup is "Apply Eye Makeup"."""
    return " ".join(re.findall("[A-Z][^A-Z]*", key)) or key


def _fold(folder: str, stem: str) -> str:
    return f"{folder.replace('_', '')}/{stem}".casefold()


def _classes(path: Path) -> dict[str, str]:
    """Classes by their numbers, "1" for the first."""
    keys: dict[str, str] = {}
    for line in lines(path):
        number, _, key = line.partition(" ")
        key = key.strip()
        if not _NUMBER.fullmatch(number) or not key or number in keys or key in keys.values():
            raise SettingsError(
                f"{path} says {cut(line)!r}; expected one number and class per line, each once: "
                "get the lists again"
            )
        keys[number] = key
    return keys


def _clips(folder: Path, keys: Mapping[str, str]) -> list[_Clip]:
    """Read the clips of both lists; a training clip's number must be its class's."""
    clips: dict[str, _Clip] = {}
    own = {key.casefold(): key for key in keys.values()}
    for part, name in _LIST_OF.items():
        path = place(folder, f"{LISTS}/{name}")
        for line in lines(path):
            file, _, number = line.partition(" ")
            key, _, video = file.replace("\\", "/").partition("/")
            key = own.get(key.casefold(), key)
            # A test list has no numbers; one that no class has would be a cut or altered line.
            stated = keys.get(number.strip()) if number.strip() else key
            if not video or stated != key or key.casefold() not in own:
                raise SettingsError(
                    f"{path} says {cut(line)!r}, which classInd.txt contradicts; get the lists "
                    "again"
                )
            clip = _Clip(key, Path(video).stem, part)
            if clip.fold in clips:
                raise SettingsError(f"{cut(clip.name)} is in the lists twice; get them again")
            clips[clip.fold] = clip
    return list(clips.values())


def _files(root: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Files in the class folders, by folded name; two with the same name are refused."""
    files: dict[str, Path] = {}
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            fold = _fold(path.parent.name, path.stem)
            if fold in files:
                raise SettingsError(f"{files[fold]} and {path} are the same clip; remove one")
            files[fold] = path
    return files


def _write(clips: Sequence[_Clip], videos: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Write the missing middle frames; return all files by folded name."""
    frames = dict(videos)
    cut: list[str] = []
    there: dict[str, dict[str, Path]] = {}
    for number, clip in enumerate(clips, start=1):
        target = folder / clip.key
        if clip.key not in there:
            target.mkdir(parents=True, exist_ok=True)
            there[clip.key] = images_written(target)
        path = target / f"{clip.stem}.png"
        if clip.stem not in there[clip.key]:
            try:
                write_image(path, png_bytes(middle_frame(videos[clip.fold])))
            except CutVideoError as error:
                cut.append(f"{videos[clip.fold]} ({error})")
            if number % _REPORT_EVERY == 0:
                logger.info("middle frames of %d of %d clips", number, len(clips))
        frames[clip.fold] = path
    if cut:
        raise runtime.MissingDataError(
            f"{len(cut)} of {len(clips)} videos cannot be used: {', '.join(cut[:SHOWN])}; get "
            "them again, what was written is kept"
        )
    return frames


class CutVideoError(ValueError):
    """A part of a video, or every frame, is missing."""


def middle_frame(path: Path) -> Image.Image:
    """Return frame `n // 2` of the `n` that can be decoded, counted from 0, as RGB.

    Raises:
        CutVideoError: fewer bytes than the header says, or no frame at all.
        ResourceError: PyAV is not installed.
    """
    av = _pyav()
    _check_whole(path)
    # How many frames can be decoded is known only at the end. So the second half of those seen is
    # kept, and at the end its first frame is the middle one.
    kept: deque[Any] = deque()
    seen = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise CutVideoError("it has no video stream")
            for packet in container.demux(video=0):
                for frame in _frames(packet, av.error.InvalidDataError):
                    kept.append(frame)
                    seen += 1
                    if seen - len(kept) < seen // 2:
                        kept.popleft()
    except av.error.FFmpegError as error:
        raise CutVideoError(f"it cannot be decoded ({error.strerror})") from error
    if not kept:
        raise CutVideoError("it has no frame that can be decoded")
    image: Image.Image = kept[0].to_image()
    return image


def _frames(packet: Any, damage: type[Exception]) -> list[Any]:
    """Frames that a packet completes; a damaged packet is skipped, as video players do."""
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
    """Compare an AVI's size with its header; other files are left to the decoder."""
    size = path.stat().st_size
    if not size:
        raise CutVideoError("it is empty")
    with path.open("rb") as stream:
        header = stream.read(_RIFF_HEADER)
    said = int.from_bytes(header[4:8], "little") + _RIFF_HEADER
    if header[:4] == b"RIFF" and size < said:
        raise CutVideoError(f"it has {size} of {said} bytes")
