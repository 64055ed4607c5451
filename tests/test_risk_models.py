"""Models of risk equal what can be computed otherwise, use their past alone, and their tests reject what is wrong."""

import math

import numpy as np
import pytest
from arch import arch_model
from bar_series import bars_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_warnings import WARNINGS_ARE_ERRORS

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.timestamps import HOUR_US
from qubic_lab.oracle.risk.forecast_tests import (
    christoffersen,
    coverage,
    evaluate_tail,
    evenness,
    kupiec,
    probability_transform,
    shortfall_statistic,
    shortfall_test,
)
from qubic_lab.oracle.risk.models import (
    ESTIMATORS,
    TailForecast,
    VolatilityForecast,
    filtered_historical,
    fit_garch,
    garch_forecast,
    historical,
    least_bars,
    normal,
    realised_volatility,
    simulate_garch,
    student_t,
)
from qubic_lab.stats import wilson_interval

pytestmark = WARNINGS_ARE_ERRORS


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=True)


def constant_forecast(bars: int, sigma: float, nu: float = 8.0) -> VolatilityForecast:
    return VolatilityForecast(np.full(bars, sigma), np.full(bars, nu))


def known_forecast(seed: int, nu: float = 5.0) -> tuple[np.ndarray, VolatilityForecast]:
    """Return simulated returns, and at each bar the true volatility of the next."""
    returns, sigma = simulate_garch(3_000, 1e-6, 0.1, 0.85, nu, seed)
    return returns, VolatilityForecast(np.append(sigma[1:], np.nan), np.full(len(sigma), nu))


# Volatility


def test_realised_volatility_by_hand():
    bars = bars_of(np.exp([0.0, 0.01, -0.01, 0.01]))  # log returns 0.01, −0.02, 0.02
    assert realised_volatility(bars, 2)[-2:] == pytest.approx([math.sqrt(2.5e-4), 0.02])
    ranges = bars_of(np.ones(3), high=np.full(3, math.exp(0.02)), low=np.ones(3))
    assert realised_volatility(ranges, 2, "parkinson")[-1] == pytest.approx(0.02 / math.sqrt(4 * math.log(2)))
    assert realised_volatility(ranges, 2, "garman-klass")[-1] == pytest.approx(0.02 * math.sqrt(0.5))


def test_estimators_agree_on_a_random_walk():
    # 60 steps a bar; the range of so few steps is slightly too small.
    draw = np.random.default_rng(0)
    path = np.cumsum(draw.normal(0.0, 0.001, (800, 60)).ravel()).reshape(800, 60)
    start = np.append(0.0, path[:-1, -1])
    high, low = np.maximum(path.max(axis=1), start), np.minimum(path.min(axis=1), start)
    columns = {"open": np.exp(start), "high": np.exp(high), "low": np.exp(low)}
    bars = Bars.of(HOUR_US * np.arange(1, 801), np.exp(path[:, -1]), **columns, frame_us=HOUR_US)
    for name in ESTIMATORS:
        assert realised_volatility(bars, 700, name)[-1] == pytest.approx(0.001 * math.sqrt(60), rel=0.12)


def test_garch_finds_what_was_simulated_and_equals_arch():
    returns, _ = simulate_garch(3000, 2e-6, 0.1, 0.85, 6.0, seed=1)
    fit = fit_garch(returns)
    assert (fit.alpha, fit.beta) == (pytest.approx(0.1, abs=0.04), pytest.approx(0.85, abs=0.06))
    assert fit.nu == pytest.approx(6.0, abs=2.0)
    forecast = garch_forecast(returns, refit_bars=3000, window_bars=3000, least=3000)
    theirs = arch_model(100 * returns, mean="Zero", vol="GARCH", dist="t", rescale=False).fit(disp="off")
    ahead = math.sqrt(theirs.forecast(horizon=1).variance.to_numpy()[-1, 0]) / 100
    assert forecast.sigma[-1] == pytest.approx(ahead, rel=1e-3)
    assert np.isnan(forecast.sigma[:-1]).all() and forecast.fits == 1


