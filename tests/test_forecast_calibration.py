"""Calibrated forecasts pass, others fail; better baselines are detected; nothing looks ahead."""

import math
from dataclasses import fields, replace
from statistics import NormalDist

import numpy as np
import pytest
from bar_series import bars_of, of_logs, walk

from qubic_lab.errors import InputError
from qubic_lab.oracle.analysis.forecast import RULE, forecast_path
from qubic_lab.oracle.backtest.forecast_accuracy import STAYS, accuracy, baseline_points, pesaran_timmermann
from qubic_lab.oracle.backtest.past_forecasts import (
    LEVELS,
    PRIOR,
    DailyEstimate,
    DayBootstrap,
    PastForecasts,
    calibration,
    coverage,
    past_forecasts,
    pit_values,
    recalibrated,
    up_probabilities,
)
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US

KNOWN = 480
# Past errors over their scale: even quantiles of the size of a standard normal variable.
POOL = np.array([NormalDist().inv_cdf(0.5 + (n + 0.5) / (2 * KNOWN)) for n in range(KNOWN)])


def made(count: int = 1_500, wide: float = 1.0, seed: int = 0) -> PastForecasts:
    """Independent forecasts, calibrated if `wide` is 1; otherwise intervals are that many times too wide."""
    draw = np.random.default_rng(seed)
    move, error = draw.normal(0.0, 0.7, count), draw.normal(0.0, 1.0, count)
    place, ranks = np.arange(count), np.ceil(np.array(LEVELS) * (KNOWN + 1)).astype(int) - 1
    return PastForecasts(
        steps=1,
        levels=LEVELS,
        closed_us=(place + 1) * HOUR_US,
        place=place,
        later=place + 1,
        last=np.zeros(count),
        point=move,
        came=move + error,
        scale=np.ones(count),
        known=np.full(count, KNOWN),
        below=np.searchsorted(POOL, np.abs(error) / wide),
        nearer=np.searchsorted(POOL, np.abs(move) / wide),
        reach=np.tile(wide * POOL[ranks], (count, 1)),
        flat=np.full(count, math.sqrt(1.0 + 0.49)),
    )


def judged(series: Bars, hours: int) -> PastForecasts:
    found = past_forecasts(series, hours)
    assert isinstance(found, PastForecasts)
    return found


def first(past: PastForecasts, count: int) -> PastForecasts:
    names = (each.name for each in fields(past) if isinstance(getattr(past, each.name), np.ndarray))
    return replace(past, **{name: getattr(past, name)[:count] for name in names})


def test_calibrated_forecasts_pass() -> None:
    past = made()
    days = DayBootstrap(past.closed_us)
    assert not any(each.off for each in coverage(past, days))
    found = calibration(past, days)
    assert found.pit.p > 0.05
    even = found.pit
    assert sum(low <= each <= high for low, each, high in zip(even.low, even.shares, even.high, strict=True)) >= 8
    assert found.raw.p > 0.05 and found.raw.error < found.raw.error_most
    assert sum(each.low <= each.rose <= each.high for each in found.raw.bins) >= 8
    for rises in (found.raw, found.recalibrated):
        assert rises.skill.low > 0.05  # they know the move of 0.7 of each error's deviation
        assert sum(each.forecasts for each in rises.bins) == rises.forecasts == len(past)


@pytest.mark.parametrize("wide", [0.5, 2.0])
def test_forecasts_that_are_too_sure_or_not_sure_enough_are_found_out(wide: float) -> None:
    past = made(wide=wide)
    days = DayBootstrap(past.closed_us)
    levels = coverage(past, days)
    assert all(each.off for each in levels)
    assert all((each.held.value < each.level) == (wide < 1.0) for each in levels)
    found = calibration(past, days)
    assert found.pit.p < 0.01
    ends = found.pit.shares[0] + found.pit.shares[-1]
    assert (ends > 0.3) if wide < 1.0 else (ends < 0.1)
    assert found.raw.p < 0.01
    assert found.recalibrated.error < found.raw.error
    assert found.recalibrated.skill.value > found.raw.skill.value


