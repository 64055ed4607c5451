"""Whether forecasts are as sure as they say: intervals, the whole distribution, and the probability of a rise.

The intervals of all levels together are a distribution about the forecast's point: half of its mass is on either side,
and past errors say how far out it lies. So one ranking of past errors gives the intervals of every level, where in its
own distribution each price came, and how probable it was that the price would rise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qubic_lab.oracle.inference.past_forecasts import Days, Estimate, PastForecasts
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.stats import BrierParts, Forecasts, brier_parts, calibration_error

BINS = 10
DRAWS = 400
"""Simulated histories of calibrated forecasts."""
PRIOR = (0.25, 0.05)
"""Deviations of the slope about 0 and of the height about 0.5 before anything is known; see `recalibrated`."""
_CELLS = 4_000_000


@dataclass(frozen=True)
class Coverage:
    """Intervals of one level, beside those of a normal distribution of constant spread about "the price stays".

    Attributes:
        held: the share of later prices within them; `wide_pct`: their mean width in % of the price.
        score_ratio: their mean interval score over that of the constant ones, below 1 is better. It counts width, and
            2 / (1 − level) times the way by which a price lies outside (T. Gneiting and A. E. Raftery, Journal of the
            American Statistical Association 102, 2007, 359-378).
    """

    level: float
    held: Estimate
    wide_pct: float
    flat_held: Estimate
    flat_wide_pct: float
    score_ratio: Estimate

    @property
    def off(self) -> bool:
        """Whether they hold more or fewer than they should by more than chance."""
        return not self.held.low <= self.level <= self.held.high


def coverage(past: PastForecasts, days: Days) -> tuple[Coverage, ...]:
    """Return how many later prices the intervals of each level held, and how wide they were."""
    found = []
    for number, level in enumerate(past.levels):
        reach, flat = past.reach[:, number], NormalDist().inv_cdf((1.0 + level) / 2.0) * past.flat
        error, change = np.abs(past.came - past.point), np.abs(past.came - past.last)
        # By ranks, as `reach * scale` may round: the error's score is among the smallest that the quantile counts.
        held = past.below < np.ceil(level * (past.known + 1))
        scores = [_interval_score(each, wide, level) for each, wide in ((error, reach), (change, flat))]
        wide_pct, flat_wide_pct = (200.0 * float(each.mean()) for each in (reach, flat))
        flat_held = days.share(change <= flat)
        ratio = days.estimate(np.divide, *scores)
        found.append(Coverage(level, days.share(held), wide_pct, flat_held, flat_wide_pct, ratio))
    return tuple(found)


def _interval_score(error: Floats, reach: Floats, level: float) -> Floats:
    return 2.0 * reach + 2.0 / (1.0 - level) * np.maximum(0.0, error - reach)


def positions(past: PastForecasts) -> Floats:
    """Return where in its own distribution each price came, 0 to 1 (the probability integral transform), [forecasts].

    Half the mass is on either side of the point; on the price's side, the share of known errors below its own, with a
    half for itself, of known + 1. Calibrated forecasts have even positions (A. P. Dawid, Journal of the Royal
    Statistical Society A 147, 1984, 278-292).
    """
    return np.asarray(0.5 + 0.5 * np.sign(past.came - past.point) * (past.below + 0.5) / (past.known + 1))


def rise_probabilities(past: PastForecasts) -> Floats:
    """Return how probable it was by the same distribution that the price would be above the last one, [forecasts]."""
    return np.asarray(0.5 + 0.5 * np.sign(past.point - past.last) * (past.nearer + 0.5) / (past.known + 1))


def recalibrated(past: PastForecasts, probability: Floats) -> Floats:
    """Return probabilities of a rise corrected by what came of earlier ones, as far as it was known, [forecasts].

    A line of outcomes on probabilities by Bayes: before any outcome its slope is 0 and its height 0.5, each as sure as
    `PRIOR` says; each outcome varies by 0.25, and those that overlap count as one. It is the ridge regression of A. E.
    Hoerl and R. W. Kennard, Technometrics 12 (1970), 55-67, anew at each bar.
    """
    known = np.searchsorted(past.later, past.place, side="right")  # outcomes that had come
    moved = past.moved.astype(np.float64)
    x, y = (probability - 0.5) * moved, np.where(past.came > past.last, 0.5, -0.5) * moved
    count, sx, sy, xx, xy = (np.concatenate([[0.0], np.cumsum(each)])[known] for each in (moved, x, y, x * x, x * y))
    of = np.maximum(1.0, count)
    mean_x, mean_y = sx / of, sy / of
    for_slope, for_height = (0.25 * past.steps / deviation**2 for deviation in PRIOR)
    slope = (xy - of * mean_x * mean_y) / (xx - of * mean_x**2 + for_slope)
    height = count / (count + for_height) * mean_y
    return np.asarray(np.clip(0.5 + height + slope * (probability - 0.5 - mean_x), 0.01, 0.99))


def calibrated_positions(past: PastForecasts, draws: int = DRAWS, seed: int = 0) -> Iterator[Floats]:
    """Yield positions that calibrated forecasts of the same bars might have had, in parts of [some draws, forecasts].

    Each is even; neighbours hang together as sums of the same independent returns do.
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
class Positions:
    """Whether prices come evenly over their distributions.

    Past errors make the distributions, so positions even out by themselves: at 5 % no more than about 1 of 100 random
    walks is called uneven.

    Attributes:
        shares: of forecasts in each of `BINS` equal bins; `low`, `high`: within them lie 95 % of the shares of
            calibrated forecasts, bin by bin.
        uneven: sum of squared ways of the shares from even ones.
        p: calibrated forecasts are as uneven so often.
    """

    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    uneven: float
    p: float


