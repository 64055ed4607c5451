"""How far prices are below where they were."""

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.candles import Candles, Floats
from qubic_lab.oracle.risk import windows


def drawdown(values: Floats) -> Floats:
    """Return how far each value is below the highest so far, as a share of it, 0 to 1, [bars]; no warm-up.

    Args:
        values: prices or equity, above 0 at their highest.
    """
    highest = np.maximum.accumulate(values)
    return np.asarray(1.0 - values / highest)


def bars_under_water(values: Floats) -> Floats:
    """Return how many bars ago the highest value so far was, 0 at a new high, [bars]; no warm-up."""
    place = np.arange(len(values))
    at_high = (
        np.maximum.accumulate(np.where(values >= np.maximum.accumulate(values), place, 0)) if len(values) else place
    )
    return np.asarray(place - at_high, np.float64)


def recent_drawdown(candles: Candles, bars: int) -> Floats:
    """Return how far each close is below the highest of the last `bars` closes, as a share, 0 to 1.

    Warm-up: `bars` − 1 bars.

    Raises:
        InputError: fewer than 2 bars.
    """
    check_at_least("bars", bars, 2)
    highest = windows.rolling(candles.close, bars, lambda part: part.max(axis=1))
    return 1.0 - candles.close / highest
