"""Where a public dataset's files are, how to get them (routes in order of preference), and checks.

`locate` finds files, `get` fetches them by the first route that works, and `verify` checks that
archives, copies, lists and images are still what they were.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from microclip import paths, runtime
from microclip.data.layouts.base import lacking, load_layout
from microclip.data.manifest import read_manifest
from microclip.data.public import downloads, hub, unpacking
from microclip.data.public.downloads import Advance, difference, hashes, in_words, progress, tell
from microclip.data.public.hub import files_of_copy, is_partial_copy
from microclip.settings.base import SettingsError
from microclip.settings.datasets import (
    ArchiveRoute,
    DatasetCard,
    DatasetSettings,
    HubRoute,
    LocalRoute,
    PublicSource,
    RemoteFile,
    Route,
)
from microclip.settings.study import load_card

RECORD = "source.json"  # the route that the files came by; written last
IMAGE_FOLDER = "image_folder"
ARCHIVES, HUB = "archives", "hub"  # folders of a dataset
KINDS = {"archive": "archive", "hub": "hub", "local": "by hand"}  # route -> in words


@dataclass(frozen=True)
class Found:
    """A dataset's files on this machine."""

    folder: Path
    layout: str
    route: str  # "archive", "hub" or "local"
    revision: str = ""  # commit of the hub's copy, or hashes of archives


def home(dataset: str) -> Path:
    """Folder of a dataset's files: `data/<dataset>`, or below $MICROCLIP_DATA."""
    return Path(os.environ.get("MICROCLIP_DATA") or "data") / dataset


def place_of(folder: Path, file: RemoteFile) -> Path:
    """Path of an archive route's file below a dataset's folder."""
    return folder / ARCHIVES / file.name if file.unpack else folder / file.name


def is_offline(switch: str = "MICROCLIP_OFFLINE") -> bool:
    """Does an environment variable forbid the network?"""
    return os.environ.get(switch, "").lower() not in {"", "0", "no", "off", "false"}


def locate(dataset: str, card: DatasetCard) -> Found | None:
    """Find a dataset's files, or return None.

    First what `get` recorded, then images laid out as `train/<class>` and `test/<class>`, then the
    first route whose layout has all that it needs.
    """
    folder = home(dataset)
    record = folder / RECORD
    if record.is_file():
        said = json.loads(record.read_text(encoding="utf-8"))
        found = Found(folder, said["layout"], said["route"], said.get("revision", ""))
        if not lacking(folder, load_layout(found.layout).NEEDS):
            return found
    is_partial = is_partial_copy(folder / HUB)
    layouts = [r.layout for r in card.routes if not (is_partial and isinstance(r, HubRoute))]
    if _is_half_unpacked(folder, card):  # patterns may match files of an unfinished archive
        return None
    for layout in (IMAGE_FOLDER, *layouts):
        if folder.is_dir() and not lacking(folder, load_layout(layout).NEEDS):
            return Found(folder, layout, "local")
    return None


def partly_placed(dataset: str, card: DatasetCard) -> str:
    """Say which of the files that the user places by hand are missing; "" if all or none are.

    An unfinished download does not count as files placed by hand.
    """
    folder = home(dataset)
    if any((folder / name).exists() for name in (RECORD, ARCHIVES, HUB)):
        return ""
    best: tuple[int, str] = (0, "")
    for layout in dict.fromkeys((*(route.layout for route in card.routes), IMAGE_FOLDER)):
        needs = load_layout(layout).NEEDS
        absent = lacking(folder, needs)
        n_there = len(needs) - len(absent)
        if absent and n_there > best[0]:
            shown = ", ".join(str(folder / need) for need in absent)
            said = f"{folder} has {n_there} of the {len(needs)} paths that {dataset} needs"
            best = n_there, f"{said}; missing: {shown}"
    return best[1]


def _automatic(card: DatasetCard) -> str:
    kinds = (route.kind for route in card.routes if not isinstance(route, LocalRoute))
    return next(kinds, "local")


def is_unfinished(dataset: str, card: DatasetCard) -> bool:
    """Was a download of this dataset started and not finished?"""
    folder = home(dataset)
    places = [place_of(folder, file) for file in _files(card)]
    parts = [place.with_name(f"{place.name}.part") for place in places]
    is_partial = any(part.is_file() for part in parts) or is_partial_copy(folder / HUB)
    return is_partial or _is_half_unpacked(folder, card)


def _is_half_unpacked(folder: Path, card: DatasetCard) -> bool:
    places = [unpacking.temporary_of(file.name, folder / file.into) for file in _files(card)]
    return any(place.exists() for place in places)


