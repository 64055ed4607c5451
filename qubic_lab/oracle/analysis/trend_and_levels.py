"""The trend of prices, and support and resistance from confirmed turning points (pivots), with breakouts.

The trend is the regression line of log prices on time, and the move against that of a random walk.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import talib
from numpy.typing import NDArray

from qubic_lab.oracle.analysis.indicators import INDICATORS, Indicator, by_name
from qubic_lab.oracle.analysis.results import Breakout, PriceLevel, Trend
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import HOUR_US

WINDOW = 48
"""Bars of the regression line."""
STRONG_ADX = 25.0
"""Wilder speaks of a trend from this value on (New Concepts in Technical Trading Systems, 1978)."""
SURE_DRIFT = 1.96


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
    """Return the least-squares line of values on time over the `window` values up to each, at least 3.

    Sums are about the window's last point, and computed value by value in one order, so the same window gives the same
    bits wherever it stands.
    """
    lines = RegressionLines(*np.full((4, len(values)), np.nan))
    full = np.s_[window - 1 :]
    last_us, last = times_us[full], values[full]
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
    lines.slope[full] = slope
    lines.end[full] = (y_sum - slope * x_sum) / window
    np.divide(slope, np.sqrt(rest / (window - 2) / xx), out=lines.slope_t[full], where=uneven)
    np.divide(yy - rest, yy, out=lines.fit[full], where=yy > 0.0)
    return lines


def drift_scores(bars: Bars, window: int = WINDOW) -> Floats:
    """Return the move over `window` bars in standard deviations of a random walk with the same returns, [bars].

    Returns are taken over √steps. A random walk without drift stays within ±1.96 in 95 of 100 cases. NaN if nothing
    moved.
    """
    values = np.full(len(bars), np.nan)
    time = np.cumsum(bars.steps)
    deviation = spread(bars, window)[window:]
    moves = (bars.log_close[window:] - bars.log_close[:-window]) / np.sqrt(time[window:] - time[:-window])
    np.divide(moves, deviation, out=values[window:], where=deviation > 0.0)
    return values


def spread(bars: Bars, window: int = WINDOW) -> Floats:
    """Return the root mean square of the last `window` returns over √steps, [bars]; NaN in the first `window` bars.

    The squares are summed one after the other, so earlier windows leave no rounding errors behind.
    """
    values = np.full(len(bars), np.nan)
    squares = bars.step_returns**2
    total = np.zeros(max(0, len(bars) - window))
    for place in range(1, window + 1):
        total += squares[place : place + len(total)]
    values[window:] = np.sqrt(total / window)
    return values


def _lines_of(bars: Bars) -> RegressionLines:
    return bars.once("lines", lambda each: regression_lines(each.closed_us, each.log_close))


def _slope(bars: Bars) -> Floats:
    return _lines_of(bars).slope


def _slope_t(bars: Bars) -> Floats:
    return _lines_of(bars).slope_t


TRENDS = by_name(
    Indicator("slope_48", _slope, WINDOW - 1, "log price per hour", "slope of the line through 48 log closes"),
    Indicator("slope_t_48", _slope_t, WINDOW - 1, "standard errors", "slope over its standard error"),
    Indicator("drift_48", drift_scores, WINDOW, "deviations", "move over 48 bars against a random walk's"),
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


@dataclass(frozen=True)
class LevelRule:
    """The definition of a level, and of a breakout from it.

    Attributes:
        side: a pivot is above (below) this many bars on each side of it, so it is known this many bars later.
        bars: pivots that are older than this many bars are ignored.
        width: the pivots of a level lie within this many average true ranges.
        touches: the least number of pivots of a level.
        half_life: a pivot that is this many bars old counts half.
        margin: the distance of a close beyond a level, in average true ranges.
        volume: the volume of a confirmed breakout over the median of the `volume_bars` bars before it.
    """

    side: int = 5
    bars: int = 1_000
    width: float = 1.0
    touches: int = 2
    half_life: float = 250.0
    margin: float = 0.25
    volume: float = 1.5
    volume_bars: int = 21


LEVEL_RULE = LevelRule()


def pivot_highs(bars: Bars, side: int = LEVEL_RULE.side) -> Floats:
    """Return the highs that are turning points, each at the bar that confirms it, `side` bars later, [bars].

    Such a high is above the `side` highs before it and not below those after it. NaN elsewhere.
    """
    return _pivots(bars.high, side)


def pivot_lows(bars: Bars, side: int = LEVEL_RULE.side) -> Floats:
    """Return the lows that are turning points, as `pivot_highs` does for highs."""
    return -_pivots(-bars.low, side)


def _pivots(values: Floats, side: int) -> Floats:
    found = np.full(len(values), np.nan)
    middle = values[side:-side]
    around = talib.MAX(values, 2 * side + 1)[2 * side :]
    before = talib.MAX(values, side)[side - 1 : -side - 1]
    turns = (middle == around) & (middle > before)
    found[2 * side :][turns] = middle[turns]
    return found


PIVOTS = by_name(
    Indicator("pivot_high", pivot_highs, 2 * LEVEL_RULE.side, "price", "a high that is confirmed 5 bars later"),
    Indicator("pivot_low", pivot_lows, 2 * LEVEL_RULE.side, "price", "a low that is confirmed 5 bars later"),
)
"""Turning points, bar by bar; most bars have none."""


@dataclass(frozen=True)
class Pivots:
    """Turning points: their rows, the rows at which they are known, and their prices; each [pivots]."""

    place: NDArray[np.intp]
    known: NDArray[np.intp]
    price: Floats


def find_pivots(bars: Bars, rule: LevelRule = LEVEL_RULE) -> Pivots:
    """Return the highs and lows that are turning points, in the order in which they become known."""
    highs, lows = pivot_highs(bars, rule.side), pivot_lows(bars, rule.side)
    known = np.concatenate([np.flatnonzero(~np.isnan(each)) for each in (highs, lows)])
    price = np.concatenate([each[~np.isnan(each)] for each in (highs, lows)])
    order = np.argsort(known, kind="stable")
    return Pivots(known[order] - rule.side, known[order], price[order])


def find_levels(bars: Bars, rule: LevelRule = LEVEL_RULE) -> tuple[PriceLevel, ...]:
    """Return the levels that are known at the last bar, the strongest first."""
    place, pivots, atr = len(bars) - 1, find_pivots(bars, rule), INDICATORS["atr_14"](bars)
    levels = [_level(bars, place, pivots, each, rule) for each in _clusters_at(place, pivots, atr, rule)]
    return tuple(sorted(levels, key=lambda level: (-level.strength, level.price)))


def find_breakouts(bars: Bars, last: int, rule: LevelRule = LEVEL_RULE) -> tuple[Breakout, ...]:
    """Return the breakouts among the `last` bars, by time; each from a level that was known at the bar before it."""
    pivots, ranges = find_pivots(bars, rule), INDICATORS["atr_14"](bars)
    found: list[Breakout] = []
    for place in range(max(1, len(bars) - last), len(bars)):
        found += _breakouts_at(bars, place, pivots, ranges, rule)
    return tuple(found)


def _clusters_at(place: int, pivots: Pivots, atr: Floats, rule: LevelRule) -> list[NDArray[np.intp]]:
    """Return the pivots of each level that is known at a bar, by rising price."""
    width = rule.width * float(atr[place])
    if not width > 0.0:
        return []
    seen = _seen(pivots, place, rule)
    order = seen[np.argsort(pivots.price[seen], kind="stable")]
    parts = _parts(pivots.price[order], width)
    return [order[start:end] for start, end in parts if end - start >= rule.touches]


def _seen(pivots: Pivots, place: int, rule: LevelRule) -> NDArray[np.intp]:
    """Return the pivots that count at a bar: those that are known there and not too old."""
    known = int(np.searchsorted(pivots.known, place, side="right"))
    return np.flatnonzero(pivots.place[:known] > place - rule.bars)


def _parts(prices: Floats, width: float) -> list[tuple[int, int]]:
    """Return the ranges of rising prices that are no wider than `width`; they are cut at the widest gaps first."""
    gaps = np.diff(prices)
    rest, done = [(0, len(prices))] if len(prices) else [], []
    while rest:
        start, end = rest.pop()
        if prices[end - 1] - prices[start] <= width:
            done.append((start, end))
            continue
        cut = start + int(np.argmax(gaps[start : end - 1])) + 1
        rest += [(start, cut), (cut, end)]
    return done


def _level(bars: Bars, place: int, pivots: Pivots, cluster: NDArray[np.intp], rule: LevelRule) -> PriceLevel:
    where, prices = pivots.place[cluster], pivots.price[cluster]
    weights = [0.5 ** ((place - each) / rule.half_life) for each in where.tolist()]
    strength = math.fsum(weights)
    price = math.fsum(weight * each for weight, each in zip(weights, prices.tolist(), strict=True)) / strength
    low, high, close = float(prices[0]), float(prices[-1]), float(bars.close[place])
    return PriceLevel(
        kind="support" if high < close else "resistance" if low > close else "at",
        price=price,
        low=low,
        high=high,
        touches=len(weights),
        strength=strength,
        distance_pct=100.0 * (price / close - 1.0),
        first_us=int(bars.closed_us[where.min()]),
        last_us=int(bars.closed_us[where.max()]),
    )


def _breakouts_at(bars: Bars, place: int, pivots: Pivots, atr: Floats, rule: LevelRule) -> list[Breakout]:
    before, close, size = float(bars.close[place - 1]), float(bars.close[place]), float(atr[place - 1])
    if not (size > 0.0 and abs(close - before) > 0.0):
        return []
    found, away = [], rule.margin * size
    ends = pivots.price[_seen(pivots, place - 1, rule)]  # a level begins and ends with a pivot
    up, down = ends + away, ends - away
    if not (((before <= up) & (up < close)) | ((before >= down) & (down > close))).any():
        return []
    earlier = bars.close[max(0, place - rule.bars) : place]
    ratio = _volume_ratio(bars.volume, place, rule.volume_bars)
    for cluster in _clusters_at(place - 1, pivots, atr, rule):
        low, high = float(pivots.price[cluster[0]]) - away, float(pivots.price[cluster[-1]]) + away
        rising = before <= high < close
        if not (rising or before >= low > close):
            continue
        outside = np.flatnonzero((earlier < low) | (earlier > high))
        if not outside.size or (earlier[outside[-1]] < low) != rising:
            continue  # the price came from this side: the level has held
        level = _level(bars, place - 1, pivots, cluster, rule)
        found.append(
            Breakout(
                direction="up" if rising else "down",
                at_us=int(bars.closed_us[place]),
                close=close,
                level=level,
                margin=(close - level.high if rising else level.low - close) / size,
                volume_ratio=ratio,
                confirmed=ratio is not None and ratio >= rule.volume,
            )
        )
    return sorted(found, key=lambda each: (-each.level.strength, each.level.price))


def _volume_ratio(volume: Floats, place: int, bars: int) -> float | None:
    """Return the volume of a bar over the median of those before it; None if one is unknown or the median is 0."""
    window = volume[max(0, place - bars) : place + 1]
    if len(window) <= bars or np.isnan(window).any():
        return None
    usual = float(np.median(window[:-1]))
    return float(window[-1]) / usual if usual > 0.0 else None
