"""Calibration of forecasts: coverage of intervals, PIT histogram, and the probability that the price moves up.

The intervals of all levels are a distribution around the forecast's point, with half of its mass on either side. So one
ranking of past errors gives the intervals of every level, the position of each outcome in its forecast distribution
(probability integral transform, PIT), and the probability of an up move.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qubic_lab.oracle.backtest.past_forecasts import DailyEstimate, DayBootstrap, PastForecasts
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.stats import BrierParts, Forecasts, brier_parts, calibration_error

BINS = 10
DRAWS = 400
"""Simulated histories of calibrated forecasts."""
PRIOR = (0.25, 0.05)
"""Prior deviations of the slope around 0 and of the height around 0.5; see `recalibrated`."""
_CELLS = 4_000_000


@dataclass(frozen=True)
class Coverage:
    """Intervals of one level, beside those of a normal distribution of constant spread around "the price stays".

    Attributes:
        held: share of later prices within the intervals; `wide_pct`: their mean width in % of the price.
        score_ratio: their mean interval score over that of the constant intervals; below 1 is better. The score is the
            width plus 2 / (1 − level) times the distance of a price outside (T. Gneiting and A. E. Raftery, Journal of
            the American Statistical Association 102, 2007, 359-378).
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
        scores = [
            2.0 * wide + penalty * np.maximum(0.0, each - wide) for each, wide in ((error, reach), (change, flat))
        ]
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
    """A test that PIT values are uniform.

    The distributions are made from past errors, which makes PIT values more uniform: at 5 % the test rejects only about
    1 of 100 random walks.

    Attributes:
        shares: of forecasts in each of `BINS` equal bins; `low`, `high`: 95 % intervals of the shares of calibrated
            forecasts, for each bin.
        p: probability that calibrated forecasts are as uneven, by the sum of squared deviations from equal shares.
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
        forecasts: their number.
        rose: share of up moves, which is the climatological forecast (known only in hindsight).
        bins: the reliability diagram.
        error: expected calibration error; `error_chance`: its mean for calibrated forecasts; `error_most`: its 95 %
            quantile for them; `p`: probability that theirs is as large.
        brier: the Brier score with its parts.
        skill: 1 − Brier score over that of climatology; above 0 is better.
    """

    forecasts: int
    rose: DailyEstimate
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
            rose=days.estimate(np.divide, ups, of),
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
