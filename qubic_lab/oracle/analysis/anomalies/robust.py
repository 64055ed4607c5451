"""Medians of what went before: how far a value is from usual when some of the usual ones are wild themselves."""

import numpy as np
import talib

from qubic_lab.oracle.model.bars import Floats

MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation is so many times its median absolute deviation."""


def medians_before(values: Floats, window: int) -> Floats:
    """Return the median of the `window` values before each; NaN where there are fewer.

    `window` must be odd: then it is one of them, whatever the order of summing.
    """
    assert window % 2 == 1 and window > 1
    found = np.full(len(values), np.nan)
    if len(values) > window:
        found[window:] = talib.PERCENTILE(values, window, 50.0)[window - 1 : -1]
    return found


def robust_scores(values: Floats, middle: Floats, window: int, floor: float) -> Floats:
    """Return how far values are from their usual middle, in robust standard deviations of the `window` before.

    Args:
        values: by time.
        middle: what was usual for each, from values before it; NaN where it is not known.
        window: odd; so many earlier distances, each from its own middle, give the deviation by their median.
        floor: the deviation is at least this.

    Returns:
        Scores, NaN where the middle, or `window` distances before, are not known.
    """
    scores = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(middle))
    away = values[known] - middle[known]
    deviation = np.maximum(floor, MAD_TO_DEVIATION * medians_before(np.abs(away), window))
    scores[known] = away / deviation
    return scores
