"""A dataset's image store: all images decoded once into one file, then read through a memory map.

`pixels.bin` has the images one after another, `index.npy` where each begins and its size, and
`store.json`, written last, the hashes of both and of the list of images that they were made from.
An image larger than the dataset's canvas is reduced to it, so that the file fits on a disk.
The store has no file names and no classes, so no label can be read from it. Images that cannot be
read are named in `bad_files.csv` beside it; skipped ones stay as rows without pixels, so that
labels never shift. A deleted store is rebuilt with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from microclip import paths, runtime, warm
from microclip.data.decoding import RULE, Pixels, UnreadableError, darkness, decode_all
from microclip.data.files import BadFile, complaint, write_bad_files
from microclip.data.manifest import check_left, read_manifest
from microclip.settings.base import Frozen, SettingsError, known
from microclip.settings.datasets import CANVAS_PX, BadImages, DatasetSettings
from microclip.settings.study import load_dataset

logger = logging.getLogger(__name__)

_PIXELS, _INDEX, _RECORD, _LOCK = "pixels.bin", "index.npy", "store.json", ".store.lock"
_verified: set[tuple[str, int, int]] = set()  # stores whose bytes this process has hashed


class StoreRules(NamedTuple):
    """How a store is made; `canvas_px` None keeps the pixels of images of any size."""

    bad_images: BadImages = "error"
    canvas_px: int | None = CANVAS_PX
    stretch: bool = False  # see `decode`

    @classmethod
    def of(cls, dataset: DatasetSettings) -> StoreRules:
        """The rules that a dataset's settings name."""
        source = dataset.source
        return cls(source.bad_images, source.canvas_px, source.stretch)


class SkippedImage(Frozen):
    """An image that could not be read. Its name is left out, because it could reveal its class."""

    row: int
    reason: str


class StoreRecord(Frozen):
    """The content of `store.json`."""

    n_images: int = 0
    bytes: int
    pixels_sha256: str
    index_sha256: str
    source_sha256: str  # of the list of images
    rule: int | None = None  # None: written before rules had numbers, when there was only rule 1
    canvas_px: int | None = 448  # what all stores had before it was a setting
    stretch: bool = False
    modes: dict[str, int] = {}
    traits: dict[str, int] = {}
    skipped: tuple[SkippedImage, ...] = ()


@dataclass(frozen=True)
class ImageStore:
    """Decoded images of any size, read-only."""

    folder: Path
    sha256: str  # of the pixels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._index)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Rows without pixels: their images could not be read."""
        return tuple(int(row) for row in np.flatnonzero(self._index[:, 1] == 0))

    @property
    def largest_shorter_side(self) -> int:
        """The greatest shorter side of all images, in pixels."""
        return int(self._index[:, 1:].min(axis=1).max(initial=0))

    def pixels(self, row: int) -> Pixels:
        """One image, as a read-only view of the file."""
        offset, height, width = (int(value) for value in self._index[row])
        return self._bytes[offset : offset + height * width * 3].reshape(height, width, 3)

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        index: NDArray[np.int64] = np.load(self.folder / _INDEX, allow_pickle=False)
        return index

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / _PIXELS, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the mapped file: a worker process maps it again."""
        return {"folder": self.folder, "sha256": self.sha256}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the pickled fields."""
        self.__dict__.update(state)


def build(dataset_name: str, bad_images: BadImages | None = None) -> Path:
    """Decode a fetched dataset into its store and return `store.json`.

    Without `bad_images`, the dataset's settings decide.

    Raises:
        MissingDataError: the dataset is not fetched, or an image is gone.
        SettingsError: images that cannot be read, by name; with "skip", only if a split or one of
            its classes has no others.
    """
    manifest = read_manifest(dataset_name)
    folder = Path(paths.STORE.format(dataset=dataset_name)).parent
    rules = _rules(dataset_name)
    if bad_images is not None:
        rules = rules._replace(bad_images=bad_images)
    remedy = (
        f"all are named in {folder / paths.BAD_FILES}: replace or remove them and fetch the "
        "dataset again, or set `bad_images: skip` in its source"
    )
    record = write_store(manifest.files, folder, manifest.images_sha256, rules, remedy=remedy)
    check_left(manifest, open_store(folder).skipped)
    if said := darkness(_read(record).traits):
        logger.warning("%s: %s", dataset_name, said)
    return record


