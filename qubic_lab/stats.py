"""Statistics that reports need: plain numbers in, plain numbers out."""

import math
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