def test_pit_values_probabilities_and_interval_scores_by_hand() -> None:
    """Known 480; an error above 240 of them: 0.5 ± 0.5 × 240.5 / 481, on the side of the price."""
    count, point, came = np.array([240, 240, 0]), np.array([1.0, -1.0, 0.0]), np.array([2.0, -2.0, 0.0])
    past = replace(first(made(), 3), below=count, nearer=count, point=point, came=came)
    assert pit_values(past) == pytest.approx([0.75, 0.25, 0.5])
    assert up_probabilities(past) == pytest.approx([0.75, 0.25, 0.5])
    assert past.moved.tolist() == [True, True, False]
    # Half width 1 at 80 %: an error of 0.5 costs 2, one of 3 costs 2 + 2 / 0.2 × 2; flat: half width 1.2816 × 2.
    past = replace(first(made(), 2), levels=(0.8,), reach=np.ones((2, 1)), point=np.zeros(2), flat=np.full(2, 2.0))
    past = replace(past, came=np.array([0.5, 3.0]), below=np.array([10, 470]))
    [found] = coverage(past, DayBootstrap(np.arange(2) * DAY_US))
    reach = 2.0 * NormalDist().inv_cdf(0.9)
    assert (found.held.value, found.wide_pct, found.flat_wide_pct) == pytest.approx((0.5, 200.0, 200.0 * reach))
    assert found.score_ratio.value == pytest.approx((2 + 22) / (2 * reach + 2 * reach + 10 * (3 - reach)))


def test_a_correction_is_the_line_through_earlier_outcomes_shrunk() -> None:
    past = made(700)
    told = up_probabilities(past)
    found = recalibrated(past, told)
    rose = (past.came > past.last).astype(float)
    known = 600  # outcomes of forecasts 0 to 599 have come at bar 600
    x, y = told[:known] - told[:known].mean(), rose[:known] - rose[:known].mean()
    slope = (x @ y) / (x @ x + 0.25 / PRIOR[0] ** 2)
    height = known / (known + 0.25 / PRIOR[1] ** 2) * (rose[:known].mean() - 0.5)
    assert found[600] == pytest.approx(0.5 + height + slope * (told[600] - told[:known].mean()))
    assert found[0] == 0.5  # nothing is known yet
    np.testing.assert_array_equal(recalibrated(first(past, 400), told[:400]), found[:400])


def test_ranks_are_those_of_plain_loops_and_widths_those_of_the_service() -> None:
    series = walk(1_100, seed=3)
    past = judged(series, 3)
    error, levels = np.abs(past.came - past.point), coverage(past, DayBootstrap(past.closed_us))
    for number, level in enumerate(LEVELS):
        # A few errors are the quantile itself and lie on the edge, where multiplying by the scale may round.
        held = float(np.mean(error <= past.reach[:, number] * (1.0 + 1e-12)))
        assert levels[number].held.value == pytest.approx(held, abs=1e-12)
        path = forecast_path(series, 3, replace(RULE, coverage=level))
        np.testing.assert_array_equal(np.flatnonzero((path.later >= 0) & ~np.isnan(path.half_width)), past.place)
        np.testing.assert_allclose(past.reach[:, number], path.half_width[past.place], rtol=1e-12)
    path = forecast_path(series, 3)
    made_at = np.flatnonzero((path.later >= 0) & ~np.isnan(path.point))
    for row in (0, 300, len(past) - 1):
        place = past.place[row]
        scale = past.scale[row]
        before = [n for n in made_at if path.later[n] <= place and n >= 48][-RULE.past :]
        spread = {n: math.sqrt(float(np.mean(series.step_returns[n - 47 : n + 1] ** 2)) * 3) for n in before}
        errors = [abs(series.log_close[path.later[n]] - path.point[n]) / spread[n] for n in before]
        assert past.known[row] == len(errors)
        assert past.below[row] == sum(each < abs(past.came[row] - past.point[row]) / scale for each in errors)
        assert past.nearer[row] == sum(each < abs(past.point[row] - past.last[row]) / scale for each in errors)


