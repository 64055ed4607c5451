"""Whether forecasts of losses were right: Kupiec and Christoffersen for value at risk, McNeil-Frey for shortfall."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.candles import Flags, Floats
from qubic_lab.oracle.risk.value_at_risk import TailForecast, check_level

ALPHA = 0.05
LEAST_VIOLATIONS = 5
"""Fewer losses beyond value at risk say nothing on their mean."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """A likelihood-ratio test: its statistic and p-value."""

    statistic: float
    p: float


@dataclass(frozen=True)
class TailTest:
    """How forecasts of losses stood against what came; None with the reason in `absent`.

    Attributes:
        level: of the losses.
        bars: with a forecast made strictly before them.
        violations: losses beyond value at risk; `expected`: as many as there should be.
        unconditional: are there as many as there should be (Kupiec)?
        independent: does none follow another more often than it should (Christoffersen)?
        conditional: both at once.
        shortfall_p: are the mean losses beyond it above expected shortfall (McNeil and Frey)? One-sided.
        shortfall_z: Acerbi and Székely's second statistic, 0 if right. Its 5 % point depends on the bars: at a level of
            2.5 % about −0.7 for 250 and −0.3 for 1,250. No verdict here is by it.
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
    absent: str = ""

    @property
    def p_values(self) -> dict[str, float | None]:
        """The p-value of each test by its name; None where it could not be made."""
        ratios = {"kupiec": self.unconditional, "independence": self.independent, "christoffersen": self.conditional}
        return {**{name: each.p if each else None for name, each in ratios.items()}, "shortfall": self.shortfall_p}

    @property
    def rejected(self) -> dict[str, float]:
        """The tests that reject the forecasts at 5 %, with their p-values."""
        return {name: p for name, p in self.p_values.items() if p is not None and p < ALPHA}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def kupiec(violations: int, bars: int, level: float) -> LikelihoodRatio:
    """Test whether losses beyond value at risk are as many as they should be.

    Source: P. H. Kupiec, "Techniques for verifying the accuracy of risk measurement models", Journal of Derivatives 3
    (1995), 73-84: proportion of failures, chi-squared with 1 degree of freedom.

    Raises:
        InputError: no bars, more violations than bars, or a level that is none.
    """
    check_level(level)
    if not 0 <= violations <= bars or bars == 0:
        raise InputError(f"{violations} violations in {bars} bars: there must be 0 to {bars} of at least 1")
    found = _log_likelihood(violations, bars, violations / bars)
    return _chi_squared(2.0 * (found - _log_likelihood(violations, bars, level)), 1)


def christoffersen(beyond: Flags, level: float) -> tuple[LikelihoodRatio, LikelihoodRatio]:
    """Test whether losses beyond value at risk come independently, and that together with their number.

    Args:
        beyond: whether each bar's loss was beyond it, by time.
        level: of the losses.

    Returns:
        The tests of independence (1 degree of freedom) and of conditional coverage (2).

    Source: P. F. Christoffersen, "Evaluating interval forecasts", International Economic Review 39 (1998), 841-862.
    Both take the first bar as given, so that the second is the sum of the first and of coverage over the other bars.

    Raises:
        InputError: fewer than two bars, or a level that is none.
    """
    check_level(level)
    if len(beyond) < 2:
        raise InputError(f"{len(beyond)} bars: two or more are needed to see whether one follows another")
    before, now = beyond[:-1], beyond[1:]
    counts = {(a, b): int(np.count_nonzero((before == a) & (now == b))) for a in (False, True) for b in (False, True)}
    alone = sum(
        _log_likelihood(counts[a, True], rows, counts[a, True] / rows)
        for a in (False, True)
        if (rows := counts[a, False] + counts[a, True])
    )
    hits, bars = int(now.sum()), len(now)
    same = _log_likelihood(hits, bars, hits / bars)
    independent = 2.0 * (alone - same)
    coverage = 2.0 * (same - _log_likelihood(hits, bars, level))
    return _chi_squared(independent, 1), _chi_squared(independent + coverage, 2)


