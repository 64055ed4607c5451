"""Statistics that reports need: plain numbers in, plain numbers out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError, check_at_least

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Name = TypeVar("Name")
Study = TypeVar("Study", bound=Any)

BINS = 10
RESAMPLES = 1000
LEAST_DRAWN = 6
"""Of fewer items all fall to one side by luck more than 5 % of the time (2 × ½⁵): nothing can be shown."""
TAIL = (1 - 0.95) / 2
"""Probability beyond each end of a 95 % interval."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, which stays sensible at 0, at 1 and for few trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212.

    Raises:
        InputError: no trials, more successes than trials, or a confidence that is not between 0 and 1.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise InputError(f"{successes} successes in {trials} trials: there must be 0 to {trials} of at least 1")
    share, z = successes / trials, _normal_quantile(confidence)
    shrink = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half_width = z / shrink * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    # At the ends the bound is 0 or 1 exactly; rounding must not leave 0.9999999999999999 there.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == trials else centre + half_width
    return low, high


def _normal_quantile(confidence: float) -> float:
    """Return the quantile at the upper end of a two-sided interval."""
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def binomial_at_most(successes: int, trials: int, share: float) -> float:
    """Return the probability of at most so many successes in independent trials; the share is above 0 and below 1."""
    chances = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)  # coefficients overflow: logarithms
        + k * math.log(share)
        + (trials - k) * math.log1p(-share)
        for k in range(successes + 1)
    )
    return min(1.0, math.fsum(map(math.exp, chances)))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: are two ways equally often right on the same items?

    The counts are of the items on which only one way is right.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution in place of the normal one.

    Raises:
        InputError: a count is negative.
    """
    discordant = only_first + only_second
    _check_counts(only_first, only_second, max(1, discordant))
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**discordant)))  # exact, whatever the counts


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Return p-values corrected so that a false finding among all of them is as rare as one test alone allows.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979), 65-70.
    """
    corrected: dict[Name, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def holm_in_parts(studies: Sequence[Study], *names: str) -> tuple[Study, ...]:
    """Return dataclasses with the p-values in all their parts of these names corrected together by Holm.

    Each part is a dataclass with `p`, whose corrected value is `p_holm`, or None.
    """
    parts = [{name: part for name in names if (part := getattr(each, name)) is not None} for each in studies]
    together = iter(holm(dict(enumerate(part.p for own in parts for part in own.values()))).values())
    return tuple(
        replace(study, **{name: replace(part, p_holm=next(together)) for name, part in own.items()})
        for study, own in zip(studies, parts, strict=True)
    )


def tango_interval(only_first: int, only_second: int, pairs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of the difference of two paired shares, first less second.

    It stays sensible where few pairs or none are discordant, which is where the normal one collapses.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), 891-908.

    Raises:
        InputError: no pairs, counts that do not fit, or a confidence that is not between 0 and 1.
    """
    _check_counts(only_first, only_second, pairs)
    z = _normal_quantile(confidence)
    excess = only_first - only_second
    observed = excess / pairs

    def above(difference: float, sign: int) -> bool:
        deviation = _score_deviation(difference, only_first, only_second, pairs)
        return excess - pairs * difference + sign * z * deviation > 0

    low = _last_true(lambda difference: above(difference, -1), -1.0, observed)
    high = _last_true(lambda difference: above(difference, +1), observed, 1.0)
    return low, high


def is_equivalent(only_first: int, only_second: int, pairs: int, margin: float, alpha: float = 0.05) -> bool:
    """Tell whether two one-sided tests (TOST) show two paired shares to differ by less than `margin`.

    That is so exactly when the score interval of confidence 1 - 2 alpha lies within the margin.

    Source: D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987), 657-680; for paired shares
    Tango (see `tango_interval`).

    Raises:
        InputError: as of `tango_interval`.
    """
    low, high = tango_interval(only_first, only_second, pairs, 1 - 2 * alpha)
    return -margin < low and high < margin


def minimum_detectable_difference(pairs: int, discordant: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Return the smallest difference of two paired shares that McNemar's test finds with this power.

    The share of discordant pairs is taken as observed. A difference cannot be larger than that share, so where the
    formula asks for more, all discordant pairs are taken to go one way. None: even a difference of 1 would be missed.

    Source: R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design",
    Biometrics 43 (1987), 207-211, solved for the difference. It is for the large-sample test; the exact one needs
    slightly more.

    Raises:
        InputError: no pairs, or counts that do not fit.
    """
    _check_counts(discordant, 0, pairs)
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    share = discordant / pairs
    if (rest := pairs - z_alpha**2 + z_power**2) >= 0:
        found = math.sqrt(share) * (z_alpha * math.sqrt(pairs) + z_power * math.sqrt(rest)) / (pairs + z_power**2)
        if 0 < found <= share:
            return found
    if pairs < z_alpha**2:
        return None
    return _last_true(lambda d: pairs * d < (z_alpha + z_power * math.sqrt(1 - d)) ** 2, 0.0, 1.0)


