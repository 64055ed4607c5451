"""Returns that are far from those before them: outliers, and jumps as the bipower variation tells them."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import talib

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.analysis.anomalies.robust import medians_before, robust_scores
from qubic_lab.oracle.analysis.indicators import Indicator
from qubic_lab.oracle.ingest.cleaning import RULE
from qubic_lab.oracle.model.bars import Bars, Floats

OUTLIER_WINDOW = RULE.window + 1
OUTLIER_THRESHOLD = RULE.threshold
JUMP_WINDOW = 240
"""Returns before it that tell how far a return may go without a jump."""
BIPOWER_WINDOW = 96
"""Returns that are tested together."""
JUMP_FAMILY, JUMP_LEVEL = 1_000, 0.01
"""With a chance of about so much there is a false jump among so many returns."""
NO_SPREAD = 1e-6
"""A price that moves by less a bar stands still."""
_HALF_PI = math.pi / 2.0


def outlier_scores(bars: Bars) -> Floats:
    """Return each return over √steps, less the median of those before, in robust standard deviations, [bars].

    As in `clean.outliers` (Hampel's identifier over 96 past returns): window, threshold and floor are the same, but
    each past return's distance is from the median at its own time, which takes a thousandth of the time; so a few
    flags differ. Those of cleaning itself come with the bars.
    """
    values = np.full(len(bars), np.nan)
    returns = bars.step_returns[1:]
    values[1:] = robust_scores(returns, medians_before(returns, OUTLIER_WINDOW), OUTLIER_WINDOW, RULE.floor)
    return values


def jump_scores(bars: Bars) -> Floats:
    """Return each return over √steps in standard deviations without jumps, from the returns before it, [bars].

    The variance is the mean of |r(j)| |r(j−1)| times π/2 over the 240 returns before, which a jump moves little:
    L(i) of S. Lee and P. Mykland, "Jumps in financial markets", Review of Financial Studies 21 (2008), scaled to
    variance 1. Where volatility itself changes quickly, large returns that are no jumps score high too.
    """
    scores = np.full(len(bars), np.nan)
    size = np.abs(bars.step_returns[1:])
    if len(size) < JUMP_WINDOW + 2:
        return scores
    variance = _HALF_PI / JUMP_WINDOW * talib.SUM(size[1:] * size[:-1], JUMP_WINDOW)[JUMP_WINDOW - 1 : -1]
    deviation = np.sqrt(np.maximum(NO_SPREAD**2, variance))
    scores[JUMP_WINDOW + 2 :] = bars.step_returns[JUMP_WINDOW + 2 :] / deviation
    return scores


def jump_threshold(family: int = JUMP_FAMILY, level: float = JUMP_LEVEL) -> float:
    """Return the size of score that the greatest of `family` returns without jumps exceeds with chance `level`.

    By the limit law of the greatest absolute normal value (Gumbel), as Lee and Mykland (2008), equation 13.

    Raises:
        InputError: a family of fewer than 10, or a level that is not between 0 and 1.
    """
    check_at_least("family of returns", family, 10)
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}: it must lie between 0 and 1")
    root = math.sqrt(2.0 * math.log(family))
    centre = root - (math.log(math.pi) + math.log(math.log(family))) / (2.0 * root)
    return centre - math.log(-math.log1p(-level)) / root


@dataclass(frozen=True)
class JumpTest:
    """Whether there were jumps among some returns.

    Attributes:
        statistic: about standard normal without jumps.
        p_value: one-sided.
        jump_share: of the variance, that which bipower variation does not explain; at least 0.
    """

    statistic: float
    p_value: float
    jump_share: float
    returns: int


def jump_test(returns: Floats) -> JumpTest | None:
    """Return the test of whether returns have jumps; None where nothing moved, or there are fewer than 10 returns.

    The ratio test, its variance by quad-power quarticity: O. Barndorff-Nielsen and N. Shephard, "Econometrics of
    testing for jumps in financial economics using bipower variation", Journal of Financial Econometrics 4 (2006),
    with their bound of the quarticity from below.
    """
    if len(returns) < 10:
        return None
    padded = np.concatenate([np.zeros(1), np.asarray(returns, np.float64)])
    ratio, scale = _bipower(padded, len(returns))
    if math.isnan(ratio[-1]):
        return None
    statistic = float(ratio[-1] / scale[-1])
    return JumpTest(statistic, 1.0 - NormalDist().cdf(statistic), max(0.0, float(ratio[-1])), len(returns))


def bipower_scores(bars: Bars) -> Floats:
    """Return the statistic of `jump_test` over the 96 returns up to each bar, [bars]; NaN where nothing moved."""
    ratio, scale = _bipower(bars.step_returns, BIPOWER_WINDOW)
    return ratio / scale


def _bipower(returns: Floats, window: int) -> tuple[Floats, Floats]:
    """Return 1 − BV/RV over the `window` returns up to each, and its standard deviation without jumps.

    The first return does not count: nothing was before it.
    """
    count = len(returns)
    ratio, scale = np.full(count, np.nan), np.full(count, np.nan)
    if count <= window:
        return ratio, scale
    size = np.abs(returns[1:])
    pairs = size[1:] * size[:-1]
    quads = pairs[2:] * pairs[:-2]
    variance = _sums(size * size, window, 0)
    bipower = _HALF_PI * window / (window - 1) * _sums(pairs, window, 1)
    quarticity = _HALF_PI**2 * window**2 / (window - 3) * _sums(quads, window, 3)
    moved = (variance > window * NO_SPREAD**2) & (bipower > 1e-9 * variance)
    np.divide(bipower, variance, out=ratio[window:], where=moved)
    ratio[window:] = 1.0 - ratio[window:]
    relative = np.divide(quarticity, bipower * bipower, out=np.ones_like(bipower), where=moved)
    scale[window:] = np.sqrt((_HALF_PI**2 + math.pi - 5.0) / window * np.maximum(1.0, relative))
    return ratio, scale


def _sums(products: Floats, window: int, lost: int) -> Floats:
    """Return the sums of products of neighbours within each window of returns; `lost`: neighbours less one."""
    return np.asarray(talib.SUM(products, window - lost)[window - lost - 1 :])


RETURN_SCORES: dict[str, Indicator] = {
    each.name: each
    for each in (
        Indicator(
            "outlier_score",
            outlier_scores,
            2 * OUTLIER_WINDOW + 1,
            "robust deviations",
            "a return against the median and the median absolute deviation of 97 before it",
        ),
        Indicator(
            "jump_score", jump_scores, JUMP_WINDOW + 2, "deviations", "a return against the bipower variation before it"
        ),
        Indicator(
            "bipower_score", bipower_scores, BIPOWER_WINDOW, "deviations", "jumps among 96 returns: variance ratio test"
        ),
    )
}
"""Scores of returns, bar by bar."""
