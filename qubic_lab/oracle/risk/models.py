"""Models of risk: volatility, and the value at risk (VaR) and expected shortfall (ES) of the next bar.

Volatility is realised, by three estimators, or forecast by a GARCH(1,1) model with Student's t. VaR and ES are losses:
0.03 is a fall of 3 %; ES is never below VaR. A forecast at bar t is for bar t + 1 and uses bars up to t only.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.bars import Bars, Floats, exact_logs, is_constant

LEAST_FIT = 250
"""The least number of returns that a GARCH model is fitted to."""
REFIT_BARS = 50
WINDOW_BARS = 1000
_CELLS = 2_000_000
_DIGITS = 1e-9


def rolling(values: Floats, bars: int, statistic: Callable[[Floats], Floats]) -> Floats:
    """Return a statistic of the last `bars` values at each bar, [bars]; NaN before the first full window.

    `statistic` takes windows, [some, bars], and gives one number each. Each window is copied to its own memory and
    computed alone: later bars change no bit, and no rounding adds up.
    """
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


def _lowest(windows: Floats, count: int) -> Floats:
    """Return the lowest numbers of each row in ascending order, [rows, count]; NaN for a row with NaN."""
    found = np.sort(np.partition(windows, count - 1, axis=1)[:, :count], axis=1)
    found[np.isnan(windows).any(axis=1)] = np.nan
    return found


def ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below; NaN where `below` is not above 0 or either is NaN."""
    known = (below > 0.0) & ~np.isnan(above)
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=known))


def drawdown(values: Floats) -> Floats:
    """Return how far each value is below the highest so far, as a share of it, 0 to 1, [bars]; no warm-up."""
    return np.asarray(1.0 - values / np.maximum.accumulate(values))


def recent_drawdown(values: Floats, bars: int) -> Floats:
    """Return how far each value is below the highest of the last `bars` values, as `drawdown`; warm-up: `bars` − 1."""
    return np.asarray(1.0 - values / rolling(values, bars, lambda part: part.max(axis=1)))


def _close_to_close(bars: Bars, window: int) -> Floats:
    """Root of the mean squared log return; the mean return is taken as 0."""
    return np.sqrt(rolling(bars.log_returns**2, window, mean))


def _parkinson(bars: Bars, window: int) -> Floats:
    """M. Parkinson, Journal of Business 53 (1980), 61-65: from highs and lows."""
    spans = exact_logs(bars.high) - exact_logs(bars.low)
    return np.sqrt(rolling(spans**2, window, mean) / (4.0 * math.log(2.0)))


def _garman_klass(bars: Bars, window: int) -> Floats:
    """M. B. Garman and M. J. Klass, Journal of Business 53 (1980), 67-78: from all four prices."""
    spans = exact_logs(bars.high) - exact_logs(bars.low)
    bodies = bars.log_close - exact_logs(bars.open)
    daily = 0.5 * spans**2 - (2.0 * math.log(2.0) - 1.0) * bodies**2
    return np.sqrt(np.maximum(0.0, rolling(daily, window, mean)))


ESTIMATORS: dict[str, Callable[[Bars, int], Floats]] = {
    "close-to-close": _close_to_close,
    "parkinson": _parkinson,
    "garman-klass": _garman_klass,
}
"""The last two ignore jumps between bars: they suit markets that never close, and are too low for others."""


def realised_volatility(bars: Bars, window: int, estimator: str = "close-to-close") -> Floats:
    """Return the volatility of the last `window` bars, as a log return per bar, [bars].

    Warm-up: `window` − 1 bars, one more for close-to-close.
    """
    return ESTIMATORS[estimator](bars, window)


@dataclass(frozen=True)
class GarchFit:
    """Parameters of σ²(t+1) = omega + alpha r²(t) + beta σ²(t), r = σ × Student's t of variance 1 with `nu` degrees.

    `start` is the σ² before the first return.
    """

    omega: float
    alpha: float
    beta: float
    nu: float
    start: float


@dataclass(frozen=True, eq=False)
class VolatilityForecast:
    """Forecasts of the next bar's distribution, each [bars]; NaN before the first fit.

    Attributes:
        sigma: standard deviation of the next bar's return.
        nu: degrees of freedom of Student's t; infinite for a normal distribution.
        fits: number of fits that converged; after one of the `failed`, the fit before stayed in use.
        missing: why there is no forecast at all; empty where there is one.
    """

    sigma: Floats
    nu: Floats
    fits: int = 0
    failed: int = 0
    missing: str = ""


