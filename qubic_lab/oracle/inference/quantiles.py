"""What prices did after high scores and after low ones: returns by bucket, each made of the past alone."""

import math
from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.inference.alignment import WINDOW, Aligned, trailing_share
from qubic_lab.oracle.inference.bootstrap import RESAMPLES, block_length, is_constant, resampled_weights
from qubic_lab.oracle.model.bars import Floats

BUCKETS = 5
LEAST_IN_BUCKET = 10


@dataclass(frozen=True)
class Bucket:
    """The returns after scores of one bucket: how many, and their mean with its interval of 95 %."""

    bars: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class QuantileSpread:
    """Returns by bucket of the score, lowest first; None where there is none, with the reason in `absent`.

    Attributes:
        horizon: in bars.
        spread: mean return after the highest bucket less that after the lowest; `low`, `high`: its interval of 95 %.
        monotone_p: two-sided, that means which do not rise (or fall) from bucket to bucket look as if they did.
        block: mean length of the bootstrap's blocks.
    """

    horizon: int
    buckets: tuple[Bucket, ...] = ()
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    monotone_p: float | None = None
    block: float | None = None
    absent: str = ""

    @property
    def edge_bps(self) -> float | None:
        """What a unit that is long after the highest bucket and short after the lowest gains a time, in basis points.

        It is half of the spread, before costs.
        """
        return None if self.spread is None else 5_000.0 * self.spread


def buckets_of(score: Floats, buckets: int = BUCKETS, window: int = WINDOW) -> Floats:
    """Return each score's bucket, 0 the lowest, among the last known ones before it; NaN where there are too few.

    Raises:
        InputError: fewer than two buckets.
    """
    check_at_least("buckets", buckets, 2)
    return np.asarray(np.minimum(np.floor(trailing_share(score, window) * buckets), buckets - 1.0))


def quantile_spread(
    aligned: Aligned, horizon: int = 1, buckets: int = BUCKETS, resamples: int = RESAMPLES, seed: int = 0
) -> QuantileSpread:
    """Return the mean return after scores of each bucket, and how far the highest and the lowest are apart.

    Args:
        aligned: scores and returns.
        horizon: of the returns, in bars.
        buckets: how many.
        resamples: of the stationary bootstrap.
        seed: of it.

    Ends of intervals are the mean less the quantiles of (drawn − observed) from the other side.

    Source: blocks as `block_length` finds them for score × return, and no shorter than the horizon; the test of
    monotone means: A. J. Patton and A. Timmermann, Journal of Financial Economics 98 (2010), 605-625.
    """
    place, move = buckets_of(aligned.score, buckets), aligned.ahead(horizon)
    both = ~(np.isnan(place) | np.isnan(move))
    inside, returns = place[both].astype(np.intp), move[both]
    if is_constant(returns):
        return QuantileSpread(
            horizon, absent=f"every return is {returns[0]:.3g}" if len(returns) else "no return is known"
        )
    counts = np.bincount(inside, minlength=buckets)
    if counts.min() < LEAST_IN_BUCKET:
        return QuantileSpread(
            horizon,
            absent=f"a bucket holds {counts.min()} of {len(inside)} bars: fewer than {LEAST_IN_BUCKET} say nothing",
        )
    member = (inside[:, None] == np.arange(buckets)).astype(np.float64)
    means = returns @ member / counts
    block = block_length((inside - inside.mean()) * returns, float(horizon))
    weights = resampled_weights(len(inside), block, resamples, seed)
    drawn = np.concatenate([(w @ (member * returns[:, None])) / np.maximum(w @ member, 1.0) for w in weights])
    away, own = drawn - means, means[-1] - means[0]
    # Blocks lack the part of the variance between them: see `performance.sharpe_interval`.
    away /= math.sqrt(max(0.1, 1.0 - block / len(inside)))
    reach = np.quantile(away, (0.975, 0.025), axis=0)
    low, high = own - np.quantile(away[:, -1] - away[:, 0], (0.975, 0.025))
    side = 1.0 if own >= 0.0 else -1.0
    return QuantileSpread(
        horizon=horizon,
        buckets=tuple(
            Bucket(int(count), float(mean), float(mean - up), float(mean - down))
            for count, mean, (up, down) in zip(counts, means, reach.T, strict=True)
        ),
        spread=float(own),
        low=float(low),
        high=float(high),
        monotone_p=_monotone_p(side * means, side * away),
        block=block,
    )


def _monotone_p(means: Floats, away: Floats) -> float:
    """Return how often the least rise from one bucket to the next is as large by chance, for either direction."""
    rises = np.diff(away, axis=1).min(axis=1)
    one = (1 + np.count_nonzero(rises >= np.diff(means).min())) / (1 + len(away))
    return float(min(1.0, 2.0 * one))
