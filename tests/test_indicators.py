"""Indicators have the values of their definitions, worked out here; oddities of TA-Lib reach nobody."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from bar_series import bars_of, walk
from strict_warnings import WARNINGS_ARE_ERRORS
from talib import abstract

from qubic_lab.errors import InputError
from qubic_lab.oracle.analysis.indicators import INDICATORS, PATTERNS, compute
from qubic_lab.oracle.model.bars import Floats

pytestmark = WARNINGS_ARE_ERRORS
SERIES = walk(260, seed=4, step=0.01)
OPEN, HIGH, LOW, CLOSE, VOLUME = SERIES.open, SERIES.high, SERIES.low, SERIES.close, SERIES.volume
NAN = math.nan
MOVES = np.diff(CLOSE, prepend=CLOSE[:1])


def late(values: Floats) -> Floats:
    """Values of the last bars, behind NaN for the first ones."""
    return np.concatenate([np.full(len(CLOSE) - len(values), NAN), values])


def closes(bars: int) -> Floats:
    """The last closes up to each bar, [bars, window]."""
    return np.lib.stride_tricks.sliding_window_view(CLOSE, bars)


def smoothed(values: Floats, weight: float, seed_from: int, seed_bars: int) -> Floats:
    """Exponential smoothing that starts with the mean of the first values."""
    found = np.full(len(values), NAN)
    first = seed_from + seed_bars - 1
    found[first] = values[seed_from : first + 1].mean()
    for n in range(first + 1, len(values)):
        found[n] = found[n - 1] + weight * (values[n] - found[n - 1])
    return found


def ema(bars: int) -> Floats:
    return smoothed(CLOSE, 2 / (bars + 1), 0, bars)


def rsi() -> Floats:
    """J. W. Wilder, New Concepts in Technical Trading Systems (1978): 100 − 100 / (1 + mean rise / mean fall)."""
    rises, falls = (smoothed(np.maximum(0.0, each), 1 / 14, 1, 14) for each in (MOVES, -MOVES))
    return 100 - 100 / (1 + rises / falls)


def macd() -> tuple[Floats, Floats, Floats]:
    """G. Appel: EMA 12 less EMA 26, and its EMA 9; TA-Lib starts both averages so that they end their first mean at
    the same bar, and shows nothing before the signal's first."""
    line = smoothed(CLOSE, 2 / 13, 14, 12) - ema(26)
    signal = smoothed(line, 2 / 10, 25, 9)
    shown = late(line[33:])
    return shown, signal, shown - signal


def bollinger(deviations: float) -> Floats:
    """J. Bollinger: mean of 20 closes and their population standard deviation."""
    return late(closes(20).mean(axis=1) + deviations * closes(20).std(axis=1))


def true_ranges() -> Floats:
    before = CLOSE[:-1]
    return late(np.maximum.reduce([HIGH[1:] - LOW[1:], abs(HIGH[1:] - before), abs(LOW[1:] - before)]))


def directional() -> tuple[Floats, Floats, Floats]:
    """Wilder (1978): +DI, −DI and ADX; his sums start with 13 bars, and the first ADX is the mean of 14 DX."""
    up, down = np.diff(HIGH, prepend=HIGH[:1]), -np.diff(LOW, prepend=LOW[:1])
    columns = np.stack([np.where((up > down) & (up > 0), up, 0.0), np.where((down > up) & (down > 0), down, 0.0)])
    columns = np.vstack([columns, true_ranges()])
    sums = columns[:, 1:14].sum(axis=1)
    lines = []
    for n in range(14, len(CLOSE)):
        sums = sums - sums / 14 + columns[:, n]
        lines.append(100 * sums[:2] / sums[2])
    plus, minus = (late(each) for each in np.transpose(lines))
    return plus, minus, smoothed(100 * abs(plus - minus) / (plus + minus), 1 / 14, 14, 14)


def obv() -> Floats:
    """J. Granville: volume of rising bars less that of falling ones; TA-Lib starts with the first bar's."""
    return np.cumsum(np.where(np.arange(len(CLOSE)) == 0, 1.0, np.sign(MOVES)) * VOLUME)


