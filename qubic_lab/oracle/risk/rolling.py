"""Statistics over the last bars. Each window is computed alone: later bars change no bit, and no rounding adds up."""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qubic_lab.errors import check_at_least

Floats = NDArray[np.float64]
_CELLS = 2_000_000


def rolling(values: Floats, bars: int, statistic: Callable[[Floats], Floats]) -> Floats:
    """Return a statistic of the last `bars` values at each bar, [bars]; NaN before the first full window.

    Args:
        values: one number per bar; `statistic` decides what a window with NaN gives.
        bars: length of a window, which ends with the current bar.
        statistic: takes windows, [some, bars], and gives one number each. Each window is copied to its own memory, so
            its number depends on its values alone.

    Raises:
        InputError: windows of less than 1 bar.
    """
    check_at_least("bars", bars, 1)
    found = np.full(len(values), np.nan)
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
    """Return the median of each row; NaN for a row with NaN."""
    with np.errstate(invalid="ignore"):
        found = np.asarray(np.median(np.where(np.isnan(windows), 0.0, windows), axis=1))
    found[np.isnan(windows).any(axis=1)] = np.nan
    return found


def lowest(windows: Floats, count: int) -> Floats:
    """Return the lowest numbers of each row in ascending order, [rows, count]; NaN for a row with NaN."""
    found = np.sort(np.partition(windows, count - 1, axis=1)[:, :count], axis=1)
    found[np.isnan(windows).any(axis=1)] = np.nan
    return found


def ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below; NaN where `below` is not above 0 or either is NaN."""
    known = (below > 0.0) & ~np.isnan(above)
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=known))


def drawdown(values: Floats) -> Floats:
    """Return how far each value is below the highest value so far, as a share of it, 0 to 1, [bars]; no warm-up.

    Args:
        values: prices or equity; the highest is above 0.
    """
    return np.asarray(1.0 - values / np.maximum.accumulate(values))


def recent_drawdown(values: Floats, bars: int) -> Floats:
    """Return how far each value is below the highest of the last `bars` values, as a share of it, 0 to 1, [bars].

    Warm-up: `bars` − 1 bars.

    Raises:
        InputError: fewer than 2 bars.
    """
    check_at_least("bars", bars, 2)
    return np.asarray(1.0 - values / rolling(values, bars, lambda part: part.max(axis=1)))
