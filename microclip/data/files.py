"""What a folder contains before anything is started: images, broken images and other files.

Links are never followed, so nothing outside the folder is read. Bad files are named to the user:
the first few in the error, all of them in `bad_files.csv`.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from microclip import paths, runtime
from microclip.data.decoding import (
    HEIF_SUFFIXES,
    UnreadableError,
    decode_all,
    is_bare_image,
    reads_heif,
    suffixes,
)
from microclip.settings.base import SettingsError

_COLUMNS = ("file", "reason", "step")
_SHOWN_BAD = 3  # bad files named in an error


@dataclass(frozen=True)
class BadFile:
    """A file that looks like an image but cannot be used, or a link that is not followed."""

    path: Path
    reason: str  # what is wrong with it, with its size and the limit
    is_link: bool = False


def printable(path: Path) -> str:
    """A path on one line, whatever characters its name has."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape", "replace").decode("ascii")


def complaint(bad: Sequence[BadFile], n_files: int) -> str:
    """Say how many of `n_files` cannot be read, and why for the first few; without a remedy."""
    shown = "; ".join(f"{printable(file.path)}: {file.reason}" for file in bad[:_SHOWN_BAD])
    more = "; …" if len(bad) > _SHOWN_BAD else ""
    return f"{len(bad)} of {n_files} images cannot be read: {shown}{more}"


def write_bad_files(bad: Sequence[BadFile], path: Path, *, step: str) -> None:
    """Replace one step's entries in the list of bad files; an empty list is removed."""
    rows = [row for row in read_bad_files(path) if row["step"] != step]
    rows += [{"file": _text(f.path), "reason": f.reason, "step": step} for f in bad]
    if not rows:
        path.unlink(missing_ok=True)
        return
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runtime.write_text(path, stream.getvalue())


def read_bad_files(path: Path) -> list[dict[str, str]]:
    """Rows of a list of bad files; none if there is no list."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if set(_COLUMNS) <= row.keys()]


def _text(path: Path) -> str:
    """A path that can be written as UTF-8; undecodable bytes are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


_COMMON = "jpg, png, webp, gif, tif, bmp, heic and others"
_SHOWN = 5  # kinds of other files named in an error
_LINK = "link within the folder"
_HIDDEN = "hidden"


@dataclass(frozen=True)
class Walk:
    """The files below a folder; images and bad files are sorted."""

    images: tuple[Path, ...]
    bad: tuple[BadFile, ...]  # links out of the folder, files without permission to read
    others: Mapping[str, int]  # suffix (or name) of the files that are not images -> how many


def walk(folder: Path) -> Walk:
    """List the files below `folder`; links are not followed, hidden files are only counted.

    Raises:
        SettingsError: it is not a folder.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise SettingsError(f"image folder {folder} {what}; give a folder that contains images")
    if not is_text(str(folder.resolve())):
        raise SettingsError(f"image folder {printable(folder)}: {_not_text('its path')}")
    found = _Sorted(folder.resolve(), given=folder)
    for entry in _entries(folder, found.bad):
        found.put(entry)
    found.bad.sort(key=lambda file: file.path)
    return Walk(tuple(sorted(found.images)), tuple(found.bad), dict(sorted(found.others.items())))


def image_files(folder: Path) -> list[Path]:
    """Images below `folder`, sorted, without hidden files and links.

    Raises:
        SettingsError: it is not a folder or contains no image.
    """
    found = walk(folder)
    require_images(folder, found)
    return list(found.images)


def require_images(folder: Path, found: Walk) -> None:
    """Raise SettingsError if a folder contains no readable image, saying what it contains."""
    unread = Counter(path.suffix.lower() for path in found.images if not _may_be_read(path))
    if len(found.images) > unread.total():
        return
    raise SettingsError(_no_images(folder, found, unread))


def _no_images(folder: Path, found: Walk, unread: Mapping[str, int]) -> str:
    kinds = [f"{n} {suffix}: install pillow-heif" for suffix, n in sorted(unread.items())]
    kinds += [f"{n} {kind}" for kind, n in found.others.items()]
    more = ", …" if len(kinds) > _SHOWN else ""
    seen = "; it is empty" if not kinds and not found.bad else ""
    seen = f"; found {', '.join(kinds[:_SHOWN])}{more}" if kinds else seen
    said = f"No images in {folder} (looked for {_COMMON}{seen})"
    if not found.bad:
        return f"{said}; give a folder that contains images"
    first = found.bad[0]
    others = f"{len(found.bad)} files or folders cannot be used, first {printable(first.path)}"
    return f"{said}; {others}: {first.reason}{how_to_copy(folder, found.bad)}"


def how_to_copy(folder: Path, bad: Sequence[BadFile]) -> str:
    """The command that copies what links name, to follow a complaint; "" if no file is a link."""
    if not any(file.is_link for file in bad):
        return ""
    source = folder.resolve()
    target = paths.quoted(source.with_name(f"{source.name}-copied"))
    return (
        f"; links are not followed: `cp -RL {paths.quoted(source)} {target}` copies what they name"
    )


def _may_be_read(path: Path) -> bool:
    return path.suffix.lower() not in HEIF_SUFFIXES or reads_heif()


def _entries(folder: Path, bad: list[BadFile]) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder; folders that cannot be read are added to `bad`."""
    try:
        with os.scandir(folder) as opened:
            entries = list(opened)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        bad.append(BadFile(folder, f"this folder cannot be read: {reason}"))
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False) and not paths.is_hidden(entry.name):
            yield from _entries(Path(entry.path), bad)


