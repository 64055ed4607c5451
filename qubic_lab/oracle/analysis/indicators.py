"""Technical indicators by TA-Lib: the value of a bar depends on it and earlier bars alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import talib

from qubic_lab.errors import check_choice
from qubic_lab.oracle.model.candles import Candles, Floats, absent, held

Unit = Literal[
    "price",
    "0..100",
    "-1..1",
    "band widths",
    "coins",
    "log price",
    "log price per hour",
    "standard errors",
    "deviations",
    "robust deviations",
]
"""price: the bars' currency; 0..100: points; coins: units of the coin that were traded."""
RSI_BARS, BALANCE_BARS = 14, 20


@dataclass(frozen=True)
class Indicator:
    """A causal function of candles.

    Attributes:
        function: gives a value for each bar, [bars], NaN where there is none.
        warm_up: bars before its first value.
        settles: bars after which earlier ones move it by less than a millionth of its size; None: that is not told.
    """

    name: str
    function: Callable[[Candles], Floats]
    warm_up: int
    unit: Unit
    description: str
    settles: int | None = None

    def __call__(self, candles: Candles) -> Floats:
        """Return its values, [bars]; all NaN where there are too few bars."""
        if len(candles) <= self.warm_up:
            return absent(len(candles))
        return self.function(candles)


@dataclass(frozen=True)
class CandlePattern:
    """A shape of one to three candles that TA-Lib finds; `meaning` is what books say, not what was found here.

    Those with a gap between bodies hardly occur in markets that never close.
    """

    name: str
    function: Callable[..., Any]
    warm_up: int
    meaning: str

    def __call__(self, candles: Candles) -> Floats:
        """Return 1 where it stands for a rise, −1 for a fall, 0 where it is not; NaN before `warm_up`, [bars]."""
        return held(self.warm_up, np.sign(self.function(*candles.scaled)))


def _price(function: Callable[[Candles], Any]) -> Callable[[Candles], Floats]:
    """Return a function of scaled prices whose values are prices as they were given."""

    def unscaled(candles: Candles) -> Floats:
        return np.asarray(function(candles), np.float64) / candles.scale

    return unscaled


def _close(candles: Candles) -> Floats:
    return candles.scaled[3]


def _sma(bars: int) -> Callable[[Candles], Floats]:
    return _price(lambda candles: talib.SMA(_close(candles), bars))


def _ema(bars: int) -> Callable[[Candles], Floats]:
    return _price(lambda candles: talib.EMA(_close(candles), bars))


def _macd(part: int) -> Callable[[Candles], Floats]:
    return _price(lambda candles: candles.once("macd", lambda each: talib.MACD(_close(each), 12, 26, 9))[part])


def _bollinger(candles: Candles) -> tuple[Floats, Floats, Floats]:
    return candles.once("bollinger", lambda each: talib.BBANDS(_close(each), 20, 2.0, 2.0))


def _band(part: int) -> Callable[[Candles], Floats]:
    return _price(lambda candles: _bollinger(candles)[part])


def _band_position(candles: Candles) -> Floats:
    upper, _, lower = _bollinger(candles)
    width = upper - lower
    return np.divide(_close(candles) - lower, width, out=absent(len(candles)), where=width > 0.0)


def _range(function: Callable[..., Any]) -> Callable[[Candles], Floats]:
    return lambda candles: np.asarray(function(*candles.scaled[1:], 14), np.float64)


def _volume(candles: Candles) -> Floats:
    return np.where(np.isnan(candles.volume), 0.0, candles.volume)


def _rsi(candles: Candles) -> Floats:
    """Return RSI, but NaN where 14 bars did not move: TA-Lib says 0 then, as after falls alone."""
    moved = np.cumsum(np.diff(candles.close, prepend=candles.close[:1]) != 0.0)
    still = moved[RSI_BARS:] == moved[:-RSI_BARS]
    values = np.array(talib.RSI(_close(candles), RSI_BARS))
    values[RSI_BARS:][still] = np.nan
    return values


def _obv(candles: Candles) -> Floats:
    """Return on-balance volume; NaN as long as no volume is known."""
    balance = np.asarray(talib.OBV(_close(candles), _volume(candles)), np.float64)
    return np.where(np.cumsum(~np.isnan(candles.volume)) > 0, balance, np.nan)


def _volume_balance(candles: Candles) -> Floats:
    """Return how the on-balance volume changed over some bars, over what was traded; NaN where either is not known."""
    signed = np.sign(np.diff(candles.close, prepend=candles.close[:1])) * _volume(candles)
    total, balance = (np.asarray(talib.SUM(each, BALANCE_BARS)) for each in (_volume(candles), signed))
    unknown = np.cumsum(np.isnan(candles.volume))
    unknown[BALANCE_BARS:] -= unknown[:-BALANCE_BARS].copy()
    known = (total > 0.0) & (unknown == 0)
    share = np.divide(balance, total, out=absent(len(candles)), where=known)
    return held(BALANCE_BARS, np.clip(share, -1.0, 1.0))


