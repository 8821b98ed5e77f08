"""The files below a folder: images, what is none, and what is not followed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from microclip.data.bad_files import BadFile
from microclip.data.decoding import HEIF_SUFFIXES, reads_heif, suffixes
from microclip.settings import SettingsError

_COMMON = "jpg, png, webp, gif, tif, bmp, heic and the like"
_SHOWN = 5  # kinds of other files named in an error
_LINK = "link within the folder"
_HIDDEN = "hidden"


@dataclass(frozen=True)
class Walk:
    """What a folder holds, nested or not; images and bad files are sorted."""

    images: tuple[Path, ...]
    bad: tuple[BadFile, ...]  # links out of the folder, what may not be read
    others: Mapping[str, int]  # suffix (or name) of files that are no images -> how many


def walk(folder: Path) -> Walk:
    """Return the files below `folder`; links are not followed, hidden files only counted.

    Raises:
        SettingsError: it is no folder.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise SettingsError(f"image folder {folder} is {what}; it is no folder that holds images")
    found = _Sorted(folder.resolve())
    for entry in _entries(folder, found.bad):
        found.put(entry)
    found.bad.sort(key=lambda file: file.path)
    return Walk(tuple(sorted(found.images)), tuple(found.bad), dict(sorted(found.others.items())))


def image_files(folder: Path) -> list[Path]:
    """Return the images below `folder`, sorted, hidden files and links left out.

    Raises:
        SettingsError: it is no folder or holds no image.
    """
    found = walk(folder)
    require_images(folder, found)
    return list(found.images)


def require_images(folder: Path, found: Walk) -> None:
    """Raise SettingsError, telling what there is instead, if a folder holds no image to read."""
    unread = Counter(path.suffix.lower() for path in found.images if not _may_be_read(path))
    if len(found.images) > unread.total():
        return
    raise SettingsError(_no_images(folder, found, unread))


def _no_images(folder: Path, found: Walk, unread: Mapping[str, int]) -> str:
    kinds = [f"{n} {suffix}: install pillow-heif" for suffix, n in sorted(unread.items())]
    kinds += [f"{n} {kind}" for kind, n in found.others.items()]
    if found.bad:
        kinds.append(f"{len(found.bad)} that are not followed, as {found.bad[0].path}")
    more = ", …" if len(kinds) > _SHOWN else ""
    seen = f"; found {', '.join(kinds[:_SHOWN])}{more}" if kinds else "; it is empty"
    return f"No images in {folder} (looked for {_COMMON}{seen}); give a folder that holds images"


def _may_be_read(path: Path) -> bool:
    return path.suffix.lower() not in HEIF_SUFFIXES or reads_heif()


def _entries(folder: Path, bad: list[BadFile]) -> Iterator[os.DirEntry[str]]:
    """Yield what lies below a folder; folders that may not be read are put among the bad."""
    try:
        with os.scandir(folder) as opened:
            entries = list(opened)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        bad.append(BadFile(folder, f"this folder cannot be read: {reason}"))
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _entries(Path(entry.path), bad)


@dataclass
class _Sorted:
    """Entries of a folder, each put where it belongs."""

    root: Path  # the folder, without links
    images: list[Path] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def put(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        if entry.name.startswith("."):
            self.others[".DS_Store" if entry.name == ".DS_Store" else _HIDDEN] += 1
        elif entry.is_symlink():
            self._put_link(path)
        elif not entry.is_dir(follow_symlinks=False):
            self._put_file(path, is_regular=entry.is_file(follow_symlinks=False))

    def _put_file(self, path: Path, *, is_regular: bool) -> None:
        if path.suffix.lower() not in suffixes():
            self.others[path.suffix.lower() or path.name] += 1
        elif not is_regular:
            self.bad.append(BadFile(path, "a pipe or a device, no file"))
        elif not _is_text(path.name):
            self.bad.append(BadFile(path, "its name is not UTF-8; rename it"))
        else:
            self.images.append(path)

    def _put_link(self, path: Path) -> None:
        """Put a link among the bad files, or count it where its target is seen anyway."""
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a circle, before Python 3.13
            self.bad.append(BadFile(path, "a link in a circle or to nothing; not followed"))
            return
        if target.is_dir() and path.parent.resolve().is_relative_to(target):
            self.bad.append(BadFile(path, f"a link to {target} around it (a loop); not followed"))
        elif target.is_relative_to(self.root):
            self.others[_LINK] += 1
        elif target.is_dir() or path.suffix.lower() in suffixes():
            reason = f"a link out of the folder, to {target}; not followed, copy it"
            self.bad.append(BadFile(path, reason))
        else:
            self.others[path.suffix.lower() or path.name] += 1


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
