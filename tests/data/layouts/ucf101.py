"""UCF101 as its archives unpack: real videos or middle frames per class, and split 1's lists."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.data.layouts import pictures

CLASSES = ("Apply Eye Makeup", "Hammer Throw", "Hammering", "Handstand Pushups")
KEYS = (
    "ApplyEyeMakeup",
    "Hammering",
    "HammerThrow",
    "HandstandPushups",
)  # as classInd.txt has them
SPLITS = {"paper": (16, 8), "official": (16, 8)}
PER_CLASS = 6  # four of which train
_LEVELS = 20  # grey of frame n is 20 n, far enough apart to survive compression


def write_video(path: Path, n_frames: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Write an MPEG-4 AVI: frame `n` has grey 20 n of 255 on the left, the name's on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pictures.picture(path.name, size)).copy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(n_frames):
            pixels[:, : size[0] // 2] = number * _LEVELS
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def frame_of(path: Path) -> int:
    """The number of the frame in such a video that an image shows."""
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
    return round(float(grey[:, : grey.shape[1] // 2].mean()) / _LEVELS)


def clip(key: str, number: int) -> str:
    """A clip's name without suffix; one class's files are spelled differently."""
    return f"v_{key.replace('HandstandP', 'HandStandP')}_g{number:02}_c01"


def write_lists(folder: Path) -> None:
    """Write `ucfTrainTestlist`."""
    lists: dict[str, list[str]] = {"trainlist01.txt": [], "testlist01.txt": []}
    for label, key in enumerate(KEYS, start=1):
        for number in range(1, PER_CLASS + 1):
            name = f"{key}/{clip(key, number)}.avi"
            if number > 2:
                lists["trainlist01.txt"].append(f"{name} {label}")
            else:
                lists["testlist01.txt"].append(name)
    root = folder / "ucfTrainTestlist"
    root.mkdir(parents=True)
    for name, clips in lists.items():
        (root / name).write_text("\r\n".join(clips) + "\r\n")
    numbered = [f"{label} {key}" for label, key in enumerate(KEYS, start=1)]
    (root / "classInd.txt").write_text("\r\n".join(numbered) + "\r\n")


def build(folder: Path) -> None:
    """Write the copy with videos of six frames below `folder`."""
    write_lists(folder)
    for key in KEYS:
        for number in range(1, PER_CLASS + 1):
            write_video(folder / f"UCF-101/{key}/{clip(key, number)}.avi", 6)


def build_frames(folder: Path) -> None:
    """Write the copy with middle frames below `folder`."""
    write_lists(folder)
    for key, name in zip(KEYS, ("Apply_Eye_Makeup", "Hammering", "Hammer_Throw"), strict=False):
        for number in range(1, PER_CLASS + 1):
            pictures.write(folder / f"UCF-101-midframes/{name}/{clip(key, number)}.jpg")
    for number in range(1, PER_CLASS + 1):
        name = clip("HandstandPushups", number)
        pictures.write(folder / f"UCF-101-midframes/Handstand_Pushups/{name}.jpg")
