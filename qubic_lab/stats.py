"""Statistics that reports need: plain numbers in, plain numbers out."""

import math
from collections.abc import Callable
from fractions import Fraction
from statistics import NormalDist

from qubic_lab.errors import InputError


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, which stays sensible at 0, at 1 and for few trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212.

    Raises:
        InputError: no trials, more successes than trials, or a confidence that is not between 0 and 1.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise InputError(f"{successes} successes in {trials} trials: there must be 0 to {trials} of at least 1")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1")
    share = successes / trials
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half_width = z / shrink * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    # At the ends the bound is 0 or 1 exactly; rounding must not leave 0.9999999999999999 there.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == trials else centre + half_width
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: are two ways equally often right on the same items?

    Args:
        only_first: items on which only the first way is right.
        only_second: items on which only the second way is right.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution in place of the normal one.

    Raises:
        InputError: a count is negative.
    """
    discordant = only_first + only_second
    _check_counts(only_first, only_second, max(1, discordant))
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**discordant)))  # exact, whatever the counts


def tango_interval(only_first: int, only_second: int, pairs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of the difference of two paired shares, first less second.

    It stays sensible where few pairs or none are discordant, which is where the normal one collapses.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), 891-908.

    Raises:
        InputError: no pairs, counts that do not fit, or a confidence that is not between 0 and 1.
    """
    _check_counts(only_first, only_second, pairs)
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
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
