"""Percentiles of measured times with intervals that hold for any distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""0.95 × 20 is slightly more than 19 in floating point, but its rank is 19."""


@dataclass(frozen=True)
class Percentiles:
    """Percentiles, each with a 95 % interval; an end that needs more values is None."""

    p50: float
    p50_low: float | None
    p50_high: float | None
    p95: float
    p95_low: float | None
    p95_high: float | None
    p99: float
    p99_low: float | None
    p99_high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        """Return the percentiles of at least one value."""
        p50, p95, p99 = (quantile(values, share) for share in (0.5, 0.95, 0.99))
        (low50, high50), (low95, high95), (low99, high99) = (quantile_interval(values, q) for q in (0.5, 0.95, 0.99))
        return cls(p50, low50, high50, p95, low95, high95, p99, low99, high99)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a share of the values does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values) - ROUNDING) - 1)]


def quantile_interval(
    values: Sequence[float], share: float, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """Return two of the values that enclose a quantile of any distribution; an end is None if there are too few values.

    The number of values below the quantile is binomial with p = share. Source: W. J. Conover, "Practical Nonparametric
    Statistics", 3rd edition (1999), section 3.2.
    """
    ordered, count = sorted(values), len(values)
    tail = (1 - confidence) / 2
    below = list(accumulate(_binomial(count, k, share) for k in range(count + 1)))  # below[k] = P(at most k)
    lows = [k for k in range(count) if below[k] <= tail]
    highs = [k for k in range(count) if 1 - below[k] <= tail]
    return (ordered[lows[-1]] if lows else None), (ordered[highs[0]] if highs else None)


def _binomial(count: int, k: int, p: float) -> float:
    """Return the probability of k successes, computed with logarithms because the coefficients overflow."""
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(p) + (count - k) * math.log(1 - p))
