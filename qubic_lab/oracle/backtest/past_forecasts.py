"""Past forecasts, each made from the bars before it: coverage of their intervals, PIT values, odds of an up move.

The intervals of all levels are a distribution around the forecast's point, with half of its mass on either side. So one
ranking of past errors gives the intervals of every level, the position of each outcome in its forecast distribution
(probability integral transform, PIT), and the probability of an up move.
"""

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.analysis.forecast import RULE, expected_path, known_errors, steps_of
from qubic_lab.oracle.inference.resampling import RESAMPLES, resampled_weights
from qubic_lab.oracle.model.bars import Bars, Flags, Floats, Integers
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.stats import BrierParts, Forecasts, brier_parts, calibration_error

Rows = NDArray[np.intp]
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_DAYS = 10
"""Intervals come from resampled days; fewer do not show how days differ."""
MOST_HOURS = 12
"""Forecasts over more than half a day correlate neighbouring days, which makes intervals over days too narrow."""
BINS = 10
DRAWS = 400
"""Simulated histories of calibrated forecasts."""
PRIOR = (0.25, 0.05)
"""Prior deviations of the slope around 0 and of the height around 0.5; see `recalibrated`."""
_CELLS = 4_000_000


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
        known: number of past errors that were known; `below`: of these, those smaller than the forecast's own error,
            each over its scale; `nearer`: those smaller than the distance from `last` to `point`, over the scale.
        reach: half width of the interval of each level, [forecasts, levels].
        flat: a constant spread: root mean square of all returns so far, times √steps.
    """

    steps: int
    levels: tuple[float, ...]
    closed_us: Integers
    place: Rows
    later: Rows
    last: Floats
    point: Floats
    came: Floats
    scale: Floats
    known: Rows
    below: Rows
    nearer: Rows
    reach: Floats
    flat: Floats

    def __len__(self) -> int:
        return len(self.place)

    @property
    def apart(self) -> int:
        """Number of forecasts that do not overlap."""
        return len(self) // self.steps

    @property
    def moved(self) -> Flags:
        """Whether the price moved."""
        return np.not_equal(self.came, self.last)


def past_forecasts(bars: Bars, hours: int) -> PastForecasts | Missing:
    """Return the past forecasts that can be judged, each made from the bars before it; or why there are none.

    Raises:
        InputError: less than 1 hour.
    """
    check_at_least("hours to forecast", hours, 1)
    if hours > MOST_HOURS:
        return Missing(
            reason=f"forecasts over {hours} h overlap much with the next day: at most {MOST_HOURS} h can be judged"
        )
    if bars.frame_us > hours * HOUR_US:
        return Missing(reason=f"bars of {_length(bars.frame_us)} are longer than {hours} h")
    if hours * HOUR_US % bars.frame_us:
        return Missing(reason=f"bars of {_length(bars.frame_us)} do not divide {hours} h")
    expected = expected_path(bars, hours)
    scores, known_at = known_errors(bars, expected)
    place = np.flatnonzero((expected.later >= 0) & ~np.isnan(expected.scale) & (known_at >= RULE.least))
    closed_us = bars.closed_us[place]
    if len(np.unique(closed_us // DAY_US)) < LEAST_DAYS or closed_us[-1] - closed_us[0] < LEAST_DAYS * DAY_US:
        return Missing(reason=_why_not(bars, len(place), hours))
    last, later = bars.log_close[place], expected.later[place]
    point, scale, came = expected.point[place], expected.scale[place], bars.log_close[later]
    if np.array_equal(came, last):
        return Missing(reason=f"the price is the same {hours} h later at every bar")
    asked = np.abs(np.stack([came - point, point - last])) / scale
    below, nearer, reach = _ranked(scores, known_at[place], asked)
    steps = steps_of(bars.frame_us, hours)
    squares = np.cumsum(bars.step_returns**2)[place] / np.maximum(1, place)
    return PastForecasts(
        steps=steps,
        levels=LEVELS,
        closed_us=closed_us,
        place=place,
        later=later,
        last=last,
        point=point,
        came=came,
        scale=scale,
        known=np.minimum(known_at[place], RULE.past),
        below=below,
        nearer=nearer,
        reach=reach * scale[:, None],
        flat=np.sqrt(squares * steps),
    )


def _why_not(bars: Bars, forecasts: int, hours: int) -> str:
    if len(bars) > 1 and not np.ptp(bars.log_close):
        return f"the price did not move in {len(bars)} bars"
    steps = steps_of(bars.frame_us, hours)
    needed = RULE.warm_up(bars.frame_us, hours) + LEAST_DAYS * DAY_US // bars.frame_us + steps + 1
    if len(bars) < needed:
        return f"{needed} bars of {_length(bars.frame_us)} are needed, {len(bars)} are known"
    return (
        f"{forecasts} forecasts in {len(bars)} bars are too few to judge: too many bars are missing, or the price "
        "stands still"
    )


def _length(frame_us: int) -> str:
    if frame_us % DAY_US == 0:
        return f"{frame_us // DAY_US} day{'s' if frame_us > DAY_US else ''}"
    return f"{frame_us / HOUR_US:g} h" if frame_us >= HOUR_US else f"{60 * frame_us / HOUR_US:g} min"


def _ranked(scores: Floats, known: Rows, asked: Floats) -> tuple[Rows, Rows, Floats]:
    """Return the number of known scores below two values of each forecast, and the conformal quantile of each level.

    `scores` are those of all past errors in order of time, and `known` [forecasts] is how many of them are known at
    each forecast; the last `RULE.past` of these count. `asked` holds the two values, [2, forecasts].
    """
    ranks, reach = np.empty((2, len(known)), np.intp), np.empty((len(known), len(LEVELS)))
    values, ranked, taken = scores.tolist(), list[float](), 0
    for row, (count, first, second) in enumerate(zip(known.tolist(), *asked.tolist(), strict=True)):
        for new in range(taken, count):
            bisect.insort(ranked, values[new])
            if new >= RULE.past:
                del ranked[bisect.bisect_left(ranked, values[new - RULE.past])]
        taken = count
        ranks[:, row] = bisect.bisect_left(ranked, first), bisect.bisect_left(ranked, second)
        reach[row] = [ranked[math.ceil(level * (len(ranked) + 1)) - 1] for level in LEVELS]
    return ranks[0], ranks[1], reach


class DayBootstrap:
    """A bootstrap over whole days: neighbouring forecasts overlap and are correlated, days are nearly independent.

    The spread of resampled days is too small by √(1 − 1 / days), and with few days it is uncertain (Student's t over
    the normal quantile): intervals are widened by both.

    Source: the cluster bootstrap, A. C. Davison and D. V. Hinkley, "Bootstrap methods and their application" (1997),
    section 3.8.
    """

    def __init__(self, closed_us: Integers, resamples: int = RESAMPLES, seed: int = 0) -> None:
        from scipy.stats import norm, t

        unique, self._which = np.unique(closed_us // DAY_US, return_inverse=True)
        days = len(unique)
        self._weights = np.concatenate(list(resampled_weights(days, 1.0, resamples, seed)))
        self._wider = float(t.ppf(0.975, days - 1) / norm.ppf(0.975)) * math.sqrt(days / (days - 1))

    def estimate(self, function: Callable[..., Floats], *columns: Floats) -> DailyEstimate:
        """Return a function of the sums of columns with its interval; the function also takes arrays of sums."""
        sums = [np.bincount(self._which, column) for column in columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(function(*(np.asarray(each.sum()) for each in sums)))
            drawn = function(*(self._weights @ each for each in sums))
        known = drawn[np.isfinite(drawn)]
        if not known.size:
            return DailyEstimate(value, math.nan, math.nan)
        low, high = value + self._wider * (np.quantile(known, (0.025, 0.975)) - value)
        return DailyEstimate(value, float(low), float(high))

    def share(self, happened: Flags) -> DailyEstimate:
        """Return the share of forecasts for which something happened."""
        found = self.estimate(np.divide, happened.astype(np.float64), np.ones(len(happened)))
        low, high = np.clip((found.low, found.high), 0.0, 1.0)
        return DailyEstimate(found.value, float(low), float(high))


@dataclass(frozen=True)
class Coverage:
    """Intervals of one level, beside those of a normal distribution of constant spread around "the price stays".

    `held` is the share of later prices within them, `wide_pct` their mean width in % of the price, and `score_ratio`
    their mean interval score over that of the constant ones; below 1 is better. The score is the width plus
    2 / (1 − level) times the distance of a price outside (T. Gneiting and A. E. Raftery, Journal of the American
    Statistical Association 102, 2007, 359-378).
    """

    level: float
    held: DailyEstimate
    wide_pct: float
    flat_held: DailyEstimate
    flat_wide_pct: float
    score_ratio: DailyEstimate

    @property
    def off(self) -> bool:
        """Whether they hold significantly more or fewer prices than the level."""
        return not self.held.low <= self.level <= self.held.high


def coverage(past: PastForecasts, days: DayBootstrap) -> tuple[Coverage, ...]:
    """Return the share of later prices within the intervals of each level, and the intervals' width."""
    found = []
    for number, level in enumerate(past.levels):
        reach, flat = past.reach[:, number], NormalDist().inv_cdf((1.0 + level) / 2.0) * past.flat
        error, change = np.abs(past.came - past.point), np.abs(past.came - past.last)
        # By ranks, as `reach * scale` is rounded.
        held = past.below < np.ceil(level * (past.known + 1))
        penalty = 2.0 / (1.0 - level)
        pairs = ((error, reach), (change, flat))
        scores = [2.0 * wide + penalty * np.maximum(0.0, each - wide) for each, wide in pairs]
        wide_pct, flat_wide_pct = (200.0 * float(each.mean()) for each in (reach, flat))
        flat_held = days.share(change <= flat)
        ratio = days.estimate(np.divide, *scores)
        found.append(Coverage(level, days.share(held), wide_pct, flat_held, flat_wide_pct, ratio))
    return tuple(found)


