"""Measures of risk use their past alone and equal what can be worked out otherwise; warnings follow their rules."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import PRICES, Bars
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import HOUR_US
from qubic_lab.oracle.risk.forecast_tests import (
    christoffersen,
    evaluate_tail,
    kupiec,
    shortfall_statistic,
    shortfall_test,
)
from qubic_lab.oracle.risk.measures import (
    LEAST_BARS,
    LEVELS,
    MEASURES,
    RiskInputs,
    amihud,
    check_parameters,
    compute_measure,
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
from qubic_lab.oracle.risk.rolling import drawdown, recent_drawdown
from qubic_lab.oracle.risk.rules import (
    FORGOTTEN_BARS,
    Assessment,
    RiskEvidence,
    RiskRule,
    assess,
    levels_of,
    read_rules,
)
from qubic_lab.oracle.risk.warning_scores import compare_warnings, evaluate_warnings, find_falls, naive_warnings

SMALL: dict[str, dict[str, int]] = {
    name: {key: {"bars": 6, "usual_bars": 20}.get(key, value) for key, value in each.parameters.items()}
    for name, each in MEASURES.items()
    if name != "garch_ratio"
} | {"loss_over_var": {"bars": 100}}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def bars_of(close: Any, volume: Any = 10.0, spread: Any = 1.002) -> Bars:
    close = np.asarray(close, np.float64)
    open_ = np.append(close[:1], close[:-1])
    high, low = np.maximum(open_, close) * spread, np.minimum(open_, close) / spread
    columns = {"open": open_, "high": high, "low": low, "volume": np.broadcast_to(volume, close.shape)}
    return Bars.of(HOUR_US * np.arange(1, len(close) + 1), close, **columns, frame_us=HOUR_US)


def random_inputs(seed: int, bars: int) -> RiskInputs:
    """Return a random market with gaps in volume, sentiment and the other asset."""
    draw = np.random.default_rng(seed)
    shocks = draw.standard_t(4, bars) * 0.01
    close = 1e-6 * np.exp(np.cumsum(shocks))
    volume = draw.lognormal(3.0, 1.0, bars)
    volume[draw.random(bars) < 0.01] = np.nan
    sentiment = draw.normal(size=bars)
    sentiment[draw.random(bars) < 0.3] = np.nan
    other = 5e4 * np.exp(np.cumsum(0.5 * shocks + draw.normal(0.0, 0.01, bars)))
    other[draw.random(bars) < 0.01] = np.nan
    return RiskInputs(bars_of(close, volume, np.exp(draw.random(bars) * 0.01)), sentiment, other)


def tail_of(function: Callable[..., TailForecast], *arguments: Any) -> Callable[[RiskInputs], np.ndarray]:
    def both(market: RiskInputs) -> np.ndarray:
        found = function(market.bars.log_returns, *arguments)
        return np.stack([found.var, found.es], axis=1)

    return both


CAUSAL: dict[str, tuple[Callable[[RiskInputs], np.ndarray], int]] = {
    **{name: ((lambda m, n=name: compute_measure(n, m, SMALL[n]).values), -1) for name in SMALL},
    **{
        name: ((lambda m, n=name: realised_volatility(m.bars, 8, n)), 7 + ESTIMATORS[name].extra) for name in ESTIMATORS
    },
    "drawdown": (lambda m: drawdown(m.bars.close), 0),
    "recent_drawdown": (lambda m: recent_drawdown(m.bars.close, 9), 8),
    "amihud": (lambda m: amihud(m.bars, 5), 5),
    "historical": (tail_of(historical, 0.05, 40), 40),
    "normal, all so far": (tail_of(normal, 0.05), 20),
    "levels": (lambda m: assess(m, small_rules()).levels.astype(float), 0),
}
"""Every causal function that is cheap, with its warm-up; −1: as the measure says."""


def small_rules() -> tuple[RiskRule, ...]:
    return tuple(RiskRule(name, name, 0.8, 1.2, 1.6, SMALL[name], hold=2) for name in SMALL)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=True)


@pytest.mark.parametrize("name", CAUSAL)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 259))
@settings(max_examples=6, deadline=None)
def test_later_bars_change_nothing(name: str, seed: int, cut: int):
    function = CAUSAL[name][0]
    market = random_inputs(seed, 260)
    values = function(market)
    assert same(function(market.first(cut)), values[:cut])
    other, bars = random_inputs(seed + 1, 260), market.bars
    mixed = {
        key: np.concatenate([getattr(bars, key)[:cut], 3.0 * getattr(other.bars, key)[cut:]])
        for key in (*PRICES, "volume")
    }
    scrambled = RiskInputs(
        Bars.of(bars.closed_us, mixed.pop("close"), **mixed, frame_us=HOUR_US),
        np.concatenate([market.sentiment[:cut], other.sentiment[cut:]]),
        np.concatenate([market.other[:cut], other.other[cut:]]),
    )
    assert same(function(scrambled)[:cut], values[:cut])


@pytest.mark.parametrize("name", CAUSAL)
def test_warm_ups_are_as_declared(name: str):
    function, warm_up = CAUSAL[name]
    market = random_inputs(3, 260)
    whole = dataclasses.replace(
        market,
        bars=bars_of(market.bars.close),  # volumes all known
        sentiment=np.random.default_rng(0).normal(size=260),
        other=np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, 260))),
    )
    values = function(whole)
    if warm_up < 0:
        warm_up = MEASURES[name].warm_up(**SMALL[name])
    assert np.isnan(values[:warm_up]).all()
    assert not np.isnan(values[warm_up:]).any()


def test_every_measure_is_tested_for_causality():
    assert set(MEASURES) - set(CAUSAL) == {"garch_ratio"}  # below, at a few cuts


# Volatility


def test_realised_volatility_by_hand():
    bars = bars_of(np.exp([0.0, 0.01, -0.01, 0.01]), spread=1.0)
    # Log returns 0.01, −0.02, 0.02.
    assert realised_volatility(bars, 2)[-2:] == pytest.approx([math.sqrt(2.5e-4), 0.02])
    ranges = bars_of(np.ones(3), spread=math.exp(0.01))  # high over low is exp(0.02) in each bar
    assert realised_volatility(ranges, 2, "parkinson")[-1] == pytest.approx(0.02 / math.sqrt(4 * math.log(2)))
    assert realised_volatility(ranges, 2, "garman-klass")[-1] == pytest.approx(0.02 * math.sqrt(0.5))
    with pytest.raises(InputError, match="did you mean 'parkinson'"):
        realised_volatility(ranges, 2, "parkinsons")


def test_estimators_agree_on_a_random_walk():
    # 60 steps a bar; ranges of walks that are looked at so rarely come a little short.
    draw = np.random.default_rng(0)
    path = np.cumsum(draw.normal(0.0, 0.001, (800, 60)).ravel()).reshape(800, 60)
    close, start = path[:, -1], np.append(0.0, path[:-1, -1])
    high, low = np.maximum(path.max(axis=1), start), np.minimum(path.min(axis=1), start)
    columns = {"open": np.exp(start), "high": np.exp(high), "low": np.exp(low)}
    bars = Bars.of(HOUR_US * np.arange(1, 801), np.exp(close), **columns, frame_us=HOUR_US)
    for name in ESTIMATORS:
        assert realised_volatility(bars, 700, name)[-1] == pytest.approx(0.001 * math.sqrt(60), rel=0.12)


def test_garch_finds_what_was_simulated_and_equals_arch():
    from arch import arch_model

    returns, _ = simulate_garch(3000, 2e-6, 0.1, 0.85, 6.0, seed=1)
    fit = fit_garch(returns)
    assert fit.alpha == pytest.approx(0.1, abs=0.04) and fit.beta == pytest.approx(0.85, abs=0.06)
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
    assert forecast.fits == 7 and forecast.failed == 0
    assert np.corrcoef(forecast.sigma[299:-1], sigma[300:])[0, 1] > 0.85
    for cut in (300, 431, 700):
        part = garch_forecast(returns[:cut], refit_bars=100, window_bars=500, least=300)
        assert same(part.sigma, forecast.sigma[:cut]) and same(part.nu, forecast.nu[:cut])
    changed = np.append(returns[:650], 9.0 * returns[650:])
    assert same(garch_forecast(changed, 100, 500, 300).sigma[:650], forecast.sigma[:650])


def test_garch_measure_at_a_cut():
    market = random_inputs(5, 340)
    parameters = {"usual_bars": 20, "refit_bars": 60, "window_bars": 300}
    whole = compute_measure("garch_ratio", market, parameters)
    assert np.isnan(whole.values[: whole.warm_up]).all() and not np.isnan(whole.values[whole.warm_up :]).any()
    assert same(compute_measure("garch_ratio", market.first(320), parameters).values, whole.values[:320])


def test_garch_says_why_there_is_no_forecast():
    assert "100 returns: a fit needs 250" in garch_forecast(np.zeros(100)).missing
    constant = garch_forecast(np.zeros(300))
    assert "do returns vary" in constant.missing and constant.failed == 2 and np.isnan(constant.sigma).all()
    with pytest.raises(InputError, match="return of bar 5 is nan"):
        garch_forecast(np.where(np.arange(300) == 5, np.nan, 0.01))
    with pytest.raises(InputError, match="alpha \\+ beta < 1"):
        simulate_garch(10, 1e-6, 0.3, 0.8, 5)


# Value at risk and expected shortfall


def test_historical_values_by_hand():
    returns = np.array([np.nan, -0.05, -0.01, 0.02, -0.03, 0.01, 0.0, 0.04, -0.02, 0.03, 0.05])
    found = historical(returns, 0.2, 10)  # 0.2 × 11: a fifth of the way from the second to the third worst
    assert found.var[-1] == pytest.approx(0.028) and found.es[-1] == pytest.approx((0.05 + 0.03 + 0.2 * 0.02) / 2.2)
    whole = historical(returns[:10], 0.2, 9)  # 0.2 × 10: the second worst
    assert whole.var[-1] == 0.03 and whole.es[-1] == pytest.approx(0.04)
    assert np.isnan(found.var[:-1]).all()
    tail = historical(np.arange(100.0), 0.01, 100)  # gains alone: a loss below 0
    assert tail.var[-1] == pytest.approx(-0.01) and tail.es[-1] == pytest.approx(-0.01 / 1.01)
    with pytest.raises(InputError, match=r"too short for a level of 0\.01: give 100 or more"):
        historical(returns, 0.01, 50)
    with pytest.raises(InputError, match=r"level is 0\.99"):
        least_bars(0.99)
    assert least_bars(0.05) == 20 and least_bars(0.01) == 100 and least_bars(0.03) == 34


@pytest.mark.parametrize(("level", "bars"), [(0.01, 120), (0.05, 110), (0.025, 250)])
def test_losses_are_beyond_historical_values_as_often_as_they_say(level: float, bars: int):
    returns = np.random.default_rng(0).standard_t(4, 60_000)
    flat = VolatilityForecast(np.full(len(returns), 2.0), np.full(len(returns), 8.0))
    for found in (historical(returns, level, bars), filtered_historical(returns, flat, level, bars)):
        beyond = -returns[bars + 1 :] > found.var[bars:-1]
        assert level * 0.85 <= beyond.mean() <= level * 1.1  # rounded up to whole returns, it was 1.65 % for 1 % of 120


def test_normal_values_are_the_books():
    # Standard normal: 5 % value at risk 1.6449, expected shortfall 2.0627; 1 %: 2.3263 and 2.6652.
    returns = np.tile([-1.0, 1.0], 500)
    deviation = returns.std(ddof=1)
    for level, var, es in ((0.05, 1.6449, 2.0627), (0.01, 2.3263, 2.6652)):
        found = normal(returns, level)
        assert found.var[-1] / deviation == pytest.approx(var, abs=1e-4)
        assert found.es[-1] / deviation == pytest.approx(es, abs=1e-4)


def test_student_values_equal_a_simulation():
    forecast = VolatilityForecast(np.array([np.nan, 0.02]), np.array([np.nan, 5.0]))
    found = student_t(forecast, 0.05)
    drawn = -np.random.default_rng(0).standard_t(5.0, 2_000_000) * math.sqrt(3 / 5) * 0.02
    limit = np.quantile(drawn, 0.95)
    assert math.isnan(found.var[0])
    assert found.var[1] == pytest.approx(limit, rel=0.005)
    assert found.es[1] == pytest.approx(drawn[drawn > limit].mean(), rel=0.01)
    bell = student_t(VolatilityForecast(np.array([0.02]), np.array([math.inf])), 0.05)  # 1.6449 and 2.0627 by the books
    assert bell.var[0] == pytest.approx(0.032897, abs=1e-6) and bell.es[0] == pytest.approx(0.041254, abs=1e-6)


@given(seed=st.integers(0, 10_000), level=st.sampled_from([0.01, 0.025, 0.05, 0.2]), scale=st.floats(1e-8, 1e3))
@settings(max_examples=25, deadline=None)
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
    flat = VolatilityForecast(np.full(600, 0.01), np.full(600, 8.0))
    double = VolatilityForecast(np.append(np.full(599, 0.01), 0.02), np.full(600, 8.0))
    plain, scaled = (filtered_historical(returns, each, 0.05, 400) for each in (flat, double))
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
    found = kupiec(10, 100, 0.05)
    ratio = 2 * (10 * math.log(0.1 / 0.05) + 90 * math.log(0.9 / 0.95))
    assert found.statistic == pytest.approx(ratio)
    assert kupiec(5, 100, 0.05).p == 1.0
    assert kupiec(0, 100, 0.05).statistic == pytest.approx(-200 * math.log(0.95))
    assert kupiec(100, 100, 0.05).p < 1e-10
    with pytest.raises(InputError, match="3 violations in 2 bars"):
        kupiec(3, 2, 0.05)


def test_christoffersen_by_hand():
    beyond = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0], bool)
    # Pairs: 0→0 five times, 0→1 twice, 1→0 twice, 1→1 once.
    alone = 5 * math.log(5 / 7) + 2 * math.log(2 / 7) + 2 * math.log(2 / 3) + math.log(1 / 3)
    together = 7 * math.log(0.7) + 3 * math.log(0.3)
    given_ = 7 * math.log(0.8) + 3 * math.log(0.2)
    independent, conditional = christoffersen(beyond, 0.2)
    assert independent.statistic == pytest.approx(2 * (alone - together))
    assert conditional.statistic == pytest.approx(2 * (alone - given_))
    assert conditional.p == pytest.approx(math.exp(-conditional.statistic / 2))


def test_christoffersen_finds_losses_that_cluster():
    clustered = np.zeros(1000, bool)
    clustered[200:225] = clustered[700:725] = True
    spread = np.zeros(1000, bool)
    spread[::20] = True
    assert kupiec(50, 1000, 0.05).p == 1.0
    assert christoffersen(clustered, 0.05)[1].p < 1e-10
    assert christoffersen(spread, 0.05)[1].p > 0.01


def test_shortfall_tests_tell_right_from_too_low():
    losses = -np.random.default_rng(0).standard_t(4, 4000)
    right = student_t(VolatilityForecast(np.full(1, math.sqrt(2)), np.full(1, 4.0)), 0.025)
    var, es = np.full(4000, right.var[0]), np.full(4000, right.es[0])
    p = shortfall_test(losses, var, es)
    assert p > 0.05
    assert shortfall_statistic(losses, var, es, 0.025) == pytest.approx(0.0, abs=0.25)
    low = shortfall_test(losses, var, 0.75 * es)
    assert low < 0.01
    assert shortfall_statistic(losses, 0.7 * var, 0.7 * es, 0.025) < -0.7
    assert shortfall_test(losses[:50], var[:50] * 5, es[:50] * 5) is None


def test_shortfall_statistic_by_hand():
    losses, var, es = np.array([0.0, 3.0, 1.0, 6.0]), np.full(4, 2.0), np.full(4, 4.0)
    assert shortfall_statistic(losses, var, es, 0.25) == pytest.approx(1 - (3 / 4 + 6 / 4) / (4 * 0.25))


def test_a_loss_is_held_against_the_bar_before():
    returns, var = np.zeros(300), np.full(300, 0.01)
    returns[100], var[100] = -0.05, 0.06  # what is known after the loss must not excuse it
    returns += np.random.default_rng(0).normal(0.0, 1e-4, 300)
    found = evaluate_tail(returns, TailForecast(0.01, var, var * 1.2))
    assert found.violations == 1 and found.bars == 299
    absent = evaluate_tail(returns[:50], TailForecast(0.01, var[:50], var[:50]))
    assert "too few to expect one loss" in absent.missing and absent.unconditional is None
    flat = evaluate_tail(np.zeros(300), historical(np.zeros(300), 0.05, 100))
    assert "prices hardly vary" in flat.missing


@pytest.mark.slow
def test_the_right_model_passes_and_a_constant_normal_does_not():
    wrong = foil = 0
    runs = 25
    for seed in range(runs):
        returns, _ = simulate_garch(4000, 1e-6, 0.1, 0.88, 5.0, seed)
        forecast = garch_forecast(returns, window_bars=2000, least=500)
        for level in (0.01, 0.05):
            right = evaluate_tail(returns, student_t(forecast, level)).conditional
            constant = evaluate_tail(returns, normal(returns, level)).conditional
            wrong, foil = wrong + (right.p < 0.05), foil + (constant.p < 0.05)
    assert wrong / (2 * runs) <= 0.1
    assert foil / (2 * runs) >= 0.8


# Other measures


def test_drawdown_by_hand():
    values = np.array([1.0, 2.0, 1.5, 1.0, 2.0, 3.0])
    assert drawdown(values).tolist() == [0.0, 0.0, 0.25, 0.5, 0.0, 0.0]
    assert drawdown(np.zeros(0)).tolist() == []
    assert recent_drawdown(np.array([4.0, 2.0, 1.0, 1.0]), 2)[1:].tolist() == [0.5, 0.5, 0.0]


def test_amihud_by_hand():
    bars = bars_of(np.exp([0.0, 0.01, 0.03]), volume=[5.0, 2e6, 1e6])
    expected = (0.01 / (2 * math.exp(0.01)) + 0.02 / math.exp(0.03)) / 2
    assert amihud(bars, 2)[-1] == pytest.approx(expected)
    assert np.isnan(amihud(bars_of([1.0, 2.0, 3.0], volume=[1.0, 0.0, np.nan]), 1)).all()


def test_measures_rise_with_what_they_are_about():
    draw = np.random.default_rng(0)
    calm = draw.normal(0.0, 0.01, 500)
    wild = np.append(calm[:480], draw.normal(0.0, 0.04, 20))
    parameters = {"bars": 10, "usual_bars": 200}

    def last(name: str, returns: np.ndarray, **others: Any) -> float:
        market = RiskInputs(bars_of(np.exp(np.cumsum(returns)), others.pop("volume", 10.0)), **others)
        chosen = {key: parameters.get(key, value) for key, value in MEASURES[name].parameters.items()}
        return float(compute_measure(name, market, chosen).values[-1])

    assert last("volatility_ratio", wild) > 2.5 > 1.6 > last("volatility_ratio", calm)
    crash = calm.copy()
    crash[-5:] -= 0.05
    assert last("drawdown_in_deviations", crash) > 4 > last("drawdown_in_deviations", calm)
    assert last("illiquidity_ratio", wild) > 2
    busy = np.append(np.full(490, 10.0), np.full(10, 50.0))
    assert last("volume_ratio", calm, volume=busy) == pytest.approx(5.0)
    mood = draw.normal(0.0, 1.0, 500)
    gloom = np.append(mood[:490], mood[490:] - 3.0)
    assert last("sentiment_fall", calm, sentiment=gloom) > 5 > abs(last("sentiment_fall", calm, sentiment=mood))
    together = np.exp(np.cumsum(calm + draw.normal(0.0, 0.003, 500)))
    apart = np.append(together[:475], together[474] * np.exp(np.cumsum(draw.normal(0.0, 0.01, 25))))
    with_it = last("correlation_break", calm, other=together)
    assert last("correlation_break", calm, other=apart) > 2.5 > with_it


@pytest.mark.parametrize("name", MEASURES)
def test_measures_without_data_are_absent_with_the_reason(name: str):
    chosen = SMALL.get(name, {"usual_bars": 20})
    short = compute_measure(name, RiskInputs(bars_of([1.0, 2.0]), np.zeros(2), np.ones(2)), chosen)
    assert np.isnan(short.values).all() and "2 bars: it needs" in short.missing
    constant = RiskInputs(bars_of(np.ones(600), spread=1.0), np.zeros(600), np.ones(600))
    found = compute_measure(name, constant, chosen)
    assert found.missing or name in ("volume_ratio",)
    if MEASURES[name].needs:
        bare = RiskInputs(bars_of(np.ones(600), volume=np.full(600, np.nan)))
        assert "is known" in compute_measure(name, bare, chosen).missing


def test_parameters_of_measures_are_checked():
    with pytest.raises(InputError, match="unknown measure 'volatility_ration': did you mean 'volatility_ratio'"):
        compute_measure("volatility_ration", random_inputs(0, 10))
    with pytest.raises(InputError, match="parameter of volume_ratio 'bar': did you mean 'bars'"):
        check_parameters("volume_ratio", {"bar": 3})
    with pytest.raises(InputError, match="bars of volume_ratio is 1"):
        check_parameters("volume_ratio", {"bars": 1})
    for name, parameter, least in (
        ("loss_over_var", "bars", 100),
        ("correlation_break", "bars", 5),
        ("correlation_break", "usual_bars", 5),
        ("garch_ratio", "window_bars", 250),
    ):
        assert check_parameters(name, {parameter: least})[parameter] == least
        with pytest.raises(InputError, match=f"{parameter} of {name} is {least - 1}: it must be at least {least}"):
            rule(measure=name, parameters={parameter: least - 1})
    with pytest.raises(InputError, match="sentiment has shape"):
        RiskInputs(bars_of([1.0, 2.0]), np.zeros(3))


# Rules and warnings


def rule(**changes: Any) -> RiskRule:
    return RiskRule(**{"name": "r", "measure": "volatility_ratio", "watch": 1, "warning": 2, "alarm": 4, **changes})


def levels(values: list[float], **changes: Any) -> list[int]:
    return levels_of(rule(**changes), np.array(values)).tolist()


def test_levels_rise_at_once_and_fall_late():
    assert levels([0, 1, 2, 4], hold=1) == [0, 1, 2, 3]
    assert levels([0, 5, 0, 0, 0], hold=3) == [0, 3, 3, 3, 0]
    assert levels([2, 1.85, 1.85, 1.7, 1.7, 1.7], clear=0.9, hold=2) == [2, 2, 2, 2, 1, 1]
    assert levels([2, 0, 2, 0, 2], hold=2) == [2, 2, 2, 2, 2]  # it flickers less than its measure
    assert levels([4, math.nan, math.nan, 0, 0], hold=2) == [3, 3, 3, 3, 0]
    assert levels([math.nan, math.nan]) == [0, 0]


def test_a_level_without_values_is_calm_in_the_end() -> None:
    silent = [math.nan] * FORGOTTEN_BARS
    assert levels([4, *silent, 2, 0], hold=2) == [3] * FORGOTTEN_BARS + [0, 2, 2]
    assert levels([4, *silent[1:], 0, 0], hold=2)[-2:] == [3, 0]


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_accepted_can_be_measured(name: str):
    each = MEASURES[name]
    shortest = {parameter: each.least.get(parameter, LEAST_BARS) for parameter in each.parameters}
    compute_measure(name, random_inputs(0, 400), {**shortest, "refit_bars": 100} if name == "garch_ratio" else shortest)


ENTRY = {"name": "a", "measure": "volume_ratio", "watch": 1, "warning": 2, "alarm": 4}


def entry(**changes: Any) -> str:
    return json.dumps({"rules": [ENTRY | changes]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the content is None: it must be a map"),
        ("rules: []", "at least one rule"),
        ("rule: [a]", "unknown name 'rule': did you mean 'rules'"),
        ("rules: [5]", "rules: entry 1 is 5: it must be a map"),
        ("rules: [{name: a, measure: volatility_ratio, watch: 1, warning: 2}]", "'a': 'alarm' is missing"),
        (entry(measure="volume_ration"), "did you mean 'volume_ratio'"),
        (entry(holds=2), "did you mean 'hold'"),
        (entry(watch=3), "must rise"),
        (entry(watch="x"), "watch is 'x': it must"),
        (entry(clear=2), "clear is 2"),
        (entry(hold=0), "hold is 0"),
        (entry(parameters={"bar": 2}), "'bars'"),
        (json.dumps({"rules": [ENTRY, ENTRY]}), "two rules are called 'a'"),
        ("rules: [", "not valid YAML"),
    ],
)
def test_wrong_rules_are_refused(text: str, message: str, tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="rules.yaml.*" + message):
        read_rules(file)
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        read_rules(tmp_path / "none.yaml")


def storm() -> tuple[RiskInputs, Assessment]:
    """Return a market that is calm for 300 bars, then wild and falling, and its assessment."""
    draw = np.random.default_rng(0)
    returns = np.append(draw.normal(0.0, 0.005, 300), draw.normal(-0.01, 0.03, 40))
    market = RiskInputs(bars_of(np.exp(np.cumsum(returns))))
    small = {"bars": 10, "usual_bars": 100}
    rules = (
        RiskRule("volatility", "volatility_ratio", 1.7, 2.5, 3.5, small),
        RiskRule("fall", "drawdown_in_deviations", 1.5, 2.5, 4.0, small),
        RiskRule("mood", "sentiment_fall", 1.5, 2.5, 4.0, small),
    )
    return market, assess(market, rules)


def test_warnings_bring_their_evidence():
    market, found = storm()
    assert found.missing == {"mood": "no sentiment is known"}
    assert (found.warm_up, found.settled) == (100, 119)
    assert found.levels[:300].max() < found.levels[300:].max() == 3
    raised = found.warnings("warning")
    assert len(raised) >= 2 and all(each.level in ("warning", "alarm") for each in raised)
    for each in found.warnings():
        assert LEVELS.index(each.level) > LEVELS.index(each.before)
        assert each.evidence and each.at_us == market.bars.closed_us[each.bar]
        for evidence in each.evidence:
            assert evidence.level == each.level
        # What has raised the level now is at its threshold or above.
        assert any(evidence.value >= evidence.threshold for evidence in each.evidence if evidence.value is not None)
    first = found.warnings("alarm")[0]
    assert 300 <= first.bar < 325
    shown = to_plain(first)
    assert shown["at"].endswith("Z") and shown["evidence"][0]["text"].startswith(first.evidence[0].rule)
    assert found.at(0).level == "calm" and found.at(0).evidence == ()
    assert found.at(-1).bar == 339
    with pytest.raises(InputError, match="bar is 340: there are 340"):
        found.at(340)


def test_falls_are_found_once():
    close = [100, 100, 95, 89, 85, 80, 81, 100, 100, 100, 100, 88, 88]
    assert find_falls(bars_of(close), 4, 0.1).tolist() == [3, 11]
    with pytest.raises(InputError, match="drop is 10"):
        find_falls(bars_of(close), 4, 10)


def test_naive_warnings_rise_with_volatility():
    market, _ = storm()
    raised = naive_warnings(market.bars, 10, 100, 0.95)
    assert raised.min() >= 110 and ((raised >= 300) & (raised < 320)).any()
    cut = naive_warnings(market.bars.slice(0, 315), 10, 100, 0.95)
    assert cut.tolist() == [each for each in raised if each < 315]


def test_scores_of_warnings_by_hand():
    hour, month = HOUR_US, 730 * HOUR_US
    events = np.array([100, 200, 400]) * hour
    # 95 and 97 are one standing warning, right; 300 is false; 390 is right; 200 comes with its event: too late.
    raised = np.array([95, 97, 200, 300, 390]) * hour
    found = evaluate_warnings(raised, events, 0, month, 10 * hour)
    assert (found.warnings, found.right, found.falls, found.found) == (4, 2, 3, 2)
    assert found.precision.value == 0.5 and found.recall.value == pytest.approx(2 / 3)
    assert found.lead_h.value == pytest.approx(7.5)  # 5 and 10 hours
    assert found.false_alarms_a_month.value == pytest.approx(2 / (720 / 730))
    assert found.precision_by_chance == pytest.approx(30 / 720)
    # 95 to 107, 200 to 210, 300 to 310 and 390 to 400.
    assert found.recall_by_chance == pytest.approx(42 / 730)
    assert found.precision.low < 0.5 < found.precision.high
    # Garwood: 2 events are 0.2422 to 7.2247.
    assert found.false_alarms_a_month.low == pytest.approx(0.2422 / (720 / 730), abs=1e-3)
    assert found.false_alarms_a_month.high == pytest.approx(7.2247 / (720 / 730), abs=1e-3)


def test_scores_without_warnings_or_events():
    nothing = evaluate_warnings([], [], 0, 1000 * HOUR_US, HOUR_US)
    assert nothing.precision.value is None and nothing.recall.value is None and nothing.lead_h.value is None
    assert nothing.false_alarms_a_month.value == 0.0 and nothing.precision_by_chance == 0.0
    with pytest.raises(InputError, match="no longer than the horizon"):
        evaluate_warnings([], [], 0, HOUR_US, HOUR_US)


def test_random_warnings_are_worth_what_chance_says():
    draw = np.random.default_rng(0)
    end = 200_000 * HOUR_US
    raised = np.sort(draw.integers(0, end, 1500))
    events = np.sort(draw.integers(0, end, 1000))
    found = evaluate_warnings(raised, events, 0, end, 48 * HOUR_US)
    assert found.precision.value == pytest.approx(found.precision_by_chance, abs=0.04)
    assert found.recall.value == pytest.approx(found.recall_by_chance, abs=0.04)
    assert found.lead_h.low <= found.lead_h.value


def test_warnings_beside_the_naive_rule():
    hour = HOUR_US
    events = np.arange(100, 1000, 100) * hour
    ours, naive = events - 3 * hour, events[:2] - hour
    found = compare_warnings(ours, naive, events, 0, 1100 * hour, 10 * hour)
    assert (found.only_ours, found.only_naive) == (7, 0)
    assert found.p == pytest.approx(2 / 2**7)
    assert found.ours.recall.value == 1.0 and found.naive.found == 2
    assert (found.ours.right, found.months) == (9, pytest.approx(1100 / 730))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2.0, "2.00 deviations (warning from 1.75)"),
        (0.5, "0.50 deviations (warning from 1.75, not left yet)"),
        (math.nan, "not known at this bar (warning from 1.75)"),
    ],
)
def test_evidence_says_where_a_level_is_only_not_left_yet(value: float, said: str) -> None:
    fall = RiskRule("fall", "drawdown_in_deviations", 1.0, 1.75, 2.5)
    assert RiskEvidence.of(fall, 2, value).text == f"fall: drawdown_in_deviations is {said}"
