"""Whether one forecast is better than another: Clark-West for nested ones, Diebold-Mariano for others."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.performance import LEAST_BARS, hac_variance, newey_west_lags
from qubic_lab.oracle.resampling import Floats, is_constant


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

    Source: T. E. Clark and K. D. West, Journal of Econometrics 138 (2007), 291-311; HAC error by Newey and West.

    Raises:
        InputError: unequal lengths, or values that are no numbers.
    """
    came, first, second = _read(outcome, small, large)
    check_at_least("horizon", horizon, 1)
    gain = (came - first) ** 2 - ((came - second) ** 2 - (first - second) ** 2)
    if reason := _unfit(gain):
        return TestResult(None, None, reason)
    lags = newey_west_lags(len(gain), horizon) if horizon > 1 else 0
    statistic = float(gain.mean()) / math.sqrt(hac_variance(gain, lags) / len(gain))
    return TestResult(statistic, _normal_tail(statistic))


def diebold_mariano(first_loss: ArrayLike, second_loss: ArrayLike, horizon: int = 1) -> TestResult:
    """Test whether two forecasts, neither nested in the other, lose equally; two-sided; below 0: the first loses less.

    Args:
        first_loss: such as squared errors, [forecasts].
        second_loss: of the other one.
        horizon: bars ahead.

    Where the variance from the autocovariances up to `horizon` − 1 is not above 0, Bartlett's weights are taken.

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
    if reason := _unfit(difference):
        return TestResult(None, None, reason)
    count = len(difference)
    if horizon >= count:
        return TestResult(None, None, f"{count} forecasts are too few for a horizon of {horizon}")
    centred = difference - difference.mean()
    variance = float(centred @ centred) / count
    variance += 2.0 * sum(float(centred[lag:] @ centred[:-lag]) / count for lag in range(1, horizon))
    if not variance > 0.0:
        variance = hac_variance(difference, horizon - 1)
    correction = (count + 1 - 2 * horizon + horizon * (horizon - 1) / count) / count
    if not correction > 0.0:
        return TestResult(None, None, f"{count} forecasts are too few for a horizon of {horizon}")
    statistic = float(difference.mean()) / math.sqrt(variance / count) * math.sqrt(correction)
    return TestResult(statistic, float(2.0 * t.sf(abs(statistic), count - 1)))


def _normal_tail(statistic: float) -> float:
    return 0.5 * math.erfc(statistic / math.sqrt(2.0))


def _read(*columns: ArrayLike) -> tuple[Floats, ...]:
    values = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    shapes = {column.shape for column in values}
    if len(shapes) > 1 or values[0].ndim != 1:
        raise InputError(f"forecasts and outcomes have shapes {sorted(shapes)}: give one number of each for each bar")
    if not all(np.isfinite(column).all() for column in values):
        raise InputError("a forecast or an outcome is no number: leave out bars that lack one")
    return values


def _unfit(values: Floats) -> str:
    if len(values) < LEAST_BARS:
        return f"{len(values)} forecasts: fewer than {LEAST_BARS} say nothing"
    return "the forecasts are equally good at every bar" if is_constant(values) else ""
