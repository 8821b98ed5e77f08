"""Intervals and tests for accuracies that were measured on the same test images.

Input is which images each run got right: a matrix of runs by images. A run that predicts each image
several times at random (WCA) has the share of its draws that are right. Two things vary: which
images are in the test set, and the seed of a run. The bootstrap resamples both: the seeds, then
the images, the same images for both methods. Its intervals are percentile intervals, because a
difference of accuracies is a mean, with next to no bias or skew for BCa to correct, and because
BCa's acceleration is defined for one sample of independent units, not for images crossed with
seeds. Every draw comes from a generator with a fixed seed: the same runs give the same numbers.

Sources: paired bootstrap, Efron & Tibshirani 1993; images crossed with seeds, Owen 2007 ("The
pigeonhole bootstrap"); few seeds, Rao & Wu 1988; McNemar 1947; Holm 1979; Friedman ranks with
Nemenyi's critical difference, Demšar 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.95  # of intervals; tests are at 1 - LEVEL
RESAMPLES = 10_000
_MOST_COUNTS = 1 << 24  # drawn at a time: 128 MiB

# Whether each run, one a seed, got each test image right; of several draws, the share that did.
Right = Bool[np.ndarray, "run image"] | Float[np.ndarray, "run image"]


@dataclass(frozen=True)
class Interval:
    """A percentile interval at `LEVEL`, in points of accuracy."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies in points, its interval, and the bootstrap's two-sided p."""

    points: float
    interval: Interval
    p: float


def accuracy_pct(sets: Sequence[Right]) -> float:
    """Accuracy over test sets and runs: the mean over sets of the share of right images."""
    return 100 * float(np.mean([right.mean() for right in sets]))


def accuracy_interval(sets: Sequence[Right], *, resamples: int = RESAMPLES) -> Interval:
    """Interval of the accuracy, averaged over test sets; each set has the same runs in rows.

    Raises:
        ValueError: there is no image or no run, or the sets have different numbers of runs.
    """
    generator = np.random.default_rng(0)
    runs = _resampled_images(sets, resamples, generator)
    return _interval(_resampled_seeds(runs, _picks(runs, generator)))


def difference(
    first: Sequence[Right],
    second: Sequence[Right],
    *,
    is_paired: bool,
    resamples: int = RESAMPLES,
) -> Difference:
    """Accuracy of the second minus that of the first, averaged over test sets.

    Both are tested on the same images in the same order. With `is_paired`, run k of both has the
    same seed, and a resample takes the same seeds for both; otherwise it draws them separately.

    Raises:
        ValueError: the images or, with `is_paired`, the runs do not match.
    """
    pairs = list(zip(first, second, strict=True))
    if any(a.shape[1] != b.shape[1] or (is_paired and len(a) != len(b)) for a, b in pairs):
        raise ValueError(
            f"expected the same images, and the same seeds if paired; got runs by images "
            f"{[(a.shape, b.shape) for a, b in pairs]}; read both from runs on one test set"
        )
    generator = np.random.default_rng(0)
    runs = _resampled_images([np.vstack(pair) for pair in pairs], resamples, generator)
    ours, theirs = runs[:, : len(first[0])], runs[:, len(first[0]) :]
    picks = _picks(ours, generator)
    other = picks if is_paired else _picks(theirs, generator)
    drawn = _resampled_seeds(theirs, other) - _resampled_seeds(ours, picks)
    # A small step keeps rounding from deciding on which side of zero an exact tie is.
    below, above = (int((sign * drawn < 1e-9).sum()) for sign in (1, -1))
    p = min(1.0, 2 * (1 + min(below, above)) / (resamples + 1))
    return Difference(accuracy_pct(second) - accuracy_pct(first), _interval(drawn), p)