def shortfall_test(losses: Floats, var: Floats, es: Floats, resamples: int = 1000, seed: int = 0) -> float | None:
    """Test whether losses beyond value at risk are larger, on average, than expected shortfall; the p-value.

    None where fewer than 5 losses are beyond it, or all by the same.

    Args:
        losses: that came, [bars].
        var: forecast before each.
        es: likewise; losses are measured against it in units of itself.
        resamples: of the bootstrap of the mean.
        seed: of the bootstrap.

    Source: A. J. McNeil and R. Frey, Journal of Empirical Finance 7 (2000), 271-300: mean of the residuals of losses
    beyond value at risk, against more than 0, by the bootstrap of B. Efron and R. Tibshirani (1993), section 16.4.
    """
    beyond = losses > var
    residuals = (losses[beyond] - es[beyond]) / es[beyond]
    count = len(residuals)
    if count < LEAST_VIOLATIONS or np.ptp(residuals) <= 1e-12 * np.abs(residuals).max():
        return None
    observed = float(residuals.mean() / residuals.std(ddof=1))
    centred = residuals - residuals.mean()
    drawn = centred[np.random.default_rng(seed).integers(0, count, (resamples, count))]
    spread = drawn.std(axis=1, ddof=1)
    ratios = np.divide(drawn.mean(axis=1), spread, out=np.zeros(resamples), where=spread > 1e-12 * np.abs(drawn).max())
    return float((1 + np.count_nonzero(ratios >= observed)) / (1 + resamples))


def shortfall_statistic(losses: Floats, var: Floats, es: Floats, level: float) -> float:
    """Return Acerbi and Székely's second statistic: 1 − Σ (losses beyond value at risk / es) / (bars × level).

    It is 0 on average where both are right, and below 0 where losses are more or larger than forecast.

    Source: C. Acerbi and B. Székely, "Backtesting expected shortfall", Risk (December 2014), 76-81.
    """
    beyond = losses > var
    return 1.0 - float((losses[beyond] / es[beyond]).sum()) / (len(losses) * check_level(level))


def evaluate_tail(returns: Floats, forecast: TailForecast, seed: int = 0) -> TailTest:
    """Compare each bar's loss with what was forecast at the bar before it.

    Args:
        returns: log returns per bar, [bars].
        forecast: at each bar for the next, [bars].
        seed: of the bootstrap.

    Raises:
        InputError: lengths that differ.
    """
    if returns.shape != forecast.var.shape:
        raise InputError(f"{returns.size} returns and {forecast.var.size} forecasts: give one for each bar")
    losses, var, es = -returns[1:], forecast.var[:-1], forecast.es[:-1]
    known = ~(np.isnan(losses) | np.isnan(var) | np.isnan(es))
    losses, var, es = losses[known], var[known], es[known]
    beyond: NDArray[np.bool_] = losses > var
    bars, violations = len(losses), int(beyond.sum())
    expected = forecast.level * bars
    if expected < 1.0:
        reason = f"{bars} bars with a forecast: too few to expect one loss beyond a level of {forecast.level:g}"
        return TailTest(forecast.level, bars, violations, expected, absent=reason)
    if not (var > 0.0).all() or not (es > 0.0).all():
        reason = "value at risk is 0 or below at some bars: prices hardly vary there"
        return TailTest(forecast.level, bars, violations, expected, absent=reason)
    independent, conditional = christoffersen(beyond, forecast.level)
    return TailTest(
        level=forecast.level,
        bars=bars,
        violations=violations,
        expected=expected,
        unconditional=kupiec(violations, bars, forecast.level),
        independent=independent,
        conditional=conditional,
        shortfall_p=shortfall_test(losses, var, es, seed=seed),
        shortfall_z=shortfall_statistic(losses, var, es, forecast.level),
    )


def _log_likelihood(hits: int, bars: int, share: float) -> float:
    """Return the log likelihood of some hits; 0 × log 0 is 0."""
    missed = bars - hits
    return (hits * math.log(share) if hits else 0.0) + (missed * math.log1p(-share) if missed else 0.0)


def _chi_squared(statistic: float, degrees: int) -> LikelihoodRatio:
    """Return the upper tail of the chi-squared distribution with 1 or 2 degrees of freedom."""
    value = max(0.0, statistic)
    return LikelihoodRatio(value, math.erfc(math.sqrt(value / 2.0)) if degrees == 1 else math.exp(-value / 2.0))
