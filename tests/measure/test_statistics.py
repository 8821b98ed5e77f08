"""Intervals and tests: hand-worked numbers, scipy's own numbers, and coverage on simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from jaxtyping import Bool
from scipy import stats

from microclip.measure import statistics
from microclip.measure.statistics import Right

FEW = 400  # resamples, where a test needs no exact limits


def runs(*rows: str) -> Right:
    """Runs by images from rows of 1 and 0."""
    return np.array([[mark == "1" for mark in row] for row in rows])


def simulated(
    generator: np.random.Generator, share: float, n_runs: int, n_images: int = 150
) -> Right:
    """Runs that are right on an image together or not, apart from a tenth of the answers."""
    shared: Bool[np.ndarray, " image"] = generator.random(n_images) < share
    flipped = generator.random((n_runs, n_images)) < 0.1
    return np.where(flipped, generator.random((n_runs, n_images)) < share, shared)


def test_a_difference_is_the_second_minus_the_first_over_runs_and_sets() -> None:
    first, second = [runs("1100"), runs("10")], [runs("1110", "1111"), runs("11", "10")]
    found = statistics.difference(first, second, is_paired=False, resamples=FEW)
    assert found.points == pytest.approx(100 * ((0.875 + 0.75) / 2 - (0.5 + 0.5) / 2))
    assert statistics.accuracy_pct(second) == pytest.approx(81.25)


def test_the_interval_of_one_run_is_the_binomial_ones() -> None:
    right = np.arange(400)[None] < 240
    found = statistics.accuracy_interval([right])
    low, high = (100 * stats.binom.ppf(q, 400, 0.6) / 400 for q in (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.3), pytest.approx(high, abs=0.3))


def test_the_interval_of_a_difference_is_that_of_paired_images() -> None:
    # 30 images that only the second gets right, 10 that only the first does, 160 alike.
    first = runs("0" * 30 + "1" * 10 + "1" * 80 + "0" * 80)
    second = runs("1" * 30 + "0" * 10 + "1" * 80 + "0" * 80)
    found = statistics.difference([first], [second], is_paired=False)
    deviation = math.sqrt((40 / 200 - (20 / 200) ** 2) / 200)  # of the mean of -1, 0 and 1
    assert found.points == pytest.approx(10.0)
    assert found.interval.low == pytest.approx(10 - 196 * deviation, abs=0.4)
    assert found.interval.high == pytest.approx(10 + 196 * deviation, abs=0.4)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.1 / deviation), abs=0.002)


def test_seeds_that_differ_widen_the_interval_and_equal_seeds_do_not() -> None:
    alike = runs(*["1" * 60 + "0" * 40] * 3)
    apart = runs("1" * 70 + "0" * 30, "1" * 60 + "0" * 40, "1" * 50 + "0" * 50)
    one, same, wide = (
        (found.high - found.low)
        for found in map(statistics.accuracy_interval, ([alike[:1]], [alike], [apart]))
    )
    assert one == pytest.approx(same, abs=0.6)
    assert wide > 1.2 * same


def test_the_spread_of_few_seeds_is_not_understated() -> None:
    # Enough images that only seeds vary; three seeds with a sample deviation of 10 points.
    rows = [np.arange(4000) < n for n in (2400, 2000, 1600)]
    drawn = statistics._resampled_images([np.array(rows)], 20_000, np.random.default_rng(0))
    picks = statistics._picks(drawn, np.random.default_rng(1))
    found = statistics._resampled_seeds(drawn, picks).std()
    assert found == pytest.approx(10 / math.sqrt(3), rel=0.03)


def test_equal_seeds_of_both_methods_are_resampled_together() -> None:
    # Seeds differ by 20 points, and the second is 5 points better with each of them.
    rows = [np.arange(200) < n for n in (80, 100, 120)]
    first = np.array(rows)
    second = np.array([np.arange(200) < n for n in (90, 110, 130)])
    paired = statistics.difference([first], [second], is_paired=True)
    apart = statistics.difference([first], [second], is_paired=False)
    assert paired.interval.low > 0 > apart.interval.low


def test_methods_that_agree_on_each_image_differ_by_exactly_nothing() -> None:
    same = runs("1100", "1010")
    found = statistics.difference([same], [same], is_paired=True, resamples=FEW)
    assert (found.points, found.interval.low, found.interval.high, found.p) == (0, 0, 0, 1)


def test_swapping_the_methods_mirrors_the_result() -> None:
    generator = np.random.default_rng(3)
    first, second = simulated(generator, 0.5, 3), simulated(generator, 0.6, 3)
    one = statistics.difference([first], [second], is_paired=True)
    other = statistics.difference([second], [first], is_paired=True)
    assert one.points == pytest.approx(-other.points)
    assert one.interval.low == pytest.approx(-other.interval.high, abs=0.3)
    assert one.p == pytest.approx(other.p, abs=0.01)


def test_the_same_runs_give_the_same_numbers() -> None:
    given = [simulated(np.random.default_rng(5), 0.5, 2)]
    assert statistics.accuracy_interval(given) == statistics.accuracy_interval(given)


@pytest.mark.parametrize("n_runs", [1, 3])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(n_runs: int) -> None:
    generator, n_times, covered = np.random.default_rng(7), 120, 0
    for _ in range(n_times):
        first, second = (simulated(generator, share, n_runs) for share in (0.55, 0.65))
        found = statistics.difference([first], [second], is_paired=False, resamples=FEW)
        covered += found.interval.low <= 10 <= found.interval.high
    # 95 %, within three standard errors of 120 trials.
    assert 0.89 <= covered / n_times <= 1


def test_resampling_in_parts_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simulated(np.random.default_rng(0), 0.7, 3)
    whole = statistics.accuracy_interval([right, right[:, :90]], resamples=FEW)
    monkeypatch.setattr(statistics, "_MOST_COUNTS", 25)
    assert statistics.accuracy_interval([right, right[:, :90]], resamples=FEW) == whole


def test_shares_of_draws_are_resampled_like_answers() -> None:
    right = np.arange(400)[None] < 240
    halves = np.full((1, 400), 0.5)
    assert statistics.accuracy_interval([right * 1.0]) == statistics.accuracy_interval([right])
    assert statistics.accuracy_interval([halves]) == statistics.Interval(50.0, 50.0)


@pytest.mark.parametrize(
    ("first", "second", "paired", "message"),
    [
        ("10", "100", False, "expected the same images"),
        ("10", "10|11", True, "and the same seeds if paired"),
    ],
)
def test_runs_that_do_not_match_are_refused(
    first: str, second: str, paired: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        statistics.difference(
            [runs(*first.split("|"))], [runs(*second.split("|"))], is_paired=paired
        )


def test_sets_with_other_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="take the seeds that all sets have"):
        statistics.accuracy_interval([runs("10"), runs("10", "11")])


def test_mcnemar_is_exact_and_symmetric() -> None:
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert statistics.mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert statistics.mcnemar(7, 1) == statistics.mcnemar(1, 7)
    assert statistics.mcnemar(4, 4) == statistics.mcnemar(0, 0) == 1


def test_holm_multiplies_the_smallest_most_and_is_monotone() -> None:
    # Worked by hand: 4 x 0.005; 3 x 0.01; 2 x 0.03; then 0.04, which may not fall below 0.06.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.6]) == [1, 1]
    assert statistics.holm([]) == []
    given = np.random.default_rng(0).random(50) ** 3
    adjusted = np.array(statistics.holm(list(given)))
    assert (np.diff(adjusted[np.argsort(given)]) >= 0).all()
    assert (adjusted >= given).all()


def test_ranks_and_the_critical_difference_are_the_published_ones() -> None:
    # Four methods on 14 datasets: Demšar (2006) gives q = 2.569 and a critical difference of 1.25.
    generator = np.random.default_rng(0)
    accuracies = generator.random((4, 14))
    found = statistics.friedman(accuracies)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert found.p == pytest.approx(stats.friedmanchisquare(*accuracies).pvalue)
    assert sum(found.mean) == pytest.approx(10)


def test_the_best_has_rank_one_and_ties_share_a_rank() -> None:
    found = statistics.friedman(np.array([[60.0, 70.0], [50.0, 70.0], [40.0, 10.0]]))
    assert found.mean == (1.25, 1.75, 3.0)
    assert statistics.friedman(np.ones((3, 2))).p == 1


def test_two_methods_have_no_ranks() -> None:
    with pytest.raises(ValueError, match="at least three methods on two datasets, got 2 on 5"):
        statistics.friedman(np.ones((2, 5)))


def test_a_difference_over_seeds_is_the_paired_t_test() -> None:
    first, second = [58.0, 59.0, 57.5, 60.0], [60.0, 60.5, 60.5, 61.0]
    found = statistics.seed_difference(first, second)
    expected = stats.ttest_rel(second, first)
    assert found.points == pytest.approx(1.875)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(interval)
    # By hand: gains 2, 1.5, 3, 1; standard error 0.42696; t of 3 degrees of freedom 3.18245.
    assert found.interval.low == pytest.approx(1.875 - 1.35878, abs=1e-4)
    assert found.interval.high == pytest.approx(1.875 + 1.35878, abs=1e-4)


def test_seeds_that_all_gain_the_same_leave_no_doubt() -> None:
    same = statistics.seed_difference([1.0, 2.0], [3.0, 4.0])
    assert (same.points, same.interval.low, same.interval.high, same.p) == (2.0, 2.0, 2.0, 0.0)
    assert statistics.seed_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    with pytest.raises(ValueError, match="the same seeds on both sides, at least two, got 1 and 1"):
        statistics.seed_difference([1.0], [2.0])