def test_garch_forecasts_follow_the_spread_and_use_the_past_alone():
    returns, sigma = simulate_garch(900, 2e-6, 0.15, 0.8, 8.0, seed=2)
    forecast = garch_forecast(returns, refit_bars=100, window_bars=500, least=300)
    assert np.isnan(forecast.sigma[:299]).all() and not np.isnan(forecast.sigma[299:]).any()
    assert (forecast.fits, forecast.failed) == (7, 0)
    assert np.corrcoef(forecast.sigma[299:-1], sigma[300:])[0, 1] > 0.85
    assert np.median(forecast.sigma[299:-1] / sigma[300:]) == pytest.approx(1.0, abs=0.1)
    for cut in (300, 431, 700):
        part = garch_forecast(returns[:cut], refit_bars=100, window_bars=500, least=300)
        assert same(part.sigma, forecast.sigma[:cut]) and same(part.nu, forecast.nu[:cut])
    changed = np.append(returns[:650], 9.0 * returns[650:])
    assert same(garch_forecast(changed, 100, 500, 300).sigma[:650], forecast.sigma[:650])


def test_garch_says_why_there_is_no_forecast():
    assert "100 returns: a fit needs 250" in garch_forecast(np.zeros(100)).missing
    constant = garch_forecast(np.zeros(300))
    assert "do returns vary" in constant.missing and constant.failed == 2 and np.isnan(constant.sigma).all()
    with pytest.raises(InputError, match="refit_bars is 0"):
        garch_forecast(np.zeros(300), 0)


# Value at risk and expected shortfall


def test_historical_values_by_hand():
    returns = np.array([np.nan, -0.05, -0.01, 0.02, -0.03, 0.01, 0.0, 0.04, -0.02, 0.03, 0.05])
    found = historical(returns, 0.2, 10)  # 0.2 × 11: a fifth of the way from the second to the third worst
    assert found.var[-1] == pytest.approx(0.028) and found.es[-1] == pytest.approx(0.028 + (0.022 + 0.002) / 1.2)
    whole = historical(returns[:10], 0.2, 9)  # 0.2 × 10: the second worst
    assert whole.var[-1] == 0.03 and whole.es[-1] == pytest.approx(0.05)
    assert np.isnan(found.var[:-1]).all()
    tail = historical(np.arange(100.0), 0.01, 100)  # gains alone: a loss below 0
    assert tail.var[-1] == pytest.approx(-0.01) and tail.es[-1] == pytest.approx(0.99)
    assert [least_bars(level) for level in (0.05, 0.01, 0.03)] == [20, 100, 34]


@pytest.mark.parametrize(("level", "bars"), [(0.01, 120), (0.05, 110), (0.025, 250)])
def test_losses_are_beyond_historical_values_as_often_as_they_say(level: float, bars: int):
    returns = np.random.default_rng(0).standard_t(4, 60_000)
    flat = constant_forecast(len(returns), 2.0)
    for found in (historical(returns, level, bars), filtered_historical(returns, flat, level, bars)):
        beyond = -returns[bars + 1 :] > found.var[bars:-1]
        assert level * 0.85 <= beyond.mean() <= level * 1.1  # rounded up to whole returns, it was 1.65 % for 1 % of 120


@pytest.mark.parametrize(("level", "var", "es"), [(0.05, 1.6449, 2.0627), (0.01, 2.3263, 2.6652)])
def test_normal_values_are_those_of_tables(level: float, var: float, es: float):
    returns = np.tile([-1.0, 1.0], 500)
    for found, deviation in (
        (normal(returns, level), returns.std(ddof=1)),
        (student_t(constant_forecast(1, 0.02, math.inf), level), 0.02),
    ):
        assert found.var[-1] / deviation == pytest.approx(var, abs=1e-4)
        assert found.es[-1] / deviation == pytest.approx(es, abs=1e-4)


def test_student_values_equal_a_simulation():
    found = student_t(VolatilityForecast(np.array([np.nan, 0.02]), np.array([np.nan, 5.0])), 0.05)
    drawn = -np.random.default_rng(0).standard_t(5.0, 2_000_000) * math.sqrt(3 / 5) * 0.02
    limit = np.quantile(drawn, 0.95)
    assert math.isnan(found.var[0])
    assert found.var[1] == pytest.approx(limit, rel=0.005)
    assert found.es[1] == pytest.approx(drawn[drawn > limit].mean(), rel=0.01)


