"""Prices around events: scores that are extreme by the past, and bursts of texts; what came before counts as well."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.inference.alignment import LEAST_BEFORE, WINDOW, Aligned, trailing_share
from qubic_lab.oracle.inference.bootstrap import RESAMPLES
from qubic_lab.oracle.inference.permutation import holm_of
from qubic_lab.oracle.model.bars import Floats, Integers

AROUND = 24
"""Bars before and after an event."""
EXTREME = 0.05
"""An event's score, or number of texts, is among this share of the last ones."""
LEAST_EVENTS = 8


@dataclass(frozen=True)
class Move:
    """The mean abnormal return over some bars: with its interval of 95 %, by events, and its p-value.

    `p_holm` is corrected for all moves that were looked at together.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True, eq=False)
class EventStudy:
    """What prices did around one kind of event; empty, with the reason in `absent`, where there are too few.

    Attributes:
        kind: "high scores", "low scores", "both, by sign" (low ones count with the opposite sign), "bursts of texts".
        found: events by the past alone; `used`: those that stand apart and have all bars around them.
        offsets: bars from the event on, [offsets]; at 0 it is known and its next open is the start of all returns.
        path, low, high: mean cumulative abnormal return from that open, and its interval of 95 % at each offset.
        before: over the bars up to that open, the event's own bar among them.
        after: over the bars behind it.
        first: over the first bar behind it.
    """

    kind: str
    found: int
    used: int
    offsets: Integers
    path: Floats
    low: Floats
    high: Floats
    before: Move | None = None
    after: Move | None = None
    first: Move | None = None
    absent: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, without the path."""
        moves = {name: getattr(self, name) for name in ("before", "first", "after")}
        told = {name: None if move is None else asdict(move) for name, move in moves.items()}
        return {"kind": self.kind, "found": self.found, "used": self.used, **told, "absent": self.absent}


def extremes(values: Floats, share: float = EXTREME, window: int = WINDOW) -> tuple[Integers, Integers]:
    """Return the bars whose value is among the highest, and among the lowest, of the last known ones before it."""
    at = trailing_share(values, window)
    return np.flatnonzero(at >= 1.0 - share).astype(np.int64), np.flatnonzero(at <= share).astype(np.int64)


def thinned(places: Integers, apart: int) -> Integers:
    """Return events that are at least so many bars apart: the first one, then the next that is far enough."""
    kept: list[int] = []
    for place in places.tolist():
        if not kept or place - kept[-1] >= apart:
            kept.append(place)
    return np.array(kept, np.int64)


