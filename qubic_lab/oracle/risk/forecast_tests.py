"""Tests of forecasts: Kupiec and Christoffersen for VaR, McNeil-Frey for ES, coverage, and calibration of densities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qubic_lab.oracle.inference.performance import hac_variance, newey_west_lags
from qubic_lab.oracle.model.bars import Flags, Floats, mask_warm_up
from qubic_lab.oracle.risk.models import (
    LEAST_FIT,
    TailForecast,
    VolatilityForecast,
    filtered_historical,
    historical,
    normal,
    student_t,
)
from qubic_lab.stats import wilson_interval

ALPHA = 0.05
LEAST_VIOLATIONS = 5
"""The least number of losses beyond VaR for a test of ES."""
RESAMPLES = 1_000
BINS = 20
LEAST_TRANSFORMED = 100
"""The least number of values for a histogram."""
MODELS: dict[str, Callable[[Floats, VolatilityForecast, float, int], TailForecast]] = {
    "GARCH-t": lambda returns, volatility, level, bars: student_t(volatility, level),
    "filtered historical": filtered_historical,
    "historical": lambda returns, volatility, level, bars: historical(returns, level, bars),
    "constant normal": lambda returns, volatility, level, bars: normal(returns, level),
}
"""Models of the next loss; the last one is a weak baseline that the tests should reject."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """A likelihood-ratio test: its statistic and p-value."""

    statistic: float
    p: float


@dataclass(frozen=True)
class TailTest:
    """Tests of VaR and ES forecasts against the losses that followed.

    Attributes:
        bars: number of bars with a forecast made strictly before them.
        violations, expected: number of losses beyond VaR, and the expected number.
        unconditional: Kupiec's test of the number of violations.
        independent: Christoffersen's test of whether violations follow each other too often; conditional: of both.
        shortfall_p: McNeil and Frey's one-sided test of whether the mean loss beyond VaR is above ES; None: too few.
        shortfall_z: Acerbi and Székely's second statistic; 0 if forecasts are correct. It enters no verdict: its 5 %
            point depends on the number of bars (at a level of 2.5 % about −0.7 for 250 and −0.3 for 1,250).
        missing: why nothing was tested; empty if it was.
    """

    level: float
    bars: int
    violations: int
    expected: float
    unconditional: LikelihoodRatio | None = None
    independent: LikelihoodRatio | None = None
    conditional: LikelihoodRatio | None = None
    shortfall_p: float | None = None
    shortfall_z: float | None = None
    missing: str = ""

    @property
    def p_values(self) -> dict[str, float | None]:
        """The p-value of each test by its name; None where it could not be computed."""
        ratios = {"kupiec": self.unconditional, "independence": self.independent, "christoffersen": self.conditional}
        return {**{name: each.p if each else None for name, each in ratios.items()}, "shortfall": self.shortfall_p}

    @property
    def rejected(self) -> dict[str, float]:
        """The tests that reject the forecasts at 5 %, with their p-values."""
        return {name: p for name, p in self.p_values.items() if p is not None and p < ALPHA}


def kupiec(violations: int, bars: int, level: float) -> LikelihoodRatio:
    """Test whether the number of losses beyond VaR is as expected.

    Source: P. H. Kupiec, "Techniques for verifying the accuracy of risk measurement models", Journal of Derivatives 3
    (1995), 73-84: proportion of failures, chi-squared with 1 degree of freedom.
    """
    found = _log_likelihood(violations, bars, violations / bars)
    return _chi_squared(2.0 * (found - _log_likelihood(violations, bars, level)), 1)


def christoffersen(beyond: Flags, level: float) -> tuple[LikelihoodRatio, LikelihoodRatio]:
    """Test whether losses `beyond` VaR, by bar, are independent, and that together with their number.

    Source: P. F. Christoffersen, "Evaluating interval forecasts", International Economic Review 39 (1998), 841-862.
    Both are conditional on the first bar, so the second statistic is the first plus that of coverage over other bars.
    """
    before, now = beyond[:-1], beyond[1:]
    after = [part for part in (now[~before], now[before]) if len(part)]
    alone = sum(_log_likelihood(int(part.sum()), len(part), float(part.mean())) for part in after)
    hits, bars = int(now.sum()), len(now)
    same = _log_likelihood(hits, bars, hits / bars)
    independent = 2.0 * (alone - same)
    coverage = 2.0 * (same - _log_likelihood(hits, bars, level))
    return _chi_squared(independent, 1), _chi_squared(independent + coverage, 2)


def shortfall_test(losses: Floats, var: Floats, es: Floats) -> float | None:
    """Return the p-value of the test whether losses beyond VaR are larger, on average, than ES.

    None if fewer than 5 losses are beyond VaR, or if all exceed ES by the same share. Residuals are in units of ES.

    Source: A. J. McNeil and R. Frey, Journal of Empirical Finance 7 (2000), 271-300: mean of the residuals of losses
    beyond VaR, tested against more than 0 by the bootstrap of B. Efron and R. Tibshirani (1993), section 16.4.
    """
    beyond = losses > var
    residuals = (losses[beyond] - es[beyond]) / es[beyond]
    count = len(residuals)
    if count < LEAST_VIOLATIONS or np.ptp(residuals) <= 1e-12 * np.abs(residuals).max():
        return None
    observed = float(residuals.mean() / residuals.std(ddof=1))
    centred = residuals - residuals.mean()
    drawn = centred[np.random.default_rng(0).integers(0, count, (RESAMPLES, count))]
    spread = drawn.std(axis=1, ddof=1)
    ratios = np.divide(drawn.mean(axis=1), spread, out=np.zeros(RESAMPLES), where=spread > 1e-12 * np.abs(drawn).max())
    return float((1 + np.count_nonzero(ratios >= observed)) / (1 + RESAMPLES))


def shortfall_statistic(losses: Floats, var: Floats, es: Floats, level: float) -> float:
    """Return Acerbi and Székely's second statistic: 1 − Σ (losses beyond VaR / ES) / (bars × level).

    It is 0 on average if the forecasts are correct, and below 0 if losses are more frequent or larger.

    Source: C. Acerbi and B. Székely, "Backtesting expected shortfall", Risk (December 2014), 76-81.
    """
    beyond = losses > var
    return 1.0 - float((losses[beyond] / es[beyond]).sum()) / (len(losses) * level)


def evaluate_tail(returns: Floats, forecast: TailForecast) -> TailTest:
    """Test the forecasts that were made at the bar before each loss, by log returns per bar, [bars]."""
    losses, var, es = -returns[1:], forecast.var[:-1], forecast.es[:-1]
    known = ~(np.isnan(losses) | np.isnan(var) | np.isnan(es))
    losses, var, es = losses[known], var[known], es[known]
    beyond: Flags = losses > var
    bars, violations = len(losses), int(beyond.sum())
    counted = TailTest(forecast.level, bars, violations, forecast.level * bars)
    if counted.expected < 1.0:
        reason = f"{bars} bars with a forecast: too few to expect one loss beyond a level of {forecast.level:g}"
        return replace(counted, missing=reason)
    if not (var > 0.0).all() or not (es > 0.0).all():
        return replace(counted, missing="value at risk is 0 or below at some bars: prices hardly vary there")
    independent, conditional = christoffersen(beyond, forecast.level)
    return replace(
        counted,
        unconditional=kupiec(violations, bars, forecast.level),
        independent=independent,
        conditional=conditional,
        shortfall_p=shortfall_test(losses, var, es),
        shortfall_z=shortfall_statistic(losses, var, es, forecast.level),
    )


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model's forecasts of losses, and their tests."""

    model: str
    forecast: TailForecast
    test: TailTest


