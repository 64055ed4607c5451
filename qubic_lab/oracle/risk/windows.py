"""Statistics of the last bars, each from its own window alone: later bars change no bit, and no error adds up."""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.candles import Candles, Floats, absent

_CELLS = 2_000_000


def rolling(values: Floats, bars: int, statistic: Callable[[Floats], Floats]) -> Floats:
    """Return a statistic of the last `bars` values at each bar, [bars]; NaN before the first whole window.

    Args:
        values: one number a bar; a window with NaN gives what the statistic makes of it.
        bars: of a window, the current one included.
        statistic: takes windows as [some, bars], gives one number each. Each row is copied to its own place in memory,
            so what it gives for one depends on that row alone.

    Raises:
        InputError: windows of fewer than 1 bar.
    """
    check_at_least("bars", bars, 1)
    found = absent(len(values))
    if len(values) < bars:
        return found
    windows = sliding_window_view(values, bars)
    at_once = max(1, _CELLS // bars)
    for first in range(0, len(windows), at_once):
        part = np.ascontiguousarray(windows[first : first + at_once])
        found[first + bars - 1 : first + bars - 1 + len(part)] = statistic(part)
    return found


def mean(windows: Floats) -> Floats:
    """Return the mean of each row."""
    return np.asarray(windows.mean(axis=1))


def median(windows: Floats) -> Floats:
    """Return the median of each row; NaN of a row with NaN."""
    with np.errstate(invalid="ignore"):
        found = np.asarray(np.median(np.where(np.isnan(windows), 0.0, windows), axis=1))
    found[np.isnan(windows).any(axis=1)] = np.nan
    return found


def lowest(windows: Floats, count: int) -> Floats:
    """Return the lowest numbers of each row by rising size, [rows, count]; NaN of a row with NaN."""
    found = np.sort(np.partition(windows, count - 1, axis=1)[:, :count], axis=1)
    found[np.isnan(windows).any(axis=1)] = np.nan
    return found


def deviation(windows: Floats) -> Floats:
    """Return the standard deviation of each row about its mean; 0 of a row of equal values."""
    spread = np.asarray(windows.std(axis=1, ddof=1))
    level = windows.max(axis=1) == windows.min(axis=1)
    spread[level] = 0.0
    return spread


def log_returns(candles: Candles) -> Floats:
    """Return each bar's log return since the one before, [bars]; NaN at first. A gap is one step."""
    returns = absent(len(candles))
    returns[1:] = np.diff(candles.log_close)
    return returns


def ratio(above: Floats, below: Floats) -> Floats:
    """Return a quotient, NaN where what it is divided by is not above 0 or either is NaN."""
    known = (below > 0.0) & ~np.isnan(above)
    return np.divide(above, below, out=absent(len(above)), where=known)
