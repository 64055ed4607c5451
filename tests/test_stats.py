import math
from collections.abc import Iterator

import pytest

from qubic_lab.errors import InputError
from qubic_lab.stats import is_equivalent, mcnemar_exact, minimum_detectable_difference, tango_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 8, 0.6756, 1.0),
        (0, 10, 0.0, 0.2775),
        # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(successes: int, trials: int, low: float, high: float):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_bounds_are_exact_where_all_or_none_succeed():
    for trials in range(1, 200):
        assert wilson_interval(trials, trials)[1] == 1.0
        assert wilson_interval(0, trials)[0] == 0.0


@pytest.mark.parametrize(
    ("successes", "trials", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]
)
def test_impossible_counts_are_refused(successes: int, trials: int, confidence: float):
    with pytest.raises(InputError):
        wilson_interval(successes, trials, confidence)


# Complete response before and after consolidation therapy (Cavo et al. 2012), as analysed in M. W. Fagerland,
# S. Lydersen and P. Laake, "Statistical analysis of contingency tables" (2017), chapter 8.
CAVO = {"only_first": 6, "only_second": 16}


def test_mcnemar_equals_published_and_hand_counted_values():
    assert mcnemar_exact(**CAVO) == pytest.approx(0.052479, abs=5e-7)
    assert mcnemar_exact(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar_exact(0, 5) == 2 / 2**5
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7)
    assert mcnemar_exact(0, 0) == mcnemar_exact(3, 3) == 1.0


@pytest.mark.parametrize(
    ("only_first", "only_second", "pairs", "confidence", "low", "high"),
    [
        (6, 16, 161, 0.95, -0.1240, -0.0054),  # as CAVO
        (1, 7, 21, 0.95, -0.5172, -0.0260),  # the same book: airway hyper-responsiveness (Bentur et al. 2009)
        (0, 1, 44, 0.90, -0.0957, 0.0365),  # Tango's own example: two ways to clean contact lenses
    ],
)
def test_tango_interval_equals_published_values(
    only_first: int, only_second: int, pairs: int, confidence: float, low: float, high: float
):
    assert tango_interval(only_first, only_second, pairs, confidence) == pytest.approx((low, high), abs=5e-5)


def tables(pairs: int, first: float, second: float) -> Iterator[tuple[int, int, float]]:
    """Yield all counts of the two kinds of discordant pairs, with their probability."""
    for b in range(pairs + 1):
        for c in range(pairs + 1 - b):
            ways = math.comb(pairs, b) * math.comb(pairs - b, c)
            yield b, c, ways * first**b * second**c * (1 - first - second) ** (pairs - b - c)


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.1), (0.25, 0.1), (0.05, 0.15), (0.02, 0.02)])
def test_tango_interval_covers_the_truth_as_often_as_it_says(first: float, second: float):
    """Summed over all tables, so there is no chance in it."""
    inside = [
        probability
        for b, c, probability in tables(30, first, second)
        if probability > 1e-9 and (interval := tango_interval(b, c, 30))[0] <= first - second <= interval[1]
    ]
    assert 0.93 < sum(inside) <= 1.0


def test_equal_answers_are_equivalent_only_with_enough_pairs():
    assert not is_equivalent(0, 0, 87, margin=0.03)
    assert is_equivalent(0, 0, 88, margin=0.03)  # z² / (n + z²) < 0.03 with z = 1.645
    assert not is_equivalent(10, 1, 200, margin=0.03)


def test_equivalence_is_seldom_claimed_at_the_margin():
    """The size of the test: with the true difference at the margin, at most about alpha of all samples pass."""
    passed = sum(p for b, c, p in tables(60, 0.12, 0.02) if p > 1e-9 and is_equivalent(b, c, 60, margin=0.1))
    assert passed < 0.06


def power_of_mcnemar(pairs: int, discordant: float, difference: float) -> float:
    first, second = (discordant + difference) / 2, (discordant - difference) / 2
    return sum(p for b, c, p in tables(pairs, first, second) if mcnemar_exact(b, c) < 0.05)


def test_minimum_detectable_difference_is_found_with_about_that_power():
    for pairs, discordant in [(80, 20), (60, 30)]:
        found = minimum_detectable_difference(pairs, discordant)
        assert found is not None
        # The formula is for the large-sample test; the exact test's power is a little lower.
        assert 0.68 < power_of_mcnemar(pairs, discordant / pairs, found) < 0.82


def test_minimum_detectable_difference_where_hardly_any_pair_is_discordant():
    found = minimum_detectable_difference(100, 0)
    assert found is not None
    assert found == minimum_detectable_difference(100, 2), "two discordant pairs cannot hold a difference of that size"
    assert 0.06 < found < 0.09, "six pairs, all one way, are the least that the exact test can find"
    assert minimum_detectable_difference(3, 0) is None


@pytest.mark.parametrize(("only_first", "only_second", "pairs"), [(0, 0, 0), (-1, 0, 3), (2, 2, 3)])
def test_impossible_pairs_are_refused(only_first: int, only_second: int, pairs: int):
    with pytest.raises(InputError):
        tango_interval(only_first, only_second, pairs)
