"""How well anomalies are found: known ones are injected into bars, and ROC curves show hits against false alarms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.analysis.anomalies import PUMP_BARS
from qubic_lab.oracle.analysis.trend import spread
from qubic_lab.oracle.model.bars import Bars, Flags, Floats

InjectedKind = Literal["outlier", "jump", "volume", "pump", "wash"]
KINDS: dict[InjectedKind, str] = {
    "outlier": "outlier_score",
    "jump": "jump_score",
    "volume": "volume_score",
    "pump": "pump_score",
    "wash": "wash_score",
}
"""The kinds of anomalies that can be injected, and the score that should find each."""
_BEFORE = 97
_RISE = PUMP_BARS // 2
_LOST = 0.9


@dataclass(frozen=True)
class Injected:
    """Bars with injected anomalies.

    Attributes:
        truth: the bar at which each anomaly should be found, [bars].
        judged: bars that count in a curve: not the other bars of an anomaly, [bars].
    """

    bars: Bars
    truth: Flags
    judged: Flags


def inject(kind: InjectedKind, bars: Bars, at: Sequence[int], size: float, seed: int = 0) -> Injected:
    """Return bars with anomalies of a known size.

    outlier: one close is off, the next one is not. jump: all prices from one bar on are shifted. volume: one volume is
    larger. pump: the price climbs over 6 bars with larger volumes and loses 90 % of the rise over the next 6. wash: one
    volume is larger while its bar hardly moves.

    Args:
        kind: of the anomalies.
        bars: with volumes if the kind needs them.
        at: rows at which the anomalies begin.
        size: in standard deviations of the 48 returns before (for a pump over 12 bars), and of the log volumes before.
        seed: of the signs of outliers and jumps.

    Raises:
        InputError: an unknown kind, a size that is not above 0, a row with fewer than 98 bars before it or too few
            after it.
    """
    check_choice("anomaly", kind, KINDS)
    reach = PUMP_BARS if kind == "pump" else 1
    wrong = [place for place in at if not _BEFORE < place < len(bars) - reach]
    if wrong or not (math.isfinite(size) and size > 0.0):
        raise InputError(
            f"anomaly of size {size} at places {wrong or list(at)} of {len(bars)} bars: the size must be above 0 "
            f"and places from {_BEFORE + 1} on, with {reach} bars after them"
        )
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], len(at))
    work = _Work(bars)
    for place, up in zip(at, sign.tolist(), strict=True):
        getattr(work, kind)(place, size, up)
    return work.done()


class _Work:
    """Changes of the columns, collected anomaly by anomaly."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.spread = spread(bars)
        self.shift = np.zeros(len(bars))
        self.open_shift = np.zeros(len(bars))
        self.flat = np.zeros(len(bars), bool)
        self.volume_shift = np.zeros(len(bars))
        self.truth = np.zeros(len(bars), bool)
        self.judged = np.ones(len(bars), bool)

    def _more_volume(self, place: int, size: float) -> None:
        before = self.bars.volume[place - _BEFORE : place]
        traded = np.log(before[before > 0.0])
        if not traded.size or not self.bars.volume[place] > 0.0:
            raise InputError(f"no volume is known at place {place} or before it: choose another place")
        self.volume_shift[place] += size * max(0.05, float(np.std(traded)))

    def outlier(self, place: int, size: float, up: float) -> None:
        self.shift[place] += up * size * self.spread[place - 1]
        self.truth[place] = True
        self.judged[place + 1] = False

    def jump(self, place: int, size: float, up: float) -> None:
        self.shift[place:] += up * size * self.spread[place - 1]
        self.open_shift[place + 1 :] += up * size * self.spread[place - 1]
        self.truth[place] = True

    def volume(self, place: int, size: float, up: float) -> None:
        self._more_volume(place, size)
        self.truth[place] = True

    def wash(self, place: int, size: float, up: float) -> None:
        self._more_volume(place, size)
        self.flat[place] = True
        self.truth[place] = True

    def pump(self, place: int, size: float, up: float) -> None:
        top = size * self.spread[place - 1] * math.sqrt(PUMP_BARS)
        climb = np.linspace(top / _RISE, top, _RISE)
        fall = np.linspace(top, top * (1.0 - _LOST), PUMP_BARS - _RISE + 1)[1:]
        path = np.concatenate([climb, fall])
        self.shift[place : place + PUMP_BARS] += path
        self.open_shift[place + 1 : place + PUMP_BARS] += path[:-1]
        self.shift[place + PUMP_BARS :] += path[-1]
        self.open_shift[place + PUMP_BARS :] += path[-1]
        for each in range(place, place + _RISE):
            self._more_volume(each, size)
        self.truth[place + PUMP_BARS - 1] = True
        self.judged[place : place + 2 * PUMP_BARS] = False
        self.judged[place + PUMP_BARS - 1] = True

    def done(self) -> Injected:
        old = self.bars
        close, start = old.close * np.exp(self.shift), old.open * np.exp(self.open_shift)
        moved = (self.shift != 0.0) | (self.open_shift != 0.0)
        high, low = (each * np.exp(np.minimum(self.shift, self.open_shift)) for each in (old.high, old.low))
        close[self.flat] = start[self.flat] = high[self.flat] = low[self.flat] = old.close[
            np.flatnonzero(self.flat) - 1
        ]
        high, low = np.maximum.reduce([high, start, close]), np.minimum.reduce([low, start, close])
        high, low = np.where(moved | self.flat, high, old.high), np.where(moved | self.flat, low, old.low)
        volume = old.volume * np.exp(self.volume_shift)
        prices: dict[str, Any] = {"open": start, "high": high, "low": low, "volume": volume}
        changed = Bars.of(old.closed_us, close, **prices, frame_us=old.frame_us)
        return Injected(changed, self.truth, self.judged)