def pit_values(past: PastForecasts) -> Floats:
    """Return the position of each outcome in its forecast distribution, 0 to 1 (PIT), [forecasts].

    Half the mass is on either side of the point; on the outcome's side it is the share of known errors below its own,
    with a half for itself, of known + 1. The values are uniform for calibrated forecasts (A. P. Dawid, Journal of the
    Royal Statistical Society A 147, 1984, 278-292).
    """
    return np.asarray(0.5 + 0.5 * np.sign(past.came - past.point) * (past.below + 0.5) / (past.known + 1))


def up_probabilities(past: PastForecasts) -> Floats:
    """Return the probability of an up move by the same distribution, [forecasts]."""
    return np.asarray(0.5 + 0.5 * np.sign(past.point - past.last) * (past.nearer + 0.5) / (past.known + 1))


def recalibrated(past: PastForecasts, probability: Floats) -> Floats:
    """Return probabilities of an up move corrected by the outcomes that were known at each forecast, [forecasts].

    It is a Bayesian line of outcomes on probabilities, fitted anew at each bar: before any outcome its slope is 0 and
    its height 0.5, with the deviations of `PRIOR`; outcomes have a variance of 0.25, and those that overlap count as
    one. This is the ridge regression of A. E. Hoerl and R. W. Kennard, Technometrics 12 (1970), 55-67.
    """
    known = np.searchsorted(past.later, past.place, side="right")  # number of known outcomes
    moved = past.moved.astype(np.float64)
    x, y = (probability - 0.5) * moved, np.where(past.came > past.last, 0.5, -0.5) * moved
    count, sx, sy, xx, xy = (np.concatenate([[0.0], np.cumsum(each)])[known] for each in (moved, x, y, x * x, x * y))
    of = np.maximum(1.0, count)
    mean_x, mean_y = sx / of, sy / of
    for_slope, for_height = (0.25 * past.steps / deviation**2 for deviation in PRIOR)
    slope = (xy - of * mean_x * mean_y) / (xx - of * mean_x**2 + for_slope)
    height = count / (count + for_height) * mean_y
    return np.asarray(np.clip(0.5 + height + slope * (probability - 0.5 - mean_x), 0.01, 0.99))