def _files(card: DatasetCard) -> list[RemoteFile]:
    return [f for route in card.routes if isinstance(route, ArchiveRoute) for f in route.files]


def get(
    dataset: str, card: DatasetCard, *, only: str = "", offline: bool = False, again: bool = False
) -> Found:
    """Return a dataset's files, fetched by the first route that works.

    `only` restricts it to one kind of route; `offline` (or MICROCLIP_OFFLINE) forbids the network;
    `again` repeats the route that the files came by and restores what is missing.

    Raises:
        MissingDataError: every route needs the user; the message says what to do.
        ServiceError: the routes failed; the message says how each did.
        ResourceError: the disk is too small.  SettingsError: the card has no such route.
    """
    found = locate(dataset, card)
    if found is not None and not again:
        return found
    if found is None and not only and (there := partly_placed(dataset, card)):
        size = card.size or "of unknown size"
        raise runtime.MissingDataError(
            f"{there}; place what is missing, or fetch the whole dataset ({size}) with "
            f"`microclip data get {dataset} --route {_automatic(card)}`"
        )
    if found is not None and found.route != "local":
        only = only or found.route  # never mix the files of two routes
    routes = [route for route in card.routes if only in ("", route.kind)]
    if not routes:
        kinds = ", ".join(dict.fromkeys(route.kind for route in card.routes))
        raise SettingsError(f"{dataset} has no route {only!r}; it has {kinds}")
    automatic = [route for route in routes if not isinstance(route, LocalRoute)]
    if not automatic:
        raise runtime.MissingDataError(recipe(dataset, card))
    with _alone(home(dataset)):
        found = None if again else locate(dataset, card)  # another process may have been first
        how = _How(offline=offline or is_offline(), again=again)
        if found is None:
            tell(
                f"{dataset}: {card.size or 'size unknown'} to fetch and about as much unpacked, "
                f"{in_words(shutil.disk_usage(home(dataset)).free)} free in {home(dataset)}; "
                f"licence: {card.licence}"
            )
        return found or _take_first(dataset, card, automatic, how)


@dataclass(frozen=True)
class _How:
    offline: bool
    again: bool


def _take_first(
    dataset: str, card: DatasetCard, routes: Sequence[ArchiveRoute | HubRoute], how: _How
) -> Found:
    failures: list[Exception] = []
    reasons = []
    for route in routes:
        try:
            return remember(dataset, route, _take(home(dataset), route, how))
        except (runtime.ServiceError, runtime.MissingDataError, SettingsError) as error:
            failures.append(error)
            reasons.append(f"{route.kind}: {error}")
            tell(f"{dataset} by {reasons[-1]}")
    is_for_user = not any(isinstance(error, runtime.ServiceError) for error in failures)
    kind = runtime.MissingDataError if is_for_user else runtime.ServiceError
    by_hand = "" if how.again else f"; {recipe(dataset, card)}"
    raise kind(f"no route to {dataset} worked: {'; '.join(reasons)}{by_hand}")


def _take(folder: Path, route: ArchiveRoute | HubRoute, how: _How) -> str:
    """Fetch a route's files into a dataset's folder; return their commit or hashes."""
    needs = load_layout(route.layout).NEEDS
    try:
        if isinstance(route, ArchiveRoute):
            revision = _take_archives(folder, route, offline=how.offline)
            _unpack(folder, route, again=how.again)
            if lacking(folder, needs):  # files were removed after unpacking
                _unpack(folder, route, again=True)
        else:
            revision = _take_copy(folder, route, how)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise runtime.ResourceError(
                f"the disk of {folder} is full; free some space, then run the same command again"
            ) from error
        raise
    if absent := lacking(folder, needs):
        raise runtime.MissingDataError(
            f"the files arrived, but {folder} lacks {', '.join(absent)}; the publisher changed the "
            "layout, or these are other files"
        )
    return revision


def _take_archives(folder: Path, route: ArchiveRoute, *, offline: bool) -> str:
    fetched = {
        file.name: downloads.fetch(file, place_of(folder, file), is_offline=offline)
        for file in route.files
    }
    return ", ".join(f"{name} sha256 {sha256}" for name, sha256 in fetched.items())


def _unpack(folder: Path, route: ArchiveRoute, *, again: bool) -> None:
    for file in route.files:
        if file.unpack:
            place = place_of(folder, file)
            unpacking.unpack(place, folder / file.into, file.inner, again=again)


