"""Images that train and test share: by the bytes of their files, and by what they show.

What they show is told by a 64-bit difference hash: the picture in grey, reduced to nine by eight
means; a bit says whether a mean is above its right neighbour. Two pictures match when at most
`NEAR_BITS` bits differ and their means differ by at most `NEAR_LEVELS` grey levels on average (of
255). The second condition keeps apart plain pictures, whose hashes are alike because hardly any bit
is set. A crop or a mirror image does not match. Measured on two icon sets (400 training and 480
test scenes of 96 px each, none shared): no match across the splits; of the training scenes saved
again as JPEG of quality 60 to 90, or at half or double size, 97 to 100 % are matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from microclip.data.store import ImageStore

NEAR_BITS = 8
NEAR_LEVELS = 4.0
EXAMPLES = 5
_WIDTH, _HEIGHT = 9, 8
_PAIRS = 1 << 22  # hashes compared at a time: 32 MiB
_CONFIRMED = 1 << 17  # pairs of pictures compared at a time

Means = NDArray[np.uint8]  # [image, 8, 9]
Hashes = NDArray[np.uint64]  # [image]


@dataclass(frozen=True)
class Shared:
    """Test images that are among the training images too.

    Attributes:
        test: places of such test images, ascending.
        train: for each of them the place of its first, or most alike, training image.
        n_train: training images that are among the test images.
    """

    test: tuple[int, ...] = ()
    train: tuple[int, ...] = ()
    n_train: int = 0

    def __len__(self) -> int:
        """Return the number of test images."""
        return len(self.test)


def by_bytes(train: Sequence[str], test: Sequence[str]) -> Shared:
    """Return the images whose files have the same hash."""
    first: dict[str, int] = {}
    for place, sha256 in enumerate(train):
        first.setdefault(sha256, place)
    found = [place for place, sha256 in enumerate(test) if sha256 in first]
    both = {test[place] for place in found}
    return Shared(
        tuple(found),
        tuple(first[test[place]] for place in found),
        sum(sha256 in both for sha256 in train),
    )


def by_picture(store: ImageStore, train: Sequence[int], test: Sequence[int]) -> Shared:
    """Return the images that look alike; `train` and `test` are rows of the store."""
    pictures = [means(store, rows) for rows in (train, test)]
    return near(pictures[0], pictures[1])


def near(train: Means, test: Means) -> Shared:
    """Return which pictures match, each test picture with the training picture nearest to it."""
    hashes = difference_hashes(train), difference_hashes(test)
    best: dict[int, tuple[int, float, int]] = {}
    seen: set[int] = set()
    step = max(1, _PAIRS // max(1, len(train)))
    for start in range(0, len(test), step):
        differing = np.bitwise_count(hashes[1][start : start + step, None] ^ hashes[0][None])
        rows, columns = np.nonzero(differing <= NEAR_BITS)
        for begin in range(0, len(rows), _CONFIRMED):
            part = slice(begin, begin + _CONFIRMED)
            here, there = rows[part] + start, columns[part]
            apart = np.abs(test[here].astype(np.int16) - train[there]).mean(axis=(1, 2))
            for place in np.nonzero(apart <= NEAR_LEVELS)[0]:
                own, other = int(here[place]), int(there[place])
                bits = int(differing[own - start, other])
                best[own] = min(best.get(own, (65, 0.0, 0)), (bits, float(apart[place]), other))
                seen.add(other)
    return Shared(tuple(sorted(best)), tuple(best[place][2] for place in sorted(best)), len(seen))


def means(store: ImageStore, rows: Sequence[int]) -> Means:
    """Return the pictures at some rows of a store in grey, as nine by eight means."""
    found = np.empty((len(rows), _HEIGHT, _WIDTH), dtype=np.uint8)
    for place, row in enumerate(rows):
        grey = Image.fromarray(np.asarray(store.pixels(row))).convert("L")
        found[place] = np.asarray(grey.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX))
    return found


def difference_hashes(pictures: Means) -> Hashes:
    """Return 64 bits a picture: whether each mean is above its right neighbour, by rows."""
    bits = pictures[:, :, :-1] > pictures[:, :, 1:]
    packed = np.packbits(bits.reshape(len(pictures), 64), axis=1)
    return packed.view(">u8").astype(np.uint64).reshape(len(pictures))
