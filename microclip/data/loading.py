"""A stored dataset as methods see it: splits of images, few-shot examples, batches of views.

`load` reads the manifest, the image store and the passport, and refuses them if they disagree. A
method gets `UnlabelledImages`, from which no label can be reached.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from microclip import runtime
from microclip.data import passport
from microclip.data.augmentation import Strong, strong_transform, strong_view
from microclip.data.decoding import Pixels
from microclip.data.manifest import SPLITS, UNKNOWN, check_labels, check_left, read_manifest
from microclip.data.store import ImageStore, StoreRules, open_store
from microclip.data.views import (
    Crop,
    Memory,
    OnHost,
    Packed,
    Weak,
    Window,
    normalised_bytes,
    prepare,
    resized_window,
    square_windows,
    whole_window,
)
from microclip.data.vocabulary import load_vocabulary
from microclip.settings.datasets import DatasetSettings


class UnlabelledImages:
    """Images and nothing else: no label, class or file name can be reached from here."""

    __slots__ = ("_rows", "_store")

    def __init__(self, store: ImageStore, rows: tuple[int, ...]) -> None:
        """Wrap the images of `store` at `rows`."""
        self._store = store
        self._rows = rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def pixels(self, index: int) -> Pixels:
        """One image as read-only RGB bytes."""
        return self._store.pixels(self._rows[index])

    def part(self, indices: Sequence[int]) -> UnlabelledImages:
        """The images at these indices."""
        return UnlabelledImages(self._store, tuple(self._rows[index] for index in indices))


@dataclass(frozen=True)
class LabelledImages:
    """A split as the runner sees it; an unsupervised method gets only its `images`."""

    images: UnlabelledImages
    labels: Int[Tensor, " image"]
    files: tuple[str, ...]  # as written in the manifest

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def labelled(self) -> list[int]:
        """Indices of the images whose label is known: all in a benchmark."""
        return torch.nonzero(self.labels != UNKNOWN)[:, 0].tolist()


@dataclass(frozen=True, eq=False)
class Examples:
    """The labelled images that a method may see: drawn for a few-shot method, or all.

    Attributes:
        labels: on the CPU; all three are in the same order, that of a draw if there was one.
        images: set if the method reads images.
        embeddings: frozen [CLS], unit norm; set if the method reads embeddings.
    """

    labels: Int[Tensor, " example"]
    images: UnlabelledImages | None = None
    embeddings: Float[Tensor, "example embedding"] | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)


def load(dataset: DatasetSettings) -> dict[str, LabelledImages]:
    """Return the splits `train` and `test` of a stored dataset.

    Raises:
        MissingDataError: the dataset is not fetched or stored, or has no passport.
        SettingsError: manifest and class list disagree, a split is empty, the store is stale, or
            the manifest, class list or split differs from the passport's.
    """
    manifest = read_manifest(dataset.name)
    check_labels(manifest, load_vocabulary(dataset))
    store = open_store(manifest.folder, manifest.images_sha256, StoreRules.of(dataset))
    check_left(manifest, store.skipped)
    passport.check(dataset)
    skipped = set(store.skipped)
    splits = {}
    for split in SPLITS:
        rows = tuple(
            row for row, name in enumerate(manifest.splits) if name == split and row not in skipped
        )
        splits[split] = LabelledImages(
            images=UnlabelledImages(store, rows),
            labels=torch.tensor([manifest.labels[row] for row in rows]),
            files=tuple(manifest.names[row] for row in rows),
        )
    return splits


if TYPE_CHECKING:
    from microclip.model.backbone import Backbone

_MAX_WORKERS = 32  # a CPU makes 100 to 150 strong views of photographs a second
ENCODED_TOGETHER = 256  # images
_AHEAD = 2  # batches of packed pixels that may wait for the GPU; some 100 MB each for photographs
Key = TypeVar("Key")
Made = TypeVar("Made")


@dataclass(frozen=True)
class ViewRecipe:
    """How views are drawn. Every field changes the numbers."""

    seed: int
    size: int  # px, side of all views
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weak: Weak = "random"
    n_crops: int = 0
    crop_scale: tuple[float, float] = (0.5, 0.9)
    # Not in the text that identifies a recipe, so that older checkpoints stay valid.
    strong: Strong = field(default="randaugment", repr=False)

    @classmethod
    def of(cls, backbone: Backbone, seed: int) -> ViewRecipe:
        """Return the recipe of the views that a backbone reads."""
        return cls(seed, backbone.image_size, backbone.mean, backbone.std)

    def first_window(self, shape: tuple[int, int], rng: np.random.Generator) -> Window:
        """Draw the window of the weak view of an image."""
        match self.weak:
            case "augmented" | "squash-augmented":
                is_squashed = self.weak == "squash-augmented"
                return resized_window(shape, self.size, rng, is_squashed=is_squashed)
            case _:
                return whole_window(shape, self.size, self.weak, rng)

    def is_flipped(self, epoch: int, index: int) -> bool:
        """Draw whether the weak view is flipped, left to right: half of the augmented ones are."""
        if self.weak not in ("augmented", "squash-augmented"):
            return False
        seed = runtime.derive_seed(self.seed, "flip", epoch, index)
        return bool(np.random.default_rng(seed).random() < 0.5)


def augmented(seed: int, backbone: Backbone, *, is_squashed: bool = False) -> ViewRecipe:
    """Return the recipe of one augmented view per image: a random resized crop and a flip.

    Source: CoOp, UPL and MaPLe. With `is_squashed`, crops are of the squashed image.
    """
    weak: Weak = "squash-augmented" if is_squashed else "augmented"
    return replace(ViewRecipe.of(backbone, seed), weak=weak)


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """The views of some training images, normalised, on the device."""

    indices: Int[Tensor, " batch"]  # of the images; on the CPU
    weak: Float[Tensor, "batch 3 size size"]
    crops: Float[Tensor, "batch crop 3 size size"]  # an empty axis if there are none
    strong: Float[Tensor, "batch 3 size size"] | None = None


class TrainingViews:
    """Weak, strong and cropped views of unlabelled images, epoch by epoch."""

    def __init__(  # noqa: PLR0913  how batches are made
        self,
        images: UnlabelledImages,
        recipe: ViewRecipe,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        n_workers: int | None = None,
        drop_last: bool = False,
        chosen: Sequence[int] | None = None,
        is_strong: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Draw views of `images`; `n_workers` processes make the strong views.

        With `n_workers` None, `default_workers` decides. `drop_last` leaves out a last, smaller
        batch, unless it is the only one. Only the images at the indices `chosen` are shown, if
        given; batches keep the indices. Without `is_strong` there are no strong views. An epoch
        is a pass over the images, or `steps_per_epoch` batches of one pass after another.
        """
        self.images = images
        self.recipe = recipe
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.chosen = None if chosen is None else tuple(chosen)
        self.steps_per_epoch = steps_per_epoch
        self._is_strong = is_strong
        self._memory = Memory()
        self._n_workers = default_workers(self.device) if n_workers is None else n_workers

    @property
    def n_items(self) -> int:
        """Images per pass."""
        return len(self.images) if self.chosen is None else len(self.chosen)

    @property
    def n_batches(self) -> int:
        """Batches per epoch."""
        return self._n_in_pass if self.steps_per_epoch is None else self.steps_per_epoch

    @property
    def _n_in_pass(self) -> int:
        whole = self.n_items // self.batch_size
        if self.drop_last and whole:
            return whole
        return math.ceil(self.n_items / self.batch_size)

    @property
    def seed(self) -> int:
        """The seed from which all draws derive."""
        return self.recipe.seed

    def identity(self) -> dict[str, object]:
        """Everything that determines the batches, for a checkpoint to compare."""
        return {
            "recipe": repr(self.recipe),
            "n_images": len(self.images),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            **({} if self.chosen is None else {"chosen": list(self.chosen)}),
            **({} if self.steps_per_epoch is None else {"steps_per_epoch": self.steps_per_epoch}),
            **({} if self.recipe.strong == "randaugment" else {"strong": self.recipe.strong}),
        }

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[ViewBatch]:
        """Yield the batches of the epochs `first_epoch` to `last_epoch`, reshuffled in each.

        One loader serves all epochs, so that its workers draw ahead while an epoch is evaluated.
        For a GPU, a thread packs the pixels of the next batches into pinned memory, from which the
        GPU fetches them on its own: nothing here waits for it.
        """
        keys = self._keys(first_epoch, last_epoch)
        # The loader comes first: it forks its workers before the thread starts.
        strong_views = self._strong_views(keys) if self._is_strong else repeat(None, len(keys))
        memory, recipe = self._memory, self.recipe
        both = zip(keys, strong_views, _ahead(self._prepared, keys, self.device), strict=True)
        for key, drawn, prepared in both:
            weak, crops = prepared.normalised(recipe.mean, recipe.std, memory)
            strong = None
            if drawn is not None:
                moved = drawn.to(self.device, non_blocking=True)
                strong = normalised_bytes(moved, recipe.mean, recipe.std, memory)
            # Pinned, so that a teacher with a cache of all images looks them up without waiting.
            is_pinned = self.device.type == "cuda"
            indices = torch.tensor([index for _, index in key], pin_memory=is_pinned)
            yield ViewBatch(indices, self._flipped(weak, key), crops, strong)
            del weak, crops, strong  # or their memory could not be lent to the next batch

    def _keys(self, first_epoch: int, last_epoch: int) -> list[list[tuple[int, int]]]:
        """Return the images of each batch, as pairs of pass and index."""
        begin, end = (first_epoch - 1) * self.n_batches, last_epoch * self.n_batches
        n = self._n_in_pass
        first, last = begin // n, -(-end // n)  # passes, counted from 0
        keys = [
            [(number, index) for index in chunk]
            for number in range(first + 1, last + 1)
            for chunk in _chunks(self._order(number), self.batch_size)[:n]
        ]
        return keys[begin - first * n : end - first * n]

    def _strong_views(self, keys: list[list[tuple[int, int]]]) -> Iterable[Tensor]:
        return DataLoader(
            _StrongViews(self.images, self.recipe),
            batch_sampler=keys,
            num_workers=self._n_workers,
            pin_memory=self.device.type == "cuda",
            # Fork, because spawn would run a user's script again in every worker.
            multiprocessing_context="fork" if self._n_workers else None,
        )

    def _flipped(
        self, views: Float[Tensor, "batch 3 size size"], key: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "batch 3 size size"]:
        """The weak views, those flipped that are drawn to be."""
        flips = [self.recipe.is_flipped(epoch, index) for epoch, index in key]
        if not any(flips):
            return views
        is_flipped = torch.tensor(flips, pin_memory=self.device.type == "cuda")
        moved = is_flipped.to(self.device, non_blocking=True)[:, None, None, None]
        return torch.where(moved, views.flip(-1), views)

    def in_order(self, batch_size: int) -> Iterator[ViewBatch]:
        """Yield weak views and crops of all images once, in order, as drawn before any epoch."""
        for indices in _chunks(list(range(len(self.images))), batch_size):
            yield self.weak_and_crops(0, indices)

    def weak_and_crops(self, epoch: int, indices: Sequence[int]) -> ViewBatch:
        """The weak views and crops of some images, as drawn in `epoch`."""
        key = [(epoch, index) for index in indices]
        prepared = self._prepared(key)
        weak, crops = prepared.normalised(self.recipe.mean, self.recipe.std, self._memory)
        return ViewBatch(torch.tensor(indices), self._flipped(weak, key), crops)

    def _prepared(self, key: Sequence[tuple[int, int]]) -> OnHost | Packed:
        """The host's part of the weak views and crops of (epoch, index) pairs."""
        pixels = [self.images.pixels(index) for _, index in key]
        windows = [
            self._windows(epoch, index, (image.shape[0], image.shape[1]))
            for (epoch, index), image in zip(key, pixels, strict=True)
        ]
        return prepare(pixels, windows, self.recipe.size, device=self.device)

    def _windows(self, epoch: int, index: int, shape: tuple[int, int]) -> list[Window]:
        recipe = self.recipe
        rng = np.random.default_rng(runtime.derive_seed(recipe.seed, "windows", epoch, index))
        weak = recipe.first_window(shape, rng)
        crops = square_windows(shape, recipe.size, recipe.n_crops, scale=recipe.crop_scale, rng=rng)
        return [weak, *crops]

    def _order(self, epoch: int) -> list[int]:
        generator = runtime.generator(self.recipe.seed, "order", epoch)
        order: list[int] = torch.randperm(self.n_items, generator=generator).tolist()
        return order if self.chosen is None else [self.chosen[place] for place in order]


