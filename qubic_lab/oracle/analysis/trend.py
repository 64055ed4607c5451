"""How prices rise or fall: the regression line of log prices on time, and what that tells of a trend."""

import math
from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.analysis.indicators import INDICATORS, Indicator
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import HOUR_US

WINDOW = 48
"""Bars of the regression line."""
STRONG_ADX = 25.0
"""From here on Wilder speaks of a trend (New Concepts in Technical Trading Systems, 1978)."""
SURE_DRIFT = 1.96
_ROWS = 16_384


@dataclass(frozen=True)
class Lines:
    """The regression line that ends at each bar, [bars]; NaN where there are too few bars.

    Attributes:
        slope: per hour.
        end: the line's value at the bar, less the bar's own value.
        slope_t: slope over its standard error if the errors were independent; NaN where the line fits exactly. On a
            random walk it is large by itself (Granger and Newbold, Journal of Econometrics 2, 1974): no test.
        fit: share of the variance that the line explains (R²); NaN where nothing moved.
    """

    slope: Floats
    end: Floats
    slope_t: Floats
    fit: Floats


def regression_lines(times_us: Integers, values: Floats, window: int = WINDOW) -> Lines:
    """Return the least-squares line of values on time over the `window` values up to each.

    Sums are taken value by value in one order, so that the same window gives the same bits wherever it stands.

    Raises:
        InputError: a window of fewer than 3 values.
    """
    check_at_least("window of the regression", window, 3)
    count = len(values)
    lines = Lines(*(np.full(count, np.nan) for _ in range(4)))
    for first in range(window - 1, count, _ROWS):
        rows = np.s_[first : min(count, first + _ROWS)]
        before = np.s_[first - window + 1 : rows.stop]
        found = _lines(times_us[before], values[before], window)
        for name, part in zip(Lines.__dataclass_fields__, found, strict=True):
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
    """Return how far the price moved over `window` bars, in standard deviations of a random walk of the same returns.

    Returns are taken over √steps. A random walk without drift stays within ±1.96 in 95 of 100 cases; NaN where nothing
    moved, [bars].
    """
    values = np.full(len(bars), np.nan)
    if len(bars) <= window:
        return values
    lines = bars.log_close
    time = np.cumsum(bars.steps)
    squares = spread(bars, window)[window:]
    moved = squares > 0.0
    ways = (lines[window:] - lines[:-window]) / np.sqrt(time[window:] - time[:-window])
    np.divide(ways, squares, out=values[window:], where=moved)
    return values


def spread(bars: Bars, window: int = WINDOW) -> Floats:
    """Return the root mean square of the last `window` returns over √steps, [bars]; NaN in the first `window` bars.

    The squares are summed one after the other, so that earlier windows leave nothing behind.
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


def _slope(bars: Bars) -> Floats:
    return bars.once("lines", lambda each: regression_lines(each.closed_us, each.log_close)).slope


def _slope_t(bars: Bars) -> Floats:
    return bars.once("lines", lambda each: regression_lines(each.closed_us, each.log_close)).slope_t


TRENDS: dict[str, Indicator] = {
    each.name: each
    for each in (
        Indicator("slope_48", _slope, WINDOW - 1, "log price per hour", "slope of the line through 48 log closes", 47),
        Indicator("slope_t_48", _slope_t, WINDOW - 1, "standard errors", "slope over its standard error", 47),
        Indicator("drift_48", drift_scores, WINDOW, "deviations", "move over 48 bars against a random walk's", 48),
    )
}
"""What is told of trends, bar by bar."""


@dataclass(frozen=True)
class Trend:
    """Which way prices go at the last bar, and how surely.

    Attributes:
        direction: rising or falling where `drift` is beyond ±1.96, else none.
        strong: whether `adx` is 25 or more; None where it is not known.
        slope_pct_per_hour: of the regression line over `window` bars.
        slope_t, fit: see `Lines`; None where they are not defined.
        drift: move in standard deviations of a random walk; None where nothing moved.
    """

    direction: str
    strong: bool | None
    slope_pct_per_hour: float
    slope_t: float | None
    fit: float | None
    drift: float | None
    adx: float | None
    window: int
    text: str


def find_trend(bars: Bars, adx: Floats | None = None) -> Trend | None:
    """Return the trend at the last bar; None where there are 48 bars or fewer.

    Args:
        bars: bars.
        adx: the indicator adx_14 of these bars, where it is there already.
    """
    if len(bars) <= WINDOW:
        return None
    tail = bars.slice(len(bars) - WINDOW - 1, len(bars))
    lines = regression_lines(tail.closed_us, tail.log_close)
    slope, slope_t, fit, drift, strength = (
        _known(each[-1])
        for each in (
            lines.slope,
            lines.slope_t,
            lines.fit,
            drift_scores(tail),
            INDICATORS["adx_14"](bars) if adx is None else adx,
        )
    )
    assert slope is not None
    direction = "none" if drift is None or abs(drift) < SURE_DRIFT else "rising" if drift > 0 else "falling"
    per_hour = 100.0 * math.expm1(slope)
    strong = None if strength is None else strength >= STRONG_ADX
    return Trend(
        direction, strong, per_hour, slope_t, fit, drift, strength, WINDOW, _say(direction, drift, strength, per_hour)
    )


def _say(direction: str, drift: float | None, adx: float | None, per_hour: float) -> str:
    if drift is None:
        return f"the price did not move in {WINDOW} bars"
    tail = "" if adx is None else f"; ADX {adx:.0f} of 100"
    found = (
        f"move over {WINDOW} bars of {drift:+.1f} deviations of a random walk, slope {per_hour:+.3g} % an hour{tail}"
    )
    return f"no trend beyond chance: {found}" if direction == "none" else f"{direction}: {found}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
