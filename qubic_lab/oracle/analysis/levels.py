"""Support and resistance from confirmed turning points (pivots), and closes that break out of them."""

import math
from dataclasses import dataclass

import numpy as np
import talib
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.analysis.indicators import INDICATORS, Indicator, by_name
from qubic_lab.oracle.analysis.results import Breakout, PriceLevel
from qubic_lab.oracle.model.bars import Bars, Floats


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

    def __post_init__(self) -> None:
        for name, least in (("side", 2), ("touches", 1), ("volume_bars", 3), ("bars", 2 * self.side + 1)):
            check_at_least(name, getattr(self, name), least)
        if not (self.width > 0.0 and self.half_life > 0.0 and self.margin >= 0.0 and self.volume >= 0.0):
            raise InputError(
                f"levels of width {self.width}, half-life {self.half_life}, margin {self.margin}, volume {self.volume}:"
                " the first two must be above 0, the others not below"
            )


RULE = LevelRule()


def pivot_highs(bars: Bars, side: int = RULE.side) -> Floats:
    """Return the highs that are turning points, each at the bar that confirms it, `side` bars later, [bars].

    Such a high is above the `side` highs before it and not below those after it. NaN elsewhere.
    """
    return _pivots(bars.high, side)


def pivot_lows(bars: Bars, side: int = RULE.side) -> Floats:
    """Return the lows that are turning points, each at the bar that confirms it, `side` bars later, [bars].

    Such a low is below the `side` lows before it and not above those after it. NaN elsewhere.
    """
    return -_pivots(-bars.low, side)


def _pivots(values: Floats, side: int) -> Floats:
    found = np.full(len(values), np.nan)
    if len(values) <= 2 * side:
        return found
    middle = values[side:-side]
    around = talib.MAX(values, 2 * side + 1)[2 * side :]
    before = talib.MAX(values, side)[side - 1 : -side - 1]
    turns = (middle == around) & (middle > before)
    found[2 * side :][turns] = middle[turns]
    return found


PIVOTS = by_name(
    Indicator("pivot_high", pivot_highs, 2 * RULE.side, "price", "a high that is confirmed 5 bars later"),
    Indicator("pivot_low", pivot_lows, 2 * RULE.side, "price", "a low that is confirmed 5 bars later"),
)
"""Turning points, bar by bar; most bars have none."""


@dataclass(frozen=True)
class Pivots:
    """Turning points: their rows, the rows at which they are known, and their prices; each [pivots]."""

    place: NDArray[np.intp]
    known: NDArray[np.intp]
    price: Floats


def find_pivots(bars: Bars, rule: LevelRule = RULE) -> Pivots:
    """Return the highs and lows that are turning points, in the order in which they become known."""
    highs, lows = pivot_highs(bars, rule.side), pivot_lows(bars, rule.side)
    known = np.concatenate([np.flatnonzero(~np.isnan(each)) for each in (highs, lows)])
    price = np.concatenate([each[~np.isnan(each)] for each in (highs, lows)])
    order = np.argsort(known, kind="stable")
    return Pivots(known[order] - rule.side, known[order], price[order])


def find_levels(bars: Bars, rule: LevelRule = RULE) -> tuple[PriceLevel, ...]:
    """Return the levels that are known at the last bar, the strongest first."""
    if not len(bars):
        return ()
    place, pivots, atr = len(bars) - 1, find_pivots(bars, rule), INDICATORS["atr_14"](bars)
    levels = [_level(bars, place, pivots, each, rule) for each in _clusters_at(place, pivots, atr, rule)]
    return tuple(sorted(levels, key=lambda level: (-level.strength, level.price)))


def find_breakouts(bars: Bars, last: int, rule: LevelRule = RULE) -> tuple[Breakout, ...]:
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