class _StrongViews(Dataset[Tensor]):
    """Strong views by (epoch, index), made in a worker or in this process."""

    def __init__(self, images: UnlabelledImages, recipe: ViewRecipe) -> None:
        self._images = images
        self._seed = recipe.seed
        self._transform = strong_transform(recipe.strong, recipe.size)

    def __getitem__(self, key: tuple[int, int]) -> UInt8[Tensor, "3 size size"]:
        epoch, index = key
        seed = runtime.derive_seed(self._seed, "strong", epoch, index)
        return strong_view(self._images.pixels(index), self._transform, seed=seed)


def evaluation_views(
    images: UnlabelledImages,
    recipe: ViewRecipe,
    *,
    crop: Crop,
    batch_size: int,
    device: str | torch.device = "cpu",
) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Yield the normalised test views of all images, in order; the same ones at each call."""
    place = torch.device(device)

    def prepared(indices: list[int]) -> OnHost | Packed:
        pixels = [images.pixels(index) for index in indices]
        windows = [
            [
                whole_window(
                    (image.shape[0], image.shape[1]),
                    recipe.size,
                    crop,
                    np.random.default_rng(runtime.derive_seed(recipe.seed, "test", index)),
                )
            ]
            for index, image in zip(indices, pixels, strict=True)
        ]
        return prepare(pixels, windows, recipe.size, device=place)

    memory = Memory()
    for ready in _ahead(prepared, _chunks(list(range(len(images))), batch_size), place):
        yield ready.normalised(recipe.mean, recipe.std, memory)[0]


def _ahead(
    make: Callable[[Key], Made], keys: Iterable[Key], device: torch.device
) -> Iterator[Made]:
    """Yield `make(key)` for each key; for a GPU, a thread makes the next ones meanwhile.

    A CPU gets each when it is asked for, since a thread would only take turns with the training.
    """
    if device.type == "cpu":
        yield from map(make, keys)
        return
    rest = iter(keys)
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="pixels") as pool:
        try:
            waiting.extend(pool.submit(make, key) for key in islice(rest, _AHEAD))
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(make, key) for key in islice(rest, 1))
                yield made
        finally:
            for future in waiting:
                future.cancel()


def default_workers(device: torch.device) -> int:
    """Number of processes that draw strong views: none if the CPU does the training.

    `MICROCLIP_WORKERS` overrides it. There are none where processes cannot be forked, as each would
    then run a user's script again; macOS has fork, but its own libraries crash after one. The views
    do not depend on the number.
    """
    named = os.environ.get("MICROCLIP_WORKERS")
    if sys.platform == "darwin" or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    if named is not None:
        return int(named)
    if device.type == "cpu":
        return 0
    return min(_MAX_WORKERS, max(1, runtime.n_cpus() - 1))


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@torch.no_grad()
def image_embeddings(
    backbone: Backbone, images: UnlabelledImages, crop: Crop = "center"
) -> Float[Tensor, "image embedding"]:
    """Return the unit [CLS] embeddings of test views, on the CPU, in float32."""
    recipe, device = ViewRecipe.of(backbone, seed=0), backbone.device
    views = evaluation_views(images, recipe, crop=crop, batch_size=ENCODED_TOGETHER, device=device)
    return torch.cat([backbone.encode_global(batch).cpu() for batch in views])


def spread(total: int, at_most: int) -> list[int]:
    """Every k-th of `total` indices, with the smallest k that gives at most `at_most`."""
    return list(range(0, total, max(1, -(-total // at_most))))
