"""How well anomalies are found: known ones are injected into bars, and ROC curves show hits against false alarms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from qubic_lab.errors import InputError
from qubic_lab.oracle.analysis.anomalies import PUMP_BARS
from qubic_lab.oracle.analysis.trend_and_levels import spread
from qubic_lab.oracle.model.bars import Bars, Flags, Floats
from qubic_lab.studies.oracle_results import RocCurve

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
_Z = NormalDist().inv_cdf(0.975)
_RISE = PUMP_BARS // 2
_PUMP = np.concatenate([np.linspace(1 / _RISE, 1.0, _RISE), np.linspace(1.0, 0.1, PUMP_BARS - _RISE + 1)[1:]])
"""The path of a pump in its height: a rise, and the loss of 90 % of it."""
_LARGER: dict[InjectedKind, int] = {"outlier": 0, "jump": 0, "volume": 1, "pump": _RISE, "wash": 1}
"""Number of bars whose volume is larger."""


@dataclass(frozen=True)
class Injected:
    """Bars with injected anomalies; `truth`: the bar at which each should be found, [bars].

    `judged`: bars that count in a curve, which are not the other bars of an anomaly, [bars].
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
        at: rows at which the anomalies begin, with 98 bars before and 13 after each.
        size: in standard deviations of the 48 returns before (for a pump over 12 bars), and of the log volumes before.
        seed: of the signs of outliers and jumps.

    Raises:
        InputError: no volume is known where one is to be larger.
    """
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


def roc(scores: Floats, truth: Flags) -> RocCurve:
    """Return the ROC curve of scores, of which NaN (not known yet) are left out, and the area under it.

    The interval contains the areas whose standard error, by J. Hanley and B. McNeil (Radiology 143, 1982), does not
    reject the observed one; so it has a width even if the area is 1, and near 1 it is wider than necessary. It assumes
    independent bars.

    Raises:
        InputError: no anomaly has a score, or nothing else has.
    """
    from sklearn.metrics import auc, roc_curve

    known = ~np.isnan(scores)
    flags = truth[known]
    anomalies, others = int(flags.sum()), int((~flags).sum())
    if not (anomalies and others):
        raise InputError(f"{anomalies} anomalies and {others} other bars have a score: a curve needs both")
    false_alarms, hits, _ = roc_curve(flags, scores[known], drop_intermediate=False)
    area = float(auc(false_alarms, hits))
    ends = _auc_interval(area, anomalies, others)
    return RocCurve(tuple(false_alarms.tolist()), tuple(hits.tolist()), area, *ends, anomalies, others)


def _auc_interval(auc: float, anomalies: int, others: int) -> tuple[float, float]:
    """Return the areas below and above the observed one that are 1.96 standard errors away from it."""

    def near(true: float) -> bool:
        first, second = true / (2.0 - true), 2.0 * true * true / (1.0 + true)
        variance = true * (1.0 - true) + (anomalies - 1) * (first - true * true) + (others - 1) * (second - true * true)
        return (auc - true) ** 2 * anomalies * others <= _Z * _Z * variance

    ends = []
    for outer in (0.0, 1.0):
        inside, outside = auc, outer
        for _ in range(60):
            middle = (inside + outside) / 2.0
            inside, outside = (middle, outside) if near(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]
