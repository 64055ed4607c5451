"""Forecasts are the regression's, their intervals hold what they claim, and their worth is told."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from bar_series import bars_of, of_logs, walk
from strict_warnings import WARNINGS_ARE_ERRORS

from qubic_lab.oracle.analysis.forecast import ForecastRule, forecast, forecast_path, forecasts, skill_against_staying
from qubic_lab.oracle.analysis.results import PriceForecast
from qubic_lab.oracle.analysis.trend_and_levels import regression_lines
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US

pytestmark = WARNINGS_ARE_ERRORS
SMALL = ForecastRule(hours=0.0, bars=6, past=8, least=4)


def random_walk(chance: np.random.Generator, count: int) -> Floats:
    return np.cumsum(chance.standard_normal(count)) * 0.005


def heavy_walk(chance: np.random.Generator, count: int) -> Floats:
    return np.cumsum(chance.standard_t(3, count) * 0.003 + 0.0005)


def noisy_trend(chance: np.random.Generator, count: int) -> Floats:
    return 0.001 * np.arange(count) + chance.standard_normal(count) * 0.005


def changing_walk(chance: np.random.Generator, count: int) -> Floats:
    """GARCH(1, 1): calm and wild times follow each other (T. Bollerslev 1986)."""
    moves, variance = np.zeros(count), 1e-5
    for n, each in enumerate(chance.standard_normal(count).tolist()):
        moves[n] = math.sqrt(variance) * each
        variance = 1e-6 + 0.1 * moves[n] ** 2 + 0.85 * variance
    return np.cumsum(moves)


KINDS = [random_walk, heavy_walk, noisy_trend, changing_walk]


def test_regression_by_hand() -> None:
    """Least squares through (0, 1), (1, 3), (2, 2), (4, 6) hours: slope 8/7, 10 / 8.75 of the sums about the means."""
    hours, values = [0, 1, 2, 4], np.array([1.0, 3.0, 2.0, 6.0])
    lines = regression_lines(np.array(hours) * HOUR_US, values, 4)
    assert np.isnan(lines.slope[:3]).all()
    assert lines.slope[3] == pytest.approx(8 / 7)
    assert lines.end[3] == pytest.approx(3 + 8 / 7 * (4 - 1.75) - 6)
    rest = sum((value - 3 - 8 / 7 * (hour - 1.75)) ** 2 for hour, value in zip(hours, values, strict=True))
    assert lines.fit[3] == pytest.approx(1 - rest / 14)
    assert lines.slope_t[3] == pytest.approx(8 / 7 / math.sqrt(rest / 2 / 8.75))


def test_regression_is_that_of_numpy_over_gaps() -> None:
    chance = np.random.default_rng(2)
    hours, values = np.cumsum(chance.integers(1, 5, 80)), random_walk(chance, 80)
    lines = regression_lines(hours * HOUR_US, values, 20)
    for end in (19, 40, 79):
        slope, cut = np.polyfit(hours[end - 19 : end + 1], values[end - 19 : end + 1], 1)
        assert lines.slope[end] == pytest.approx(slope, rel=1e-9)
        assert lines.end[end] == pytest.approx(slope * hours[end] + cut - values[end], rel=1e-6)


def test_a_line_has_no_error_and_a_constant_no_fit() -> None:
    times = np.arange(10) * HOUR_US
    exact = regression_lines(times, 0.5 * np.arange(10.0), 5)
    assert exact.slope[-1] == pytest.approx(0.5)
    assert exact.fit[-1] == pytest.approx(1.0)
    assert math.isnan(exact.slope_t[-1])
    still = regression_lines(times, np.full(10, 3.0), 5)
    assert still.slope[-1] == still.end[-1] == 0.0
    assert math.isnan(still.fit[-1]) and math.isnan(still.slope_t[-1])


def test_forecast_by_hand() -> None:
    """Every number of a small forecast, worked out by plain loops from the definition."""
    logs = random_walk(np.random.default_rng(3), 24)
    hours, rule = 2, SMALL

    def point(now: int) -> float:
        slope, _ = np.polyfit(np.arange(6.0), logs[now - 5 : now + 1], 1)
        return float(logs[now] + slope * hours)

    def scale(now: int) -> float:
        return math.sqrt(sum((logs[n] - logs[n - 1]) ** 2 for n in range(now - 5, now + 1)) / 6 * hours)

    scores = [abs(logs[n + hours] - point(n)) / scale(n) for n in range(6, 24 - hours)][-8:]
    reach = sorted(scores)[math.ceil(0.8 * 9) - 1]
    found = forecast(of_logs(logs), hours, rule)
    assert found.price == pytest.approx(math.exp(point(23)))
    assert found.low == pytest.approx(math.exp(point(23) - reach * scale(23)))
    assert found.high == pytest.approx(math.exp(point(23) + reach * scale(23)))
    assert found.errors == 8
    misses = [logs[n + hours] - point(n) for n in range(14, 22)]
    stays = [logs[n + hours] - logs[n] for n in range(14, 22)]
    assert found.skill == pytest.approx(1 - sum(e * e for e in misses) / sum(e * e for e in stays))
    assert found.at_us == of_logs(logs).closed_us[-1] + 2 * HOUR_US


def test_the_slope_goes_on_from_the_last_price() -> None:
    series = of_logs(noisy_trend(np.random.default_rng(1), 300))
    lines = regression_lines(series.closed_us, series.log_close)
    np.testing.assert_allclose(forecast_path(series, 4).point - series.log_close, lines.slope * 4, atol=1e-12)


def test_first_interval_comes_after_the_warm_up() -> None:
    for frame_us, hours in ((HOUR_US, 1), (HOUR_US, 4), (15 * MINUTE_US, 2), (4 * HOUR_US, 4)):
        rule = ForecastRule()
        path = forecast_path(walk(900, frame_us=frame_us), hours, rule)
        assert np.flatnonzero(~np.isnan(path.half_width))[0] == rule.warm_up(frame_us, hours)


def test_only_errors_that_are_known_count() -> None:
    """The forecast of a bar stays the same whatever comes later, and counts the price that just came."""
    logs = random_walk(np.random.default_rng(4), 200)
    whole = forecast_path(of_logs(logs), 3, SMALL)
    assert forecast_path(of_logs(logs[:150]), 3, SMALL).half_width.tobytes() == whole.half_width[:150].tobytes()
    jumped = logs.copy()
    jumped[149] += 1.0
    before, after = (forecast_path(of_logs(each), 3, SMALL) for each in (logs[:150], jumped[:150]))
    assert before.half_width[148] == after.half_width[148]
    scores = np.abs(jumped[6:150][3:] - after.point[6:150][:-3])[-8:]
    assert scores[-1] == scores.max() > 0.9
    assert after.half_width[149] > 10 * before.half_width[149]  # its own spread is that of the jump


@pytest.mark.parametrize("hours", [1, 4])
@pytest.mark.parametrize("of", KINDS)
def test_intervals_hold_80_of_100(of: Callable[[np.random.Generator, int], Floats], hours: int) -> None:
    """Within four standard errors of as many independent forecasts as there are windows that do not overlap."""
    inside: list[Floats] = []
    for seed in range(60):
        series = of_logs(of(np.random.default_rng(seed), 2_000))
        path = forecast_path(series, hours)
        judged = (path.later >= 0) & ~np.isnan(path.half_width)
        later = series.log_close[path.later[judged]]
        inside.append(np.abs(later - path.point[judged]) <= path.half_width[judged])
    held = np.concatenate(inside)
    tolerance = 4 * math.sqrt(0.8 * 0.2 / (len(held) / hours))
    assert tolerance < 0.03
    assert abs(held.mean() - 0.8) <= tolerance


@pytest.mark.parametrize("of", [random_walk, noisy_trend])
def test_intervals_hold_with_the_least_history(of: Callable[[np.random.Generator, int], Floats]) -> None:
    """Of 1,200 series with no bar to spare; the tolerance is that of the claim, 3 points."""
    inside, chance = 0, np.random.default_rng(11)
    for _ in range(1_200):
        logs = of(chance, 150)
        found = forecast_path(of_logs(logs[:146]), 2)
        inside += abs(logs[147] - found.point[-1]) <= found.half_width[-1]
    assert abs(inside / 1_200 - 0.8) <= 0.03


def test_skill_says_whether_a_forecast_is_worth_anything() -> None:
    """A steady trend is forecast better than by its last price; a line with noise about it is not."""
    chance = np.random.default_rng(5)
    steady = of_logs(0.003 * np.arange(1_200) + np.cumsum(chance.standard_normal(1_200)) * 0.002)
    good, bad = forecast(steady, 4), forecast(of_logs(chance.standard_normal(1_200) * 0.005), 4)
    assert good.skill > 0.3 and good.skill_t > 1.96
    assert bad.skill < 0.0 and bad.skill_t < -1.96
    assert 'better than "the price stays"' in good.text and 'worse than "the price stays"' in bad.text


def test_skill_by_hand() -> None:
    """Diebold and Mariano with one lag: gains 3, 0, 3, 0 have the mean 1.5 and the variance 2.25 (1 − 0.75)."""
    skill, skill_t = skill_against_staying(np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 1.0, 2.0, 1.0]), 1)
    assert skill == pytest.approx(1 - 4 / 10)
    variance = 2.25 + 2 * 0.5 * (-3 * 2.25 / 4)
    assert skill_t == pytest.approx(1.5 / math.sqrt(variance / 4) * math.sqrt((4 + 1 - 2) / 4))
    assert skill_against_staying(np.array([1.0]), np.array([0.0]), 1) == (None, None)
    assert skill_against_staying(np.array([]), np.array([]), 1) == (None, None)
    assert skill_against_staying(np.array([1.0, 1.0]), np.array([2.0, 2.0]), 1)[1] is None


def test_equal_forecasts_are_rarely_told_apart() -> None:
    """Of forecasts 12 bars ahead that are as good as staying 5 to 10 of 100 pass for others; with one lag 25 would."""
    chance, found = np.random.default_rng(6), 0
    for _ in range(400):
        errors, changes = (np.convolve(each, np.ones(12), "valid") for each in chance.standard_normal((2, 411)))
        found += abs(skill_against_staying(errors, changes, 12)[1] or 0.0) >= 1.96
    assert 0.02 <= found / 400 <= 0.12


def test_why_there_is_no_forecast() -> None:
    assert forecast(walk(30), 4).reason == "148 bars are needed, 30 are known"
    assert isinstance(forecast(walk(148), 4), PriceForecast)
    assert isinstance(forecast(walk(147), 4), Missing)
    assert forecast(walk(900, frame_us=DAY_US), 4).reason == "bars of 24 h are longer than 4 h"
    assert forecast(bars_of([5.0] * 300), 1).reason == "the price did not move in the last 49 bars"
    stopped = np.concatenate([random_walk(np.random.default_rng(1), 300), np.full(60, 0.0)])
    assert isinstance(forecast(of_logs(stopped), 1), Missing)
    assert isinstance(forecast(of_logs(stopped[::-1]), 1), PriceForecast)
    apart = bars_of(walk(300).close, places=np.arange(300) * 3)
    assert "too few past forecasts could be judged" in forecast(apart, 1).reason
    assert isinstance(forecast(apart, 3), PriceForecast)  # every third bar is there


def test_forecasts_look_no_further_back_than_they_say() -> None:
    """Bars of long ago change nothing, and a part of a series gives the same as all of it."""
    series = walk(2_000, seed=3)
    tail = series.slice(2_000 - 48 - 960 - 4, 2_000)
    assert forecasts(series) == forecasts(tail)
    assert forecasts(series)["2h"] == forecast(series, 2)
    assert list(forecasts(series)) == ["1h", "2h", "3h", "4h"]
    widths = [each.high / each.low for each in forecasts(series).values() if isinstance(each, PriceForecast)]
    assert widths == sorted(widths)


def test_past_intervals_are_counted() -> None:
    found = forecast(walk(1_100, seed=5), 1)
    assert found.held_of == 480 and found.held is not None
    assert abs(found.held - 0.8) <= 4 * math.sqrt(0.8 * 0.2 / 480)
    early = forecast(walk(145), 1)
    assert (early.held, early.held_of) == (None, 0)