def balance() -> Floats:
    total = np.cumsum(VOLUME)
    return late((obv()[20:] - obv()[:-20]) / (total[20:] - total[:-20]))


BY_DEFINITION: dict[str, Callable[[], Floats]] = {
    "sma_20": lambda: late(closes(20).mean(axis=1)),
    "sma_50": lambda: late(closes(50).mean(axis=1)),
    "sma_200": lambda: late(closes(200).mean(axis=1)),
    "ema_12": lambda: ema(12),
    "ema_26": lambda: ema(26),
    "rsi_14": rsi,
    "macd": lambda: macd()[0],
    "macd_signal": lambda: macd()[1],
    "macd_histogram": lambda: macd()[2],
    "bollinger_upper": lambda: bollinger(2.0),
    "bollinger_middle": lambda: bollinger(0.0),
    "bollinger_lower": lambda: bollinger(-2.0),
    "bollinger_position": lambda: (CLOSE - bollinger(-2.0)) / (bollinger(2.0) - bollinger(-2.0)),
    "atr_14": lambda: smoothed(true_ranges(), 1 / 14, 1, 14),
    "adx_14": lambda: directional()[2],
    "plus_di_14": lambda: directional()[0],
    "minus_di_14": lambda: directional()[1],
    "obv": obv,
    "volume_balance": balance,
}


@pytest.mark.parametrize("name", INDICATORS)
def test_value_is_that_of_the_definition(name: str) -> None:
    found = INDICATORS[name](SERIES)
    expected = BY_DEFINITION[name]()
    assert np.isnan(expected[: INDICATORS[name].warm_up]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", INDICATORS)
def test_500_and_1000_bars_agree(name: str) -> None:
    """Within 1e-9 of its size at the end, and within a millionth after 480 bars; for a running sum its changes do."""
    long = walk(1_000, seed=8)
    values, short = INDICATORS[name](long), INDICATORS[name](long.slice(500, 1_000))
    if name == "obv":
        values, short = np.diff(values, prepend=0.0), np.diff(short, prepend=0.0)
    size = np.nanmax(np.abs(values))
    assert abs(values[-1] - short[-1]) <= 1e-9 * size
    assert np.abs(values[980:] - short[480:]).max() <= 1e-6 * size


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_begin_where_ta_lib_says(name: str) -> None:
    function = {"piercing line": "PIERCING"}.get(name, name.upper().replace(" ", ""))
    warm_up = abstract.Function(f"CDL{function}").lookback
    values = PATTERNS[name](SERIES)
    assert PATTERNS[name].warm_up == warm_up
    assert np.isnan(values[:warm_up]).all()
    assert set(values[warm_up:].tolist()) <= {-1.0, 0.0, 1.0}
    assert np.isnan(PATTERNS[name](SERIES.slice(0, warm_up))).all()


# Ten bars with bodies of 1 and ranges of 2, rising or falling by 1, then what makes the shape: open, high, low, close.
UP, DOWN = ([(100 + n * way, 101.5 + n * way, 99.5 + n * way, 101 + n * way) for n in range(14)] for way in (1, -1))
LONG_FALL, LONG_RISE = (120.0, 120.2, 109.8, 110.0), (110.0, 120.2, 109.8, 120.0)
SHAPES: dict[str, list[tuple[list[tuple[float, float, float, float]], int]]] = {
    "doji": [([(100, 101, 99, 100.02)], 1), ([(100, 101, 99, 100.9)], 0)],
    "hammer": [([(86, 86.6, 82, 86.5)], 1), ([(86, 90, 82, 86.5)], 0)],
    "hanging man": [([(115.5, 116.1, 111, 116)], -1), ([(95.5, 96.1, 91, 96)], 0)],
    "inverted hammer": [([(88.4, 92, 88.35, 88.8)], 0), ([(86.0, 90, 85.95, 86.4)], 1)],
    "shooting star": [([(117, 121, 116.95, 117.4)], -1), ([(112, 121, 111.95, 112.4)], 0)],
    "engulfing": [
        ([(110, 111, 106, 107), (106, 113, 105, 112)], 1),
        ([(107, 111, 106, 110), (111, 112, 104, 105)], -1),
    ],
    "harami": [([LONG_FALL, (113, 114.2, 112.8, 114)], 1), ([LONG_RISE, (117, 117.2, 115.8, 116)], -1)],
    "piercing line": [([LONG_FALL, (109, 117.2, 108.8, 117)], 1), ([LONG_FALL, (109, 113.2, 108.8, 113)], 0)],
    "dark cloud cover": [([LONG_RISE, (121, 121.2, 111.8, 112)], -1), ([LONG_RISE, (119, 121, 111.8, 112)], 0)],
    "morning star": [([LONG_FALL, (108, 108.6, 107.6, 108.4), (110, 118.2, 109.8, 118)], 1), ([LONG_FALL] * 3, 0)],
    "evening star": [([LONG_RISE, (122, 122.6, 121.6, 122.4), (120, 120.2, 110.8, 111)], -1), ([LONG_RISE] * 3, 0)],
    "marubozu": [([(110, 120.0, 110, 120)], 1), ([(120, 120, 110.0, 110)], -1)],
}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in PATTERNS for n in range(2)])
def test_pattern_is_found_where_it_is_and_nowhere_else(name: str, number: int) -> None:
    """Shapes drawn after S. Nison, Japanese Candlestick Charting Techniques (1991)."""
    shape, expected = SHAPES[name][number]
    before = DOWN if name in ("hammer", "inverted hammer") else UP
    open, high, low, close = np.array([*before, *shape], float).T
    assert PATTERNS[name](bars_of(close, open, high, low))[-1] == expected


