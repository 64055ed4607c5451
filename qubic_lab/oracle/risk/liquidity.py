"""How far a trade moves the price, and how much is traded; NaN where a window has a bar without a known volume."""

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.candles import Candles, Floats
from qubic_lab.oracle.risk import windows


def amihud(candles: Candles, bars: int) -> Floats:
    """Return the mean absolute log return per million of the currency that was traded, over the last `bars` bars.

    A window with a bar in which nothing was traded has no value: the price could not move. Warm-up: `bars` bars.

    Source: Y. Amihud, "Illiquidity and stock returns", Journal of Financial Markets 5 (2002), 31-56.

    Raises:
        InputError: fewer than 1 bar.
    """
    check_at_least("bars", bars, 1)
    millions = candles.close * candles.volume / 1e6
    return windows.rolling(windows.ratio(np.abs(windows.log_returns(candles)), millions), bars, windows.mean)


def volume_ratio(candles: Candles, bars: int, usual_bars: int) -> Floats:
    """Return the mean volume of the last `bars` bars over the median of the `usual_bars` before them, [bars].

    Warm-up: `bars` + `usual_bars` − 1 bars. NaN where nothing is usual.

    Raises:
        InputError: fewer than 1 bar.
    """
    return against_usual(windows.rolling(candles.volume, bars, windows.mean), candles.volume, bars, usual_bars)


def against_usual(now: Floats, values: Floats, bars: int, usual_bars: int) -> Floats:
    """Return a measure of the last `bars` bars over the median of `values` in the `usual_bars` before them."""
    check_at_least("usual_bars", usual_bars, 1)
    usual = np.full(len(values), np.nan)
    usual[bars:] = windows.rolling(values, usual_bars, windows.median)[:-bars] if len(values) > bars else 0.0
    return windows.ratio(now, usual)
