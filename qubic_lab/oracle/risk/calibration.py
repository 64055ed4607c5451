"""Whether forecasts are calibrated: how often losses were beyond each level, and where returns lay in the forecast."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.performance import hac_variance, newey_west_lags
from qubic_lab.oracle.model.candles import Floats, absent
from qubic_lab.oracle.risk.value_at_risk import TailForecast
from qubic_lab.oracle.risk.volatility import VolatilityForecast
from qubic_lab.stats import wilson_interval

BINS = 20
LEAST_TRANSFORMED = 100
"""Fewer values fill no histogram."""


@dataclass(frozen=True)
class Coverage:
    """How often losses were beyond value at risk.

    Attributes:
        level: the share that should be.
        bars: with a forecast made strictly before them.
        beyond: losses.
        share: of the bars; `low` to `high`: its interval of 95 %.
    """

    level: float
    bars: int
    beyond: int
    share: float
    low: float
    high: float


def coverage(returns: Floats, forecast: TailForecast, first: int = 0) -> Coverage | None:
    """Return how often a bar's loss was beyond what was forecast at the bar before it; None without forecasts.

    The interval is Wilson's, made wider by as much as the HAC error of the share is above that of independent bars:
    losses come in clusters where a model is too slow for them.

    Args:
        returns: log returns per bar, [bars].
        forecast: at each bar for the next, [bars].
        first: forecasts of earlier bars are left out.

    Raises:
        InputError: lengths that differ.
    """
    if returns.shape != forecast.var.shape:
        raise InputError(f"{returns.size} returns and {forecast.var.size} forecasts: give one for each bar")
    losses, var = -returns[first + 1 :], forecast.var[first:-1]
    known = ~(np.isnan(losses) | np.isnan(var))
    beyond = (losses[known] > var[known]).astype(np.float64)
    bars, count = len(beyond), int(beyond.sum())
    if not bars:
        return None
    share = count / bars
    low, high = wilson_interval(count, bars)
    if 0 < count < bars:
        wider = math.sqrt(max(1.0, hac_variance(beyond, newey_west_lags(bars)) / (share * (1.0 - share))))
        low, high = max(0.0, share - wider * (share - low)), min(1.0, share + wider * (high - share))
    return Coverage(forecast.level, bars, count, share, low, high)


def probability_transform(returns: Floats, forecast: VolatilityForecast) -> Floats:
    """Return the probability that was forecast of a return no higher than the one that came, [bars].

    They are even over 0 to 1, and independent, if the forecasts are right; NaN where there was none at the bar before.

    Source: F. X. Diebold, T. A. Gunther and A. S. Tay, "Evaluating density forecasts", International Economic Review 39
    (1998), 863-883.

    Raises:
        InputError: lengths that differ.
    """
    from scipy.stats import t

    if returns.shape != forecast.sigma.shape:
        raise InputError(f"{returns.size} returns and {forecast.sigma.size} forecasts: give one for each bar")
    found = absent(len(returns))
    sigma, nu = forecast.sigma[:-1], forecast.nu[:-1]
    known = (sigma > 0.0) & ~np.isnan(returns[1:])
    unit = np.sqrt(1.0 - 2.0 / nu[known])  # Student's t has variance nu / (nu - 2)
    found[1:][known] = t.cdf(returns[1:][known] / (sigma[known] * unit), nu[known])
    return found


@dataclass(frozen=True)
class Evenness:
    """A histogram of probabilities that should be even.

    Attributes:
        counts: of each bin, from 0 to 1.
        low, high: between them all bins lie at once with a probability of at least 95 %, if they are even.
        p: of the Kolmogorov-Smirnov test.
        absent: why there is none.
    """

    bars: int
    counts: tuple[int, ...] = ()
    low: int = 0
    high: int = 0
    p: float | None = None
    absent: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def evenness(probabilities: Floats, bins: int = BINS) -> Evenness:
    """Return how even probabilities are; those that are NaN are left out.

    The band is that of binomial counts at 95 % divided among the bins (Bonferroni). Band and test take the bars for
    independent, as they are if the forecasts are right, and know nothing of errors that a fit to few bars has: where a
    right model is fitted seldom, they reject it a little too often.

    Raises:
        InputError: fewer than 2 bins.
    """
    from scipy.stats import binom, kstest

    check_at_least("bins", bins, 2)
    values = probabilities[~np.isnan(probabilities)]
    if len(values) < LEAST_TRANSFORMED:
        return Evenness(len(values), absent=f"{len(values)} forecasts: a histogram needs {LEAST_TRANSFORMED}")
    counts, _ = np.histogram(values, bins, (0.0, 1.0))
    tail = 0.025 / bins
    low, high = (int(binom.ppf(q, len(values), 1.0 / bins)) for q in (tail, 1.0 - tail))
    return Evenness(len(values), tuple(counts.tolist()), low, high, float(kstest(values, "uniform").pvalue))
