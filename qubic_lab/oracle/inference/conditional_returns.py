"""Returns that follow scores: by bucket of the score, and around events such as extreme scores and bursts of texts.

Buckets and events are decided by earlier values alone.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qubic_lab.oracle.inference.alignment import LEAST_BEFORE, WINDOW, Aligned, trailing_share
from qubic_lab.oracle.inference.resampling import RESAMPLES, block_length, resampled_weights
from qubic_lab.oracle.model.bars import Floats, Integers, is_constant
from qubic_lab.stats import holm_in_parts

BUCKETS = 5
LEAST_IN_BUCKET = 10
AROUND = 24
"""Bars before and after an event."""
OFFSETS = np.arange(-AROUND, AROUND + 1, dtype=np.int64)
EXTREME = 0.05
"""The score of an event, or its number of texts, is among this share of the last ones."""
LEAST_EVENTS = 8
MOVES = ("before", "first", "after")
"""The abnormal returns of an event study."""


@dataclass(frozen=True)
class ReturnBucket:
    """Returns after the scores of one bucket: number of bars, and their mean with its interval of 95 %."""

    bars: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class QuantileSpread:
    """Returns by bucket of the score, lowest first; if there are none, figures are None and `absent` says why.

    `spread` is the mean return after the highest bucket less that after the lowest, with its interval of 95 %;
    `monotone_p` is the two-sided p-value of a test that the means rise, or fall, from bucket to bucket.
    """

    horizon: int
    buckets: tuple[ReturnBucket, ...] = ()
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    monotone_p: float | None = None
    block: float | None = None
    absent: str = ""

    @property
    def edge_bps(self) -> float | None:
        """Mean gain before costs of being long after the highest bucket and short after the lowest: half the spread."""
        return None if self.spread is None else 5_000.0 * self.spread


def buckets_of(score: Floats) -> Floats:
    """Return each score's bucket among the known scores before it, 0 the lowest, [bars]; NaN with too few of them."""
    return np.asarray(np.minimum(np.floor(trailing_share(score) * BUCKETS), BUCKETS - 1.0))


def quantile_spread(aligned: Aligned, horizon: int = 1, resamples: int = RESAMPLES, seed: int = 0) -> QuantileSpread:
    """Return the mean return after the scores of each bucket, and the spread of the highest and the lowest bucket.

    Intervals are basic bootstrap intervals: the mean less the quantiles of (drawn − observed). Blocks are those that
    `block_length` finds for score × return, at least as long as the horizon.

    Source of the test of monotone means: A. J. Patton and A. Timmermann, Journal of Financial Economics 98 (2010),
    605-625.
    """
    place, move = buckets_of(aligned.score), aligned.ahead(horizon)
    both = ~(np.isnan(place) | np.isnan(move))
    inside, returns = place[both].astype(np.intp), move[both]
    if is_constant(returns):
        why = f"every return is {returns[0]:.3g}" if len(returns) else "no return is known"
        return QuantileSpread(horizon, absent=why)
    counts = np.bincount(inside, minlength=BUCKETS)
    if counts.min() < LEAST_IN_BUCKET:
        why = f"a bucket holds {counts.min()} of {len(inside)} bars: at least {LEAST_IN_BUCKET} are needed"
        return QuantileSpread(horizon, absent=why)
    member = (inside[:, None] == np.arange(BUCKETS)).astype(np.float64)
    means = returns @ member / counts
    block = block_length((inside - inside.mean()) * returns, float(horizon))
    weights = resampled_weights(len(inside), block, resamples, seed)
    drawn = np.concatenate([(w @ (member * returns[:, None])) / np.maximum(w @ member, 1.0) for w in weights])
    away, own = drawn - means, means[-1] - means[0]
    # The variance of resampled blocks lacks the factor 1 − block / bars.
    away /= math.sqrt(max(0.1, 1.0 - block / len(inside)))
    reach = np.quantile(away, (0.975, 0.025), axis=0)
    low, high = own - np.quantile(away[:, -1] - away[:, 0], (0.975, 0.025))
    side = 1.0 if own >= 0.0 else -1.0
    return QuantileSpread(
        horizon=horizon,
        buckets=tuple(
            ReturnBucket(int(count), float(mean), float(mean - up), float(mean - down))
            for count, mean, (up, down) in zip(counts, means, reach.T, strict=True)
        ),
        spread=float(own),
        low=float(low),
        high=float(high),
        monotone_p=_monotone_p(side * means, side * away),
        block=block,
    )


def _monotone_p(means: Floats, away: Floats) -> float:
    """Return the p-value of the smallest step from one bucket to the next, for either direction."""
    steps = np.diff(away, axis=1).min(axis=1)
    one = (1 + np.count_nonzero(steps >= np.diff(means).min())) / (1 + len(away))
    return float(min(1.0, 2.0 * one))


@dataclass(frozen=True)
class AbnormalReturn:
    """The mean abnormal return over some bars, its interval of 95 %, and its p-value, also corrected by Holm."""

    mean: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True, eq=False)
