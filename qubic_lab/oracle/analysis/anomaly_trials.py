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
_PUMP = np.concatenate([np.linspace(1 / _RISE, 1.0, _RISE), np.linspace(1.0, 0.1, PUMP_BARS - _RISE + 1)[1:]])
"""The path of a pump in its height: a rise, and the loss of 90 % of it."""
_LARGER: dict[InjectedKind, int] = {"outlier": 0, "jump": 0, "volume": 1, "pump": _RISE, "wash": 1}
"""Number of bars whose volume is larger."""


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
    shift, open_shift, volume_shift = np.zeros((3, len(bars)))  # in logarithms
    truth, judged = np.zeros(len(bars), bool), np.ones(len(bars), bool)
    steps = size * spread(bars)
    for place, step in zip(at, (sign * steps[np.asarray(at, np.intp) - 1]).tolist(), strict=True):
        found, end = place, place + 1
        if kind == "outlier":
            shift[place] += step
            judged[end] = False
        elif kind == "jump":
            shift[place:] += step
            open_shift[end:] += step
        elif kind == "pump":
            found, end = place + PUMP_BARS - 1, place + PUMP_BARS
            path = _PUMP * abs(step) * math.sqrt(PUMP_BARS)
            shift[place:end] += path
            open_shift[place + 1 : end] += path[:-1]
            shift[end:] += path[-1]
            open_shift[end:] += path[-1]
            judged[place : end + PUMP_BARS] = False
            judged[found] = True
        truth[found] = True
        for each in range(place, place + _LARGER[kind]):
            volume_shift[each] += size * _volume_spread(bars, each)
    flat = truth if kind == "wash" else np.zeros(len(bars), bool)
    return Injected(_shifted(bars, shift, open_shift, volume_shift, flat), truth, judged)


def _volume_spread(bars: Bars, place: int) -> float:
    """Return the standard deviation of the log volumes before a bar."""
    before = bars.volume[place - _BEFORE : place]
    traded = np.log(before[before > 0.0])
    if not traded.size or not bars.volume[place] > 0.0:
        raise InputError(f"no volume is known at place {place} or before it: choose another place")
    return max(0.05, float(np.std(traded)))


def _shifted(bars: Bars, shift: Floats, open_shift: Floats, volume_shift: Floats, flat: Flags) -> Bars:
    """Return bars with shifted logarithms of closes, opens and volumes; `flat` ones stay at the close before."""
    close, start = bars.close * np.exp(shift), bars.open * np.exp(open_shift)
    high, low = (each * np.exp(np.minimum(shift, open_shift)) for each in (bars.high, bars.low))
    close[flat] = start[flat] = high[flat] = low[flat] = bars.close[np.flatnonzero(flat) - 1]
    high, low = np.maximum.reduce([high, start, close]), np.minimum.reduce([low, start, close])
    changed = (shift != 0.0) | (open_shift != 0.0) | flat
    prices: dict[str, Any] = {
        "open": start,
        "high": np.where(changed, high, bars.high),
        "low": np.where(changed, low, bars.low),
        "volume": bars.volume * np.exp(volume_shift),
    }
    return Bars.of(bars.closed_us, close, **prices, frame_us=bars.frame_us)


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
