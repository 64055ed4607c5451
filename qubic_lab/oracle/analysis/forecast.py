"""Forecasts of the price in 1 to 4 hours: linear regression, with intervals calibrated by past errors.

The textbook interval of a regression assumes independent errors about a line. Prices are closer to a random walk, for
which that interval covers the later price far too rarely. So the width of the interval comes from past errors of this
forecast on the same series: each forecast was made strictly before its price, and all errors are known at the bar that
is forecast from.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import talib
from numpy.typing import NDArray

from qubic_lab.oracle.analysis.indicators import Indicator, by_name
from qubic_lab.oracle.analysis.results import PriceForecast
from qubic_lab.oracle.analysis.trend_and_levels import WINDOW, RegressionLines, regression_lines, spread
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import HOUR_US

HOURS = (1, 2, 3, 4)
NO_SPREAD = 1e-9
"""With returns smaller than this on average, the price stood still."""


@dataclass(frozen=True)
class ForecastRule:
    """The parameters of forecasts.

    Attributes:
        hours: the regression of log price on time covers this many hours, and at least `bars` bars. On a random walk a
            slope over w hours makes a forecast of h hours worse than "the price stays" by 6h/5w of its mean squared
            error, so the window is the same for all lengths of bars.
        past: the number of the newest known errors that set the width.
        least: the least number of errors for an interval, and so for a forecast.
        coverage: the share of later prices that the interval should cover.
    """

    hours: float = 48.0
    bars: int = WINDOW
    past: int = 480
    least: int = 96
    coverage: float = 0.8

    def window(self, frame_us: int) -> int:
        """Return the number of bars of the regression for bars of a length."""
        return max(self.bars, round(self.hours * HOUR_US / frame_us))

    def warm_up(self, frame_us: int, hours: int) -> int:
        """Return the number of bars before the first interval, if no bar is missing."""
        return self.window(frame_us) + self.least + steps_of(frame_us, hours) - 1


RULE = ForecastRule()


@dataclass(frozen=True)
class ForecastPath:
    """The forecast at each bar, [bars]; in log price, NaN if there is none.

    Attributes:
        point: the expected log price at the later time.
        scale: the spread of prices over that time, if returns are like those of the regression's bars.
        later: the row of the bar that closes at the later time; −1 if there is none (yet).
        half_width: the interval is point ± this; NaN in a path without intervals.
    """

    point: Floats
    scale: Floats
    later: NDArray[np.intp]
    half_width: Floats


def forecast_path(bars: Bars, hours: int, rule: ForecastRule = RULE) -> ForecastPath:
    """Return the forecast at each bar with its interval, made from that bar and earlier ones.

    The interval is symmetric: the conformal quantile of past errors, each over the spread of returns at its time, times
    the spread now (split conformal prediction with normalised scores, Lei and others, JASA 2018; here over past errors
    in order of time). A past forecast counts if a bar closes within half a bar of its time, so not over gaps.

    Args:
        bars: no longer than the time to forecast.
        hours: from a bar to the time of its forecast, at least 1.
        rule: the parameters.
    """
    expected = expected_path(bars, hours, rule)
    return replace(expected, half_width=_quantiles(bars, expected, rule) * expected.scale)


def expected_path(bars: Bars, hours: int, rule: ForecastRule = RULE) -> ForecastPath:
    """Return the forecast at each bar as `forecast_path` does, without an interval.

    The slope continues from the last price. On a random walk that is off the line by more than the price moves in an
    hour, so a forecast from the line itself is far worse.
    """
    window = rule.window(bars.frame_us)
    squares = bars.once(f"spread of {window}", lambda each: spread(each, window) ** 2)
    point = bars.log_close + regression(bars, rule).slope * hours
    scale = np.sqrt(squares * hours * HOUR_US / bars.frame_us)
    scale[~(scale > NO_SPREAD)] = np.nan
    return ForecastPath(point, scale, _later(bars, hours * HOUR_US), np.full(len(bars), np.nan))


def regression(bars: Bars, rule: ForecastRule = RULE) -> RegressionLines:
    """Return the regression line that ends at each bar, over the rule's window."""
    window = rule.window(bars.frame_us)
    return bars.once(f"lines of {window}", lambda each: regression_lines(each.closed_us, each.log_close, window))


