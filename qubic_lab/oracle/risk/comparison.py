"""Warnings beside a naive rule that warns for the same share of the time: with more of it any rule finds more."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qubic_lab.oracle.model.candles import Candles
from qubic_lab.oracle.risk.drawdown import recent_drawdown
from qubic_lab.oracle.risk.rules import Windows
from qubic_lab.oracle.risk.warnings import (
    Assessment,
    WarningComparison,
    compare_warnings,
    find_falls,
    naive_warnings,
    time_under_warning,
)

QUANTILES = tuple(number / 100 for number in range(50, 100))
"""Of volatility, that the naive rule may have."""


@dataclass(frozen=True, eq=False)
class Matched:
    """Our warnings beside the naive rule whose share of time under warning is nearest to theirs.

    Attributes:
        comparison: None where there is nothing to compare, `absent` says why.
        ours_share, naive_share: of the time under warning: within the horizon after one.
        quantile: of volatility, that the naive rule warns above.
        events: bars of the falls.
        fallen: how far, in the median, the price was below its recent high already when the first warning came of a
            fall that was found; None where none was.
        start: the bar from which on warnings are judged.
    """

    events: NDArray[np.intp]
    fallen: float | None = None
    comparison: WarningComparison | None = None
    ours_share: float = 0.0
    naive_share: float = 0.0
    quantile: float = math.nan
    absent: str = ""
    start: int = 0


def match_alarm_time(
    candles: Candles, assessment: Assessment, level: str, horizon_bars: int, drop: float, lengths: Windows
) -> Matched:
    """Compare warnings with the naive rule that is under warning for a share of the time as near to theirs as can be.

    The naive rule's quantile is chosen by that share alone, without a look at what came.

    Raises:
        InputError: a drop that is none.
    """
    falls = find_falls(candles, horizon_bars, drop)
    start = max(assessment.settled, lengths.bars + lengths.usual_bars)
    if all(track.measured.absent for track in assessment.tracks):
        return Matched(falls, absent=f"no rule has a value: {next(iter(assessment.absent.values()))}")
    if len(candles) <= start + 2 * horizon_bars:
        return Matched(falls, absent=f"{len(candles)} bars: warnings begin after {start}, and need time to be judged")
    closed = candles.closed_us
    start_us, end_us = int(closed[start]), int(closed[-1])
    horizon_us = horizon_bars * candles.frame_us
    ours = np.array([each.closed_us for each in assessment.warnings(level)], np.int64)
    events = closed[falls]
    share = time_under_warning(ours, start_us, end_us, horizon_us)
    tried = []
    for quantile in QUANTILES:
        naive = closed[naive_warnings(candles, lengths.bars, lengths.usual_bars, quantile)]
        theirs = time_under_warning(naive, start_us, end_us, horizon_us)
        tried.append((abs(theirs - share), quantile, theirs, naive))
    _, quantile, theirs, naive = min(tried, key=lambda each: each[:2])
    comparison = compare_warnings(ours, naive, events, start_us, end_us, horizon_us)
    fallen = _fallen(candles, ours, falls[events > start_us], horizon_bars)
    return Matched(falls, fallen, comparison, share, theirs, quantile, start=start)


def _fallen(candles: Candles, warnings_us: NDArray[np.int64], falls: NDArray[np.intp], bars: int) -> float | None:
    """Return the median fall at the first warning within the horizon before each fall."""
    closed, below = candles.closed_us, recent_drawdown(candles, bars)
    places = np.searchsorted(closed, warnings_us)
    found = []
    for fall in falls.tolist():
        before = places[(closed[places] >= closed[fall] - bars * candles.frame_us) & (places < fall)]
        if len(before):
            found.append(float(below[before[0]]))
    return float(np.median(found)) if found else None
