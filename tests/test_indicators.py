"""Indicators have the values of their definitions, worked out here; oddities of TA-Lib reach nobody."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from bar_series import bars_of, walk
from talib import abstract

from qubic_lab.errors import InputError
from qubic_lab.oracle.analysis.indicators import INDICATORS, PATTERNS, compute

pytestmark = pytest.mark.filterwarnings("error")
SERIES = walk(260, seed=4, step=0.01)
OPEN, HIGH, LOW, CLOSE, VOLUME = (
    each.tolist() for each in (SERIES.open, SERIES.high, SERIES.low, SERIES.close, SERIES.volume)
)
NAN = math.nan
Column = list[float]


def mean_of(values: Column, bars: int) -> Column:
    return [NAN] * (bars - 1) + [sum(values[n - bars + 1 : n + 1]) / bars for n in range(bars - 1, len(values))]


def smoothed(values: Column, weight: float, seed_from: int, seed_bars: int) -> Column:
    """Exponential smoothing that starts with the mean of the first values."""
    found = [NAN] * len(values)
    first = seed_from + seed_bars - 1
    found[first] = sum(values[seed_from : first + 1]) / seed_bars
    for n in range(first + 1, len(values)):
        found[n] = found[n - 1] + weight * (values[n] - found[n - 1])
    return found


def ema(bars: int) -> Column:
    return smoothed(CLOSE, 2 / (bars + 1), 0, bars)


def rsi() -> Column:
    """J. W. Wilder, New Concepts in Technical Trading Systems (1978): 100 − 100 / (1 + mean rise / mean fall)."""
    moves = [0.0] + [after - before for before, after in pairwise(CLOSE)]
    rises = smoothed([max(0.0, move) for move in moves], 1 / 14, 1, 14)
    falls = smoothed([max(0.0, -move) for move in moves], 1 / 14, 1, 14)
    return [100 - 100 / (1 + rise / fall) for rise, fall in zip(rises, falls, strict=True)]


def macd() -> tuple[Column, Column, Column]:
    """G. Appel: EMA 12 less EMA 26, and its EMA 9; TA-Lib starts both averages so that they end their first mean at
    the same bar, and shows nothing before the signal's first."""
    fast, slow = smoothed(CLOSE, 2 / 13, 14, 12), ema(26)
    line = [one - other for one, other in zip(fast, slow, strict=True)]
    signal = smoothed(line, 2 / 10, 25, 9)
    shown = [NAN] * 33 + line[33:]
    return shown, signal, [one - other for one, other in zip(shown, signal, strict=True)]


def bollinger(deviations: float) -> Column:
    """J. Bollinger: mean of 20 closes and their population standard deviation."""
    found = [NAN] * 19
    for n in range(19, len(CLOSE)):
        window = CLOSE[n - 19 : n + 1]
        middle = sum(window) / 20
        found.append(middle + deviations * math.sqrt(sum((each - middle) ** 2 for each in window) / 20))
    return found


def position() -> Column:
    upper, lower = bollinger(2.0), bollinger(-2.0)
    return [(close - low) / (high - low) for close, low, high in zip(CLOSE, lower, upper, strict=True)]


def true_ranges() -> Column:
    return [NAN] + [
        max(HIGH[n] - LOW[n], abs(HIGH[n] - CLOSE[n - 1]), abs(LOW[n] - CLOSE[n - 1])) for n in range(1, len(CLOSE))
    ]


def directional() -> tuple[Column, Column, Column]:
    """Wilder (1978): +DI, −DI and ADX; his sums start with 13 bars, and the first ADX is the mean of 14 DX."""
    rising, falling, ranges = [0.0], [0.0], true_ranges()
    for n in range(1, len(CLOSE)):
        up, down = HIGH[n] - HIGH[n - 1], LOW[n - 1] - LOW[n]
        rising.append(up if up > down and up > 0 else 0.0)
        falling.append(down if down > up and down > 0 else 0.0)
    sums = [sum(each[1:14]) for each in (rising, falling, ranges)]
    plus, minus, dx = ([NAN] * 14 for _ in range(3))
    for n in range(14, len(CLOSE)):
        sums = [old - old / 14 + each[n] for old, each in zip(sums, (rising, falling, ranges), strict=True)]
        plus.append(100 * sums[0] / sums[2])
        minus.append(100 * sums[1] / sums[2])
        dx.append(100 * abs(plus[n] - minus[n]) / (plus[n] + minus[n]))
    return plus, minus, smoothed(dx, 1 / 14, 14, 14)


def obv() -> Column:
    """J. Granville: volume of rising bars less that of falling ones; TA-Lib starts with the first bar's."""
    found = [VOLUME[0]]
    for n in range(1, len(CLOSE)):
        found.append(found[-1] + math.copysign(VOLUME[n], CLOSE[n] - CLOSE[n - 1]))
    return found


def balance() -> Column:
    total = obv()
    return [NAN] * 20 + [(total[n] - total[n - 20]) / sum(VOLUME[n - 19 : n + 1]) for n in range(20, len(CLOSE))]


BY_DEFINITION: dict[str, Callable[[], Column]] = {
    "sma_20": lambda: mean_of(CLOSE, 20),
    "sma_50": lambda: mean_of(CLOSE, 50),
    "sma_200": lambda: mean_of(CLOSE, 200),
    "ema_12": lambda: ema(12),
    "ema_26": lambda: ema(26),
    "rsi_14": rsi,
    "macd": lambda: macd()[0],
    "macd_signal": lambda: macd()[1],
    "macd_histogram": lambda: macd()[2],
    "bollinger_upper": lambda: bollinger(2.0),
    "bollinger_middle": lambda: bollinger(0.0),
    "bollinger_lower": lambda: bollinger(-2.0),
    "bollinger_position": position,
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
    expected = np.array(BY_DEFINITION[name]())
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
    small = bars_of(*(np.array(each) * factor for each in (CLOSE, OPEN, HIGH, LOW)), volume=SERIES.volume)
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
    values = INDICATORS["rsi_14"](bars_of(CLOSE[:60] + [CLOSE[59]] * 600))
    assert not np.isnan(values[14 : 74 - 1]).any()
    assert np.isnan(values[73:]).all()
    assert INDICATORS["rsi_14"](bars_of(np.linspace(200, 100, 60)))[-1] == 0.0


def test_a_volume_that_is_not_known_is_not_taken_for_none_in_the_balance() -> None:
    volume = SERIES.volume.copy()
    volume[100] = NAN
    values = INDICATORS["volume_balance"](bars_of(CLOSE, volume=volume))
    assert np.isnan(values[100:120]).all()
    assert not np.isnan(values[[99, 120]]).any()


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'rsi_14'"):
        compute(SERIES, ["rsi14"])