@given(seed=st.integers(0, 10_000), level=st.sampled_from([0.01, 0.025, 0.05, 0.2]), scale=st.floats(1e-8, 1e3))
@settings(max_examples=25)
def test_shortfall_is_never_below_value_at_risk(seed: int, level: float, scale: float):
    draw = np.random.default_rng(seed)
    returns = scale * np.round(draw.standard_t(3, 220), draw.integers(0, 4))
    forecast = VolatilityForecast(np.abs(returns) + scale, np.full(220, 2.5 + 10 * draw.random()))
    for tail in (
        historical(returns, level, 110),
        normal(returns, level),
        student_t(forecast, level),
        filtered_historical(returns, forecast, level, 110),
    ):
        known = ~np.isnan(tail.var)
        assert known.any() and (np.isnan(tail.es) == ~known).all()
        assert (tail.es[known] >= tail.var[known]).all()


def test_filtered_history_grows_with_the_forecast():
    returns = np.random.default_rng(0).normal(0.0, 0.01, 600)
    double = constant_forecast(600, 0.01)
    double.sigma[-1] = 0.02
    plain, scaled = (filtered_historical(returns, each, 0.05, 400) for each in (constant_forecast(600, 0.01), double))
    assert scaled.var[-1] == 2 * plain.var[-1]
    assert plain.var[-1] == pytest.approx(historical(returns, 0.05, 400).var[-1])


# Tests of forecasts of losses


@pytest.mark.parametrize(
    ("level", "bars", "least", "most"),
    # Kupiec (1995), numbers of violations that are not rejected at 5 %; also in P. Jorion, "Value at risk", table 6-2.
    [(0.01, 255, 1, 6), (0.01, 510, 2, 10), (0.01, 1000, 5, 16), (0.05, 255, 7, 20), (0.05, 1000, 38, 64)],
)
def test_kupiec_rejects_as_published(level: float, bars: int, least: int, most: int):
    for violations in range(1, bars // 8):
        assert (kupiec(violations, bars, level).p > 0.05) == (least <= violations <= most)


def test_kupiec_by_hand():
    ratio = 2 * (10 * math.log(0.1 / 0.05) + 90 * math.log(0.9 / 0.95))
    assert kupiec(10, 100, 0.05).statistic == pytest.approx(ratio)
    assert kupiec(0, 100, 0.05).statistic == pytest.approx(-200 * math.log(0.95))
    assert kupiec(100, 100, 0.05).p < 1e-10


def test_christoffersen_by_hand():
    beyond = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0], bool)
    # Pairs: 0→0 five times, 0→1 twice, 1→0 twice, 1→1 once.
    alone = 5 * math.log(5 / 7) + 2 * math.log(2 / 7) + 2 * math.log(2 / 3) + math.log(1 / 3)
    together = 7 * math.log(0.7) + 3 * math.log(0.3)
    given_ = 7 * math.log(0.8) + 3 * math.log(0.2)
    independent, conditional = christoffersen(beyond, 0.2)
    assert independent.statistic == pytest.approx(2 * (alone - together))
    assert independent.p == pytest.approx(math.erfc(math.sqrt(independent.statistic / 2)))
    assert conditional.statistic == pytest.approx(2 * (alone - given_))
    assert conditional.p == pytest.approx(math.exp(-conditional.statistic / 2))


def test_shortfall_tests_tell_correct_from_too_low():
    by_hand = shortfall_statistic(np.array([0.0, 3.0, 1.0, 6.0]), np.full(4, 2.0), np.full(4, 4.0), 0.25)
    assert by_hand == pytest.approx(1 - (3 / 4 + 6 / 4) / (4 * 0.25))
    losses = -np.random.default_rng(0).standard_t(4, 4000)
    correct = student_t(constant_forecast(4000, math.sqrt(2), 4.0), 0.025)
    var, es = correct.var, correct.es
    assert shortfall_test(losses, var, es) > 0.05
    assert shortfall_statistic(losses, var, es, 0.025) == pytest.approx(0.0, abs=0.25)
    assert shortfall_test(losses, var, 0.75 * es) < 0.01
    assert shortfall_statistic(losses, 0.7 * var, 0.7 * es, 0.025) < -0.7
    assert shortfall_test(losses[:50], var[:50] * 5, es[:50] * 5) is None


