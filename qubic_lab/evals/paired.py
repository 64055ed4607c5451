"""Means over questions and paired differences of means, with intervals.

Each value belongs to one question and lies between 0 and 1: right or wrong, or the share of right votes. There is at
least one, and pairs are of the same questions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from qubic_lab import stats


@dataclass(frozen=True)
class MeanEstimate:
    """A mean over `n` questions, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of two methods on the same questions; first less second.

    The interval of `difference` is Tango's. `holm_p` is corrected by Holm over the tests made together. `detectable` is
    the smallest difference that the test finds with power 80 %, or None.
    """

    only_first: int
    only_second: int
    difference: MeanEstimate
    p: float
    holm_p: float
    detectable: float | None


def mean_estimate(values: Sequence[float], seed: int = 0) -> MeanEstimate:
    """Return the mean with its percentile bootstrap interval over questions.

    Of equal or very few values a bootstrap would claim certainty: Wilson's interval is used, on the safe side. Values
    are between 0 and 1.
    """
    found = np.asarray(values, dtype=np.float64)
    if _can_be_drawn(found):
        return _bootstrapped(found, seed)
    n, total = len(found), math.fsum(found)
    low, _ = stats.wilson_interval(math.floor(total), n)
    _, high = stats.wilson_interval(math.ceil(total), n)
    return MeanEstimate(total / n, low, high, n)


def share_estimate(items: int, of: int) -> MeanEstimate:
    """Return a share with its Wilson interval."""
    return MeanEstimate(items / of, *stats.wilson_interval(items, of), of)


def difference_estimate(first: Sequence[float], second: Sequence[float], seed: int = 0) -> MeanEstimate:
    """Return the mean of first less second with its paired bootstrap interval over questions.

    Of equal or very few differences a bootstrap would claim certainty: Tango's interval is used, on the safe side.
    """
    found = _differences(first, second)
    if _can_be_drawn(found):
        return _bootstrapped(found, seed)
    n = len(found)
    more, less = math.fsum(found[found > 0]), -math.fsum(found[found < 0])
    low, _ = stats.tango_interval(math.floor(more), math.ceil(less), n)
    _, high = stats.tango_interval(math.ceil(more), math.floor(less), n)
    return MeanEstimate((more - less) / n, low, high, n)


def minimum_detectable_mean(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the smallest mean difference that a two-sided test of 5 % finds with a power of 80 %, at the seen spread.

    None: no question differs or there is only one, so the spread is unknown.

    Source: (z_0.975 + z_0.8) standard errors, as J. Cohen, "Statistical Power Analysis for the Behavioral
    Sciences" (1988), chapter 2, in large samples.
    """
    differences = _differences(first, second)
    if len(differences) < 2 or not differences.any():
        return None
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * error


def mcnemar_tests(pairs: Mapping[str, tuple[Sequence[bool], Sequence[bool]]]) -> dict[str, McNemar]:
    """Return the exact McNemar test of each named pair of methods, with Holm's correction over all of them."""
    counts = {}
    for name, pair in pairs.items():
        both = list(zip(*pair, strict=True))
        counts[name] = both.count((True, False)), both.count((False, True)), len(both)
    p_values = {name: stats.mcnemar_exact(first, second) for name, (first, second, _) in counts.items()}
    corrected = stats.holm(p_values)
    return {
        name: McNemar(
            only_first=first,
            only_second=second,
            difference=MeanEstimate((first - second) / n, *stats.tango_interval(first, second, n), n),
            p=p_values[name],
            holm_p=corrected[name],
            detectable=stats.minimum_detectable_difference(n, first + second),
        )
        for name, (first, second, n) in counts.items()
    }


def _can_be_drawn(values: npt.NDArray[np.float64]) -> bool:
    return len(values) >= stats.LEAST_DRAWN and bool((values != values[0]).any())


def _bootstrapped(values: npt.NDArray[np.float64], seed: int) -> MeanEstimate:
    interval = stats.bootstrap_interval(lambda drawn: float(values[drawn].mean()), len(values), seed=seed)
    return MeanEstimate(float(values.mean()), *interval, len(values))


def _differences(first: Sequence[float], second: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