@dataclass(frozen=True)
class RocCurve:
    """Hits against false alarms, from the strictest threshold on, [thresholds + 1].

    Attributes:
        false_alarms: share of the bars without an anomaly that score at least the threshold.
        hits: share of the bars with one.
        thresholds: the scores; infinity first, at which nothing is found.
        auc: probability that an anomaly scores higher than another bar (ties count half), with its interval `low` to
            `high`.
        anomalies, others: number of bars of each.
    """

    false_alarms: Floats
    hits: Floats
    thresholds: Floats
    auc: float
    low: float
    high: float
    anomalies: int
    others: int


def roc(scores: ArrayLike, truth: ArrayLike, confidence: float = 0.95) -> RocCurve:
    """Return the ROC curve of scores, and the area under it.

    The interval contains the areas whose standard error, by J. Hanley and B. McNeil (Radiology 143, 1982), does not
    reject the observed one; so it has a width even if the area is 1, and near 1 it is wider than necessary. It assumes
    independent bars.

    Args:
        scores: of each bar; NaN (not known yet) is left out.
        truth: whether each bar is an anomaly.
        confidence: of the interval.

    Raises:
        InputError: unequal lengths, no anomaly or nothing else, or a confidence that is not between 0 and 1.
    """
    values, flags = np.asarray(scores, np.float64), np.asarray(truth, bool)
    if values.shape != flags.shape or values.ndim != 1:
        raise InputError(f"{values.size} scores and {flags.size} truths: give one truth for each score")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1")
    known = ~np.isnan(values)
    values, flags = values[known], flags[known]
    anomalies, others = int(flags.sum()), int((~flags).sum())
    if not (anomalies and others):
        raise InputError(f"{anomalies} anomalies and {others} other bars have a score: a curve needs both")
    levels, which = np.unique(values, return_inverse=True)
    hit, false = (np.bincount(which, each, len(levels))[::-1] for each in (flags, ~flags))
    below = np.concatenate([[0.0], np.cumsum(false[::-1])[:-1]]) + false[::-1] / 2.0
    auc = float(hit[::-1] @ below) / (anomalies * others)
    low, high = _auc_interval(auc, anomalies, others, NormalDist().inv_cdf((1.0 + confidence) / 2.0))
    return RocCurve(
        false_alarms=np.concatenate([[0.0], np.cumsum(false) / others]),
        hits=np.concatenate([[0.0], np.cumsum(hit) / anomalies]),
        thresholds=np.concatenate([[math.inf], levels[::-1]]),
        auc=auc,
        low=low,
        high=high,
        anomalies=anomalies,
        others=others,
    )


def _auc_interval(auc: float, anomalies: int, others: int, z: float) -> tuple[float, float]:
    """Return the areas below and above the observed one that are `z` standard errors away from it."""

    def near(true: float) -> bool:
        first, second = true / (2.0 - true), 2.0 * true * true / (1.0 + true)
        variance = true * (1.0 - true) + (anomalies - 1) * (first - true * true) + (others - 1) * (second - true * true)
        return (auc - true) ** 2 * anomalies * others <= z * z * variance

    ends = []
    for outer in (0.0, 1.0):
        inside, outside = auc, outer
        for _ in range(60):
            middle = (inside + outside) / 2.0
            inside, outside = (middle, outside) if near(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]