def fit_garch(returns: Floats, start: GarchFit | None = None) -> GarchFit | None:
    """Fit a GARCH(1,1) model of zero mean with Student's t by maximum likelihood; None if it does not converge.

    The search begins at the parameters of `start`, the fit before. `returns` are without NaN.

    Source: T. Bollerslev, Review of Economics and Statistics 69 (1987), 542-547; by `arch`.
    """
    from arch import arch_model

    if len(returns) < LEAST_FIT or is_constant(returns):
        return None
    scale = float(np.sqrt(np.mean(returns**2)))
    first = None
    if start is not None:
        first = np.array([max(1e-6, start.omega / scale**2), start.alpha, start.beta, start.nu])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        model = arch_model(returns / scale, mean="Zero", vol="GARCH", p=1, q=1, dist="t", rescale=False)
        try:
            found = model.fit(disp="off", show_warning=False, starting_values=first)
        except (ValueError, FloatingPointError, np.linalg.LinAlgError):
            return None
    omega, alpha, beta, nu = (float(value) for value in found.params)
    if found.convergence_flag or not all(map(math.isfinite, (omega, alpha, beta, nu))):
        return None
    backcast = float(np.asarray(model.volatility.backcast(returns / scale)).item())
    return GarchFit(omega * scale**2, alpha, beta, nu, backcast * scale**2)


def garch_forecast(
    returns: Floats, refit_bars: int = REFIT_BARS, window_bars: int = WINDOW_BARS, least: int = LEAST_FIT
) -> VolatilityForecast:
    """Return forecasts of a GARCH(1,1) model with Student's t that is refitted every `refit_bars` bars.

    A fit uses the last `window_bars` returns; the warm-up is `least` returns. Refits are counted from the first bar, so
    later bars do not move them. Only the first return may be NaN.

    Raises:
        InputError: `refit_bars` below 1.
    """
    check_at_least("refit_bars", refit_bars, 1)
    bars = len(returns)
    skip = 1 if bars and math.isnan(returns[0]) else 0
    sigma, nu = np.full(bars, np.nan), np.full(bars, np.nan)
    if bars - skip < least:
        return VolatilityForecast(sigma, nu, missing=f"{bars - skip} returns: a fit needs {least}")
    fit: GarchFit | None = None
    fits = failed = 0
    for last in range(skip + least - 1, bars, refit_bars):
        begin, end = max(skip, last + 1 - window_bars), min(bars, last + refit_bars)
        known = returns[begin : last + 1]
        new = fit_garch(known, fit)
        if new is None and fit is not None:
            new = fit_garch(known)  # with the library's own start
        fits, failed = fits + (new is not None), failed + (new is None)
        fit = new or fit
        if fit is not None:
            sigma[last:end] = _filtered(returns[begin:end], fit)[last - begin :]
            nu[last:end] = fit.nu
    return VolatilityForecast(sigma, nu, fits, failed, "" if fits else "no fit converged: do returns vary?")


def garch_of(bars: Bars, refit_bars: int = REFIT_BARS, window_bars: int = WINDOW_BARS) -> VolatilityForecast:
    """Return `garch_forecast` of the log returns of bars; it is computed once for the same bars and numbers."""
    return bars.once(
        f"garch {refit_bars} {window_bars}",
        lambda each: garch_forecast(each.log_returns, refit_bars, window_bars),
    )


def _filtered(returns: Floats, fit: GarchFit) -> Floats:
    """Return the standard deviation forecast after each return."""
    variance = fit.start
    path = []
    for value in returns.tolist():
        variance = fit.omega + fit.alpha * value * value + fit.beta * variance
        path.append(math.sqrt(variance))
    return np.array(path)


def simulate_garch(
    bars: int, omega: float, alpha: float, beta: float, nu: float, seed: int = 0
) -> tuple[Floats, Floats]:
    """Return simulated returns of a GARCH(1,1) process with Student's t, and the volatility of each, both [bars]."""
    draw = np.random.default_rng(seed)
    settle = 500
    shocks = draw.standard_t(nu, bars + settle) * math.sqrt((nu - 2) / nu)
    variance = omega / (1 - alpha - beta)
    returns, sigma = np.empty(bars + settle), np.empty(bars + settle)
    for bar, shock in enumerate(shocks.tolist()):
        sigma[bar] = math.sqrt(variance)
        returns[bar] = sigma[bar] * shock
        variance = omega + alpha * returns[bar] ** 2 + beta * variance
    return returns[settle:], sigma[settle:]