def evaluate_models(
    returns: Floats, volatility: VolatilityForecast, levels: Sequence[float], tail_bars: int, models: Sequence[str]
) -> tuple[EvaluatedModel, ...]:
    """Return the forecasts of each level and model, all tested on the same bars.

    `tail_bars`, the length of the windows of historical VaR, is at least `least_bars` of each level; `models` are names
    in `MODELS`.
    """
    first = LEAST_FIT + tail_bars + 1  # from this bar on every model has a forecast
    found = []
    for level in levels:
        for model in models:
            made = MODELS[model](returns, volatility, level, tail_bars)
            cut = TailForecast(level, mask_warm_up(first, made.var), mask_warm_up(first, made.es))
            found.append(EvaluatedModel(model, made, evaluate_tail(returns, cut)))
    return tuple(found)


@dataclass(frozen=True)
class LossCoverage:
    """How often losses were beyond VaR: `share` is beyond / bars, `low` and `high` are its 95 % interval."""

    level: float
    bars: int
    beyond: int
    share: float
    low: float
    high: float


def coverage(returns: Floats, forecast: TailForecast, first: int = 0) -> LossCoverage | None:
    """Return how often losses were beyond the VaR forecast at the bar before; None without forecasts.

    The interval is Wilson's, widened by the ratio of the HAC error of the share to that of independent bars: violations
    cluster if a model adapts too slowly. `first` is the index of the first forecast that counts.
    """
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
    return LossCoverage(forecast.level, bars, count, share, low, high)