def seed_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean of the second minus that of the first, for numbers that only differ by the seed.

    Both have the same seeds in the same order. Interval and p are those of the paired t-test.

    Raises:
        ValueError: fewer than two seeds, or different numbers of them.
    """
    from scipy.stats import ttest_rel  # late: scipy takes a second to import

    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"expected the same seeds on both sides, at least two, got {len(first)} and "
            f"{len(second)}; run more seeds"
        )
    gains = np.subtract(second, first)
    mean = float(gains.mean())
    if np.ptp(gains) < 1e-9:  # all seeds alike but for rounding: nothing varies
        return Difference(mean, Interval(mean, mean), 1.0 if abs(mean) < 1e-9 else 0.0)
    found = ttest_rel(second, first)
    interval = found.confidence_interval(LEVEL)
    return Difference(
        mean, Interval(float(interval.low), float(interval.high)), float(found.pvalue)
    )


def _resampled_images(
    sets: Sequence[Right], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "resample run"]:
    """Accuracy in percent of each run on resampled images, averaged over test sets."""
    if len({len(right) for right in sets}) != 1 or not all(right.size for right in sets):
        raise ValueError(
            f"expected sets of images with the same number of runs, got runs by images "
            f"{[right.shape for right in sets]}; take the seeds that all sets have"
        )
    total = np.zeros((resamples, len(sets[0])))
    for right in sets:
        # Images on which all runs agree are interchangeable: drawing how often each pattern of
        # right and wrong occurs is the same as drawing images, and a hundred times less work.
        patterns, counts = np.unique(right, axis=1, return_counts=True)
        n = right.shape[1]
        # Shares make many patterns; a part of the resamples at a time bounds the memory.
        step = max(1, _MOST_COUNTS // len(counts))
        for start in range(0, resamples, step):
            part = slice(start, min(start + step, resamples))
            drawn = generator.multinomial(n, counts / n, size=part.stop - part.start)
            total[part] += 100 / n * (drawn @ patterns.T)
    return total / len(sets)


def _picks(
    runs: Float[np.ndarray, "resample run"], generator: np.random.Generator
) -> Int[np.ndarray, "resample run"]:
    """The runs that each resample takes, with replacement."""
    return generator.integers(runs.shape[1], size=runs.shape)


def _resampled_seeds(
    runs: Float[np.ndarray, "resample run"], picks: Int[np.ndarray, "resample run"]
) -> Float[np.ndarray, " resample"]:
    """The mean of the picked runs; what it deviates from the mean of all is scaled up."""
    n = runs.shape[1]
    mean: Float[np.ndarray, " resample"] = runs.mean(axis=1)
    if n == 1:
        return mean
    # Resampled means of n seeds vary by (n - 1) / n of their variance: by two thirds of it with
    # three seeds (Rao & Wu 1988).
    picked: Float[np.ndarray, " resample"] = np.take_along_axis(runs, picks, axis=1).mean(axis=1)
    mean += math.sqrt(n / (n - 1)) * (picked - mean)
    return mean


def _interval(drawn: Float[np.ndarray, " resample"]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's test on the numbers of images that only one of two got right.

    The exact binomial test at any count: the chi-square form approximates it and is not needed.
    """
    from scipy.stats import binomtest  # late: scipy takes a second to import

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p by Holm's step-down: comparing each with a level keeps the family's error."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


@dataclass(frozen=True)
class Ranks:
    """Friedman's test of methods over datasets.

    Attributes:
        mean: each method's mean rank over datasets; 1 is the best, ties share their mean rank.
        p: of the hypothesis that all methods are alike.
        critical_difference: Nemenyi's; mean ranks further apart differ at `1 - LEVEL`.
    """

    mean: tuple[float, ...]
    n_datasets: int
    p: float
    critical_difference: float


def friedman(accuracies: Float[np.ndarray, "method dataset"]) -> Ranks:
    """Rank methods by accuracy on each dataset and test whether their mean ranks differ.

    Raises:
        ValueError: fewer than three methods or two datasets.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    k, n = accuracies.shape
    if k < 3 or n < 2:
        raise ValueError(
            f"expected at least three methods on two datasets, got {k} on {n}; compare two "
            "methods by `difference`"
        )
    ranks = rankdata(-accuracies, axis=0).mean(axis=1)
    is_tied = bool((accuracies == accuracies[0]).all())  # scipy would divide by zero
    quantile = float(studentized_range.ppf(LEVEL, k, math.inf)) / math.sqrt(2)
    return Ranks(
        mean=tuple(float(rank) for rank in ranks),
        n_datasets=n,
        p=1.0 if is_tied else float(friedmanchisquare(*accuracies).pvalue),
        critical_difference=quantile * math.sqrt(k * (k + 1) / (6 * n)),
    )