class EventStudy:
    """Prices around one kind of event; with too few events figures are missing and `absent` says why.

    Attributes:
        kind: "high scores", "low scores", "both, by sign" (low ones count with the opposite sign), "bursts of texts".
        found: number of events; `used`: those that are far enough apart and have all bars around them.
        path, low, high: mean cumulative abnormal return from the next open on, and its interval of 95 %, [offsets].
        before: over the bars up to that open, the event's own among them; `after`: over all later ones; `first`: over
            the first of them.
    """

    kind: str
    found: int
    used: int
    offsets: Integers
    path: Floats
    low: Floats
    high: Floats
    before: AbnormalReturn | None = None
    after: AbnormalReturn | None = None
    first: AbnormalReturn | None = None
    absent: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, without the path."""
        moves = {name: getattr(self, name) for name in MOVES}
        told = {name: None if move is None else asdict(move) for name, move in moves.items()}
        return {"kind": self.kind, "found": self.found, "used": self.used, **told, "absent": self.absent}


def extremes(values: Floats) -> tuple[Integers, Integers]:
    """Return the bars whose value is among the highest, and among the lowest, of the known values before it."""
    at = trailing_share(values)
    return np.flatnonzero(at >= 1.0 - EXTREME).astype(np.int64), np.flatnonzero(at <= EXTREME).astype(np.int64)


def thinned(places: Integers, apart: int) -> Integers:
    """Return rising places that are at least `apart` apart: the first one, then the next that is far enough."""
    kept: list[int] = []
    for place in places.tolist():
        if not kept or place - kept[-1] >= apart:
            kept.append(place)
    return np.array(kept, np.int64)


def event_studies(aligned: Aligned, resamples: int = RESAMPLES, seed: int = 0) -> tuple[EventStudy, ...]:
    """Return the event studies of high scores, low scores, both by sign, and bursts of texts.

    Events closer than `AROUND` bars to the last one of their kind are left out, so that no bar counts twice before, or
    twice after, events. Intervals come from resampled events.

    The abnormal return is the return less the mean return of the bars before the first one that is shown. The p-values
    are those of Student's t over events.

    Source: A. C. MacKinlay, "Event studies in economics and finance", Journal of Economic Literature 35 (1997), 13-39:
    the constant-mean-return model.
    """
    high, low = extremes(aligned.score)
    burst, _ = extremes(aligned.texts)
    burst = burst[aligned.texts[burst] > 1.0]
    paths = _abnormal_paths(aligned)
    found = [
        ("high scores", high, np.ones(len(high))),
        ("low scores", low, np.ones(len(low))),
        ("both, by sign", np.concatenate([high, low]), np.repeat([1.0, -1.0], [len(high), len(low)])),
        ("bursts of texts", burst, np.ones(len(burst))),
    ]
    studies = [_study(kind, at, sign, paths, resamples, seed) for kind, at, sign in found]
    return holm_in_parts(studies, *MOVES)


def _abnormal_paths(aligned: Aligned) -> Floats:
    """Return the abnormal path around each bar's next open, [bars, offsets].

    It is NaN where bars are missing, or where the past is too short for a normal return.
    """
    paths = np.stack([aligned.move(1, 1 + offset) for offset in OFFSETS.tolist()], axis=1)
    single = aligned.ahead(1, -1)
    for bar in range(len(paths)):
        before = single[max(0, bar - AROUND - WINDOW) : max(0, bar - AROUND)]
        before = before[~np.isnan(before)]
        paths[bar] -= before.mean() * OFFSETS if len(before) >= LEAST_BEFORE else math.nan
    return paths


def _study(kind: str, places: Integers, sign: Floats, paths: Floats, resamples: int, seed: int) -> EventStudy:
    order = np.argsort(places, kind="stable")
    whole = order[~np.isnan(paths[places[order]]).any(axis=1)]
    used = whole[np.isin(places[whole], thinned(places[whole], AROUND))]
    if len(used) < LEAST_EVENTS:
        nothing = np.full(len(OFFSETS), np.nan)
        why = f"{len(used)} events that are apart and have all bars around them: at least {LEAST_EVENTS} are needed"
        return EventStudy(kind, len(places), len(used), OFFSETS, nothing, nothing, nothing, absent=why)
    signed = sign[used, None] * paths[places[used]]
    low, high = _intervals(signed, resamples, seed)
    columns = (-signed[:, 0], signed[:, -1], signed[:, AROUND + 1])
    before, after, first = (_abnormal_return(values, resamples, seed) for values in columns)
    path = signed.mean(axis=0)
    return EventStudy(kind, len(places), len(used), OFFSETS, path, low, high, before, after, first)


def _intervals(values: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the 95 % interval of the mean over events, [columns], by resampling events."""
    events = len(values)
    drawn = np.random.default_rng(seed).integers(0, events, (resamples, events))
    weights = np.stack([np.bincount(row, minlength=events) for row in drawn]) / events
    # The spread of resampled means is too small by √(1 − 1 / events).
    away = (weights @ values - values.mean(axis=0)) / math.sqrt(1.0 - 1.0 / events)
    low, high = values.mean(axis=0) - np.quantile(away, (0.975, 0.025), axis=0)
    return low, high


def _abnormal_return(values: Floats, resamples: int, seed: int) -> AbnormalReturn:
    from scipy.stats import ttest_1samp

    low, high = _intervals(values[:, None], resamples, seed)
    p = float(ttest_1samp(values, 0.0).pvalue) if np.ptp(values) > 0.0 else 1.0
    return AbnormalReturn(float(values.mean()), float(low[0]), float(high[0]), p, p)