def _check_counts(only_first: int, only_second: int, pairs: int) -> None:
    if min(only_first, only_second) < 0 or only_first + only_second > pairs or pairs == 0:
        raise InputError(
            f"{only_first} and {only_second} discordant of {pairs} pairs: there must be 0 or more, of at least 1 pair"
        )


def _score_deviation(difference: float, only_first: int, only_second: int, pairs: int) -> float:
    """Return the standard deviation of the excess of discordant pairs, were `difference` the true one.

    The share of `only_second` is its maximum-likelihood estimate under that difference (Tango, section 3).
    """
    linear = -only_first - only_second + (2 * pairs - only_first + only_second) * difference
    constant = -only_second * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear**2 - 8 * pairs * constant))
    share = (root - linear) / (4 * pairs)
    return math.sqrt(max(0.0, pairs * (2 * share + difference * (1 - difference))))


def _last_true(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where `holds` turns from true to false between two values, to the last bit or nearly so."""
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def bootstrap_interval(
    statistic: Callable[[Indices], float], items: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic; NaN with fewer than LEAST_DRAWN items.

    It is also NaN where the statistic is NaN for every draw.

    Args:
        statistic: takes the indices of the drawn items; a draw for which it is NaN is left out. Draw what is
            independent (questions, not a question's votes), and take differences within it: that pairs them.
        items: number of items that are drawn, each time with replacement.
        resamples: draws.
        seed: equal seeds give equal draws, so statistics of the same items are drawn together.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979), 1-26.

    Raises:
        InputError: no items or no resamples.
    """
    check_at_least("items", items, 1)
    check_at_least("resamples", resamples, 1)
    if items < LEAST_DRAWN:
        return math.nan, math.nan
    draw = np.random.default_rng(seed)
    drawn = np.array([statistic(draw.integers(0, items, items)) for _ in range(resamples)])
    known = drawn[~np.isnan(drawn)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [TAIL, 1 - TAIL])
    return float(low), float(high)


@dataclass(frozen=True)
class Forecasts:
    """Probabilities that were given, what came of each (1: it happened, 0: not), and the bin of each; see `of`."""

    probability: Floats
    happened: Floats
    bin: Indices

    @classmethod
    def of(cls, probability: ArrayLike, happened: ArrayLike, bins: int = BINS, equal_mass: bool = True) -> "Forecasts":
        """Put forecasts into bins.

        There are at most `bins`, of about as many forecasts each (equal probabilities are never apart), or else of
        equal width. `happened` is 0 or 1, or false or true.

        Raises:
            InputError: no forecasts, not as many outcomes as probabilities, or values that are neither.
        """
        given = np.asarray(probability, dtype=np.float64)
        outcome = np.asarray(happened, dtype=np.float64)
        check_at_least("bins", bins, 1)
        if given.ndim != 1 or given.shape != outcome.shape or not given.size:
            raise InputError(f"{given.size} probabilities and {outcome.size} outcomes: give one outcome for each of 1+")
        if not ((given >= 0) & (given <= 1)).all():  # NaN is not
            raise InputError("a probability is not between 0 and 1")
        if not np.isin(outcome, (0.0, 1.0)).all():
            raise InputError("an outcome is neither 0 nor 1")
        if equal_mass:
            ends = np.unique(np.quantile(given, np.arange(1, bins) / bins, method="inverted_cdf"))
            return cls(given, outcome, np.searchsorted(ends, given, side="left"))
        return cls(given, outcome, np.minimum((given * bins).astype(np.intp), bins - 1))

    def __len__(self) -> int:
        return len(self.probability)

    def take(self, rows: Indices) -> "Forecasts":
        """Return some of them, each in its bin."""
        return Forecasts(self.probability[rows], self.happened[rows], self.bin[rows])


def calibration_error(forecasts: Forecasts) -> float:
    """Return the expected calibration error: how far shares are from probabilities, a mean weighted over bins.

    Source: M. P. Naeini, G. F. Cooper and M. Hauskrecht, AAAI 2015, 2901-2907.
    """
    gaps = np.bincount(forecasts.bin, forecasts.probability - forecasts.happened)
    return float(np.abs(gaps).sum() / len(forecasts))


def calibration_error_interval(forecasts: Forecasts, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return a 95 % interval of the true calibration error over the same bins.

    Sampling alone raises this error, and resampling raises it once more: percentiles of resamples miss a true error
    near 0 always. So each true error from 0 on is asked whether it could have led to the observed one: the bins' gaps
    are the observed ones, scaled, plus normal noise with the bins' binomial variance. The interval holds the errors
    that are not rejected. By luck an observed error can be below what noise alone makes; the upper end is then that of
    the median of noise. In 42 simulated settings of 100 to 2,000 forecasts and true errors of 0 to 0.1 the interval
    held the true error 87 to 98 % of the time, 95 % on average.

    Source: test inversion with a parametric bootstrap, A. C. Davison and D. V. Hinkley, "Bootstrap methods and their
    application" (1997), section 5.6; the upper end by luck: G. Cowan et al., "Power-constrained limits",
    arXiv 1105.3166.
    """
    used, place = np.unique(forecasts.bin, return_inverse=True)
    counts = np.bincount(place)
    gaps = np.bincount(place, forecasts.probability - forecasts.happened)
    share = (np.bincount(place, forecasts.happened) + 0.5) / (counts + 1)
    deviation = np.sqrt(counts * share * (1 - share))
    noise = np.random.default_rng(seed).standard_normal((resamples, len(used))) * deviation
    observed = float(np.abs(gaps).sum())
    pattern = gaps / observed if observed else deviation / deviation.sum()

    def quantile(true: float, level: float) -> float:
        return float(np.quantile(np.abs(true * pattern + noise).sum(axis=1), level))

    def bound(level: float, error: float, most: float) -> float:
        if quantile(0.0, level) >= error:
            return 0.0
        return _last_true(lambda true: quantile(true, level) < error, 0.0, most) / len(forecasts)

    least = quantile(0.0, 0.5)
    most = min(float(len(forecasts)), observed + least + 10 * float(deviation.sum()))
    return bound(1 - TAIL, observed, observed), bound(TAIL, max(observed, least), most)


def calibration_error_if_calibrated(
    forecasts: Forecasts, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the mean error that sampling alone would make, were every probability right, and its 95 % quantile.

    An error below that quantile is no evidence against the probabilities. By simulation: outcomes are drawn from them.
    """
    draw = np.random.default_rng(seed)
    drawn = (draw.random(len(forecasts)) < forecasts.probability for _ in range(resamples))
    errors = [calibration_error(replace(forecasts, happened=each.astype(np.float64))) for each in drawn]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


@dataclass(frozen=True)
class BrierParts:
    """The Brier score and what it is made of: `score` = reliability − resolution + uncertainty + within.

    Attributes:
        score: mean squared distance of probability and outcome; 0 is best.
        reliability: how far shares are from the bins' mean probabilities; 0 is best.
        resolution: how far the bins' shares are apart; more is better.
        uncertainty: the score of always saying the overall share.
        within: what probabilities that differ within a bin leave over; 0 where none do.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_score(forecasts: Forecasts) -> float:
    """Return the mean squared distance of probability and outcome (G. W. Brier, Monthly Weather Review 78, 1950)."""
    return float(np.mean((forecasts.probability - forecasts.happened) ** 2))


def brier_parts(forecasts: Forecasts) -> BrierParts:
    """Return the Brier score with its decomposition over the bins.

    Source: A. H. Murphy, Journal of Applied Meteorology 12 (1973), 595-600; the rest within bins: D. B. Stephenson,
    C. A. S. Coelho and I. T. Jolliffe, Weather and Forecasting 23 (2008), 752-757.
    """
    counts = np.bincount(forecasts.bin)
    size = np.maximum(counts, 1)
    mean = np.bincount(forecasts.bin, forecasts.probability) / size
    share = np.bincount(forecasts.bin, forecasts.happened) / size
    overall = forecasts.happened.mean()
    reliability = float(counts @ (mean - share) ** 2 / len(forecasts))
    resolution = float(counts @ (share - overall) ** 2 / len(forecasts))
    uncertainty = float(overall * (1 - overall))
    score = brier_score(forecasts)
    return BrierParts(score, reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty))


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin: its least, greatest and mean probability, and the share that happened, with the 95 % Wilson interval."""

    least: float
    greatest: float
    mean: float
    share: float
    share_low: float
    share_high: float
    items: int


def reliability_table(forecasts: Forecasts) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a reliability diagram that hold something, by rising probability."""
    table = []
    for number in np.unique(forecasts.bin):
        inside = forecasts.bin == number
        given, happened, items = forecasts.probability[inside], int(forecasts.happened[inside].sum()), int(inside.sum())
        low, high = wilson_interval(happened, items)
        ends = (float(given.min()), float(given.max()), float(given.mean()))
        table.append(ReliabilityBin(*ends, happened / items, low, high, items))
    return tuple(table)


@dataclass(frozen=True)
class RiskAtCoverage:
    """Answering from a probability on: the share of questions that are answered, and how many of those wrongly."""

    from_probability: float
    coverage: float
    risk: float


def risk_coverage(forecasts: Forecasts) -> tuple[RiskAtCoverage, ...]:
    """Return the risk-coverage curve, a point for each probability that was given, the greatest first.

    Source: Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.
    """
    levels, counts, errors = _levels(forecasts)
    answered, wrong = np.cumsum(counts), np.cumsum(errors)
    return tuple(
        RiskAtCoverage(float(level), float(n / len(forecasts)), float(e / n))
        for level, n, e in zip(levels, answered, wrong, strict=True)
    )


def risk_coverage_area(forecasts: Forecasts) -> float:
    """Return the mean risk over all coverages 1/n, 2/n to 1 (AURC); less is better, chance gives the error rate.

    Equal probabilities have no order: their errors are spread evenly over their places.
    """
    _, counts, errors = _levels(forecasts)
    wrong = np.cumsum(np.repeat(errors / counts, counts))
    return float(np.mean(wrong / np.arange(1, len(forecasts) + 1)))


def _levels(forecasts: Forecasts) -> tuple[Floats, Indices, Floats]:
    """Return the probabilities that were given, the greatest first, how often, and how often nothing happened."""
    falling, which = np.unique(-forecasts.probability, return_inverse=True)
    return -falling, np.bincount(which), np.bincount(which, 1 - forecasts.happened).astype(np.float64)
