"""Calibration of forecasts: the right model's shares and probabilities hold, a wrong one's do not, clusters widen."""

import numpy as np
import pytest

from qubic_lab.errors import InputError
from qubic_lab.oracle.risk.forecast_tests import coverage, evenness, probability_transform
from qubic_lab.oracle.risk.models import TailForecast, VolatilityForecast, simulate_garch, student_t
from qubic_lab.stats import wilson_interval


def known_forecast(seed: int, nu: float = 5.0) -> tuple[np.ndarray, VolatilityForecast]:
    """Return returns, and the forecast that knows how they are made; at each bar for the next."""
    returns, sigma = simulate_garch(3_000, 1e-6, 0.1, 0.85, nu, seed)
    ahead = np.append(sigma[1:], np.nan)
    return returns, VolatilityForecast(ahead, np.full(len(ahead), nu))


def test_shares_by_hand():
    returns = np.array([0.0, -0.03, 0.01, -0.02, 0.0, -0.05])
    var = np.array([0.02, 0.02, 0.02, np.nan, 0.02, 0.02])  # the last one is for a bar that is not there
    found = coverage(returns, TailForecast(0.05, var, var))
    assert found is not None  # losses of 0.03, 0.02 (not beyond) and 0.05; one bar has no forecast
    assert (found.bars, found.beyond, found.share) == (4, 2, 0.5)
    later = coverage(returns, TailForecast(0.05, var, var), first=2)
    assert later is not None and (later.bars, later.beyond) == (2, 1)
    assert coverage(returns, TailForecast(0.05, np.full(6, np.nan), var)) is None
    with pytest.raises(InputError, match="6 returns and 5 forecasts"):
        coverage(returns, TailForecast(0.05, var[1:], var[1:]))


def test_intervals_hold_the_level_and_are_wider_for_clusters():
    hits = 0
    for seed in range(40):
        returns, forecast = known_forecast(seed)
        found = coverage(returns, student_t(forecast, 0.05))
        assert found is not None
        hits += found.low <= 0.05 <= found.high
    assert 35 <= hits <= 40
    losses = np.zeros(2_001)
    losses[1:] = np.repeat(np.arange(100) % 10 == 0, 20)  # 20 in a row, ten times
    level = TailForecast(0.1, np.full(2_001, 0.5), np.full(2_001, 0.5))
    clustered, spread = coverage(-losses, level), coverage(-np.roll(np.tile([1.0] + 9 * [0.0], 201)[:2_001], 1), level)
    assert clustered is not None and spread is not None and clustered.share == spread.share == 0.1
    assert (spread.low, spread.high) == pytest.approx(wilson_interval(200, 2_000))
    assert clustered.high - clustered.low > 2.5 * (spread.high - spread.low)


def test_probabilities_are_even_under_the_right_model_and_not_under_wrong_ones():
    returns, forecast = known_forecast(1)
    right = evenness(probability_transform(returns, forecast))
    assert right.bars == 2_999 and sum(right.counts) == 2_999
    assert right.p is not None and right.p > 0.05 and right.low <= min(right.counts) <= max(right.counts) <= right.high
    narrow = evenness(probability_transform(returns, VolatilityForecast(0.7 * forecast.sigma, forecast.nu)))
    assert narrow.p is not None and narrow.p < 1e-6 and narrow.counts[0] > narrow.high  # too many far out
    normal = VolatilityForecast(forecast.sigma, np.full(3_000, np.inf))
    assert probability_transform(np.zeros(3_000), normal)[1:] == pytest.approx(np.full(2_999, 0.5))
    few = evenness(np.array([0.5, np.nan]))
    assert few.p is None and "1 forecasts: a histogram needs 100" in few.missing


def test_the_band_holds_all_bins_at_once():
    draw = np.random.default_rng(0)
    found = [evenness(draw.random(500)) for _ in range(200)]
    inside = sum(each.low <= min(each.counts) and max(each.counts) <= each.high for each in found)
    assert inside >= 185