def test_a_loss_is_compared_with_the_forecast_at_the_bar_before():
    returns, var = np.zeros(300), np.full(300, 0.01)
    returns[100], var[100] = -0.05, 0.06  # what is known after the loss must not excuse it
    returns += np.random.default_rng(0).normal(0.0, 1e-4, 300)
    found = evaluate_tail(returns, TailForecast(0.01, var, var * 1.2))
    assert (found.violations, found.bars) == (1, 299)
    few = evaluate_tail(returns[:50], TailForecast(0.01, var[:50], var[:50]))
    assert "too few to expect one loss" in few.missing and few.unconditional is None
    flat = evaluate_tail(np.zeros(300), historical(np.zeros(300), 0.05, 100))
    assert "prices hardly vary" in flat.missing


# Coverage and calibration


@pytest.mark.slow
def test_the_correct_model_passes_and_a_constant_normal_does_not():
    wrong, weak, runs = 0, 0, 10
    for seed in range(runs):
        returns, _ = simulate_garch(4000, 1e-6, 0.1, 0.88, 5.0, seed)
        forecast = garch_forecast(returns, window_bars=2000, least=500)
        for level in (0.01, 0.05):
            wrong += evaluate_tail(returns, student_t(forecast, level)).conditional.p < 0.05
            weak += evaluate_tail(returns, normal(returns, level)).conditional.p < 0.05
    assert wrong / (2 * runs) <= 0.1
    assert weak / (2 * runs) >= 0.8


def test_coverage_by_hand():
    returns = np.array([0.0, -0.03, 0.01, -0.02, 0.0, -0.05])
    var = np.array([0.02, 0.02, 0.02, np.nan, 0.02, 0.02])  # the last one is for a bar that is not there
    found = coverage(returns, TailForecast(0.05, var, var))
    # Losses of 0.03, 0.02 (not beyond) and 0.05; one bar has no forecast.
    assert (found.bars, found.beyond, found.share) == (4, 2, 0.5)
    later = coverage(returns, TailForecast(0.05, var, var), first=2)
    assert (later.bars, later.beyond) == (2, 1)
    assert coverage(returns, TailForecast(0.05, np.full(6, np.nan), var)) is None


def test_intervals_of_coverage_hold_the_level_and_are_wider_for_clusters():
    hits = 0
    for seed in range(40):
        returns, forecast = known_forecast(seed)
        found = coverage(returns, student_t(forecast, 0.05))
        hits += found.low <= 0.05 <= found.high
    assert 35 <= hits <= 40
    losses = np.zeros(2_001)
    losses[1:] = np.repeat(np.arange(100) % 10 == 0, 20)  # 20 in a row, ten times
    level = TailForecast(0.1, np.full(2_001, 0.5), np.full(2_001, 0.5))
    clustered, spread = coverage(-losses, level), coverage(-np.roll(np.tile([1.0] + 9 * [0.0], 201)[:2_001], 1), level)
    assert clustered.share == spread.share == 0.1
    assert (spread.low, spread.high) == pytest.approx(wilson_interval(200, 2_000))
    assert clustered.high - clustered.low > 2.5 * (spread.high - spread.low)


def test_probabilities_are_uniform_under_the_correct_model_and_not_under_wrong_ones():
    returns, forecast = known_forecast(1)
    correct = evenness(probability_transform(returns, forecast))
    assert correct.bars == sum(correct.counts) == 2_999
    assert correct.p > 0.05 and correct.low <= min(correct.counts) <= max(correct.counts) <= correct.high
    narrow = evenness(probability_transform(returns, VolatilityForecast(0.7 * forecast.sigma, forecast.nu)))
    assert narrow.p < 1e-6 and narrow.counts[0] > narrow.high  # too many far out
    bell = VolatilityForecast(forecast.sigma, np.full(3_000, np.inf))
    assert probability_transform(np.zeros(3_000), bell)[1:] == pytest.approx(np.full(2_999, 0.5))
    few = evenness(np.array([0.5, np.nan]))
    assert few.p is None and "1 forecasts: a histogram needs 100" in few.missing


def test_the_band_holds_all_bins_at_once():
    draw = np.random.default_rng(0)
    found = [evenness(draw.random(500)) for _ in range(200)]
    inside = sum(each.low <= min(each.counts) and max(each.counts) <= each.high for each in found)
    assert inside >= 185
