"""Value at risk (VaR) and expected shortfall (ES) of the next bar, as losses: 0.03 is a fall of 3 %.

A value at bar t is for bar t + 1 and uses bars up to t only. ES is never below VaR.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.risk.rolling import lowest, ratio, rolling
from qubic_lab.oracle.risk.volatility import VolatilityForecast

_NORMAL = NormalDist()
_DIGITS = 1e-9


@dataclass(frozen=True, eq=False)
class TailForecast:
    """Forecasts of the next bar's loss, each [bars], as log returns with the sign reversed; NaN where there is none.

    Attributes:
        level: probability of a loss beyond `var`, such as 0.01.
        var: value at risk.
        es: expected shortfall: the mean loss if it is beyond `var`.
    """

    level: float
    var: Floats
    es: Floats


def check_level(level: float) -> float:
    """Return the level if it is a probability of a loss.

    Raises:
        InputError: it is not between 0 and 0.5.
    """
    if not 0.0 < level < 0.5:
        raise InputError(f"level is {level}: give the probability of the loss, such as 0.01, below 0.5")
    return level


def least_bars(level: float) -> int:
    """Return the least window of historical VaR: one return of it is expected to be beyond VaR."""
    return math.ceil(1.0 / check_level(level) - _DIGITS)


def historical(returns: Floats, level: float, bars: int = 500) -> TailForecast:
    """Return historical VaR and ES: a quantile of the last returns, and the mean of the returns below it.

    A new return is below the k-th lowest of n with a probability of k / (n + 1). VaR is therefore the return of rank
    level × (n + 1), interpolated between its neighbours, and ES the mean up to that rank, of which the last return
    counts for the fractional part.

    Args:
        returns: log returns per bar; a window with NaN gives NaN.
        level: probability of a larger loss.
        bars: length of a window.

    Source: R. J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", The American Statistician 50 (1996),
    361-365, definition 6.

    Raises:
        InputError: a window that is too short for the level: the rank would be below 1.
    """
    least = max(2, least_bars(level))
    if bars < least:
        raise InputError(f"a window of {bars} bars is too short for a level of {level:g}: give {least} or more")
    rank = level * (bars + 1)
    whole = int(rank + _DIGITS)
    part = max(0.0, rank - whole)
    counted = np.append(np.ones(whole), part)

    def quantile(rows: Floats) -> Floats:
        worst = lowest(rows, whole + 1)
        return np.asarray(worst[:, -2] + part * (worst[:, -1] - worst[:, -2]))

    def tail_mean(rows: Floats) -> Floats:
        return np.asarray((lowest(rows, whole + 1) * counted).sum(axis=1) / (whole + part))

    var, es = -rolling(returns, bars, quantile), -rolling(returns, bars, tail_mean)
    return TailForecast(level, var, np.maximum(es, var))


def normal(returns: Floats, level: float) -> TailForecast:
    """Return VaR and ES of a normal distribution with the mean and variance of all returns so far: a weak baseline.

    Its tails are too thin. Mean and variance are computed by Welford's recursion.

    Args:
        returns: log returns per bar; NaN ones are skipped.
        level: probability of a larger loss.

    Raises:
        InputError: a level outside 0 to 0.5.
    """
    means, deviations = np.full((2, len(returns)), np.nan)
    count, centre, squares, least = 0, 0.0, 0.0, least_bars(level)
    for bar, value in enumerate(returns.tolist()):
        if math.isnan(value):
            continue
        count += 1
        step = value - centre
        centre += step / count
        squares += step * (value - centre)
        if count >= least:
            means[bar], deviations[bar] = centre, math.sqrt(squares / (count - 1))
    quantile = _NORMAL.inv_cdf(level)
    var = -(means + deviations * quantile)
    shortfall = -means + deviations * _NORMAL.pdf(quantile) / level
    return TailForecast(level, var, np.maximum(shortfall, var))


def student_t(forecast: VolatilityForecast, level: float) -> TailForecast:
    """Return VaR and ES of Student's t with the forecast volatility; infinite degrees of freedom make it normal.

    Source: A. J. McNeil, R. Frey and P. Embrechts, "Quantitative risk management" (2015), examples 2.11 and 2.15.

    Raises:
        InputError: a level outside 0 to 0.5.
    """
    from scipy.stats import t

    check_level(level)
    var, es = np.full((2, len(forecast.sigma)), np.nan)
    for nu in np.unique(forecast.nu[~np.isnan(forecast.nu)]).tolist():
        rows = forecast.nu == nu
        unit = math.sqrt(1.0 - 2.0 / nu)
        quantile = float(t.ppf(level, nu))
        shortfall = float(t.pdf(quantile, nu)) / level * (1.0 + quantile**2 / nu) / (1.0 - 1.0 / nu)
        var[rows] = -forecast.sigma[rows] * (unit * quantile)
        es[rows] = forecast.sigma[rows] * (unit * shortfall)
    return TailForecast(level, var, np.maximum(es, var))


def filtered_historical(returns: Floats, forecast: VolatilityForecast, level: float, bars: int = 500) -> TailForecast:
    """Return historical VaR and ES of returns over their forecast volatility, times the volatility of the next bar.

    Source: G. Barone-Adesi, K. Giannopoulos and L. Vosper, Journal of Futures Markets 19 (1999), 583-602.

    Args:
        returns: log returns per bar.
        forecast: volatility of the bar after each.
        level: probability of a larger loss.
        bars: length of a window of scaled returns.

    Raises:
        InputError: a window that is too short for the level, or arrays of different lengths.
    """
    if returns.shape != forecast.sigma.shape:
        raise InputError(f"{returns.size} returns and {forecast.sigma.size} forecasts: give one for each bar")
    scaled = np.full(len(returns), np.nan)
    scaled[1:] = ratio(returns[1:], forecast.sigma[:-1])
    tail = historical(scaled, level, bars)
    var, es = tail.var * forecast.sigma, tail.es * forecast.sigma
    return TailForecast(level, var, np.maximum(es, var))
