"""Volumes against what is usual at the same time of day, or lately where there is too little history for that."""

import math
from dataclasses import dataclass

import numpy as np

from qubic_lab.oracle.analysis.anomalies.robust import medians_before, robust_scores
from qubic_lab.oracle.analysis.indicators import Indicator
from qubic_lab.oracle.model.bars import Bars, Flags, Floats, Integers, exact_logs
from qubic_lab.oracle.model.timestamps import DAY_US

DAYS = 15
"""Bars at the same time of day, on earlier days, that tell what is usual then."""
WINDOW = 97
"""Bars before it that tell what is usual lately, and how far volumes are from usual."""
WARM_UP = 2 * WINDOW
"""No bar before has a score."""
FLOOR = 0.05
"""The deviation of log volume is at least this: volumes that hardly differ may."""
THRESHOLD = 5.0


@dataclass(frozen=True)
class VolumeBasis:
    """How unusual each bar's volume is, [bars]; NaN where it is not known, 0, or has too few before it.

    Attributes:
        score: log volume less the usual one, in robust standard deviations.
        usual_log: natural logarithm of the volume that the score compares with.
        same_time: whether that is of the same time of day; else of the bars just before.
    """

    score: Floats
    usual_log: Floats
    same_time: Flags

    def usual(self, place: int) -> float:
        """Return the volume that a bar's is compared with; NaN where there is none."""
        return math.exp(self.usual_log[place])


def volume_basis(bars: Bars) -> VolumeBasis:
    """Return how unusual volumes are; bars without trade or without a known volume are left out of what is usual.

    Usual is the median log volume of the 15 last bars at the same time of day, and the deviation is the median distance
    of the 97 last bars from what was usual for each; until there are enough of them, and for bars of a day or more,
    it is the median of the 97 bars before.
    """
    return bars.once("volume", _volume_basis)


def _volume_basis(bars: Bars) -> VolumeBasis:
    count = len(bars)
    score, usual_log, same_time = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, bool)
    traded = np.flatnonzero(bars.volume > 0.0)
    logs = exact_logs(bars.volume[traded])
    scores, middle = np.full(len(logs), np.nan), np.full(len(logs), np.nan)
    if bars.frame_us < DAY_US:
        middle = _medians_of_time(logs, (bars.closed_us[traded] - 1) % DAY_US // bars.frame_us)
        scores = robust_scores(logs, middle, WINDOW, FLOOR)
        same_time[traded] = ~np.isnan(scores)
    without = np.flatnonzero(np.isnan(scores))
    if without.size:  # the first ones, as a rule: what comes after the last of them is not needed
        until = np.s_[: int(without[-1]) + 1]
        lately = medians_before(logs[until], WINDOW)
        by_lately = robust_scores(logs[until], lately, WINDOW, FLOOR)
        scores[without], middle[without] = by_lately[without], lately[without]
    score[traded] = scores
    usual_log[traded] = np.where(np.isnan(scores), np.nan, middle)
    score[:WARM_UP] = usual_log[:WARM_UP] = np.nan  # bars of some hours have a history by time of day a little earlier
    same_time[:WARM_UP] = False
    return VolumeBasis(score, usual_log, same_time)


def _medians_of_time(logs: Floats, slots: Integers) -> Floats:
    """Return the median of the last values of the same slot before each; NaN where there are fewer than `DAYS`."""
    small = slots.astype(np.uint16) if slots.size and slots.max() < 1 << 16 else slots  # sorted ten times as fast
    order = np.argsort(small, kind="stable")
    medians = medians_before(logs[order], DAYS)
    firsts = np.flatnonzero(np.diff(small[order], prepend=small[order][:1])).tolist()
    for first in (0, *firsts):
        medians[first : first + DAYS] = np.nan  # the window reaches into another slot
    found = np.full(len(logs), np.nan)
    found[order] = medians
    return found


def volume_scores(bars: Bars) -> Floats:
    """Return how unusual each bar's volume is, in robust standard deviations of its logarithm, [bars]."""
    return volume_basis(bars).score


VOLUME_SCORES: dict[str, Indicator] = {
    "volume_score": Indicator(
        "volume_score", volume_scores, WARM_UP, "robust deviations", "log volume against what is usual then"
    )
}
"""Scores of volumes, bar by bar."""
