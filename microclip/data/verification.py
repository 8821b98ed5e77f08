"""Whether a public dataset's files are what they were: archives, copies, lists and every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microclip import paths, runtime
from microclip.data import passport
from microclip.data.hub_listing import files_of_copy
from microclip.data.layouts.base import load_layout
from microclip.data.manifest import read_manifest
from microclip.data.part_file import difference, hashes
from microclip.data.progress import Advance, progress
from microclip.data.public import sources
from microclip.settings import DatasetSettings, SettingsError
from microclip.settings.datasets import ArchiveRoute, DatasetCard

_SHOWN = 3

Verdict = Literal["ok", "wrong", "missing", "unknown"]  # unknown: nothing to hold it against


@dataclass(frozen=True)
class Finding:
    """What was found of one thing that was looked at."""

    verdict: Verdict
    text: str


def verify(name: str, dataset: str, card: DatasetCard) -> Iterator[Finding]:
    """Yield what is found of `config/datasets/<name>.yaml`, whose files are those of `dataset`.

    Archives and the files of a copy are hashed where they still are; images are held against the
    manifest of the last fetch.
    """
    found = sources.locate(dataset, card)
    if found is None:
        yield Finding("missing", sources.recipe(dataset, card))
        return
    needs = load_layout(found.layout).NEEDS
    yield Finding("ok", f"layout {found.layout}: all of {len(needs)} needed paths are there")
    yield from _archives(found.folder, card)
    yield from _copy(found.folder / sources.HUB)
    yield from _images(name)


def verify_passport(dataset: DatasetSettings) -> Iterator[Finding]:
    """Yield whether class list, split and manifest are those of the passport, if there is one."""
    path = Path(paths.PASSPORT.format(dataset=dataset.name))
    if not path.is_file():
        return
    try:
        found = passport.check(dataset)
    except (SettingsError, runtime.MissingDataError) as error:
        yield Finding("wrong", str(error))
        return
    yield Finding("ok", f"passport {path}: class list, split and manifest are as stated")
    for warning in passport.warnings(found):
        yield Finding("unknown", warning)


def _archives(folder: Path, card: DatasetCard) -> Iterator[Finding]:
    files = [f for route in card.routes if isinstance(route, ArchiveRoute) for f in route.files]
    for file in files:
        place = sources.place_of(folder, file)
        if not place.is_file():
            continue
        if not (file.md5 or file.sha256):
            yield Finding("unknown", f"{place}: no hash is published")
            continue
        differs = difference(file, hashes(place))
        yield Finding("wrong" if differs else "ok", f"{place}: {differs or 'as published'}")


def _copy(folder: Path) -> Iterator[Finding]:
    files = files_of_copy(folder)
    if not files:
        return
    gone, altered = [], []
    for file in files:
        path = folder / file.path
        if not path.is_file():
            gone.append(file.path)
        elif path.stat().st_size != file.size or not _has_hash(path, file.sha256):
            altered.append(file.path)
    yield from _summary(f"copy {folder}", len(files), gone, altered)


def _images(name: str) -> Iterator[Finding]:
    path = Path(paths.MANIFEST.format(dataset=name))
    if not path.is_file():
        yield Finding("unknown", f"no {path} yet: its images have no hashes to be held against")
        return
    manifest = read_manifest(name)
    gone, altered = [], []
    with progress(f"{name}: images", sum(_size(file) for file in manifest.files)) as advance:
        for file, sha256 in zip(manifest.files, manifest.file_sha256, strict=True):
            if not file.is_file():
                gone.append(str(file))
            elif not _has_hash(file, sha256, advance):
                altered.append(str(file))
    yield from _summary(f"images of {path}", len(manifest.files), gone, altered)


def _summary(what: str, total: int, gone: list[str], altered: list[str]) -> Iterator[Finding]:
    verdicts: tuple[tuple[Verdict, list[str], str], ...] = (
        ("missing", gone, "are gone"),
        ("wrong", altered, "differ"),
    )
    for verdict, files, how in verdicts:
        if files:
            more = ", …" if len(files) > _SHOWN else ""
            shown = ", ".join(files[:_SHOWN])
            yield Finding(verdict, f"{what}: {len(files)} of {total} {how}: {shown}{more}")
    if not gone and not altered:
        yield Finding("ok", f"{what}: all {total} are as stated")


def _has_hash(path: Path, sha256: str | None, advance: Advance | None = None) -> bool:
    if advance is not None:
        advance(_size(path))
    return sha256 is None or runtime.sha256(path) == sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