def test_tiny_prices_lose_nothing() -> None:
    """TA-Lib takes variances below 1e-14 for 0: those of a price of 1e-6 would be. A power of two changes no bit."""
    factor = 2.0**-27
    small = bars_of(*(each * factor for each in (CLOSE, OPEN, HIGH, LOW)), volume=VOLUME)
    assert small.close[0] < 1e-6
    for name, values in compute(small).items():
        unit = factor if INDICATORS[name].unit == "price" else 1.0
        assert (values / unit).tobytes() == compute(SERIES, [name])[name].tobytes()
    assert all(pattern(small).tobytes() == pattern(SERIES).tobytes() for pattern in PATTERNS.values())


@pytest.mark.parametrize("price", [1.7e-6, 1.0, 43_210.987])
@pytest.mark.parametrize("volume", [NAN, 0.0])
def test_what_stands_still_has_no_width_and_no_strength(price: float, volume: float) -> None:
    still = bars_of([price] * 300, volume=volume)
    last = {name: float(values[-1]) for name, values in compute(still).items()}
    for name in ("sma_20", "sma_200", "ema_12", "bollinger_upper", "bollinger_lower"):
        assert last[name] == pytest.approx(price, rel=1e-12)
    assert {last[name] for name in ("atr_14", "adx_14", "plus_di_14", "minus_di_14")} == {0.0}
    assert all(abs(last[name]) <= 1e-12 * price for name in ("macd", "macd_signal", "macd_histogram"))
    assert all(math.isnan(last[name]) for name in ("rsi_14", "bollinger_position", "volume_balance"))
    assert math.isnan(last["obv"]) == math.isnan(volume)


def test_rsi_is_not_0_after_prices_stopped() -> None:
    """TA-Lib's fades to 0, as if all had fallen."""
    values = INDICATORS["rsi_14"](bars_of(np.append(CLOSE[:60], [CLOSE[59]] * 600)))
    assert not np.isnan(values[14 : 74 - 1]).any()
    assert np.isnan(values[73:]).all()
    assert INDICATORS["rsi_14"](bars_of(np.linspace(200, 100, 60)))[-1] == 0.0


def test_a_volume_that_is_not_known_is_not_taken_for_none_in_the_balance() -> None:
    volume = VOLUME.copy()
    volume[100] = NAN
    values = INDICATORS["volume_balance"](bars_of(CLOSE, volume=volume))
    assert np.isnan(values[100:120]).all()
    assert not np.isnan(values[[99, 120]]).any()


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'rsi_14'"):
        compute(SERIES, ["rsi14"])
