"""Whether forecasts are better than simpler ones, and whether they tell the way that prices go."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qubic_lab.oracle.analysis.forecast import RULE, ForecastRule, expected_path, steps_of
from qubic_lab.oracle.inference.forecast_significance import (
    TestResult,
    clark_west,
    diebold_mariano,
    pesaran_timmermann,
)
from qubic_lab.oracle.inference.past_forecasts import Days, Estimate, PastForecasts
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import HOUR_US

STAYS = "the price stays"
"""The random walk, which our forecast has in it: slope 0 makes it so. All others stand beside it."""
_STEADY = 0.99


def rival_points(bars: Bars, hours: int, rule: ForecastRule = RULE) -> dict[str, Floats]:
    """Return the log price that simpler forecasts expect at each bar, made from it and earlier ones, [bars].

    They are: the last price; the last price and the mean return of the bars of our regression; the regression line
    itself; and an autoregression of returns on the one before, fitted anew at each bar.

    Raises:
        InputError: as of `forecast.forecast_path`.
    """
    line = expected_path(bars, hours, replace(rule, anchor="line")).point
    return {
        STAYS: bars.log_close,
        "mean return": bars.log_close + _mean_return(bars, rule.window(bars.frame_us)) * hours,
        "the line": line,
        "AR(1)": bars.log_close + _autoregression(bars, steps_of(bars.frame_us, hours), rule),
    }


def _mean_return(bars: Bars, window: int) -> Floats:
    """Return the mean log return of an hour over the last bars, gaps counted by their time, [bars]."""
    found, back = np.full(len(bars), np.nan), window - 1
    if len(bars) > back:
        took = (bars.closed_us[back:] - bars.closed_us[: len(bars) - back]) / HOUR_US
        found[back:] = (bars.log_close[back:] - bars.log_close[: len(bars) - back]) / took
    return found


def _autoregression(bars: Bars, steps: int, rule: ForecastRule) -> Floats:
    """Return the log return over some steps that an AR(1) of returns expects, fitted by least squares, [bars].

    It is fitted to as many returns as set the width of our intervals: the newest `past`, at least `least`. Sums run
    from the first bar on, so that later ones change nothing.
    """
    before, after = bars.step_returns[1:-1], bars.step_returns[2:]
    found, most = np.full(len(bars), np.nan), rule.past
    if len(after) < rule.least:
        return found
    sums = [np.concatenate([[0.0], np.cumsum(each)]) for each in (before, after, before * before, before * after)]
    last = np.arange(rule.least, len(after) + 1)
    first = np.maximum(0, last - most)
    x, y, xx, xy = (each[last] - each[first] for each in sums)
    count = last - first
    variance = xx - x * x / count
    covariance = xy - x * y / count
    slope = np.divide(covariance, variance, out=np.full(len(last), np.nan), where=variance > 1e-9 * xx)
    slope = np.clip(slope, -_STEADY, _STEADY)
    mean = (y - slope * x) / count / (1.0 - slope)
    now = bars.step_returns[rule.least + 1 :]
    found[rule.least + 1 :] = steps * mean + (now - mean) * slope * (1.0 - slope**steps) / (1.0 - slope)
    return found


@dataclass(frozen=True)
class AgainstRival:
    """Our forecasts beside those of another way, on the same bars.

    Attributes:
        error_ratio: our root mean squared error over theirs, below 1 is better.
        absolute_ratio: the same of mean absolute errors.
        test: Clark-West, one-sided, of whether ours knows something that "the price stays" does not; Diebold-Mariano,
            two-sided, against others: below 0 ours is better.
    """

    rival: str
    forecasts: int
    error_ratio: Estimate
    absolute_ratio: Estimate
    test: str
    result: TestResult


@dataclass(frozen=True)
class Errors:
    """Errors of one way to forecast, in % of the price: root mean squared and mean absolute."""

    way: str
    rms_pct: float
    mean_absolute_pct: float


@dataclass(frozen=True)
class Direction:
    """How often the way of the move was right, of forecasts whose price moved.

    Attributes:
        right: the share; `commoner`: the share of moves that went the commoner way, which is as often right without any
            forecast, but knows that way from hindsight.
        result: the test of Pesaran and Timmermann; above 0 forecast and price rise together more often than by chance.
    """

    forecasts: int
    right: Estimate
    commoner: float
    result: TestResult


@dataclass(frozen=True)
class Accuracy:
    """How far off our forecasts were, beside others, and how often they had the way right."""

    errors: tuple[Errors, ...]
    against: tuple[AgainstRival, ...]
    direction: Direction


def accuracy(past: PastForecasts, points: Mapping[str, Floats], days: Days) -> Accuracy:
    """Return how good forecasts of the past were.

    Args:
        past: ours.
        points: of the others, at each bar of the bars that ours are of; bars without one are left out, and so is a
            way that has none at all.
        days: of `past`.
    """
    ours = past.came - past.point
    errors, against = [_errors("our forecast", ours)], []
    for rival, values in points.items():
        theirs = past.came - values[past.place]
        if not np.isnan(theirs).all():
            errors.append(_errors(rival, theirs[~np.isnan(theirs)]))
            against.append(_against(rival, past, ours, theirs, days))
    return Accuracy(tuple(errors), tuple(against), _direction(past, days))


def _errors(way: str, errors: Floats) -> Errors:
    return Errors(way, 100.0 * float(np.sqrt(np.mean(errors**2))), 100.0 * float(np.mean(np.abs(errors))))


def _against(rival: str, past: PastForecasts, ours: Floats, theirs: Floats, days: Days) -> AgainstRival:
    known = ~np.isnan(theirs)
    mine, other = np.where(known, ours, 0.0), np.where(known, theirs, 0.0)
    if rival == STAYS:
        test, moves = "Clark-West", past.point - past.last
        result = clark_west((past.came - past.last)[known], np.zeros(known.sum()), moves[known], past.steps)
    else:
        test, result = "Diebold-Mariano", diebold_mariano(ours[known] ** 2, theirs[known] ** 2, past.steps)
    return AgainstRival(
        rival=rival,
        forecasts=int(known.sum()),
        error_ratio=days.estimate(lambda own, other: np.sqrt(own / other), mine**2, other**2),
        absolute_ratio=days.estimate(np.divide, np.abs(mine), np.abs(other)),
        test=test,
        result=result,
    )


def _direction(past: PastForecasts, days: Days) -> Direction:
    up, rose, moved = past.point > past.last, past.came > past.last, past.moved
    share = float(rose[moved].mean()) if moved.any() else np.nan
    right = days.estimate(np.divide, ((up == rose) & moved).astype(np.float64), moved.astype(np.float64))
    result = pesaran_timmermann(up[moved], rose[moved], past.steps)
    return Direction(int(moved.sum()), right, max(share, 1.0 - share), result)