def _rules(dataset_name: str) -> StoreRules:
    if dataset_name in known("datasets"):
        return StoreRules.of(load_dataset(dataset_name))
    return StoreRules()


def write_store(
    files: Sequence[Path],
    folder: Path,
    source_sha256: str,
    rules: StoreRules = StoreRules(),  # noqa: B008  immutable
    *,
    remedy: str = "replace or remove them",
) -> Path:
    """Decode `files` in order into a store in `folder`; `source_sha256` identifies their list.

    One process writes at a time; a process that waited, or comes later, finds the store complete
    and does nothing. All bad files are named in `folder / "bad_files.csv"`, whatever the policy;
    the error message ends with `remedy`.

    Raises:
        MissingDataError: a file is gone.  SettingsError: files that cannot be read, by name.
        ResourceError: the disk is full, or a decoding process was killed.
    """
    with _one_writer(folder):
        if _is_whole(folder, source_sha256, rules):
            logger.info("image store %s is complete", folder)
            return folder / _RECORD
        _clear(folder)
        try:
            done, pixels_sha256 = _write_pixels(files, folder, rules, remedy)
            with runtime.atomic_path(folder / _INDEX) as target, target.open("wb") as stream:
                np.save(stream, np.array(done.index, dtype=np.int64).reshape(-1, 3))
            return _record(folder, source_sha256, rules, done, pixels_sha256)
        except OSError as error:
            if full := runtime.disk_full(error, folder / _RECORD):
                raise full from error
            raise


@dataclass
class _Progress:
    """What has been decoded so far."""

    index: list[tuple[int, int, int]] = field(default_factory=list)
    bad: list[tuple[int, BadFile]] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    n_bytes: int = 0


def _write_pixels(
    files: Sequence[Path], folder: Path, rules: StoreRules, remedy: str
) -> tuple[_Progress, str]:
    """Write the pixels; return what was decoded and the pixels' hash."""
    done, sha256 = _Progress(), hashlib.sha256()
    with runtime.atomic_path(folder / _PIXELS) as target:
        decoding = decode_all(files, canvas_px=rules.canvas_px, stretch=rules.stretch)
        with target.open("wb") as stream, contextlib.closing(decoding) as results:
            for row, result in enumerate(results):
                if isinstance(result, UnreadableError):
                    done.bad.append((row, BadFile(files[row], str(result))))
                    done.index.append((done.n_bytes, 0, 0))
                    continue
                done.modes[result.mode] += 1
                done.traits.update(result.traits)
                if done.bad and rules.bad_images == "error":
                    continue  # the store will be refused; go on only to find all bad files
                data = result.pixels.tobytes()
                done.index.append((done.n_bytes, *result.pixels.shape[:2]))
                done.n_bytes += stream.write(data)
                sha256.update(data)
        bad = [file for _, file in done.bad]
        write_bad_files(bad, folder / paths.BAD_FILES, step="decode")
        if bad and rules.bad_images == "error":
            raise SettingsError(f"{complaint(bad, len(files))}; {remedy}")
    return done, sha256.hexdigest()


def _record(
    folder: Path, source_sha256: str, rules: StoreRules, done: _Progress, pixels_sha256: str
) -> Path:
    """Write `store.json`, which marks the store as complete."""
    logger.info(
        "decoded %d images (%.1f MiB), modes %s%s",
        len(done.index) - len(done.bad),
        done.n_bytes / 2**20,
        dict(done.modes),
        f"; {len(done.bad)} skipped, see {folder / paths.BAD_FILES}" if done.bad else "",
    )
    record = StoreRecord(
        n_images=len(done.index),
        bytes=done.n_bytes,
        pixels_sha256=pixels_sha256,
        index_sha256=runtime.sha256(folder / _INDEX),
        source_sha256=source_sha256,
        rule=RULE,
        canvas_px=rules.canvas_px,
        stretch=rules.stretch,
        modes=dict(sorted(done.modes.items())),
        traits=dict(sorted(done.traits.items())),
        skipped=tuple(SkippedImage(row=row, reason=file.reason) for row, file in done.bad),
    )
    runtime.write_json(folder / _RECORD, record.model_dump(mode="json"))
    return folder / _RECORD


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Hold a store's lock; it ends with the process, however that ends."""
    busy = f"another process is writing image store {folder}; waiting for it"
    with runtime.locked(folder / _LOCK, on_busy=lambda: logger.info(busy)):
        yield