def test_later_bars_change_no_forecast_and_no_correction() -> None:
    series = walk(1_000, seed=2)
    whole, part = judged(series, 4), judged(series.slice(0, 700), 4)
    for each in fields(PastForecasts):
        values, cut = getattr(whole, each.name), getattr(part, each.name)
        if isinstance(values, np.ndarray):
            assert values[: len(part)].tobytes() == cut.tobytes(), each.name
    for name, points in baseline_points(series, 4).items():
        np.testing.assert_array_equal(points[:700], baseline_points(series.slice(0, 700), 4)[name], name)
    told, row = up_probabilities(whole), 400
    otherwise = np.where(whole.later > whole.place[row], 2.0 * whole.last - whole.came, whole.came)
    found, changed = recalibrated(whole, told), recalibrated(replace(whole, came=otherwise), told)
    np.testing.assert_array_equal(changed[: row + 1], found[: row + 1])
    assert changed[row + 1] != found[row + 1]


def test_why_nothing_can_be_judged_and_gaps_are_counted_by_their_time() -> None:
    def reason(series: Bars, hours: int) -> str:
        found = past_forecasts(series, hours)
        assert isinstance(found, Missing)
        return found.reason

    assert reason(walk(900, frame_us=DAY_US), 4) == "bars of 1 day are longer than 4 h"
    assert reason(walk(900, frame_us=2 * HOUR_US), 3) == "bars of 2 h do not divide 3 h"
    assert reason(walk(900), 24) == "forecasts over 24 h overlap much with the next day: at most 12 h can be judged"
    assert isinstance(past_forecasts(walk(900), 12), PastForecasts)
    assert reason(walk(200), 1) == "386 bars of 1 h are needed, 200 are known"
    assert isinstance(past_forecasts(walk(385), 1), Missing) and isinstance(past_forecasts(walk(386), 1), PastForecasts)
    assert reason(bars_of([5.0] * 900), 1) == "the price did not move in 900 bars"
    assert reason(bars_of([5.0, 6.0] * 450), 2) == "the price is the same 2 h later at every bar"
    apart = bars_of(walk(900).close, places=np.arange(900) * 3)
    assert "too many bars are missing" in reason(apart, 1)
    assert isinstance(past_forecasts(apart, 3), PastForecasts)
    # With a gap of 30 h no forecast is judged across it, and all others are.
    gone = bars_of(walk(970).close, places=[*range(500), *range(530, 1_000)])
    places = judged(gone, 2).place.tolist()
    assert not {498, 499} & set(places) and set(range(600, 900)) <= set(places)
    with pytest.raises(InputError, match="hours to forecast is 0"):
        past_forecasts(walk(900), 0)


def test_days_are_drawn_whole_and_intervals_of_few_days_are_wide_enough() -> None:
    """Where all hours of a day are alike there are 50 values, not 1,200, and the interval is as wide as that says."""
    draw = np.random.default_rng(0)
    by_day = np.repeat(draw.random(50) < 0.5, 24)
    days = DayBootstrap(np.arange(1_200) * HOUR_US)
    found = days.share(by_day)
    half = 1.96 * math.sqrt(by_day.mean() * (1 - by_day.mean()) / 50)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    even = days.share(np.ones(1_200, np.bool_))
    assert even == DailyEstimate(1.0, 1.0, 1.0)
    none = days.estimate(np.divide, np.zeros(1_200), np.zeros(1_200))
    assert all(math.isnan(each) for each in (none.value, none.low, none.high))
    held, draw = 0, np.random.default_rng(3)
    for seed in range(300):
        few = DayBootstrap(np.arange(10) * DAY_US, 300, seed)
        found = few.estimate(np.divide, draw.standard_normal(10), np.ones(10))
        held += found.low <= 0.0 <= found.high
    assert 0.92 <= held / 300 <= 0.98  # as drawn days spread, 88 % did


