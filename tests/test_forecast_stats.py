"""Calibration error, Brier score and risk-coverage by hand; intervals that hold the truth as often as they say."""

import math

import numpy as np
import pytest

from qubic_lab.errors import InputError
from qubic_lab.stats import (
    Forecasts,
    bootstrap_interval,
    brier_parts,
    brier_score,
    calibration_error,
    calibration_error_if_calibrated,
    calibration_error_interval,
    reliability_table,
    risk_coverage,
    risk_coverage_area,
    wilson_interval,
)

# Ten forecasts: of 0.9 four of five happened, of 0.6 two of five.
PROBABILITY = [0.9] * 5 + [0.6] * 5
HAPPENED = [1, 1, 1, 1, 0, 1, 1, 0, 0, 0]
TEN = Forecasts.of(PROBABILITY, HAPPENED)


def test_bootstrap_of_a_mean_is_near_its_normal_interval():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(lambda rows: float(values[rows].mean()), 400, resamples=4000)
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half_width, values.mean() + half_width), abs=0.02)
    assert bootstrap_interval(lambda rows: float(values[rows].mean()), 400, resamples=4000) == (low, high)


def test_bootstrap_leaves_out_draws_that_say_nothing():
    values = np.array([math.nan] + [1.0] * 6)
    assert bootstrap_interval(lambda rows: float(values[rows].mean()), 7, resamples=200) == (1.0, 1.0)
    assert all(map(math.isnan, bootstrap_interval(lambda rows: math.nan, 7, resamples=5)))


def test_a_handful_has_no_bootstrap_interval():
    assert all(map(math.isnan, bootstrap_interval(lambda rows: 1.0, 5)))
    assert bootstrap_interval(lambda rows: 1.0, 6) == (1.0, 1.0)


@pytest.mark.parametrize(("items", "resamples"), [(0, 10), (5, 0)])
def test_impossible_bootstraps_are_refused(items: int, resamples: int):
    with pytest.raises(InputError):
        bootstrap_interval(lambda rows: 0.0, items, resamples)


def test_calibration_error_by_hand():
    assert calibration_error(TEN) == pytest.approx(0.5 * 0.1 + 0.5 * 0.2)
    assert calibration_error(Forecasts.of(PROBABILITY, HAPPENED, equal_mass=False)) == pytest.approx(0.15)
    assert calibration_error(Forecasts.of(PROBABILITY, HAPPENED, bins=1)) == pytest.approx(0.75 - 0.6)
    assert calibration_error(Forecasts.of([1.0, 0.0], [True, False], equal_mass=False)) == 0.0


def test_bins_of_equal_mass_and_of_equal_width():
    given = [0.01, 0.02, 0.03, 0.04, 0.5, 0.5, 0.5, 0.99]
    assert Forecasts.of(given, [0] * 8, bins=2).bin.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Forecasts.of(given, [0] * 8, bins=4).bin.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert Forecasts.of(given, [0] * 8, bins=2, equal_mass=False).bin.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    many = Forecasts.of(np.random.default_rng(0).random(1000), np.zeros(1000))
    assert np.bincount(many.bin).tolist() == [100] * 10


@pytest.mark.parametrize(
    ("probability", "happened", "bins"),
    [([], [], 10), ([0.5], [1, 0], 10), ([1.1], [1], 10), ([math.nan], [1], 10), ([0.5], [0.5], 10), ([0.5], [1], 0)],
)
def test_impossible_forecasts_are_refused(probability: list[float], happened: list[float], bins: int):
    with pytest.raises(InputError):
        Forecasts.of(probability, happened, bins)


@pytest.mark.parametrize(("shift", "items"), [(0.0, 100), (0.0, 1000), (0.05, 300), (0.1, 1000)])
def test_calibration_error_interval_holds_the_true_error(shift: float, items: int):
    """Nominally 95 %; 86 to 98 % is what it does, and percentiles of resamples hold a true error of 0 never."""
    draw, held = np.random.default_rng(7), 0
    for number in range(100):
        probability = draw.choice([0.6, 0.7, 0.8, 0.9, 0.95], items)
        forecasts = Forecasts.of(probability, draw.random(items) < probability - shift)
        low, high = calibration_error_interval(forecasts, resamples=100, seed=number)
        held += low <= shift <= high
    assert held >= 84


def test_calibration_error_interval_ends():
    low, high = calibration_error_interval(TEN)
    assert low == 0.0
    assert 0.15 < high < 0.6
    clear = Forecasts.of([0.9] * 1000, [0] * 1000)
    low, high = calibration_error_interval(clear)
    assert 0.88 < low <= 0.9 <= high < 0.92
    exact = calibration_error_interval(Forecasts.of([0.5, 0.5], [0, 1]))
    assert exact[0] == 0.0
    assert exact[1] > 0.2, "two forecasts that come out even prove nothing"


def test_calibrated_forecasts_have_the_error_that_is_foretold():
    draw = np.random.default_rng(1)
    probability = draw.random(500)
    errors = [calibration_error(Forecasts.of(probability, draw.random(500) < probability)) for _ in range(200)]
    mean, most = calibration_error_if_calibrated(Forecasts.of(probability, np.zeros(500)), resamples=400)
    assert mean == pytest.approx(np.mean(errors), rel=0.06)
    assert most == pytest.approx(np.quantile(errors, 0.95), rel=0.1)


def test_brier_by_hand_and_its_parts_add_up():
    assert brier_score(TEN) == pytest.approx((4 * 0.01 + 0.81 + 2 * 0.16 + 3 * 0.36) / 10)
    parts = brier_parts(TEN)
    assert parts.reliability == pytest.approx(0.5 * 0.01 + 0.5 * 0.04)
    assert parts.resolution == pytest.approx(0.04)  # shares 0.8 and 0.4 about 0.6
    assert parts.uncertainty == pytest.approx(0.24)
    assert parts.within == pytest.approx(0.0)
    spread = np.random.default_rng(4).random(300)
    parts = brier_parts(Forecasts.of(spread, np.random.default_rng(5).random(300) < spread))
    assert parts.within != 0.0
    assert parts.score == pytest.approx(parts.reliability - parts.resolution + parts.uncertainty + parts.within)


def test_reliability_table_by_hand():
    low, high = reliability_table(TEN)
    assert (low.least, low.mean, low.greatest, low.share, low.items) == (0.6, pytest.approx(0.6), 0.6, 0.4, 5)
    assert (high.share, (high.share_low, high.share_high)) == (0.8, wilson_interval(4, 5))


def test_risk_coverage_by_hand():
    points = [(each.from_probability, each.coverage, each.risk) for each in risk_coverage(TEN)]
    assert points == [(0.9, 0.5, pytest.approx(0.2)), (0.6, 1.0, pytest.approx(0.4))]
    sharp = Forecasts.of([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1])
    assert risk_coverage_area(sharp) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_equal_probabilities_have_the_area_of_chance_whatever_their_order():
    assert risk_coverage_area(Forecasts.of([0.5] * 4, [1, 0, 0, 1])) == pytest.approx(0.5)
    assert risk_coverage_area(Forecasts.of([0.5] * 4, [0, 0, 1, 1])) == pytest.approx(0.5)
    # 0.2 within the first five, then (1 + 3 j / 5) / (5 + j)
    assert risk_coverage_area(TEN) == pytest.approx((5 * 0.2 + sum((1 + 0.6 * j) / (5 + j) for j in range(1, 6))) / 10)
