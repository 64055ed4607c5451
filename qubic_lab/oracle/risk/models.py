"""Models of risk: volatility, and the value at risk (VaR) and expected shortfall (ES) of the next bar.

Volatility is realised, by three estimators, or forecast by a GARCH(1,1) model with Student's t. VaR and ES are losses:
0.03 is a fall of 3 %; ES is never below VaR. A forecast at bar t is for bar t + 1 and uses bars up to t only.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.model.bars import Bars, Floats, exact_logs, is_constant
from qubic_lab.oracle.risk.rolling import lowest, mean, ratio, rolling

LEAST_FIT = 250
"""The least number of returns that a GARCH model is fitted to."""
REFIT_BARS = 50
WINDOW_BARS = 1000
_NORMAL = NormalDist()
_DIGITS = 1e-9


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


@dataclass(frozen=True)
class Estimator:
    """An estimator of volatility; it needs `extra` bars beyond its window."""

    function: Callable[[Bars, int], Floats]
    extra: int = 0


ESTIMATORS: Mapping[str, Estimator] = {
    "close-to-close": Estimator(_close_to_close, 1),
    "parkinson": Estimator(_parkinson),
    "garman-klass": Estimator(_garman_klass),
}
"""The last two ignore jumps between bars: they suit markets that never close, and are too low for others."""


def realised_volatility(bars: Bars, window: int, estimator: str = "close-to-close") -> Floats:
    """Return the volatility of the last `window` bars, as a log return per bar, [bars].

    Warm-up: `window` − 1 bars, one more for close-to-close.

    Raises:
        InputError: fewer than 2 bars, or an unknown estimator.
    """
    check_at_least("bars", window, 2)
    return ESTIMATORS[check_choice("estimator of volatility", estimator, ESTIMATORS)].function(bars, window)


@dataclass(frozen=True)
class GarchFit:
    """Parameters of σ²(t+1) = omega + alpha r²(t) + beta σ²(t), r = σ × Student's t of variance 1 with `nu` degrees."""

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
        fits: number of fits that converged.
        failed: number of fits that did not converge; the fit before stayed in use.
        missing: why there is no forecast at all; empty where there is one.
    """

    sigma: Floats
    nu: Floats
    fits: int = 0
    failed: int = 0
    missing: str = ""


def fit_garch(returns: Floats, start: GarchFit | None = None) -> GarchFit | None:
    """Fit a GARCH(1,1) model of zero mean with Student's t by maximum likelihood; None if it does not converge.

    Args:
        returns: per bar, without NaN; the fit scales them to variance 1, and its parameters back.
        start: parameters at which the search begins, such as those of the fit before.

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

    Args:
        returns: log returns per bar, as `Bars.log_returns` gives them; only the first may be NaN.
        refit_bars: from one fit to the next.
        window_bars: number of the last returns that a fit uses.
        least: number of returns before the first fit.

    Warm-up: `least` returns. Refits are counted from the first bar, so later bars do not move them.

    Raises:
        InputError: NaN after the first return, or numbers that are too small.
    """
    check_at_least("refit_bars", refit_bars, 1)
    check_at_least("least", least, LEAST_FIT)
    check_at_least("window_bars", window_bars, least)
    bars = len(returns)
    skip = 1 if bars and math.isnan(returns[0]) else 0
    if not np.isfinite(returns[skip:]).all():
        bad = skip + int(np.flatnonzero(~np.isfinite(returns[skip:]))[0])
        raise InputError(f"return of bar {bad} is {returns[bad]}: a model needs every bar after the first")
    sigma, nu = np.full(bars, np.nan), np.full(bars, np.nan)
    if bars - skip < least:
        return VolatilityForecast(sigma, nu, missing=f"{bars - skip} returns: a fit needs {least}")
    fit: GarchFit | None = None
    fits = failed = 0
    for last in range(skip + least - 1, bars, refit_bars):
        until = last + 1
        known = returns[max(skip, until - window_bars) : until]
        new = fit_garch(known, fit)
        if new is None and fit is not None:
            new = fit_garch(known)  # with the library's own start
        fits, failed = fits + (new is not None), failed + (new is None)
        fit = new or fit
        if fit is None:
            continue
        end = min(bars, last + refit_bars)
        begin = max(skip, until - window_bars)
        path = _filtered(returns[begin:end], fit)
        sigma[last:end] = path[last - begin :]
        nu[last:end] = fit.nu
    reason = "" if fits else "no fit converged: do returns vary?"
    return VolatilityForecast(sigma, nu, fits, failed, reason)


def garch_of(bars: Bars, refit_bars: int = REFIT_BARS, window_bars: int = WINDOW_BARS) -> VolatilityForecast:
    """Return `garch_forecast` of the log returns of bars; it is computed once for the same bars and numbers.

    Raises:
        InputError: see `garch_forecast`.
    """
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
    """Return simulated returns of a GARCH(1,1) process with Student's t, and the volatility of each, both [bars].

    Raises:
        InputError: parameters with which the process has no finite variance.
    """
    if not (omega > 0 and alpha >= 0 and beta >= 0 and alpha + beta < 1 and nu > 2):
        raise InputError(
            f"omega {omega}, alpha {alpha}, beta {beta}, nu {nu}: give omega > 0, alpha + beta < 1 and nu > 2"
        )
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