def test_the_line_is_seen_where_prices_return_to_a_trend() -> None:
    series = of_logs(0.001 * np.arange(1_200) + np.random.default_rng(5).standard_normal(1_200) * 0.005)
    past = judged(series, 4)
    worth = accuracy(past, baseline_points(series, 4), DayBootstrap(past.closed_us, 200))
    found = {each.baseline: each for each in worth.comparisons}
    assert found["the line"].error_ratio.low > 1.1
    assert found["the line"].result.p < 0.001
    assert found["AR(1)"].test == "Diebold-Mariano" and found[STAYS].test == "Clark-West"


def test_baselines_by_numpy() -> None:
    series = walk(700, seed=6)
    found, moves = baseline_points(series, 3), series.step_returns
    place = 600
    mean = (series.log_close[place] - series.log_close[place - 47]) / 47
    assert found["mean return"][place] == pytest.approx(series.log_close[place] + 3 * mean)
    pairs = np.s_[place - RULE.past + 1 : place + 1]
    slope, cut = np.polyfit(moves[place - RULE.past : place], moves[pairs], 1)
    total, last = 0.0, moves[place]
    for _ in range(3):
        last = cut + slope * last
        total += last
    assert found["AR(1)"][place] == pytest.approx(series.log_close[place] + total, abs=1e-12)
    assert found[STAYS] is series.log_close
    assert all(np.isnan(found[name][:47]).all() for name in ("mean return", "the line", "AR(1)"))


def test_directions_are_tested_beyond_what_a_rising_market_gives() -> None:
    draw = np.random.default_rng(2)
    rose = draw.random(900) < 0.8
    mostly = draw.random(900) < 0.9  # says "up" mostly, knows nothing, and is right in three of four cases
    assert np.mean(rose == mostly) > 0.7
    nothing, knows = pesaran_timmermann(mostly, rose), pesaran_timmermann(rose ^ (draw.random(900) < 0.4), rose)
    assert nothing.p > 0.05
    assert knows.p < 0.001
    assert "every forecast has the same direction" in pesaran_timmermann(np.ones(900), rose).absent
    assert "every outcome has the same direction" in pesaran_timmermann(rose, np.zeros(900)).absent
    assert "at least 20 are needed" in pesaran_timmermann(rose[:9], rose[:9]).absent


def rejected(frame_us: int, bars: int, hours: int, walks: int) -> Floats:
    """Return how often, at 5 % on random walks: Clark-West, direction, PIT values, corrected and raw probabilities."""
    found = []
    for seed in range(walks):
        series = of_logs(np.cumsum(np.random.default_rng(seed).standard_normal(bars)) * 0.005, frame_us)
        past = judged(series, hours)
        days = DayBootstrap(past.closed_us, 100)
        worth, sure = accuracy(past, {STAYS: series.log_close}, days), calibration(past, days, draws=100)
        tests = (worth.comparisons[0].result.p, worth.direction.result.p)
        found.append([*tests, sure.pit.p, sure.recalibrated.p, sure.raw.p])
    return np.asarray(np.mean(np.array(found, float) < 0.05, axis=0))


def test_random_walks_are_rarely_taken_for_more() -> None:
    """Of 100 walks at most 12 by each test (5 and 3 deviations); slopes of a walk told as probabilities are wrong."""
    found = rejected(HOUR_US, 600, 2, 100)
    assert (found[:4] <= 0.12).all()
    assert found[4] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("frame_us", "bars", "hours"), [(HOUR_US, 2_200, 4), (15 * MINUTE_US, 4_000, 4)])
def test_random_walks_are_taken_for_more_as_often_as_is_said(frame_us: int, bars: int, hours: int) -> None:
    """Of 150 walks, 5 % and three deviations for tests; corrected probabilities keep some error of their fit."""
    found = rejected(frame_us, bars, hours, 150)
    assert (found[:3] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)).all()
    assert found[3] <= 0.16
    assert found[4] > 0.7