def _is_whole(folder: Path, source_sha256: str, rules: StoreRules) -> bool:
    """Is the store what would be written now? Checks its bytes."""
    try:
        open_store(folder, source_sha256, rules)
        said = _read(folder / _RECORD)
    except (runtime.MissingDataError, SettingsError):
        return False
    return said.rule is not None and (rules.bad_images == "skip" or not said.skipped)


def _clear(folder: Path) -> None:
    """Remove the record, and the temporary files of a killed process."""
    (folder / _RECORD).unlink(missing_ok=True)
    for stem in ("pixels", "index", "store"):
        for left in folder.glob(f".{stem}-*"):
            left.unlink(missing_ok=True)


def open_store(
    folder: Path, source_sha256: str | None = None, rules: StoreRules | None = None
) -> ImageStore:
    """Open a store; its size and source are checked each time, its bytes once a workflow.

    Raises:
        MissingDataError: there is no store, or its pixels were deleted.
        SettingsError: made from another list of images, by other rules than `rules`; cut
            short or altered.
    """
    record, pixels = folder / _RECORD, folder / _PIXELS
    for path in (record, pixels, folder / _INDEX):
        if not path.is_file():
            raise runtime.MissingDataError(
                f"image store {path} is missing; run `microclip store-images {folder.name}`"
            )
    said = _read(record)
    if source_sha256 is not None and said.source_sha256 != source_sha256:
        raise SettingsError(
            f"image store {folder} was made from other images (expected {source_sha256[:12]}, "
            f"got {said.source_sha256[:12]}); run `microclip store-images {folder.name}` again"
        )
    if (1 if said.rule is None else said.rule) != RULE:
        raise SettingsError(
            f"image store {folder} was decoded by rule {said.rule}, the current rule is {RULE}; "
            f"run `microclip store-images {folder.name}` again"
        )
    if pixels.stat().st_size != said.bytes:
        raise _damaged(pixels, f"{said.bytes} bytes", f"{pixels.stat().st_size} bytes")
    _verify_once(pixels, said.pixels_sha256)
    _verify_once(folder / _INDEX, said.index_sha256)
    store = ImageStore(folder, said.pixels_sha256)
    if rules is not None and not _is_on(store, said.canvas_px, rules.canvas_px):
        raise SettingsError(
            f"image store {folder} was made with canvas_px {_shown(said.canvas_px)}, the settings "
            f"say {_shown(rules.canvas_px)}; run `microclip store-images {folder.name}` again"
        )
    if rules is not None and said.stretch != rules.stretch:
        raise SettingsError(
            f"image store {folder} was made with stretch {said.stretch}, the settings say "
            f"{rules.stretch}; run `microclip store-images {folder.name}` again"
        )
    return store


def _is_on(store: ImageStore, made: int | None, wanted: int | None) -> bool:
    """Would a store made on one canvas have the same pixels on another?"""
    largest = store.largest_shorter_side
    is_untouched = made is None or largest < made
    return made == wanted or (is_untouched and (wanted is None or largest <= wanted))


def _shown(canvas_px: int | None) -> str:
    return "null" if canvas_px is None else str(canvas_px)


def _read(record: Path) -> StoreRecord:
    try:
        return StoreRecord.model_validate_json(record.read_bytes())
    except ValueError:  # pydantic's error, also for invalid JSON
        raise _damaged(record, "the hashes of a store", "something else") from None


def _verify_once(path: Path, sha256: str) -> None:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key in _verified:
        return
    note = warm.note("sha256", *key, sha256)  # of a job before this one in the workflow
    if note is None or not note.exists():
        found = runtime.sha256(path)
        if found != sha256:
            raise _damaged(path, f"sha256 {sha256[:12]}", found[:12])
        if note is not None:
            with contextlib.suppress(OSError):  # a full disk, or the warm process is gone
                note.touch()
    _verified.add(key)


def _damaged(path: Path, expected: str, got: str) -> SettingsError:
    return SettingsError(
        f"{path} is damaged: expected {expected}, got {got}; "
        f"run `microclip store-images {path.parent.name}` again"
    )
