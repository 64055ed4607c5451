import pytest

from qubic_lab.errors import InputError
from qubic_lab.stats import wilson_interval


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


def test_more_confidence_is_a_wider_interval():
    narrow, wide = wilson_interval(45, 50, confidence=0.9), wilson_interval(45, 50, confidence=0.99)
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("successes", "trials", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]
)
def test_impossible_counts_are_refused(successes: int, trials: int, confidence: float):
    with pytest.raises(InputError):
        wilson_interval(successes, trials, confidence)