@dataclass(frozen=True)
class RiseBin:
    """Forecasts of about one probability: their mean, the share that rose, and within what 95 % would be if right."""

    probability: float
    rose: float
    low: float
    high: float
    forecasts: int


@dataclass(frozen=True)
class Rises:
    """Whether probabilities of a rise come true; of forecasts whose price moved.

    Attributes:
        forecasts: so many.
        rose: the share that rose: what climatology says of each. Nobody knew it beforehand.
        bins: the reliability diagram.
        error: expected calibration error; `error_chance`: its mean were all probabilities right; `error_most`: 95 % of
            errors would be no more than this; `p`: they are as large so often.
        brier: the Brier score with its parts.
        skill: 1 − Brier score over that of climatology; above 0 is better.
    """

    forecasts: int
    rose: Estimate
    bins: tuple[RiseBin, ...]
    error: float
    error_chance: float
    error_most: float
    p: float
    brier: BrierParts
    skill: Estimate


@dataclass(frozen=True)
class Calibration:
    """Positions, and probabilities of a rise as the distribution tells them, and corrected by what came before."""

    positions: Positions
    told: Rises
    recalibrated: Rises


def calibration(past: PastForecasts, days: Days, draws: int = DRAWS, seed: int = 0) -> Calibration:
    """Return how far positions and probabilities of a rise are from calibrated ones, beside what chance makes of these.

    Chance is simulated (`calibrated_positions`), since forecasts that overlap err together: bands for independent ones
    would be far too narrow. The bands of the diagram are the consistency bars of J. Bröcker and L. A. Smith, Weather
    and Forecasting 22 (2007), 651-661.
    """
    told = rise_probabilities(past)
    judged = [_Judged.of(past, each) for each in (told, recalibrated(past, told))]
    histograms: list[Floats] = []
    shares: tuple[list[Floats], ...] = ([], [])
    for drawn in calibrated_positions(past, draws, seed):
        histograms.append(np.stack([_histogram(row) for row in drawn]))
        for each, kept in zip(judged, shares, strict=True):
            kept.append(each.shares_of(drawn[:, past.moved]))
    found = [each.rises_of(past, days, np.concatenate(kept)) for each, kept in zip(judged, shares, strict=True)]
    return Calibration(_positions(past, np.concatenate(histograms)), *found)


def _positions(past: PastForecasts, drawn: Floats) -> Positions:
    here = _histogram(positions(past))
    uneven = ((here - 1.0 / BINS) ** 2).sum()
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0).tolist()
    p = _as_large(((drawn - 1.0 / BINS) ** 2).sum(axis=1), uneven)
    return Positions(tuple(here.tolist()), tuple(low), tuple(high), float(uneven), p)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Probabilities of a rise, of forecasts whose price moved, in bins: `member` [forecasts, bins] is 0 or 1."""

    rises: Forecasts
    member: Floats
    sizes: Floats

    @classmethod
    def of(cls, past: PastForecasts, probability: Floats) -> "_Judged":
        rises = Forecasts.of(probability[past.moved], (past.came > past.last)[past.moved], BINS)
        member = np.equal.outer(rises.bin, np.unique(rises.bin)).astype(np.float64)
        return cls(rises, member, member.sum(axis=0))

    def shares_of(self, drawn: Floats) -> Floats:
        """Return how many rise in each bin where prices come at some positions, [draws, bins]."""
        return np.asarray((drawn > 1.0 - self.rises.probability).astype(np.float64) @ self.member / self.sizes)

    def rises_of(self, past: PastForecasts, days: Days, drawn: Floats) -> Rises:
        mean, rose = (each @ self.member / self.sizes for each in (self.rises.probability, self.rises.happened))
        error, errors = calibration_error(self.rises), np.abs(drawn - mean) @ self.sizes / self.sizes.sum()
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        rows = zip(*(each.tolist() for each in (mean, rose, low, high)), self.sizes.astype(int).tolist(), strict=True)
        ups, losses = np.zeros(len(past)), np.zeros(len(past))
        ups[past.moved] = self.rises.happened
        losses[past.moved] = (self.rises.probability - self.rises.happened) ** 2
        of = past.moved.astype(np.float64)
        return Rises(
            forecasts=len(self.rises),
            rose=days.estimate(np.divide, ups, of),
            bins=tuple(RiseBin(*row) for row in rows),
            error=error,
            error_chance=float(errors.mean()),
            error_most=float(np.quantile(errors, 0.95)),
            p=_as_large(errors, error),
            brier=brier_parts(self.rises),
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
