"""Where the price may be in 1 to 4 hours: linear regression, with intervals that past errors have calibrated.

The textbook interval of a regression supposes independent errors about a line. Prices are closer to a random walk, on
which it holds the later price far too seldom. So the interval's width comes from this forecast's own errors on the
same series: each made strictly before the price that it missed, and all of them known at the bar that is forecast from.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import talib
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.analysis.trend import WINDOW, regression_lines, spread
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import HOUR_US

HOURS = (1, 2, 3, 4)
Anchor = Literal["last", "line"]
_ANCHORS: tuple[Anchor, ...] = ("last", "line")
_MOST_HOURS = 24.0 * 365.0
NO_SPREAD = 1e-9
"""Returns of less than this on average are none: the price stood still."""


@dataclass(frozen=True)
class ForecastRule:
    """How forecasts are made.

    Attributes:
        hours: the regression of log price on time is over bars of so many hours, and over `bars` of them at least. On
            a random walk a slope over w hours makes a forecast of h hours worse than "the price stays" by 6h/5w of its
            mean squared error: so many hours, whatever the bars' length.
        anchor: last: the line's slope goes on from the last price; line: the line itself goes on. On a random walk the
            last price is off the line by more than it moves in an hour, so a forecast from the line is far worse.
        past: so many of the newest known errors set the width.
        least: with fewer there is no interval, and no forecast.
        coverage: the share of later prices that the interval should hold.
    """

    hours: float = 48.0
    bars: int = WINDOW
    anchor: Anchor = "last"
    past: int = 480
    least: int = 96
    coverage: float = 0.8

    def __post_init__(self) -> None:
        check_at_least("bars of the regression", self.bars, 3)
        if not 0.0 <= self.hours <= _MOST_HOURS:
            raise InputError(f"hours of the regression are {self.hours}: they must be 0 to {_MOST_HOURS:g}")
        check_choice("anchor", self.anchor, _ANCHORS)
        if not 0.0 < self.coverage < 1.0:
            raise InputError(f"coverage is {self.coverage}: it must lie between 0 and 1")
        if not math.ceil(self.coverage * (self.least + 1)) <= self.least <= self.past:
            raise InputError(
                f"past errors: at least {self.least} of {self.past}: give at least as many as an interval of "
                f"{self.coverage:.0%} needs, and no more than are looked at"
            )

    def window(self, frame_us: int) -> int:
        """Return how many bars of a length the regression is over."""
        return max(self.bars, round(self.hours * HOUR_US / frame_us))

    def warm_up(self, frame_us: int, hours: int) -> int:
        """Return how many bars come before the first interval, where none is missing."""
        return self.window(frame_us) + self.least + steps_of(frame_us, hours) - 1


RULE = ForecastRule()


@dataclass(frozen=True)
class ExpectedPath:
    """What each bar expects, before past errors say how sure that is, [bars]; in log price, NaN where there is none.

    Attributes:
        point: the log price that is expected so many hours later.
        scale: how far prices spread in that time, were returns like those of the regression's bars.
        later: place of the bar that closes then, or −1 where there is none (yet).
    """

    point: Floats
    scale: Floats
    later: NDArray[np.intp]


@dataclass(frozen=True)
class ForecastPath:
    """The forecasts that each bar gives, [bars]; all in log price, NaN where there is none.

    Attributes:
        point: the log price that is expected so many hours later.
        half_width: the interval is point ± this.
        later: place of the bar that closes then, or −1 where there is none (yet).
    """

    point: Floats
    half_width: Floats
    later: NDArray[np.intp]


@dataclass(frozen=True)
class Forecast:
    """What is expected so many hours after the last bar.

    Attributes:
        at_us: the instant that it is about.
        price: the median; `low` and `high`: the interval that should hold `coverage` of later prices.
        errors: past forecasts of this series that set the width.
        held: the share of later prices that the intervals of those `held_of` past forecasts held that had one; None
            where none had.
        skill: 1 − mean squared error / that of "the price stays": above 0 is better than that. None where the price
            stood still.
        skill_t: difference of squared errors over its standard error (Diebold and Mariano 1995, with errors of
            overlapping forecasts taken as dependent, and the correction of Harvey, Leybourne and Newbold 1997): below
            1.96 there is no evidence that the forecast beats "the price stays".
    """

    hours: int
    at_us: int
    price: float
    low: float
    high: float
    coverage: float
    errors: int
    held: float | None
    held_of: int
    skill: float | None
    skill_t: float | None
    text: str


def forecast_path(bars: Bars, hours: int, rule: ForecastRule = RULE) -> ForecastPath:
    """Return the forecast of each bar with its interval, made from that bar and earlier ones.

    The interval is symmetric: the conformal quantile of past errors, each over the spread of returns at its time, times
    the spread now (split conformal prediction with normalised scores, Lei and others, JASA 2018; here over past errors
    in order of time). A past forecast counts where a bar closes within half a bar of its time, so not over gaps.

    Raises:
        InputError: not 1 hour or more, or bars that are longer than the time to forecast.
    """
    expected = expected_path(bars, hours, rule)
    return ForecastPath(expected.point, _quantiles(bars, expected, rule) * expected.scale, expected.later)


def expected_path(bars: Bars, hours: int, rule: ForecastRule = RULE) -> ExpectedPath:
    """Return what each bar expects, made from that bar and earlier ones.

    Raises:
        InputError: as of `forecast_path`.
    """
    check_at_least("hours to forecast", hours, 1)
    if bars.frame_us > hours * HOUR_US:
        raise InputError(f"bars of {bars.frame_us / HOUR_US:g} h cannot forecast {hours} h: take shorter bars")
    count, window = len(bars), rule.window(bars.frame_us)
    if count < window:
        return ExpectedPath(np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1))
    lines = bars.once(f"lines of {window}", lambda each: regression_lines(each.closed_us, each.log_close, window))
    squares = bars.once(f"spread of {window}", lambda each: spread(each, window) ** 2)
    point = bars.log_close + lines.slope * hours
    if rule.anchor == "line":
        point = point + lines.end
    scale = np.sqrt(squares * hours * HOUR_US / bars.frame_us)
    scale[~(scale > NO_SPREAD)] = np.nan
    return ExpectedPath(point, scale, _later(bars, hours * HOUR_US))


def known_errors(bars: Bars, expected: ExpectedPath) -> tuple[Floats, NDArray[np.intp]]:
    """Return past errors, each over its scale, in order of time, and how many of them are known at each bar, [bars]."""
    made = np.flatnonzero((expected.later >= 0) & ~np.isnan(expected.scale))
    came = expected.later[made]
    scores = np.abs(bars.log_close[came] - expected.point[made]) / expected.scale[made]
    return scores, np.searchsorted(came, np.arange(len(bars)), side="right")


def _later(bars: Bars, wait_us: int) -> NDArray[np.intp]:
    """Return the place of the bar that closes nearest to `wait_us` after each, within half a bar; −1: there is none."""
    target, half = bars.closed_us + wait_us, bars.frame_us // 2
    place = np.searchsorted(bars.closed_us, target + half, side="right") - 1
    return np.where(bars.closed_us[place] >= target - half, place, -1)


def _quantiles(bars: Bars, expected: ExpectedPath, rule: ForecastRule) -> Floats:
    """Return by how many scales the interval reaches to each side at each bar, from the errors known there."""
    scores, known_at = known_errors(bars, expected)
    at_count = np.full(len(scores) + 1, np.nan)  # by how many errors are known
    ranked: list[float] = []
    for known, score in enumerate(scores[: rule.past].tolist(), 1):
        bisect.insort(ranked, score)
        if known >= rule.least:
            at_count[known] = ranked[math.ceil(rule.coverage * (known + 1)) - 1]
    if len(scores) > rule.past:
        rank = math.ceil(rule.coverage * (rule.past + 1))
        rolled = talib.PERCENTILE(scores, rule.past, 100.0 * (rank - 0.5) / rule.past)
        at_count[rule.past + 1 :] = rolled[rule.past :]
    return at_count[known_at]


def forecast(bars: Bars, hours: int, rule: ForecastRule = RULE) -> Forecast | Missing:
    """Return the forecast of the last bar, or why there is none.

    It looks at the bars of the regression, 2 × `past` bars and those that the hours take, and no further back.

    Raises:
        InputError: not 1 hour or more.
    """
    check_at_least("hours to forecast", hours, 1)
    frame_us = bars.frame_us
    if frame_us > hours * HOUR_US:
        return Missing(reason=f"bars of {frame_us / HOUR_US:g} h are longer than {hours} h")
    tail, needed = _tail(bars, hours, rule), rule.warm_up(frame_us, hours) + 1
    if len(tail) < needed:
        return Missing(reason=f"{needed} bars are needed, {len(bars)} are known")
    path = forecast_path(tail, hours, rule)
    half = float(path.half_width[-1])
    if math.isnan(half):
        logs = tail.log_close[-rule.window(frame_us) - 1 :]
        still = float(logs.max() - logs.min()) == 0.0
        why = "the price did not move" if still else "too few past forecasts could be judged, as bars are missing"
        return Missing(reason=f"{why} in the last {len(logs) if still else len(tail)} bars")
    middle = float(path.point[-1])
    held, held_of, errors, skill, skill_t = _record(tail, path, steps_of(frame_us, hours), rule)
    price, low, high = (math.exp(each) for each in (middle, middle - half, middle + half))
    text = _say(skill, skill_t, errors)
    at_us = int(tail.closed_us[-1]) + hours * HOUR_US
    return Forecast(hours, at_us, price, low, high, rule.coverage, errors, held, held_of, skill, skill_t, text)


def forecasts(bars: Bars, rule: ForecastRule = RULE, hours: Sequence[int] = HOURS) -> dict[str, Forecast | Missing]:
    """Return the forecasts of the last bar by their time, such as "1h"."""
    tail = _tail(bars, max(hours), rule)
    return {f"{each}h": forecast(tail, each, rule) for each in hours}


def steps_of(frame_us: int, hours: int) -> int:
    """Return how many bars some hours take, at least 1."""
    return max(1, round(hours * HOUR_US / frame_us))


def _tail(bars: Bars, hours: int, rule: ForecastRule) -> Bars:
    """Return the bars that forecasts of so many hours, or of 4 or fewer, look at; itself where there are no others."""
    frame_us = bars.frame_us
    most = rule.window(frame_us) + 2 * rule.past + steps_of(frame_us, max(hours, max(HOURS)))
    return bars if len(bars) <= most else bars.slice(len(bars) - most, len(bars))


def _record(
    bars: Bars, path: ForecastPath, steps: int, rule: ForecastRule
) -> tuple[float | None, int, int, float | None, float | None]:
    """Return how past forecasts did: share held, of how many, errors that set the width, skill and its t."""
    made = np.flatnonzero((path.later >= 0) & ~np.isnan(path.point))[-rule.past :]
    came = bars.log_close[path.later[made]]
    errors = came - path.point[made]
    with_interval = ~np.isnan(path.half_width[made])
    of = int(with_interval.sum())
    inside = np.abs(errors[with_interval]) <= path.half_width[made][with_interval]
    skill, skill_t = skill_against_still(errors, came - bars.log_close[made], steps)
    return float(inside.mean()) if of else None, of, len(made), skill, skill_t


def skill_against_still(errors: Floats, changes: Floats, steps: int) -> tuple[float | None, float | None]:
    """Return the skill of forecasts against "the price stays", and how sure it is.

    Args:
        errors: of the forecasts, in order of time, [forecasts].
        changes: what the price did instead of staying, [forecasts].
        steps: bars that a forecast is about; forecasts overlap by one less.

    Returns:
        1 − mean squared error over that of staying, and the statistic of Diebold and Mariano (Journal of Business and
        Economic Statistics 13, 1995), its variance by Bartlett's weights over `steps` lags (Newey and West 1987), with
        the correction of Harvey, Leybourne and Newbold (1997); None where they are not defined. Staying is the
        forecast with a slope of 0, but the slope comes from a window of fixed length, so the test holds for the two
        ways of forecasting (R. Giacomini and H. White, Econometrica 74, 2006).
    """
    still = float(np.mean(changes**2)) if len(changes) else 0.0
    if still == 0.0:
        return None, None
    skill = 1.0 - float(np.mean(errors**2)) / still
    gain = changes**2 - errors**2
    away = gain - gain.mean()
    count = len(gain)
    variance = float(away @ away) / count
    for lag in range(1, min(steps, count - 1) + 1):
        variance += 2.0 * (1.0 - lag / (steps + 1)) * float(away[lag:] @ away[:-lag]) / count
    shrink = (count + 1 - 2 * steps + steps * (steps - 1) / count) / count
    if variance <= 0.0 or shrink <= 0.0:
        return skill, None
    return skill, float(gain.mean()) / math.sqrt(variance / count) * math.sqrt(shrink)


def _say(skill: float | None, skill_t: float | None, errors: int) -> str:
    if skill is None:
        return 'the price stood still: nothing can be told against "the price stays"'
    sure = skill_t is not None and abs(skill_t) >= 1.96
    if not sure:
        return f'over {errors} past forecasts no better or worse than "the price stays" by more than chance'
    return f'over {errors} past forecasts {"better" if skill > 0 else "worse"} than "the price stays"'
