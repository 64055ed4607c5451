"""Value at risk and expected shortfall of the next bar, as losses: 0.03 is a fall of 3 %.

Values at bar t are for bar t + 1 and use bars up to t alone. Expected shortfall is never below value at risk.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.candles import Floats, absent
from qubic_lab.oracle.risk import windows
from qubic_lab.oracle.risk.volatility import VolatilityForecast

_NORMAL = NormalDist()
_DIGITS = 1e-9


@dataclass(frozen=True, eq=False)
class TailForecast:
    """What the next bar may lose: each [bars], log returns with the sign turned; NaN where there is no forecast.

    Attributes:
        level: probability of a loss beyond `var`, such as 0.01.
        var: value at risk.
        es: expected shortfall: the mean loss where it is beyond `var`.
    """

    level: float
    var: Floats
    es: Floats


def check_level(level: float) -> float:
    """Return the level if it is one.

    Raises:
        InputError: it is not between 0 and 0.5.
    """
    if not 0.0 < level < 0.5:
        raise InputError(f"level is {level}: give the probability of the loss, such as 0.01, below 0.5")
    return level


def least_bars(level: float) -> int:
    """Return how many returns a historical value needs: one of them is expected to be beyond it."""
    return math.ceil(1.0 / check_level(level) - _DIGITS)


def historical(returns: Floats, level: float, bars: int = 500) -> TailForecast:
    """Return what the worst of the last returns say: the quantile, and the mean loss of those that are worse.

    A new return is below the k-th lowest of n with a probability of k / (n + 1). So value at risk lies at the place
    level × (n + 1), between two of them where that is no whole number, and shortfall is the mean up to that place, the
    last one counted for its part. Windows in which the place would be before the lowest are refused.

    Args:
        returns: log returns per bar; a window with NaN gives none.
        level: probability of a loss beyond.
        bars: of a window.

    Source: R. J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", The American Statistician 50 (1996),
    361-365, definition 6.

    Raises:
        InputError: a window that is too short for the level.
    """
    _check_window(level, bars)
    place = level * (bars + 1)
    whole = int(place + _DIGITS)
    part = max(0.0, place - whole)
    counted = np.append(np.ones(whole), part)

    def quantile(rows: Floats) -> Floats:
        worst = windows.lowest(rows, whole + 1)
        return np.asarray(worst[:, -2] + part * (worst[:, -1] - worst[:, -2]))

    def mean(rows: Floats) -> Floats:
        return np.asarray((windows.lowest(rows, whole + 1) * counted).sum(axis=1) / (whole + part))

    var, es = -windows.rolling(returns, bars, quantile), -windows.rolling(returns, bars, mean)
    return TailForecast(level, var, np.maximum(es, var))


def normal(returns: Floats, level: float, bars: int | None = None) -> TailForecast:
    """Return what a normal distribution of constant variance says: the foil, too low in the tails and slow.

    Args:
        returns: log returns per bar; NaN at first only where `bars` is None.
        level: of the loss.
        bars: of a window; None: all so far.

    Raises:
        InputError: a window that is too short for the level.
    """
    if bars is None:
        mean, deviation = _expanding(returns, least_bars(level))
    else:
        _check_window(level, bars)
        mean = windows.rolling(returns, bars, windows.mean)
        deviation = windows.rolling(returns, bars, windows.deviation)
    quantile = _NORMAL.inv_cdf(level)
    density = _NORMAL.pdf(quantile)
    var = -(mean + deviation * quantile)
    return TailForecast(level, var, np.maximum(-mean + deviation * density / level, var))


def _expanding(returns: Floats, least: int) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of all returns so far, by Welford's recursion."""
    mean, deviation = absent(len(returns)), absent(len(returns))
    count, centre, squares = 0, 0.0, 0.0
    for bar, value in enumerate(returns.tolist()):
        if math.isnan(value):
            continue
        count += 1
        step = value - centre
        centre += step / count
        squares += step * (value - centre)
        if count >= least:
            mean[bar], deviation[bar] = centre, math.sqrt(squares / (count - 1))
    return mean, deviation


def student_t(forecast: VolatilityForecast, level: float) -> TailForecast:
    """Return what Student's t with a forecast's spread says; infinite degrees of freedom make it normal.

    Source: A. J. McNeil, R. Frey and P. Embrechts, "Quantitative risk management" (2015), examples 2.11 and 2.15.

    Raises:
        InputError: a level that is none.
    """
    from scipy.stats import t

    check_level(level)
    var, es = absent(len(forecast.sigma)), absent(len(forecast.sigma))
    for nu in np.unique(forecast.nu[~np.isnan(forecast.nu)]).tolist():
        rows = forecast.nu == nu
        unit = math.sqrt(1.0 - 2.0 / nu)
        quantile = float(t.ppf(level, nu))
        shortfall = float(t.pdf(quantile, nu)) / level * (1.0 + quantile**2 / nu) / (1.0 - 1.0 / nu)
        var[rows] = -forecast.sigma[rows] * (unit * quantile)
        es[rows] = forecast.sigma[rows] * (unit * shortfall)
    return TailForecast(level, var, np.maximum(es, var))


def filtered_historical(returns: Floats, forecast: VolatilityForecast, level: float, bars: int = 500) -> TailForecast:
    """Return what the worst of past returns say once each is divided by the spread that was forecast for it.

    Source: G. Barone-Adesi, K. Giannopoulos and L. Vosper, Journal of Futures Markets 19 (1999), 583-602.

    Args:
        returns: log returns per bar.
        forecast: for the bar after each.
        level: of the loss.
        bars: of a window of scaled returns.

    Raises:
        InputError: a window that is too short for the level, or lengths that differ.
    """
    if returns.shape != forecast.sigma.shape:
        raise InputError(f"{returns.size} returns and {forecast.sigma.size} forecasts: give one for each bar")
    scaled = absent(len(returns))
    scaled[1:] = windows.ratio(returns[1:], forecast.sigma[:-1])
    tail = historical(scaled, level, bars)
    var, es = tail.var * forecast.sigma, tail.es * forecast.sigma
    return TailForecast(level, var, np.maximum(es, var))


def _check_window(level: float, bars: int) -> None:
    least = least_bars(level)
    if bars < least:
        raise InputError(f"a window of {bars} bars is too short for a level of {level:g}: give {least} or more")
    check_at_least("bars", bars, 2)