_ALL = (
    Indicator("sma_20", _sma(20), 19, "price", "simple moving average of 20 closes", 19),
    Indicator("sma_50", _sma(50), 49, "price", "simple moving average of 50 closes", 49),
    Indicator("sma_200", _sma(200), 199, "price", "simple moving average of 200 closes", 199),
    Indicator("ema_12", _ema(12), 11, "price", "exponential moving average of closes, weight 2/13", 100),
    Indicator("ema_26", _ema(26), 25, "price", "exponential moving average of closes, weight 2/27", 210),
    Indicator("rsi_14", _rsi, RSI_BARS, "0..100", "relative strength index (Wilder)", 220),
    Indicator("macd", _macd(0), 33, "price", "EMA of 12 closes less that of 26", 300),
    Indicator("macd_signal", _macd(1), 33, "price", "EMA of 9 values of macd", 320),
    Indicator("macd_histogram", _macd(2), 33, "price", "macd less macd_signal", 320),
    Indicator("bollinger_upper", _band(0), 19, "price", "mean of 20 closes plus 2 standard deviations", 19),
    Indicator("bollinger_middle", _band(1), 19, "price", "mean of 20 closes", 19),
    Indicator("bollinger_lower", _band(2), 19, "price", "mean of 20 closes less 2 standard deviations", 19),
    Indicator("bollinger_position", _band_position, 19, "band widths", "0: at the lower band, 1: at the upper", 19),
    Indicator("atr_14", _price(_range(talib.ATR)), 14, "price", "average true range (Wilder)", 220),
    Indicator("adx_14", _range(talib.ADX), 27, "0..100", "average directional index: how strong a trend is", 420),
    Indicator("plus_di_14", _range(talib.PLUS_DI), 14, "0..100", "directional movement up (Wilder)", 220),
    Indicator("minus_di_14", _range(talib.MINUS_DI), 14, "0..100", "directional movement down (Wilder)", 220),
    Indicator("obv", _obv, 0, "coins", "on-balance volume since the first bar; unknown volumes count as none"),
    Indicator(
        "volume_balance", _volume_balance, BALANCE_BARS, "-1..1", "change of obv over 20 bars / their volume", 20
    ),
)
INDICATORS: dict[str, Indicator] = {each.name: each for each in _ALL}
"""All indicators but candle patterns. They count bars: a gap is one step."""

_SHAPES = (
    CandlePattern("doji", talib.CDLDOJI, 10, "open and close are nearly one: neither side won"),
    CandlePattern("hammer", talib.CDLHAMMER, 11, "small body, long lower shadow, after lower prices: rise"),
    CandlePattern("hanging man", talib.CDLHANGINGMAN, 11, "small body, long lower shadow, after higher prices: fall"),
    CandlePattern("inverted hammer", talib.CDLINVERTEDHAMMER, 11, "small body, long upper shadow, gap down: rise"),
    CandlePattern("shooting star", talib.CDLSHOOTINGSTAR, 11, "small body, long upper shadow, gap up: fall"),
    CandlePattern("engulfing", talib.CDLENGULFING, 2, "a body swallows the one before it, of the other colour"),
    CandlePattern("harami", talib.CDLHARAMI, 11, "a small body inside the long one before it"),
    CandlePattern("piercing line", talib.CDLPIERCING, 11, "opens below a long fall and closes above its middle: rise"),
    CandlePattern("dark cloud cover", talib.CDLDARKCLOUDCOVER, 11, "opens above a long rise, closes deep in it: fall"),
    CandlePattern("morning star", talib.CDLMORNINGSTAR, 12, "long fall, small body below, rise into the fall: rise"),
    CandlePattern("evening star", talib.CDLEVENINGSTAR, 12, "long rise, small body above, fall into the rise: fall"),
    CandlePattern("marubozu", talib.CDLMARUBOZU, 10, "a long body without shadows: one side won throughout"),
)
PATTERNS: dict[str, CandlePattern] = {each.name: each for each in _SHAPES}
"""Candle patterns by their plain names."""


def compute(candles: Candles, names: Iterable[str] | None = None) -> dict[str, Floats]:
    """Return indicators by name, each [bars]; all of them where no names are given.

    Raises:
        InputError: a name that is none.
    """
    chosen = list(INDICATORS) if names is None else [check_choice("indicator", name, INDICATORS) for name in names]
    return {name: INDICATORS[name](candles) for name in chosen}


def find_patterns(candles: Candles, names: Iterable[str] | None = None) -> dict[str, Floats]:
    """Return candle patterns by name, each [bars] of 1, 0 and −1; all of them where no names are given.

    Raises:
        InputError: a name that is none.
    """
    chosen = list(PATTERNS) if names is None else [check_choice("candle pattern", name, PATTERNS) for name in names]
    return {name: PATTERNS[name](candles) for name in chosen}