def probability_transform(returns: Floats, forecast: VolatilityForecast) -> Floats:
    """Return the probability integral transform: the forecast probability of a return up to the realised one, [bars].

    If forecasts are correct, the values are independent and uniform on 0 to 1. NaN without an earlier forecast.

    Source: F. X. Diebold, T. A. Gunther and A. S. Tay, "Evaluating density forecasts", International Economic Review 39
    (1998), 863-883.
    """
    from scipy.stats import t

    found = np.full(len(returns), np.nan)
    sigma, nu = forecast.sigma[:-1], forecast.nu[:-1]
    known = (sigma > 0.0) & ~np.isnan(returns[1:])
    unit = np.sqrt(1.0 - 2.0 / nu[known])  # Student's t has variance nu / (nu - 2)
    found[1:][known] = t.cdf(returns[1:][known] / (sigma[known] * unit), nu[known])
    return found


@dataclass(frozen=True)
class Evenness:
    """A histogram of probabilities that should be uniform, and the p-value of the Kolmogorov-Smirnov test.

    If they are, all `counts` lie between `low` and `high` with a probability of at least 95 %.
    """

    bars: int
    counts: tuple[int, ...] = ()
    low: int = 0
    high: int = 0
    p: float | None = None
    missing: str = ""


def evenness(probabilities: Floats) -> Evenness:
    """Return whether probabilities are uniform; NaN is left out.

    The band is the 95 % range of binomial counts, divided among the bins (Bonferroni). Band and test assume independent
    bars and known parameters: they reject a correct model slightly too often if it was fitted to few bars.
    """
    from scipy.stats import binom, kstest

    values = probabilities[~np.isnan(probabilities)]
    if len(values) < LEAST_TRANSFORMED:
        return Evenness(len(values), missing=f"{len(values)} forecasts: a histogram needs {LEAST_TRANSFORMED}")
    counts, _ = np.histogram(values, BINS, (0.0, 1.0))
    tail = 0.025 / BINS
    low, high = (int(binom.ppf(q, len(values), 1.0 / BINS)) for q in (tail, 1.0 - tail))
    return Evenness(len(values), tuple(counts.tolist()), low, high, float(kstest(values, "uniform").pvalue))


def _log_likelihood(hits: int, bars: int, share: float) -> float:
    """Return the log likelihood of some hits; 0 × log 0 is 0."""
    missed = bars - hits
    return (hits * math.log(share) if hits else 0.0) + (missed * math.log1p(-share) if missed else 0.0)


def _chi_squared(statistic: float, degrees: int) -> LikelihoodRatio:
    """Return the upper tail of the chi-squared distribution with 1 or 2 degrees of freedom."""
    value = max(0.0, statistic)
    return LikelihoodRatio(value, math.erfc(math.sqrt(value / 2.0)) if degrees == 1 else math.exp(-value / 2.0))
