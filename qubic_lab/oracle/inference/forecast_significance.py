"""Tests of forecasts: Clark-West of nested ones, Diebold-Mariano of others, Pesaran-Timmermann of the way of moves."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.bootstrap import is_constant
from qubic_lab.oracle.inference.performance import LEAST_BARS, hac_variance
from qubic_lab.oracle.model.bars import Floats


@dataclass(frozen=True)
class TestResult:
    """A test's statistic and p-value; None where there is none, with the reason in `absent`."""

    __test__ = False  # pytest would take it for a test

    statistic: float | None
    p: float | None
    absent: str = ""


def clark_west(outcome: ArrayLike, small: ArrayLike, large: ArrayLike, horizon: int = 1) -> TestResult:
    """Test whether a model forecasts better than one that is nested in it, such as the random walk; one-sided.

    The larger model's forecasts are noisier where its extra terms are worth nothing: that noise is taken off its
    squared error first.

    Args:
        outcome: what came, [forecasts].
        small: forecasts of the nested model, such as zeros.
        large: forecasts of the larger one.
        horizon: bars ahead; forecasts overlap where it is above 1.

    Source: T. E. Clark and K. D. West, Journal of Econometrics 138 (2007), 291-311; the error: `_overlap_variance`.

    Raises:
        InputError: unequal lengths, or values that are no numbers.
    """
    came, first, second = _read(outcome, small, large)
    check_at_least("horizon", horizon, 1)
    gain = (came - first) ** 2 - ((came - second) ** 2 - (first - second) ** 2)
    return _mean_above_0(gain, horizon)


def diebold_mariano(first_loss: ArrayLike, second_loss: ArrayLike, horizon: int = 1) -> TestResult:
    """Test whether two forecasts, neither nested in the other, lose equally; two-sided; below 0: the first loses less.

    Args:
        first_loss: such as squared errors, [forecasts].
        second_loss: of the other one.
        horizon: bars ahead.

    Source: F. X. Diebold and R. S. Mariano, Journal of Business & Economic Statistics 13 (1995), 253-263; the
    correction and Student's t: D. Harvey, S. Leybourne and P. Newbold, International Journal of Forecasting 13
    (1997), 281-291.

    Raises:
        InputError: unequal lengths, or values that are no numbers.
    """
    from scipy.stats import t

    first, second = _read(first_loss, second_loss)
    check_at_least("horizon", horizon, 1)
    difference = first - second
    if reason := _unfit(difference, horizon):
        return TestResult(None, None, reason)
    count, variance = len(difference), _overlap_variance(difference, horizon)
    correction = (count + 1 - 2 * horizon + horizon * (horizon - 1) / count) / count
    if not correction > 0.0:
        return TestResult(None, None, f"{count} forecasts are too few for a horizon of {horizon}")
    statistic = float(difference.mean()) / math.sqrt(variance / count) * math.sqrt(correction)
    return TestResult(statistic, float(2.0 * t.sf(abs(statistic), count - 1)))


def pesaran_timmermann(foretold: ArrayLike, rose: ArrayLike, horizon: int = 1) -> TestResult:
    """Test whether forecasts and outcomes go up together more often than by chance; one-sided.

    It is the mean of (foretold − its mean) (rose − its mean) over its error, so a market that mostly rises does not
    flatter forecasts that mostly say so.

    Args:
        foretold: 1 or true where a rise is forecast, [forecasts].
        rose: likewise what came.
        horizon: bars ahead.

    Source: M. H. Pesaran and A. Timmermann, Journal of Business & Economic Statistics 10 (1992), 461-465; with a HAC
    error, as outcomes that overlap need: Journal of the American Statistical Association 104 (2009), 325-337.

    Raises:
        InputError: unequal lengths, or values that are no numbers.
    """
    said, came = _read(foretold, rose)
    check_at_least("horizon", horizon, 1)
    for what, values in (("forecast", said), ("outcome", came)):
        if len(values) >= LEAST_BARS and is_constant(values):
            return TestResult(None, None, f"every {what} is the same way")
    return _mean_above_0((said - said.mean()) * (came - came.mean()), horizon)


def _mean_above_0(values: Floats, horizon: int) -> TestResult:
    """Test whether the mean of values that overlap is above 0, by the normal distribution."""
    if reason := _unfit(values, horizon):
        return TestResult(None, None, reason)
    statistic = float(values.mean()) / math.sqrt(_overlap_variance(values, horizon) / len(values))
    return TestResult(statistic, 0.5 * math.erfc(statistic / math.sqrt(2.0)))


def _overlap_variance(values: Floats, horizon: int) -> float:
    """Return the long-run variance from the autocovariances up to `horizon` − 1, which is as far as forecasts overlap.

    They count in full: Bartlett's weights would leave a third of it out, and tests of forecasts that overlap by 15 of
    16 bars then find at 5 % something on 12 of 100 random walks. Only where the sum is not above 0 they are taken.

    Source: L. P. Hansen and R. J. Hodrick, Journal of Political Economy 88 (1980), 829-853.
    """
    centred = values - values.mean()
    terms = (float(centred[lag:] @ centred[:-lag]) for lag in range(1, horizon))
    variance = (float(centred @ centred) + 2.0 * sum(terms)) / len(values)
    return variance if variance > 0.0 else hac_variance(values, horizon - 1)


def _read(*columns: ArrayLike) -> tuple[Floats, ...]:
    values = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    shapes = {column.shape for column in values}
    if len(shapes) > 1 or values[0].ndim != 1:
        raise InputError(f"forecasts and outcomes have shapes {sorted(shapes)}: give one number of each for each bar")
    if not all(np.isfinite(column).all() for column in values):
        raise InputError("a forecast or an outcome is no number: leave out bars that lack one")
    return values


def _unfit(values: Floats, horizon: int) -> str:
    if len(values) < LEAST_BARS:
        return f"{len(values)} forecasts: fewer than {LEAST_BARS} say nothing"
    if horizon >= len(values):
        return f"{len(values)} forecasts are too few for a horizon of {horizon}"
    if not is_constant(values):
        return ""
    if not values.any():
        return "the forecasts are equally good at every bar"
    return f"every bar says the same ({values[0]:.3g}): without any spread nothing tells how sure that is"