@dataclass
class _Sorted:
    """The entries of a folder, sorted by what they are."""

    root: Path  # the folder, with links resolved
    given: Path  # the folder as it was named
    images: list[Path] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def put(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        if paths.is_hidden(entry.name):
            self.others[".DS_Store" if entry.name == ".DS_Store" else _HIDDEN] += 1
        elif entry.is_symlink():
            self._put_link(path)
        elif not entry.is_dir(follow_symlinks=False):
            self._put_file(path, is_regular=entry.is_file(follow_symlinks=False))

    def _put_file(self, path: Path, *, is_regular: bool) -> None:
        is_image = path.suffix.lower() in suffixes()
        if not is_image and not (is_regular and is_bare_image(path)):
            self.others[path.suffix.lower() or f"without a suffix ({path.name})"] += 1
        elif not is_regular:
            self.bad.append(BadFile(path, "a pipe or a device, not a file"))
        elif not is_text(str(path.relative_to(self.given))):
            self.bad.append(BadFile(path, _not_text("its name")))
        else:
            self.images.append(path)

    def _put_link(self, path: Path) -> None:
        """Add a link to the bad files, or only count it if its target is found anyway."""
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
            reason = "a link in a loop or to nothing; not followed, remove it"
            self.bad.append(BadFile(path, reason, is_link=True))
            return
        is_image = target.is_dir() or path.suffix.lower() in suffixes()
        if target.is_dir() and path.parent.resolve().is_relative_to(target):
            reason = f"a link to {target}, which contains it (a loop); not followed"
            self.bad.append(BadFile(path, reason))
        elif target.is_relative_to(self.root):
            below = target.relative_to(self.root).parts
            if is_image and any(map(paths.is_hidden, below)):  # git-annex, DVC
                reason = f"a link to {printable(target)}, which is hidden; copy the file instead"
                self.bad.append(BadFile(path, reason, is_link=True))
            else:
                self.others[_LINK] += 1
        elif is_image:
            reason = (
                f"a link out of the folder, to {printable(target)}; not followed, copy the file "
                "instead"
            )
            self.bad.append(BadFile(path, reason, is_link=True))
        else:
            self.others[path.suffix.lower() or path.name] += 1


def _not_text(what: str) -> str:
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":  # an ASCII locale: the name may well be UTF-8
        return f"{what} has letters that this locale's {encoding} lacks; set PYTHONUTF8=1"
    return f"{what} is not UTF-8; rename it"


def is_text(name: str) -> bool:
    """Are all bytes of a name UTF-8?"""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Survey:
    """The files of a folder after every image was decoded once; all bad files are named."""

    images: tuple[Path, ...]  # those that can be read
    bad: tuple[BadFile, ...] = ()
    # "RGB", "CMYK", then "rotated", "animated", "other suffix" (counted again) -> how many
    modes: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)  # suffix of other files -> how many
    duplicates: int = 0  # images with the same bytes as an earlier one

    def described(self) -> str:
        """The counts in words: "RGB 780, CMYK 2, rotated 7"."""
        return ", ".join(f"{kind} {n}" for kind, n in self.modes.items())


def survey(where: Path | Sequence[Path], *, stretch: bool = False) -> Survey:
    """Find out which images of a folder, or of a list of files, can be read.

    Every image is decoded, in parallel as for the store, but none is kept. `stretch`: see `decode`.

    Raises:
        SettingsError: `where` is a path but not a folder.
        MissingDataError: a file is gone.  ResourceError: see `decode_all`.
    """
    found = walk(where) if isinstance(where, Path) else Walk(tuple(where), (), {})
    good: list[Path] = []
    bad = list(found.bad)
    modes: Counter[str] = Counter()
    traits: Counter[str] = Counter()
    results = decode_all(found.images, stretch=stretch, has_pixels=False)
    for path, result in zip(found.images, results, strict=True):
        if isinstance(result, UnreadableError):
            bad.append(BadFile(path, str(result)))
            continue
        good.append(path)
        modes[result.mode] += 1
        traits.update(result.traits)
    counts = {**dict(modes.most_common()), **dict(sorted(traits.items()))}
    return Survey(tuple(good), tuple(bad), counts, found.others, _duplicates(good))


def _duplicates(files: Sequence[Path]) -> int:
    """Number of files with the same bytes as an earlier one."""
    # Only files of the same size are read: most sizes are unique.
    of_size: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        of_size[path.stat().st_size].append(path)
    return sum(
        len(same) - len({runtime.sha256(path) for path in same})
        for same in of_size.values()
        if len(same) > 1
    )