@dataclass(frozen=True, eq=False)
class TailForecast:
    """Forecasts of the next bar's loss, each [bars], as log returns with the sign reversed; NaN where there is none.

    A loss is beyond value at risk, `var`, with a probability of `level`, and then on average expected shortfall, `es`.
    """

    level: float
    var: Floats
    es: Floats


def least_bars(level: float) -> int:
    """Return the least window of historical VaR: one return of it is expected to be beyond VaR."""
    return math.ceil(1.0 / level - _DIGITS)


def historical(returns: Floats, level: float, bars: int = 500) -> TailForecast:
    """Return historical VaR and ES: a quantile of the last returns, and the mean of the returns below it.

    A new return is below the k-th lowest of n with a probability of k / (n + 1). VaR is therefore the return of rank
    level × (n + 1), interpolated between its neighbours. ES is VaR and the sum of what the returns below it lack to it,
    over rank − 1: without bias where losses beyond VaR are exponential, while their plain mean, in which the return
    next to VaR counts in full, is too low by a share 1 / rank. A window of `bars` returns with NaN gives NaN.

    Source: R. J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", The American Statistician 50 (1996),
    361-365, definition 6.
    """
    assert bars >= max(2, least_bars(level)), "the rank would be below 1"
    rank = level * (bars + 1)
    whole = int(rank + _DIGITS)
    part = max(0.0, rank - whole)

    def quantile(rows: Floats) -> Floats:
        worst = _lowest(rows, whole + 1)
        return np.asarray(worst[:, -2] + part * (worst[:, -1] - worst[:, -2]))

    def tail_mean(rows: Floats) -> Floats:
        at, worst = quantile(rows), _lowest(rows, whole + 1)[:, :-1]
        return np.asarray(at + (worst - at[:, None]).sum(axis=1) / (rank - 1.0))

    var, es = -rolling(returns, bars, quantile), -rolling(returns, bars, tail_mean)
    return TailForecast(level, var, np.maximum(es, var))


def normal(returns: Floats, level: float) -> TailForecast:
    """Return VaR and ES of a normal distribution with the mean and variance of all returns so far: tails too thin."""
    import pandas as pd

    so_far = pd.Series(returns).expanding(least_bars(level))
    means, deviations = so_far.mean().to_numpy(), so_far.std().to_numpy()
    quantile = NormalDist().inv_cdf(level)
    var = -(means + deviations * quantile)
    shortfall = -means + deviations * NormalDist().pdf(quantile) / level
    return TailForecast(level, var, np.maximum(shortfall, var))


def student_t(forecast: VolatilityForecast, level: float) -> TailForecast:
    """Return VaR and ES of Student's t with the forecast volatility; infinite degrees of freedom make it normal.

    Source: A. J. McNeil, R. Frey and P. Embrechts, "Quantitative risk management" (2015), examples 2.11 and 2.15.
    """
    from scipy.stats import t

    nu, unit = forecast.nu, np.sqrt(1.0 - 2.0 / forecast.nu)
    quantile = t.ppf(level, nu)
    shortfall = t.pdf(quantile, nu) / level * (1.0 + quantile**2 / nu) / (1.0 - 1.0 / nu)
    var, es = -forecast.sigma * (unit * quantile), forecast.sigma * (unit * shortfall)
    return TailForecast(level, var, np.maximum(es, var))


def filtered_historical(returns: Floats, forecast: VolatilityForecast, level: float, bars: int = 500) -> TailForecast:
    """Return historical VaR and ES of returns over their forecast volatility, times the volatility of the next bar.

    Source: G. Barone-Adesi, K. Giannopoulos and L. Vosper, Journal of Futures Markets 19 (1999), 583-602.
    """
    scaled = np.full(len(returns), np.nan)
    scaled[1:] = ratio(returns[1:], forecast.sigma[:-1])
    tail = historical(scaled, level, bars)
    var, es = tail.var * forecast.sigma, tail.es * forecast.sigma
    return TailForecast(level, var, np.maximum(es, var))