def simulated_pit(past: PastForecasts, draws: int = DRAWS, seed: int = 0) -> Iterator[Floats]:
    """Yield PIT values of simulated calibrated forecasts of the same bars, in parts of [some draws, forecasts].

    Each is uniform; neighbours are correlated like sums of the same independent returns.
    """
    from scipy.special import ndtr

    draw = np.random.default_rng(seed)
    first, bars = int(past.place[0]), int(past.later[-1] - past.place[0])
    start, end = past.place - first, past.later - first
    spread = np.sqrt(end - start)
    at_once = max(1, _CELLS // bars)
    for done in range(0, draws, at_once):
        walk = np.zeros((min(at_once, draws - done), bars + 1))
        np.cumsum(draw.standard_normal((len(walk), bars)), axis=1, out=walk[:, 1:])
        yield ndtr((walk[:, end] - walk[:, start]) / spread)


@dataclass(frozen=True)
class PitHistogram:
    """A test that PIT values are uniform: their shares in `BINS` equal bins, with 95 % intervals if calibrated.

    `p` is the probability that calibrated forecasts are as uneven, by the sum of squared deviations from equal shares.
    The distributions are made from past errors, which makes PIT values more uniform: at 5 % the test rejects only about
    1 of 100 random walks.
    """

    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    p: float


@dataclass(frozen=True)
class UpMoveBin:
    """Forecasts in one bin: mean probability, share of up moves, and the 95 % interval of that share if calibrated."""

    probability: float
    rose: float
    low: float
    high: float
    forecasts: int


@dataclass(frozen=True)
class UpMoves:
    """Calibration of the probabilities of an up move, over the forecasts whose price moved.

    Attributes:
        bins: the reliability diagram.
        error: expected calibration error; `error_chance`: its mean for calibrated forecasts; `error_most`: its 95 %
            quantile for them; `p`: probability that theirs is as large.
        skill: 1 − Brier score over that of climatology, which is the share of up moves in hindsight; above 0 is better.
    """

    forecasts: int
    bins: tuple[UpMoveBin, ...]
    error: float
    error_chance: float
    error_most: float
    p: float
    brier: BrierParts
    skill: DailyEstimate


@dataclass(frozen=True)
class Calibration:
    """PIT values, and probabilities of an up move: raw from the distribution, and corrected by earlier outcomes."""

    pit: PitHistogram
    raw: UpMoves
    recalibrated: UpMoves


def calibration(past: PastForecasts, days: DayBootstrap, draws: int = DRAWS, seed: int = 0) -> Calibration:
    """Return the calibration of PIT values and of probabilities of an up move.

    Calibrated forecasts are simulated (`simulated_pit`), since the errors of overlapping forecasts are correlated:
    bands for independent forecasts would be far too narrow. The bands of the diagram are the consistency bars of
    J. Bröcker and L. A. Smith, Weather and Forecasting 22 (2007), 651-661.
    """
    raw = up_probabilities(past)
    judged = [_Judged.of(past, each) for each in (raw, recalibrated(past, raw))]
    histograms: list[Floats] = []
    shares: tuple[list[Floats], ...] = ([], [])
    for drawn in simulated_pit(past, draws, seed):
        histograms.append(np.stack([_histogram(row) for row in drawn]))
        for each, kept in zip(judged, shares, strict=True):
            kept.append(each.shares_of(drawn[:, past.moved]))
    found = [each.judge(past, days, np.concatenate(kept)) for each, kept in zip(judged, shares, strict=True)]
    return Calibration(_pit_histogram(past, np.concatenate(histograms)), *found)


def _pit_histogram(past: PastForecasts, drawn: Floats) -> PitHistogram:
    here = _histogram(pit_values(past))
    uneven = ((here - 1.0 / BINS) ** 2).sum()
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0).tolist()
    p = _as_large(((drawn - 1.0 / BINS) ** 2).sum(axis=1), uneven)
    return PitHistogram(tuple(here.tolist()), tuple(low), tuple(high), p)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Binned probabilities of an up move, of forecasts whose price moved; `member` [forecasts, bins] is 0 or 1."""

    ups: Forecasts
    member: Floats
    sizes: Floats

    @classmethod
    def of(cls, past: PastForecasts, probability: Floats) -> "_Judged":
        ups = Forecasts.of(probability[past.moved], (past.came > past.last)[past.moved], BINS)
        member = np.equal.outer(ups.bin, np.unique(ups.bin)).astype(np.float64)
        return cls(ups, member, member.sum(axis=0))

    def shares_of(self, drawn: Floats) -> Floats:
        """Return the share of up moves in each bin for simulated PIT values, [draws, bins]."""
        return np.asarray((drawn > 1.0 - self.ups.probability).astype(np.float64) @ self.member / self.sizes)

    def judge(self, past: PastForecasts, days: DayBootstrap, drawn: Floats) -> UpMoves:
        mean, rose = (each @ self.member / self.sizes for each in (self.ups.probability, self.ups.happened))
        error, errors = calibration_error(self.ups), np.abs(drawn - mean) @ self.sizes / self.sizes.sum()
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        rows = zip(*(each.tolist() for each in (mean, rose, low, high)), self.sizes.astype(int).tolist(), strict=True)
        ups, losses = np.zeros(len(past)), np.zeros(len(past))
        ups[past.moved] = self.ups.happened
        losses[past.moved] = (self.ups.probability - self.ups.happened) ** 2
        of = past.moved.astype(np.float64)
        return UpMoves(
            forecasts=len(self.ups),
            bins=tuple(UpMoveBin(*row) for row in rows),
            error=error,
            error_chance=float(errors.mean()),
            error_most=float(np.quantile(errors, 0.95)),
            p=_as_large(errors, error),
            brier=brier_parts(self.ups),
            skill=days.estimate(lambda up, loss, count: 1.0 - loss / (up * (1.0 - up / count)), ups, losses, of),
        )


def _histogram(values: Floats) -> Floats:
    counts = np.bincount(np.minimum((values * BINS).astype(np.intp), BINS - 1), minlength=BINS)
    return np.asarray(counts / len(values))


def _as_large(drawn: Floats, found: float) -> float:
    """Return the p-value of a simulation; it is never 0.

    Source: B. V. North, D. Curtis and P. C. Sham, American Journal of Human Genetics 71 (2002), 439-441.
    """
    return float((1 + (drawn >= found).sum()) / (1 + len(drawn)))
