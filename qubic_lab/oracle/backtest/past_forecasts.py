"""Past forecasts that can be judged, each made from the bars before it; and a bootstrap over days for their figures."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.analysis.forecast import RULE, ForecastRule, expected_path, known_errors, steps_of
from qubic_lab.oracle.inference.bootstrap import RESAMPLES, resampled_weights
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_DAYS = 10
"""Intervals come from resampled days; fewer do not show how days differ."""
MOST_HOURS = 12
"""Forecasts over more than half a day correlate neighbouring days, which makes intervals over days too narrow."""


@dataclass(frozen=True)
class DailyEstimate:
    """A figure with its 95 % interval over resampled days; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class PastForecasts:
    """Past forecasts with an interval and a known outcome, in order of time, [forecasts].

    Attributes:
        steps: number of bars from a forecast to its outcome.
        place: row of the bar at which the forecast is made; `later`: row of the bar of the outcome.
        last: log price at `place`; `point`: the expected log price; `came`: the log price at `later`.
        scale: see `forecast.ForecastPath`.
        known: number of past errors that were known.
        below: number of these that were smaller than the forecast's own error, each over its scale.
        nearer: number of these that were smaller than the distance from `last` to `point`, over the scale.
        reach: half width of the interval of each level, [forecasts, levels].
        flat: a constant spread: root mean square of all returns so far, times √steps.
    """

    hours: int
    steps: int
    levels: tuple[float, ...]
    closed_us: Integers
    place: NDArray[np.intp]
    later: NDArray[np.intp]
    last: Floats
    point: Floats
    came: Floats
    scale: Floats
    known: NDArray[np.intp]
    below: NDArray[np.intp]
    nearer: NDArray[np.intp]
    reach: Floats
    flat: Floats

    def __len__(self) -> int:
        return len(self.place)

    @property
    def apart(self) -> int:
        """Number of forecasts that do not overlap."""
        return len(self) // self.steps

    @property
    def moved(self) -> NDArray[np.bool_]:
        """Whether the price moved."""
        return np.not_equal(self.came, self.last)