def _take_copy(folder: Path, route: HubRoute, how: _How) -> str:
    if how.offline or is_offline("HF_HUB_OFFLINE"):
        raise runtime.ServiceError(
            f"{route.repository} must be fetched, but the network is forbidden (--offline, "
            "MICROCLIP_OFFLINE or HF_HUB_OFFLINE); allow it once"
        )
    return hub.fetch(route, folder / HUB, again=how.again)


def recipe(dataset: str, card: DatasetCard) -> str:
    """One line on how to get the dataset."""
    by_hand = [route.recipe for route in card.routes if isinstance(route, LocalRoute)]
    what = "; or ".join(by_hand) or f"`microclip data get {dataset}` fetches it"
    page = f"; homepage: {card.homepage}" if card.homepage else ""
    return f"{dataset} is not in {home(dataset)}; {what}{page} ({card.licence})"


def recipe_lines(dataset: str, card: DatasetCard) -> list[str]:
    """All ways to get a dataset, as lines to read: what to place where, and its licence."""
    lines = [
        f"{dataset}: {card.size or 'size unknown'}; licence: {card.licence}",
        f"  page    {card.homepage}" if card.homepage else "",
    ]
    for route in card.routes:
        match route:
            case ArchiveRoute():
                lines.append(f"  archive `microclip data get {dataset} --route archive`, or place:")
                lines += [
                    f"          {place_of(home(dataset), file)} from {file.urls[0]}"
                    + (f" (md5 {file.md5})" if file.md5 else "")
                    for file in route.files
                ]
            case HubRoute():
                gate = "; accept its terms there and set HF_TOKEN" if route.is_gated else ""
                page = f"https://huggingface.co/datasets/{route.repository}"
                lines.append(f"  hub     `microclip data get {dataset} --route hub`: {page}{gate}")
            case LocalRoute():
                lines.append(f"  by hand {route.recipe}")
    return [line for line in lines if line]


def remember(dataset: str, route: Route, revision: str) -> Found:
    """Record the route that a dataset's files came by; the last step of `get`."""
    found = Found(home(dataset), route.layout, route.kind, revision)
    runtime.write_json(
        found.folder / RECORD, {k: v for k, v in asdict(found).items() if k != "folder"}
    )
    return found


def ways(card: DatasetCard) -> str:
    """Kinds of routes in order, such as `archive 0.6 GB | by hand`."""
    words = []
    for route in card.routes:
        is_gated = isinstance(route, HubRoute) and route.is_gated
        words.append(KINDS[route.kind] + (" (terms)" if is_gated else ""))
    words = list(dict.fromkeys(words))
    if card.size and words[0] != KINDS["local"]:
        words[0] += f" {card.size}"
    return " | ".join(words)


def notice(datasets: Sequence[DatasetSettings]) -> str:
    """One line on the public datasets that are missing here; empty if none is."""
    cards = {
        d.source.dataset: load_card(d.source)
        for d in datasets
        if isinstance(d.source, PublicSource)
    }
    missing = [
        f"{name} ({KINDS[card.routes[0].kind]})"
        for name, card in cards.items()
        if locate(name, card) is None
    ]
    if not missing:
        return ""
    return (
        f"public datasets: {len(cards) - len(missing)} of {len(cards)} here; missing: "
        f"{', '.join(missing)}; `microclip data list` says how to get them"
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch a dataset; the lock ends with the process."""
    busy = f"another process is getting {folder}; waiting for it"
    with runtime.locked(folder / ".lock", on_busy=lambda: tell(busy)):
        yield


_SHOWN = 3

Verdict = Literal["ok", "wrong", "missing", "unknown"]  # unknown: nothing to compare with


@dataclass(frozen=True)
class Finding:
    """The verdict on one thing that was checked."""

    verdict: Verdict
    text: str


def verify(name: str, dataset: str, card: DatasetCard) -> Iterator[Finding]:
    """Check `config/datasets/<name>.yaml`, whose files are those of `dataset`.

    Archives and copies are hashed if they are still there; images are compared with the manifest
    of the last fetch.
    """
    found = locate(dataset, card)
    if found is None:
        yield Finding("missing", recipe(dataset, card))
        return
    needs = load_layout(found.layout).NEEDS
    yield Finding("ok", f"layout {found.layout}: all of {len(needs)} needed paths are there")
    yield from _archives(found.folder, card)
    yield from _copy(found.folder / HUB)
    yield from _images(name)


def verify_passport(dataset: DatasetSettings) -> Iterator[Finding]:
    """Check class list, split and manifest against the passport, if there is one."""
    # Here and not above: it needs numpy, and every verb of the command line imports this module.
    from microclip.data import passport

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
    for file in _files(card):
        place = place_of(folder, file)
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
        yield Finding("unknown", f"no {path} yet, so there are no hashes to check images against")
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
