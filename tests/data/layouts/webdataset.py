"""CLIP-benchmark's shards: tar files of `<key>.<image>` and `<key>.cls`, and a list of names."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from microclip.settings import HubRoute
from tests.data.layouts import pictures

CLASSES = ("Acura TL Sedan 2012", "Ram C/V Cargo Van Minivan 2012", "Volvo C30 Hatchback 2012")
ORDER = (CLASSES[2], CLASSES[0], CLASSES[1])  # of the copy's numbers: not ours
SPLITS = {"paper": (18, 9)}
ROUTE = HubRoute(
    kind="hub",
    layout="webdataset",
    repository="clip-benchmark/wds_cars",
    files=("*.tar", "classnames.txt"),
    parts={"train": "train", "test": "test"},
)
_FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))


def write_shard(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a tar file of members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def samples(part: str, numbers: range) -> dict[str, bytes]:
    """A shard's members: sample `n` has the copy's class `n % 3`."""
    members: dict[str, bytes] = {}
    for number in numbers:
        suffix, kind = _FORMATS[number % 2 if number else 2]
        stream = io.BytesIO()
        pictures.picture(f"{part}/{number}").save(stream, kind)
        members[f"s{number:07}.cls"] = str(number % len(ORDER)).encode()
        members[f"s{number:07}.{suffix}"] = stream.getvalue()
    return members


def build(folder: Path) -> None:
    """Write the copy below `folder`: two shards of `train`, one of `test`."""
    hub = folder / "hub"
    write_shard(hub / "train/0.tar", samples("train", range(9)))
    write_shard(hub / "train/1.tar", samples("train", range(9, 18)))
    write_shard(hub / "test/0.tar", samples("test", range(9)))
    (hub / "train/nshards.txt").write_text("2")
    (hub / "test/nshards.txt").write_text("1")
    (hub / "classnames.txt").write_text("\n".join(ORDER))
    (hub / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.")