def past_forecasts(
    bars: Bars, hours: int, rule: ForecastRule = RULE, levels: Sequence[float] = LEVELS
) -> PastForecasts | Missing:
    """Return the past forecasts that can be judged, each made from the bars before it; or why there are none.

    Raises:
        InputError: less than 1 hour, or a level for which the rule's least number of past errors is too small.
    """
    check_at_least("hours to forecast", hours, 1)
    for level in levels:
        replace(rule, coverage=level)
    if hours > MOST_HOURS:
        return Missing(
            reason=f"forecasts over {hours} h overlap much with the next day: at most {MOST_HOURS} h can be judged"
        )
    if bars.frame_us > hours * HOUR_US:
        return Missing(reason=f"bars of {_length(bars.frame_us)} are longer than {hours} h")
    if hours * HOUR_US % bars.frame_us:
        return Missing(reason=f"bars of {_length(bars.frame_us)} do not divide {hours} h")
    expected = expected_path(bars, hours, rule)
    scores, known_at = known_errors(bars, expected)
    place = np.flatnonzero((expected.later >= 0) & ~np.isnan(expected.scale) & (known_at >= rule.least))
    closed_us = bars.closed_us[place]
    if len(np.unique(closed_us // DAY_US)) < LEAST_DAYS or closed_us[-1] - closed_us[0] < LEAST_DAYS * DAY_US:
        return Missing(reason=_why_not(bars, place, hours, rule))
    last, later = bars.log_close[place], expected.later[place]
    point, scale, came = expected.point[place], expected.scale[place], bars.log_close[later]
    if np.array_equal(came, last):
        return Missing(reason=f"the price is the same {hours} h later at every bar")
    asked = np.abs(np.stack([came - point, point - last])) / scale
    below, nearer, reach = _ranked(scores, known_at[place], asked, rule.past, levels)
    steps = steps_of(bars.frame_us, hours)
    squares = np.cumsum(bars.step_returns**2)[place] / np.maximum(1, place)
    return PastForecasts(
        hours=hours,
        steps=steps,
        levels=tuple(levels),
        closed_us=closed_us,
        place=place,
        later=later,
        last=last,
        point=point,
        came=came,
        scale=scale,
        known=np.minimum(known_at[place], rule.past),
        below=below,
        nearer=nearer,
        reach=reach * scale[:, None],
        flat=np.sqrt(squares * steps),
    )


def _why_not(bars: Bars, place: NDArray[np.intp], hours: int, rule: ForecastRule) -> str:
    if len(bars) > 1 and not np.ptp(bars.log_close):
        return f"the price did not move in {len(bars)} bars"
    steps = steps_of(bars.frame_us, hours)
    needed = rule.warm_up(bars.frame_us, hours) + LEAST_DAYS * DAY_US // bars.frame_us + steps + 1
    if len(bars) < needed:
        return f"{needed} bars of {_length(bars.frame_us)} are needed, {len(bars)} are known"
    return (
        f"{len(place)} forecasts in {len(bars)} bars are too few to judge: too many bars are missing, or the price "
        "stands still"
    )


def _length(frame_us: int) -> str:
    if frame_us % DAY_US == 0:
        return f"{frame_us // DAY_US} day{'s' if frame_us > DAY_US else ''}"
    return f"{frame_us / HOUR_US:g} h" if frame_us >= HOUR_US else f"{60 * frame_us / HOUR_US:g} min"


def _ranked(
    scores: Floats, known: NDArray[np.intp], asked: Floats, past: int, levels: Sequence[float]
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return the number of known scores below two values of each forecast, and the conformal quantile of each level.

    Args:
        scores: of all past errors, in order of time.
        known: number of scores that are known at each forecast, of which the last `past` count, [forecasts].
        asked: the two values, [2, forecasts].
        past: see `known`.
        levels: of the quantiles.
    """
    ranks, reach = np.empty((2, len(known)), np.intp), np.empty((len(known), len(levels)))
    values, ranked, taken = scores.tolist(), list[float](), 0
    for row, (count, first, second) in enumerate(zip(known.tolist(), *asked.tolist(), strict=True)):
        for new in range(taken, count):
            bisect.insort(ranked, values[new])
            if new >= past:
                del ranked[bisect.bisect_left(ranked, values[new - past])]
        taken = count
        ranks[:, row] = bisect.bisect_left(ranked, first), bisect.bisect_left(ranked, second)
        reach[row] = [ranked[math.ceil(level * (len(ranked) + 1)) - 1] for level in levels]
    return ranks[0], ranks[1], reach


class DayBootstrap:
    """A bootstrap over whole days: neighbouring forecasts overlap and are correlated, days are nearly independent.

    The spread of resampled days is too small by √(1 − 1 / days), and with few days it is uncertain: intervals are
    widened by the former, and by Student's t over the normal quantile.

    Source: the cluster bootstrap, A. C. Davison and D. V. Hinkley, "Bootstrap methods and their application" (1997),
    section 3.8.
    """

    def __init__(self, closed_us: Integers, resamples: int = RESAMPLES, seed: int = 0) -> None:
        days, self._which = np.unique(closed_us // DAY_US, return_inverse=True)
        self._weights = np.concatenate(list(resampled_weights(len(days), 1.0, resamples, seed)))
        self._wider = _widening(len(days))

    def estimate(self, function: Callable[..., Floats], *columns: Floats) -> DailyEstimate:
        """Return a function of the sums of columns with its interval; the function also takes arrays of sums.

        A single day has no interval: its ends are NaN.
        """
        sums = [np.bincount(self._which, column) for column in columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(function(*(np.asarray(each.sum()) for each in sums)))
            drawn = function(*(self._weights @ each for each in sums))
        known = drawn[np.isfinite(drawn)]
        if self._wider is None or not known.size:
            return DailyEstimate(value, math.nan, math.nan)
        low, high = value + self._wider * (np.quantile(known, (0.025, 0.975)) - value)
        return DailyEstimate(value, float(low), float(high))

    def share(self, happened: NDArray[np.bool_]) -> DailyEstimate:
        """Return the share of forecasts for which something happened."""
        found = self.estimate(np.divide, happened.astype(np.float64), np.ones(len(happened)))
        low, high = np.clip((found.low, found.high), 0.0, 1.0)
        return DailyEstimate(found.value, float(low), float(high))


def _widening(days: int) -> float | None:
    """Return the factor by which intervals are widened; None for a single day."""
    from scipy.stats import norm, t

    if days < 2:
        return None
    return float(t.ppf(0.975, days - 1) / norm.ppf(0.975)) * math.sqrt(days / (days - 1))
