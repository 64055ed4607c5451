"""Accuracy of past forecasts beside baselines, with the tests of Clark-West, Diebold-Mariano and Pesaran-Timmermann."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.analysis.forecast import RULE, expected_path, regression, steps_of
from qubic_lab.oracle.backtest.past_forecasts import DailyEstimate, DayBootstrap, PastForecasts
from qubic_lab.oracle.inference.performance import LEAST_BARS, hac_variance
from qubic_lab.oracle.model.bars import Bars, Floats, is_constant
from qubic_lab.oracle.model.timestamps import HOUR_US

STAYS = "the price stays"
"""The random walk. It is nested in our forecast, which equals it where the slope is 0."""
_STEADY = 0.99


def baseline_points(bars: Bars, hours: int) -> dict[str, Floats]:
    """Return the log price that simpler forecasts expect at each bar, from that bar and earlier ones, [bars] each.

    They are: the last price; the last price plus the mean return of our regression's bars; the regression line itself;
    and a first-order autoregression of returns, fitted anew at each bar.
    """
    line = expected_path(bars, hours).point + regression(bars).end
    return {
        STAYS: bars.log_close,
        "mean return": bars.log_close + _mean_return(bars, RULE.window(bars.frame_us)) * hours,
        "the line": line,
        "AR(1)": bars.log_close + _autoregression(bars, steps_of(bars.frame_us, hours)),
    }


def _mean_return(bars: Bars, window: int) -> Floats:
    """Return the mean log return per hour over the last bars, by calendar time, [bars]."""
    found, back = np.full(len(bars), np.nan), window - 1
    if len(bars) > back:
        took = (bars.closed_us[back:] - bars.closed_us[: len(bars) - back]) / HOUR_US
        found[back:] = (bars.log_close[back:] - bars.log_close[: len(bars) - back]) / took
    return found


def _autoregression(bars: Bars, steps: int) -> Floats:
    """Return the log return over some steps that an AR(1) of returns expects, fitted by least squares, [bars].

    It is fitted to as many returns as our intervals: the newest `past`, at least `least`. Sums run from the first bar,
    so that later bars change nothing.
    """
    before, after = bars.step_returns[1:-1], bars.step_returns[2:]
    found = np.full(len(bars), np.nan)
    if len(after) < RULE.least:
        return found
    sums = [np.concatenate([[0.0], np.cumsum(each)]) for each in (before, after, before * before, before * after)]
    last = np.arange(RULE.least, len(after) + 1)
    first = np.maximum(0, last - RULE.past)
    x, y, xx, xy = (each[last] - each[first] for each in sums)
    count = last - first
    variance = xx - x * x / count
    covariance = xy - x * y / count
    slope = np.divide(covariance, variance, out=np.full(len(last), np.nan), where=variance > 1e-9 * xx)
    slope = np.clip(slope, -_STEADY, _STEADY)
    mean = (y - slope * x) / count / (1.0 - slope)
    now = bars.step_returns[RULE.least + 1 :]
    found[RULE.least + 1 :] = steps * mean + (now - mean) * slope * (1.0 - slope**steps) / (1.0 - slope)
    return found


@dataclass(frozen=True)
class ForecastTest:
    """The statistic and p-value of a test; None if it cannot be computed, then `absent` says why."""

    statistic: float | None
    p: float | None
    absent: str = ""


def clark_west(outcome: ArrayLike, small: ArrayLike, large: ArrayLike, horizon: int = 1) -> ForecastTest:
    """Test whether a large model forecasts better than a small one nested in it, such as the random walk; one-sided.

    If its additional terms are worth nothing, the larger model's forecasts are noisier; that noise is subtracted from
    its squared error. All are [forecasts]; with a horizon above 1 bar forecasts overlap.

    Source: T. E. Clark and K. D. West, Journal of Econometrics 138 (2007), 291-311; the error: `_overlap_variance`.

    Raises:
        InputError: unequal lengths, or values that are not finite.
    """
    came, first, second = _read(horizon, outcome, small, large)
    gain = (came - first) ** 2 - ((came - second) ** 2 - (first - second) ** 2)
    return _mean_above_0(gain, horizon)


def diebold_mariano(first_loss: ArrayLike, second_loss: ArrayLike, horizon: int = 1) -> ForecastTest:
    """Test whether two forecasts, neither nested in the other, have equal losses, two-sided; below 0: the first wins.

    Losses are such as squared errors, [forecasts]; the horizon is in bars.

    Source: F. X. Diebold and R. S. Mariano, Journal of Business & Economic Statistics 13 (1995), 253-263; the
    correction and Student's t: D. Harvey, S. Leybourne and P. Newbold, International Journal of Forecasting 13
    (1997), 281-291.

    Raises:
        InputError: unequal lengths, or values that are not finite.
    """
    from scipy.stats import t

    first, second = _read(horizon, first_loss, second_loss)
    difference = first - second
    if reason := _unfit(difference, horizon):
        return ForecastTest(None, None, reason)
    count, variance = len(difference), _overlap_variance(difference, horizon)
    correction = (count + 1 - 2 * horizon + horizon * (horizon - 1) / count) / count
    if not correction > 0.0:
        return ForecastTest(None, None, f"{count} forecasts are too few for a horizon of {horizon}")
    statistic = float(difference.mean()) / math.sqrt(variance / count) * math.sqrt(correction)
    return ForecastTest(statistic, float(2.0 * t.sf(abs(statistic), count - 1)))


def pesaran_timmermann(predicted: ArrayLike, rose: ArrayLike, horizon: int = 1) -> ForecastTest:
    """Test whether forecasts and outcomes move up together more often than by chance; one-sided.

    The statistic is the mean of (predicted − its mean) (rose − its mean) over its error, so forecasts that mostly say
    "up" gain nothing from a rising market. Both are 1 or true for an up move, [forecasts]; the horizon is in bars.

    Source: M. H. Pesaran and A. Timmermann, Journal of Business & Economic Statistics 10 (1992), 461-465; with a HAC
    error, as outcomes that overlap need: Journal of the American Statistical Association 104 (2009), 325-337.

    Raises:
        InputError: unequal lengths, or values that are not finite.
    """
    said, came = _read(horizon, predicted, rose)
    for what, values in (("forecast", said), ("outcome", came)):
        if len(values) >= LEAST_BARS and is_constant(values):
            return ForecastTest(None, None, f"every {what} has the same direction")
    return _mean_above_0((said - said.mean()) * (came - came.mean()), horizon)


def _mean_above_0(values: Floats, horizon: int) -> ForecastTest:
    """Test whether the mean of overlapping values is above 0, by the normal distribution."""
    if reason := _unfit(values, horizon):
        return ForecastTest(None, None, reason)
    statistic = float(values.mean()) / math.sqrt(_overlap_variance(values, horizon) / len(values))
    return ForecastTest(statistic, 0.5 * math.erfc(statistic / math.sqrt(2.0)))


def _overlap_variance(values: Floats, horizon: int) -> float:
    """Return the long-run variance from the autocovariances up to lag `horizon` − 1, as far as forecasts overlap.

    They have full weight: Bartlett's weights lose a third of it, and then 12 of 100 random walks are rejected at 5 %
    if forecasts overlap by 15 of 16 bars. Bartlett's weights are used if the sum is not above 0.

    Source: L. P. Hansen and R. J. Hodrick, Journal of Political Economy 88 (1980), 829-853.
    """
    centred = values - values.mean()
    terms = (float(centred[lag:] @ centred[:-lag]) for lag in range(1, horizon))
    variance = (float(centred @ centred) + 2.0 * sum(terms)) / len(values)
    return variance if variance > 0.0 else hac_variance(values, horizon - 1)


def _read(horizon: int, *columns: ArrayLike) -> tuple[Floats, ...]:
    check_at_least("horizon", horizon, 1)
    values = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    shapes = {column.shape for column in values}
    if len(shapes) > 1 or values[0].ndim != 1:
        raise InputError(f"forecasts and outcomes have shapes {sorted(shapes)}: give one number of each for each bar")
    if not all(np.isfinite(column).all() for column in values):
        raise InputError("a forecast or an outcome is not finite: leave out bars without one")
    return values


def _unfit(values: Floats, horizon: int) -> str:
    if len(values) < LEAST_BARS:
        return f"{len(values)} forecasts: at least {LEAST_BARS} are needed"
    if horizon >= len(values):
        return f"{len(values)} forecasts are too few for a horizon of {horizon}"
    if not is_constant(values):
        return ""
    if not values.any():
        return "the forecasts are equally good at every bar"
    return f"every bar gives the same value ({values[0]:.3g}): without variation there is no error"


@dataclass(frozen=True)
class BaselineComparison:
    """Our root mean squared error over that of a baseline on the same bars (below 1 is better), and a test.

    Against "the price stays" it is Clark-West, one-sided; against others Diebold-Mariano, two-sided, where a statistic
    below 0 means that ours is better.
    """

    baseline: str
    error_ratio: DailyEstimate
    test: str
    result: ForecastTest


@dataclass(frozen=True)
class ForecastErrors:
    """Errors of one forecast in % of the price: root mean squared and mean absolute."""

    forecast: str
    rms_pct: float
    mean_absolute_pct: float


@dataclass(frozen=True)
class DirectionAccuracy:
    """The share of correct directions, over the forecasts whose price moved, and the test of Pesaran and Timmermann.

    `majority` is the share of moves in the more frequent direction, which a constant forecast gets with hindsight.
    """

    correct: DailyEstimate
    majority: float
    result: ForecastTest


@dataclass(frozen=True)
class ForecastAccuracy:
    """Errors of our forecasts beside those of baselines, and the accuracy of their direction."""

    errors: tuple[ForecastErrors, ...]
    comparisons: tuple[BaselineComparison, ...]
    direction: DirectionAccuracy


def accuracy(past: PastForecasts, points: Mapping[str, Floats], days: DayBootstrap) -> ForecastAccuracy:
    """Return the accuracy of past forecasts beside the log prices that baselines expect, [bars] each.

    Bars without such a price are left out, and so is a baseline that has none at all. `days` is that of `past`.
    """
    ours = past.came - past.point
    errors, comparisons = [_errors("our forecast", ours)], []
    for baseline, values in points.items():
        theirs = past.came - values[past.place]
        if not np.isnan(theirs).all():
            errors.append(_errors(baseline, theirs[~np.isnan(theirs)]))
            comparisons.append(_compare(baseline, past, ours, theirs, days))
    return ForecastAccuracy(tuple(errors), tuple(comparisons), _direction(past, days))


def _errors(forecast: str, errors: Floats) -> ForecastErrors:
    return ForecastErrors(forecast, 100.0 * float(np.sqrt(np.mean(errors**2))), 100.0 * float(np.mean(np.abs(errors))))


def _compare(
    baseline: str, past: PastForecasts, ours: Floats, theirs: Floats, days: DayBootstrap
) -> BaselineComparison:
    known = ~np.isnan(theirs)
    mine, other = np.where(known, ours, 0.0), np.where(known, theirs, 0.0)
    if baseline == STAYS:
        test, moves = "Clark-West", past.point - past.last
        result = clark_west((past.came - past.last)[known], np.zeros(known.sum()), moves[known], past.steps)
    else:
        test, result = "Diebold-Mariano", diebold_mariano(ours[known] ** 2, theirs[known] ** 2, past.steps)
    ratio = days.estimate(lambda own, other: np.sqrt(own / other), mine**2, other**2)
    return BaselineComparison(baseline, ratio, test, result)


def _direction(past: PastForecasts, days: DayBootstrap) -> DirectionAccuracy:
    up, rose, moved = past.point > past.last, past.came > past.last, past.moved
    share = float(rose[moved].mean()) if moved.any() else np.nan
    correct = days.estimate(np.divide, ((up == rose) & moved).astype(np.float64), moved.astype(np.float64))
    result = pesaran_timmermann(up[moved], rose[moved], past.steps)
    return DirectionAccuracy(correct, max(share, 1.0 - share), result)