def event_studies(
    aligned: Aligned, around: int = AROUND, share: float = EXTREME, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[EventStudy, ...]:
    """Return what prices did around high scores, low ones, both by sign, and bursts of texts.

    Events of a kind closer than `around` bars to the last one are left out, so that no bar after two events, and none
    before two, counts twice.

    Args:
        aligned: scores, texts and returns.
        around: bars before and after.
        share: what is extreme.
        resamples: draws of events, for intervals.
        seed: of them.

    A return is abnormal by what it has more than the mean of the last bars before the first one that is shown. The
    p-values are of Student's t over events.

    Source: A. C. MacKinlay, "Event studies in economics and finance", Journal of Economic Literature 35 (1997), 13-39:
    the constant-mean-return model.
    """
    check_at_least("around", around, 1)
    high, low = extremes(aligned.score, share)
    burst, _ = extremes(aligned.texts, share)
    burst = burst[aligned.texts[burst] > 1.0]
    paths = _Paths(aligned, around)
    found = [
        ("high scores", high, np.ones(len(high))),
        ("low scores", low, np.ones(len(low))),
        ("both, by sign", np.concatenate([high, low]), np.repeat([1.0, -1.0], [len(high), len(low)])),
        ("bursts of texts", burst, np.ones(len(burst))),
    ]
    studies = [_study(kind, at, sign, paths, resamples, seed) for kind, at, sign in found]
    return corrected(studies)


class _Paths:
    """Gives the abnormal path around a bar: [2 × around + 1] from `around` bars before its next open to as many after.

    Attributes:
        offsets: of the path.
    """

    def __init__(self, aligned: Aligned, around: int) -> None:
        self.around, self.offsets = around, np.arange(-around, around + 1, dtype=np.int64)
        self._single = aligned.ahead(1, -1)
        self._whole = np.stack([aligned.move(1, 1 + int(offset)) for offset in self.offsets], axis=1)

    def at(self, place: int) -> Floats | None:
        """Return the path around one bar; None where bars lack, or the past is too short to say what is normal."""
        path = self._whole[place]
        before = self._single[max(0, place - self.around - WINDOW) : max(0, place - self.around)]
        before = before[~np.isnan(before)]
        if np.isnan(path).any() or len(before) < LEAST_BEFORE:
            return None
        return np.asarray(path - before.mean() * self.offsets)


def _study(kind: str, places: Integers, sign: Floats, paths: _Paths, resamples: int, seed: int) -> EventStudy:
    order = np.argsort(places, kind="stable")
    places, sign = places[order], sign[order]
    kept = [at for at in range(len(places)) if paths.at(int(places[at])) is not None]
    apart = np.isin(places[kept], thinned(places[kept], paths.around))
    used = [(paths.at(int(places[at])), sign[at]) for at, keep in zip(kept, apart, strict=True) if keep]
    nothing = np.full(len(paths.offsets), np.nan)
    if len(used) < LEAST_EVENTS:
        why = f"{len(used)} events that stand apart, with all bars around them: fewer than {LEAST_EVENTS} say nothing"
        return EventStudy(kind, len(places), len(used), paths.offsets, nothing, nothing, nothing, absent=why)
    signed = np.stack([own * np.asarray(path) for path, own in used])
    low, high = _intervals(signed, resamples, seed)
    before, after, first = -signed[:, 0], signed[:, -1], signed[:, paths.around + 1]
    return EventStudy(
        kind,
        len(places),
        len(used),
        paths.offsets,
        signed.mean(axis=0),
        low,
        high,
        before=_move(before, resamples, seed),
        after=_move(after, resamples, seed),
        first=_move(first, resamples, seed),
    )


def _intervals(values: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the interval of 95 % of the mean over events, [columns]: events are drawn anew."""
    events = len(values)
    drawn = np.random.default_rng(seed).integers(0, events, (resamples, events))
    weights = np.stack([np.bincount(row, minlength=events) for row in drawn]) / events
    # Drawn means spread by √(1 − 1 / events) too little.
    away = (weights @ values - values.mean(axis=0)) / math.sqrt(1.0 - 1.0 / events)
    low, high = values.mean(axis=0) - np.quantile(away, (0.975, 0.025), axis=0)
    return low, high


def _move(values: Floats, resamples: int, seed: int) -> Move:
    from scipy.stats import ttest_1samp

    low, high = _intervals(values[:, None], resamples, seed)
    p = float(ttest_1samp(values, 0.0).pvalue) if np.ptp(values) > 0.0 else 1.0
    return Move(float(values.mean()), float(low[0]), float(high[0]), p, p)


def corrected(studies: Sequence[EventStudy]) -> tuple[EventStudy, ...]:
    """Return studies with the p-values of all their moves corrected together by Holm, however they were before."""
    names = ("before", "after", "first")
    moves = [(at, name, getattr(each, name)) for at, each in enumerate(studies) for name in names]
    moves = [(at, name, move) for at, name, move in moves if move is not None]
    together = holm_of([move.p for _, _, move in moves])
    changes: dict[int, dict[str, Move]] = {}
    for (at, name, move), p in zip(moves, together, strict=True):
        changes.setdefault(at, {})[name] = replace(move, p_holm=p)
    return tuple(replace(each, **changes.get(at, {})) for at, each in enumerate(studies))  # type: ignore[arg-type]
