"""Technical indicators by TA-Lib: the value of a bar depends on it and earlier bars alone."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import talib

from qubic_lab.errors import check_choice
from qubic_lab.oracle.model.bars import Bars, Floats, mask_warm_up

RSI_BARS, BALANCE_BARS = 14, 20


@dataclass(frozen=True)
class Indicator:
    """A causal function of bars.

    Attributes:
        function: gives a value for each bar of more than `warm_up`, [bars], NaN if it has none.
        warm_up: number of bars before the first value.
        unit: price: the bars' currency; 0..100: points; coins: units of the coin that were traded.
    """

    name: str
    function: Callable[[Bars], Floats]
    warm_up: int
    unit: str
    description: str

    def __call__(self, bars: Bars) -> Floats:
        """Return its values, [bars]; NaN before the end of the warm-up."""
        if len(bars) <= self.warm_up:
            return np.full(len(bars), np.nan)
        return mask_warm_up(self.warm_up, self.function(bars))


def by_name(*functions: Indicator) -> dict[str, Indicator]:
    """Return indicators by their names."""
    return {each.name: each for each in functions}


def scaled_prices(bars: Bars) -> tuple[Floats, Floats, Floats, Floats]:
    """Return open, high, low and close times `_scale`, each [bars]; TA-Lib loses nothing of them."""
    scale = _scale(bars)
    return bars.once(
        "scaled prices", lambda each: (scale * each.open, scale * each.high, scale * each.low, scale * each.close)
    )


def _scale(bars: Bars) -> float:
    """Return the power of two that brings the first close to between 1 and 2; 1 without bars.

    TA-Lib treats values below 1e-14 as 0, so it would lose the variances of prices near 1e-6. Multiplying by a power of
    two is exact. (Prices that fall to 1e-4 of the first one still lose their narrowest Bollinger bands.)
    """
    return 2.0 ** (1 - math.frexp(float(bars.close[0]))[1]) if len(bars) else 1.0


def _price(function: Callable[[Bars], Any]) -> Callable[[Bars], Floats]:
    """Return a function that converts values computed from scaled prices back to the unit of the given prices."""
    return lambda bars: np.asarray(function(bars), np.float64) / _scale(bars)


def _close(bars: Bars) -> Floats:
    return scaled_prices(bars)[3]


def _average(function: Callable[..., Any], window: int) -> Callable[[Bars], Floats]:
    return _price(lambda bars: function(_close(bars), window))


def _macd(part: int) -> Callable[[Bars], Floats]:
    return _price(lambda bars: bars.once("macd", lambda each: talib.MACD(_close(each), 12, 26, 9))[part])


def _bollinger(bars: Bars) -> tuple[Floats, Floats, Floats]:
    return bars.once("bollinger", lambda each: talib.BBANDS(_close(each), 20, 2.0, 2.0))


def _band(part: int) -> Callable[[Bars], Floats]:
    return _price(lambda bars: _bollinger(bars)[part])


def _band_position(bars: Bars) -> Floats:
    upper, _, lower = _bollinger(bars)
    width = upper - lower
    return np.asarray(np.divide(_close(bars) - lower, width, out=np.full(len(bars), np.nan), where=width > 0.0))


def _range(function: Callable[..., Any]) -> Callable[[Bars], Floats]:
    return lambda bars: np.asarray(function(*scaled_prices(bars)[1:], 14), np.float64)


def _known_volume(bars: Bars) -> Floats:
    return np.where(np.isnan(bars.volume), 0.0, bars.volume)


def _rsi(bars: Bars) -> Floats:
    """Return RSI, but NaN if 14 bars did not move: TA-Lib returns 0 then, the same as after falls alone."""
    moved = np.cumsum(np.diff(bars.close, prepend=bars.close[:1]) != 0.0)
    still = moved[RSI_BARS:] == moved[:-RSI_BARS]
    values = np.array(talib.RSI(_close(bars), RSI_BARS))
    values[RSI_BARS:][still] = np.nan
    return values


def _obv(bars: Bars) -> Floats:
    """Return on-balance volume; NaN before the first known volume."""
    balance = np.asarray(talib.OBV(_close(bars), _known_volume(bars)), np.float64)
    return np.where(np.cumsum(~np.isnan(bars.volume)) > 0, balance, np.nan)


def _volume_balance(bars: Bars) -> Floats:
    """Return the change of on-balance volume over 20 bars over their volume; NaN without volumes."""
    volume = _known_volume(bars)
    signed = np.sign(np.diff(bars.close, prepend=bars.close[:1])) * volume
    total, balance = (np.asarray(talib.SUM(each, BALANCE_BARS)) for each in (volume, signed))
    unknown = np.cumsum(np.isnan(bars.volume))
    unknown[BALANCE_BARS:] -= unknown[:-BALANCE_BARS].copy()
    known = (total > 0.0) & (unknown == 0)
    share = np.divide(balance, total, out=np.full(len(bars), np.nan), where=known)
    return np.asarray(np.clip(share, -1.0, 1.0))


INDICATORS = by_name(
    Indicator("sma_20", _average(talib.SMA, 20), 19, "price", "simple moving average of 20 closes"),
    Indicator("sma_50", _average(talib.SMA, 50), 49, "price", "simple moving average of 50 closes"),
    Indicator("sma_200", _average(talib.SMA, 200), 199, "price", "simple moving average of 200 closes"),
    Indicator("ema_12", _average(talib.EMA, 12), 11, "price", "exponential moving average of closes, weight 2/13"),
    Indicator("ema_26", _average(talib.EMA, 26), 25, "price", "exponential moving average of closes, weight 2/27"),
    Indicator("rsi_14", _rsi, RSI_BARS, "0..100", "relative strength index (Wilder)"),
    Indicator("macd", _macd(0), 33, "price", "EMA of 12 closes less that of 26"),
    Indicator("macd_signal", _macd(1), 33, "price", "EMA of 9 values of macd"),
    Indicator("macd_histogram", _macd(2), 33, "price", "macd less macd_signal"),
    Indicator("bollinger_upper", _band(0), 19, "price", "mean of 20 closes plus 2 standard deviations"),
    Indicator("bollinger_middle", _band(1), 19, "price", "mean of 20 closes"),
    Indicator("bollinger_lower", _band(2), 19, "price", "mean of 20 closes less 2 standard deviations"),
    Indicator("bollinger_position", _band_position, 19, "band widths", "0: at the lower band, 1: at the upper"),
    Indicator("atr_14", _price(_range(talib.ATR)), 14, "price", "average true range (Wilder)"),
    Indicator("adx_14", _range(talib.ADX), 27, "0..100", "average directional index: how strong a trend is"),
    Indicator("plus_di_14", _range(talib.PLUS_DI), 14, "0..100", "directional movement up (Wilder)"),
    Indicator("minus_di_14", _range(talib.MINUS_DI), 14, "0..100", "directional movement down (Wilder)"),
    Indicator("obv", _obv, 0, "coins", "on-balance volume since the first bar; unknown volumes count as none"),
    Indicator("volume_balance", _volume_balance, BALANCE_BARS, "-1..1", "change of obv over 20 bars / their volume"),
)
"""All indicators but candle patterns. They count bars: a gap is one step."""


def _pattern(name: str, function: Callable[..., Any], warm_up: int, meaning: str) -> Indicator:
    return Indicator(name, lambda bars: np.sign(function(*scaled_prices(bars))), warm_up, "-1..1", meaning)


PATTERNS = by_name(
    _pattern("doji", talib.CDLDOJI, 10, "open and close are nearly one: neither side won"),
    _pattern("hammer", talib.CDLHAMMER, 11, "small body, long lower shadow, after lower prices: rise"),
    _pattern("hanging man", talib.CDLHANGINGMAN, 11, "small body, long lower shadow, after higher prices: fall"),
    _pattern("inverted hammer", talib.CDLINVERTEDHAMMER, 11, "small body, long upper shadow, gap down: rise"),
    _pattern("shooting star", talib.CDLSHOOTINGSTAR, 11, "small body, long upper shadow, gap up: fall"),
    _pattern("engulfing", talib.CDLENGULFING, 2, "a body swallows the one before it, of the other colour"),
    _pattern("harami", talib.CDLHARAMI, 11, "a small body inside the long one before it"),
    _pattern("piercing line", talib.CDLPIERCING, 11, "opens below a long fall and closes above its middle: rise"),
    _pattern("dark cloud cover", talib.CDLDARKCLOUDCOVER, 11, "opens above a long rise, closes deep in it: fall"),
    _pattern("morning star", talib.CDLMORNINGSTAR, 12, "long fall, small body below, rise into the fall: rise"),
    _pattern("evening star", talib.CDLEVENINGSTAR, 12, "long rise, small body above, fall into the rise: fall"),
    _pattern("marubozu", talib.CDLMARUBOZU, 10, "a long body without shadows: one side won throughout"),
)
"""Shapes of one to three bars by their plain names: 1 announces a rise, −1 a fall, 0: there is none.

What they announce is what books say, not a finding of this project. Patterns with a gap between bodies hardly occur in
markets that never close.
"""


def compute(bars: Bars, names: Iterable[str] | None = None) -> dict[str, Floats]:
    """Return the values of indicators by name, each [bars]; without names, those of all.

    Raises:
        InputError: an unknown name.
    """
    chosen = list(INDICATORS) if names is None else [check_choice("indicator", name, INDICATORS) for name in names]
    return {name: INDICATORS[name](bars) for name in chosen}
