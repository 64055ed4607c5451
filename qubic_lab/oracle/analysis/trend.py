"""The trend of prices: the regression line of log prices on time, and the move against that of a random walk."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.analysis.indicators import INDICATORS, Indicator, by_name
from qubic_lab.oracle.analysis.results import Trend
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import HOUR_US

WINDOW = 48
"""Bars of the regression line."""
STRONG_ADX = 25.0
"""Wilder speaks of a trend from this value on (New Concepts in Technical Trading Systems, 1978)."""
SURE_DRIFT = 1.96
_ROWS = 16_384


@dataclass(frozen=True)
class RegressionLines:
    """The regression line that ends at each bar, [bars]; NaN if there are too few bars.

    Attributes:
        slope: per hour.
        end: the line's value at the bar, less the bar's own value.
        slope_t: slope over its standard error if the errors were independent; NaN if the line fits exactly. On a
            random walk it is large by itself (Granger and Newbold, Journal of Econometrics 2, 1974), so it is no test.
        fit: share of the variance that the line explains (R²); NaN if nothing moved.
    """

    slope: Floats
    end: Floats
    slope_t: Floats
    fit: Floats


def regression_lines(times_us: Integers, values: Floats, window: int = WINDOW) -> RegressionLines:
    """Return the least-squares line of values on time over the `window` values up to each.

    Sums are computed value by value in one order, so the same window gives the same bits wherever it stands.

    Raises:
        InputError: a window of fewer than 3 values.
    """
    check_at_least("window of the regression", window, 3)
    count = len(values)
    lines = RegressionLines(*(np.full(count, np.nan) for _ in range(4)))
    for first in range(window - 1, count, _ROWS):
        rows = np.s_[first : min(count, first + _ROWS)]
        before = np.s_[first - window + 1 : rows.stop]
        found = _lines(times_us[before], values[before], window)
        for name, part in zip(RegressionLines.__dataclass_fields__, found, strict=True):
            getattr(lines, name)[rows] = part
    return lines


def _lines(times_us: Integers, values: Floats, window: int) -> tuple[Floats, ...]:
    """Return slope, end, t and R² of each full window; all sums are about the window's last point."""
    last_us, last = times_us[window - 1 :], values[window - 1 :]
    x_sum, y_sum, xx, xy, yy = (np.zeros(len(last)) for _ in range(5))
    for place in range(window - 1):
        rows = np.s_[place : place + len(last)]
        x, y = (times_us[rows] - last_us) / HOUR_US, values[rows] - last
        x_sum += x
        y_sum += y
        xx += x * x
        xy += x * y
        yy += y * y
    xx -= x_sum * x_sum / window
    xy -= x_sum * y_sum / window
    yy -= y_sum * y_sum / window
    slope = xy / xx
    rest = np.maximum(0.0, yy - slope * xy)
    uneven = rest > 1e-12 * np.abs(yy)  # less is rounding
    nan = np.full(len(last), np.nan)
    slope_t = np.divide(slope, np.sqrt(rest / (window - 2) / xx), out=nan.copy(), where=uneven)
    fit = np.divide(yy - rest, yy, out=nan, where=yy > 0.0)
    return slope, (y_sum - slope * x_sum) / window, slope_t, fit


def drift_scores(bars: Bars, window: int = WINDOW) -> Floats:
    """Return the move over `window` bars in standard deviations of a random walk with the same returns, [bars].

    Returns are taken over √steps. A random walk without drift stays within ±1.96 in 95 of 100 cases. NaN if nothing
    moved.
    """
    values = np.full(len(bars), np.nan)
    if len(bars) <= window:
        return values
    time = np.cumsum(bars.steps)
    deviation = spread(bars, window)[window:]
    moves = (bars.log_close[window:] - bars.log_close[:-window]) / np.sqrt(time[window:] - time[:-window])
    np.divide(moves, deviation, out=values[window:], where=deviation > 0.0)
    return values


def spread(bars: Bars, window: int = WINDOW) -> Floats:
    """Return the root mean square of the last `window` returns over √steps, [bars]; NaN in the first `window` bars.

    The squares are summed one after the other, so earlier windows leave no rounding errors behind.
    """
    count = len(bars)
    values = np.full(count, np.nan)
    for first in range(window, count, _ROWS):
        last = min(count, first + _ROWS)
        total = np.zeros(last - first)
        squares = bars.step_returns[first - window + 1 : last] ** 2
        for place in range(window):
            total += squares[place : place + last - first]
        values[first:last] = np.sqrt(total / window)
    return values


def _lines_of(bars: Bars) -> RegressionLines:
    return bars.once("lines", lambda each: regression_lines(each.closed_us, each.log_close))


TRENDS = by_name(
    Indicator(
        "slope_48",
        lambda bars: _lines_of(bars).slope,
        WINDOW - 1,
        "log price per hour",
        "slope of the line through 48 log closes",
        47,
    ),
    Indicator(
        "slope_t_48",
        lambda bars: _lines_of(bars).slope_t,
        WINDOW - 1,
        "standard errors",
        "slope over its standard error",
        47,
    ),
    Indicator("drift_48", drift_scores, WINDOW, "deviations", "move over 48 bars against a random walk's", 48),
)
"""The trend, bar by bar."""


def find_trend(bars: Bars) -> Trend | None:
    """Return the trend at the last bar; None if there are 48 bars or fewer."""
    if len(bars) <= WINDOW:
        return None
    tail = bars.tail(WINDOW + 1)
    lines = regression_lines(tail.closed_us, tail.log_close)
    drift = _known(drift_scores(tail)[-1])
    strength = _known(INDICATORS["adx_14"](bars)[-1])
    per_hour = 100.0 * math.expm1(float(lines.slope[-1]))
    direction: Literal["rising", "falling", "none"] = "none"
    if drift is not None and abs(drift) >= SURE_DRIFT:
        direction = "rising" if drift > 0 else "falling"
    return Trend(
        direction=direction,
        strong=None if strength is None else strength >= STRONG_ADX,
        slope_pct_per_hour=per_hour,
        slope_t=_known(lines.slope_t[-1]),
        fit=_known(lines.fit[-1]),
        drift=drift,
        adx=strength,
        window=WINDOW,
        text=_describe(direction, drift, strength, per_hour),
    )


def _describe(direction: str, drift: float | None, adx: float | None, per_hour: float) -> str:
    if drift is None:
        return f"the price did not move in {WINDOW} bars"
    strength = "" if adx is None else f"; ADX {adx:.0f} of 100"
    return (
        f"{'no trend beyond chance' if direction == 'none' else direction}: move over {WINDOW} bars of {drift:+.1f} "
        f"deviations of a random walk, slope {per_hour:+.3g} % an hour{strength}"
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
