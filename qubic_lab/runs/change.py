"""Whether a measured quantity has changed from one week to another: plain samples in, a verdict out.

The change is the ratio of the two weeks, estimated by Hodges and Lehmann's shift of the logarithms: the median of the
ratios of all pairs of samples. Its interval inverts the exact rank test of Mann and Whitney, so it assumes no
distribution and holds for few samples. Sources: J. L. Hodges and E. L. Lehmann, "Estimates of location based on rank
tests", Annals of Mathematical Statistics 34 (1963), 598-611; H. B. Mann and D. R. Whitney, "On a test of whether one
of two random variables is stochastically larger than the other", ibid. 18 (1947), 50-60.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Literal

from qubic_lab.errors import InputError

Direction = Literal["higher", "lower"]
Verdict = Literal[
    "better",
    "worse",
    "no change beyond noise",
    "too few samples",
    "not measured again",
    "other machine",
    "first measured",
]

FALSE_ALARMS = 0.05
"""The most likely share of weeks without any change in which some measure is said to have changed."""
PRACTICAL_SIZE = 0.05
"""A smaller change is not worth a verdict, however certain it is."""


@dataclass(frozen=True)
class Shift:
    """The ratio of this week to the earlier one, with an interval of the given confidence."""

    ratio: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Judgement:
    """What can be said of a change; `shift` is None where nothing was compared."""

    verdict: Verdict
    shift: Shift | None
    reason: str


def judge_change(now: Sequence[float], before: Sequence[float], better: Direction, compared: int) -> Judgement:
    """Judge one of the `compared` measures of a week: both certain and large enough, or no change beyond noise.

    By Bonferroni's correction, among all measures of a week without a change there is a false alarm in at most
    FALSE_ALARMS of the weeks. Samples of one run share that run's circumstances; what differs between two runs beside
    the code (other load on the machine, say) is not in the interval.

    Raises:
        InputError: no samples, or one that is not a positive number.
    """
    level = FALSE_ALARMS / compared
    shift = log_shift(now, before, 1 - level)
    if shift is None:
        reason = f"{len(now)} against {len(before)}: {samples_needed(level)} on each side could show a change"
        return Judgement("too few samples", None, reason)
    certain = not shift.low <= 1.0 <= shift.high
    large = max(shift.ratio, 1 / shift.ratio) >= 1 + PRACTICAL_SIZE
    if certain and large:
        return Judgement("better" if (shift.ratio > 1) == (better == "higher") else "worse", shift, "")
    reason = f"certain, but smaller than {PRACTICAL_SIZE * 100:g} %" if certain else ""
    return Judgement("no change beyond noise", shift, reason)


def log_shift(now: Sequence[float], before: Sequence[float], confidence: float) -> Shift | None:
    """Return the ratio of two sets of positive samples with its exact interval, or None if they are too few for one.

    Raises:
        InputError: no samples, or one that is not a positive number.
    """
    for sample in (*now, *before):
        if not (math.isfinite(sample) and sample > 0):
            raise InputError(f"sample {sample}: only positive numbers have a ratio")
    if not now or not before:
        raise InputError(f"{len(now)} samples against {len(before)}: there must be at least one on each side")
    ratios = sorted(math.log(new / old) for new in now for old in before)
    cut = _pairs_beyond(len(now), len(before), (1 - confidence) / 2)
    if cut == 0:
        return None
    return Shift(
        ratio=math.exp(median(ratios)),
        low=math.exp(ratios[cut - 1]),
        high=math.exp(ratios[-cut]),
        confidence=confidence,
    )


def samples_needed(level: float) -> int:
    """Return the fewest samples on each side that can show a change at a two-sided level."""
    return next(count for count in range(1, 1000) if _pairs_beyond(count, count, level / 2))


def _pairs_beyond(n: int, m: int, tail: float) -> int:
    """Return the largest k for which the Mann-Whitney statistic is below k with a probability of at most `tail`."""
    allowed = tail * math.comb(n + m, m)
    return sum(cumulated <= allowed for cumulated in accumulate(_mann_whitney_counts(n, m)))


def _mann_whitney_counts(n: int, m: int) -> list[int]:
    """Return in how many orders of n + m distinct values the statistic is 0, 1, …, nm / 2 (its lower half).

    They are the coefficients of Gauss's binomial: the product over i = 1 … m of (1 - q^(n + i)) / (1 - q^i).
    """
    counts = [1] + [0] * (n * m // 2)
    for i in range(1, m + 1):
        for power in range(len(counts) - 1, n + i - 1, -1):
            counts[power] -= counts[power - n - i]
        for power in range(i, len(counts)):
            counts[power] += counts[power - i]
    return counts