def known_errors(bars: Bars, expected: ForecastPath) -> tuple[Floats, NDArray[np.intp]]:
    """Return past errors over their scale in order of time, [errors], and the number known at each bar, [bars]."""
    made = np.flatnonzero((expected.later >= 0) & ~np.isnan(expected.scale))
    came = expected.later[made]
    scores = np.abs(bars.log_close[came] - expected.point[made]) / expected.scale[made]
    return scores, np.searchsorted(came, np.arange(len(bars)), side="right")


def _later(bars: Bars, wait_us: int) -> NDArray[np.intp]:
    """Return the row of the bar that closes nearest to `wait_us` after each, within half a bar; −1 if there is none."""
    target, half = bars.closed_us + wait_us, bars.frame_us // 2
    place = np.searchsorted(bars.closed_us, target + half, side="right") - 1
    return np.where(bars.closed_us[place] >= target - half, place, -1)


def _quantiles(bars: Bars, expected: ForecastPath, rule: ForecastRule) -> Floats:
    """Return half the width of the interval at each bar in scales, from the errors known there, [bars]."""
    scores, known_at = known_errors(bars, expected)
    at_count = np.full(len(scores) + 1, np.nan)  # by the number of known errors
    ranked: list[float] = []
    for known, score in enumerate(scores[: rule.past].tolist(), 1):
        bisect.insort(ranked, score)
        if known >= rule.least:
            at_count[known] = ranked[math.ceil(rule.coverage * (known + 1)) - 1]
    if len(scores) > rule.past:
        rank = math.ceil(rule.coverage * (rule.past + 1))
        rolled = talib.PERCENTILE(scores, rule.past, 100.0 * (rank - 0.5) / rule.past)
        at_count[rule.past + 1 :] = rolled[rule.past :]
    return at_count[known_at]


def forecast(bars: Bars, hours: int, rule: ForecastRule = RULE) -> PriceForecast | Missing:
    """Return the forecast at the last bar, or why there is none."""
    frame_us = bars.frame_us
    if frame_us > hours * HOUR_US:
        return Missing(reason=f"bars of {frame_us / HOUR_US:g} h are longer than {hours} h")
    needed = rule.warm_up(frame_us, hours) + 1
    if len(bars) < needed:
        return Missing(reason=f"{needed} bars are needed, {len(bars)} are known")
    path = forecast_path(bars, hours, rule)
    half = float(path.half_width[-1])
    if math.isnan(half):
        logs = bars.log_close[-rule.window(frame_us) - 1 :]
        still = float(logs.max() - logs.min()) == 0.0
        why = "the price did not move" if still else "too few past forecasts could be judged, as bars are missing"
        return Missing(reason=f"{why} in the last {len(logs) if still else len(bars)} bars")
    middle = float(path.point[-1])
    made = np.flatnonzero((path.later >= 0) & ~np.isnan(path.point))[-rule.past :]
    came, half_widths = bars.log_close[path.later[made]], path.half_width[made]
    errors, judged = came - path.point[made], ~np.isnan(half_widths)
    skill, skill_t = skill_against_staying(errors, came - bars.log_close[made], steps_of(frame_us, hours))
    return PriceForecast(
        hours=hours,
        at_us=int(bars.closed_us[-1]) + hours * HOUR_US,
        price=math.exp(middle),
        low=math.exp(middle - half),
        high=math.exp(middle + half),
        coverage=rule.coverage,
        errors=len(made),
        held=float((np.abs(errors) <= half_widths)[judged].mean()) if judged.any() else None,
        held_of=int(judged.sum()),
        skill=skill,
        skill_t=skill_t,
        text=_describe(skill, skill_t, len(made)),
    )


