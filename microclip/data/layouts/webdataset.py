"""CLIP-benchmark's shards from the hub: `hub/{train,test}/*.tar` and `hub/classnames.txt`.

A shard has two members per sample: `<key>.jpg` (or png, webp) and `<key>.cls`, the number of a line
in `classnames.txt`. Members' names are used as keys, never as paths; images are written once below
`images/`.
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import (
    IMAGES,
    SUFFIXES,
    Item,
    Listing,
    image_name,
    image_suffix,
    images_written,
    labels_by_name,
    lines,
    parts_note,
    write_image,
)
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

logger = logging.getLogger(__name__)
HUB = "hub"
NAMES = "classnames.txt"
NEEDS = (f"{HUB}/{NAMES}", f"{HUB}/*/*.tar")
_BLOCK = 512  # bytes per block of a tar; two empty ones end it
_LONGEST_LABEL = 32  # bytes
_READ = 1 << 20  # bytes after the end that are checked to be empty


@dataclass
class _Sample:
    """Where a sample's members are in the tar; filled in while the shard is read."""

    key: str
    image: tarfile.TarInfo | None = None
    label: str = ""


@dataclass(frozen=True)
class _Shard:
    path: Path
    part: str
    samples: list[_Sample] = field(default_factory=list)


def read(folder: Path, class_names: Sequence[str], route: HubRoute | None) -> Listing:
    """List the images of the parts that `route` names, or of all folders if it names none.

    Raises:
        MissingDataError: a part without a shard, a shard that is cut short, half a sample.
        SettingsError: a number that `classnames.txt` does not name, or names other than ours.
    """
    hub = folder / HUB
    names = lines(hub / NAMES)
    labels = labels_by_name(names, class_names, str(hub / NAMES))
    parts = dict(route.parts) if route else {}
    found = {path.name for path in hub.iterdir() if path.is_dir() and any(path.glob("*.tar"))}
    items: list[Item] = []
    for name, part in (parts or {name: name for name in sorted(found)}).items():
        shards = sorted((hub / name).glob("*.tar"))
        if not shards:
            raise runtime.MissingDataError(f"no shard {hub / name}/*.tar; get the dataset again")
        for path in shards:
            items += _items(_Shard(path, part), folder, names, labels)
    return Listing(
        tuple(sorted(items, key=lambda item: item.name)),
        parts_note(found - set(parts), parts) if parts else (),
    )


def _items(
    shard: _Shard, folder: Path, names: Sequence[str], labels: dict[str, int]
) -> Iterator[Item]:
    stem = f"{shard.path.parent.name}/{shard.path.stem}"
    with _opened(shard.path) as archive:
        _walk(archive, shard)
        keys = [_class_of(sample, names, shard.path) for sample in shard.samples]
        paths = _write(archive, shard, folder)
    for sample, key, path in zip(shard.samples, keys, paths, strict=True):
        yield Item(path, f"{stem}/{sample.key}", labels[key], key, shard.part)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with path.open("rb") as stream:
            stream.seek(-min(2 * _BLOCK, path.stat().st_size), 2)
            if any(stream.read()) or path.stat().st_size < 2 * _BLOCK:
                raise tarfile.ReadError("its end is missing")
        with tarfile.open(path, "r:") as archive:
            yield archive
    except tarfile.TarError as error:
        raise runtime.MissingDataError(
            f"{path} is cut short or not a tar file ({error}); delete it and get the dataset again"
        ) from error


def _walk(archive: tarfile.TarFile, shard: _Shard) -> None:
    """Fill in the samples of a shard, in its order; other members are ignored."""
    samples: dict[str, _Sample] = {}
    for member in archive:
        key, dot, suffix = member.name.rpartition("/")[2].partition(".")
        if not member.isreg() or not dot or not key:
            continue
        folder = member.name.rpartition("/")[0]
        key = f"{folder}/{key}" if folder else key
        if f".{suffix.lower()}" in SUFFIXES:
            samples.setdefault(key, _Sample(key)).image = member
        elif suffix == "cls" and member.size <= _LONGEST_LABEL:
            content = _content(archive, member)
            samples.setdefault(key, _Sample(key)).label = content.decode("ascii", "replace").strip()
    if archive.fileobj is not None:  # tarfile takes anything that is not a header for the end
        archive.fileobj.seek(archive.offset)
        if any(archive.fileobj.read(_READ)):
            raise tarfile.ReadError(f"the data after byte {archive.offset} is not a member")
    shard.samples.extend(samples.values())


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    content = stream.read() if stream else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} is not whole")
    return content


def _class_of(sample: _Sample, names: Sequence[str], path: Path) -> str:
    """Name of a sample's class, as `classnames.txt` writes it."""
    if sample.image is None or not sample.label:
        what = "image" if sample.image is None else "label (.cls)"
        raise runtime.MissingDataError(
            f"sample {sample.key!r} of {path} has no {what}; delete the file and get the dataset "
            "again"
        )
    if not sample.label.isdecimal() or int(sample.label) >= len(names):
        raise SettingsError(
            f"sample {sample.key!r} of {path} has label {sample.label!r}, but {NAMES} has "
            f"{len(names)} names; they are from two copies, get the dataset again"
        )
    return names[int(sample.label)]


def _write(archive: tarfile.TarFile, shard: _Shard, folder: Path) -> list[Path]:
    """Write the shard's missing images and return the paths of all."""
    target = folder / IMAGES / shard.path.parent.name / _identity(shard)
    target.mkdir(parents=True, exist_ok=True)
    there = images_written(target)
    if len(there) < len(shard.samples):
        logger.info("%s: %d images to write", shard.path, len(shard.samples) - len(there))
    for index, sample in enumerate(shard.samples):
        name = image_name(index)
        if name not in there and sample.image is not None:
            content = _content(archive, sample.image)
            suffix = image_suffix(content)
            there[name] = write_image(target / f"{name}{suffix}", content)
    return [there[image_name(index)] for index in range(len(shard.samples))]


def _identity(shard: _Shard) -> str:
    """A folder name that no other revision of this shard gets."""
    digest = hashlib.sha256()
    for sample in shard.samples:
        size = sample.image.size if sample.image else 0
        digest.update(f"{sample.key}\0{size}\0{sample.label}\n".encode())
    return f"{shard.path.stem}-{digest.hexdigest()[:8]}"