def forecasts(bars: Bars) -> dict[str, PriceForecast | Missing]:
    """Return the forecasts at the last bar by their time, such as "1h"; no bar before the tail matters to them."""
    tail = bars.tail(RULE.window(bars.frame_us) + 2 * RULE.past + steps_of(bars.frame_us, HOURS[-1]))
    return {f"{each}h": forecast(tail, each) for each in HOURS}


def steps_of(frame_us: int, hours: int) -> int:
    """Return the number of bars in some hours, at least 1."""
    return max(1, round(hours * HOUR_US / frame_us))


def skill_against_staying(errors: Floats, changes: Floats, steps: int) -> tuple[float | None, float | None]:
    """Return the skill of forecasts against "the price stays", and its t-statistic.

    Args:
        errors: of the forecasts, in order of time, [forecasts].
        changes: changes of the price, which are the errors of "the price stays", [forecasts].
        steps: bars from a forecast to its time; neighbouring forecasts overlap by one less.

    Returns:
        1 − mean squared error over that of staying, and the statistic of Diebold and Mariano (Journal of Business and
        Economic Statistics 13, 1995), its variance by Bartlett's weights over `steps` lags (Newey and West 1987), with
        the correction of Harvey, Leybourne and Newbold (1997); None if they are not defined. "The price stays" is the
        forecast with a slope of 0, but the slope comes from a window of fixed length, so the test compares the two
        methods (R. Giacomini and H. White, Econometrica 74, 2006).
    """
    still = float(np.mean(changes**2)) if len(changes) else 0.0
    if still == 0.0:
        return None, None
    skill = 1.0 - float(np.mean(errors**2)) / still
    gain = changes**2 - errors**2
    away = gain - gain.mean()
    count = len(gain)
    variance = float(away @ away) / count
    for lag in range(1, min(steps, count - 1) + 1):
        variance += 2.0 * (1.0 - lag / (steps + 1)) * float(away[lag:] @ away[:-lag]) / count
    shrink = (count + 1 - 2 * steps + steps * (steps - 1) / count) / count
    if variance <= 0.0 or shrink <= 0.0:
        return skill, None
    return skill, float(gain.mean()) / math.sqrt(variance / count) * math.sqrt(shrink)


def _describe(skill: float | None, skill_t: float | None, errors: int) -> str:
    if skill is None:
        return 'the price stood still, so nothing can be better than "the price stays"'
    sure = skill_t is not None and abs(skill_t) >= 1.96
    if not sure:
        return f'over {errors} past forecasts not shown to be better or worse than "the price stays"'
    return f'over {errors} past forecasts {"better" if skill > 0 else "worse"} than "the price stays"'


def _in_4_hours(name: str) -> Callable[[Bars], Floats]:
    """Return a function that gives a column of the path of forecasts of 4 hours; NaN for longer bars."""

    def column(bars: Bars) -> Floats:
        if bars.frame_us > _LONGEST_US:
            return np.full(len(bars), np.nan)
        values: Floats = getattr(bars.once("path", lambda each: forecast_path(each, HOURS[-1])), name)
        return values

    return column


_LONGEST_US = HOURS[-1] * HOUR_US
_POINTS_FROM, _WIDTHS_FROM = RULE.window(_LONGEST_US) - 1, RULE.warm_up(_LONGEST_US, HOURS[-1])
"""Warm-ups of bars of 4 hours; shorter ones need more."""
FORECASTS = by_name(
    Indicator("forecast_4h", _in_4_hours("point"), _POINTS_FROM, "log price", "log price expected in 4 hours"),
    Indicator("forecast_4h_half_width", _in_4_hours("half_width"), _WIDTHS_FROM, "log price", "half its interval"),
)
"""The forecast of 4 hours, bar by bar."""
