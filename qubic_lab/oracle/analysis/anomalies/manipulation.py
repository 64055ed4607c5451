"""Shapes that manipulation leaves in bars: hints with their numbers, never proof."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import talib

from qubic_lab.oracle.analysis.anomalies.robust import medians_before
from qubic_lab.oracle.analysis.anomalies.volume import WARM_UP, WINDOW, volume_basis
from qubic_lab.oracle.analysis.indicators import Indicator, scaled_prices
from qubic_lab.oracle.analysis.trend import spread
from qubic_lab.oracle.model.bars import Bars, Flags, Floats

HintKind = Literal["pump-and-dump", "wash-trading"]
PUMP_BARS = 12
"""Rise and fall lie within so many bars."""
CALM_BARS = 48
"""Bars before the rise that tell how far prices go by chance."""
PUMP_RISE, PUMP_VOLUME, PUMP_GIVEN_BACK = 5.0, 4.0, 0.6
WASH_VOLUME, WASH_RANGE = 4.0, 0.5
NO_SPREAD = 1e-6
NOT_VISIBLE = (
    "spoofing and layering cannot be seen in bars, since orders that are withdrawn leave no trade: that needs the "
    "order book; wash trading is certain only with the accounts on both sides"
)
_NONE = -1e9


@dataclass(frozen=True)
class Hint:
    """A shape that manipulation leaves, and others too; `evidence` has its numbers by name."""

    kind: HintKind
    at_us: int
    score: float
    evidence: dict[str, float]
    text: str


@dataclass(frozen=True)
class PumpParts:
    """Of the 12 bars up to each, [bars]; NaN where not known.

    Attributes:
        rise: log of the highest close over the close before them, in standard deviations of a random walk of so many
            bars, whose spread is that of the 48 bars before them.
        volume: the greatest volume score among them.
        given_back: the share of that rise that is lost again, 0 to 1; 0 where there was none.
        climbed: log of the highest close over the close before them.
    """

    rise: Floats
    volume: Floats
    given_back: Floats
    climbed: Floats


def pump_parts(bars: Bars) -> PumpParts:
    """Return what a pump and dump is told by, bar by bar."""
    return bars.once("pump", _pump_parts)


def _pump_parts(bars: Bars) -> PumpParts:
    count = len(bars)
    rise, volume, given_back, climbed = (np.full(count, np.nan) for _ in range(4))
    warm_up = PUMP_BARS + CALM_BARS
    if count > warm_up:
        late, start = np.s_[warm_up:], np.s_[CALM_BARS:-PUMP_BARS]
        peak = talib.MAX(bars.log_close, PUMP_BARS)[late]
        climb = peak - bars.log_close[start]
        calm = np.maximum(NO_SPREAD, spread(bars, CALM_BARS)[start])
        time = np.cumsum(bars.steps)
        rise[late] = climb / (calm * np.sqrt(time[late] - time[start]))
        fallen = peak - bars.log_close[late]
        given_back[late] = np.clip(
            np.divide(fallen, climb, out=np.zeros(len(climb)), where=climb > NO_SPREAD), 0.0, 1.0
        )
        climbed[late] = climb
    score = volume_basis(bars).score
    if count >= PUMP_BARS:
        greatest = talib.MAX(np.where(np.isnan(score), _NONE, score), PUMP_BARS)[PUMP_BARS - 1 :]
        volume[PUMP_BARS - 1 :] = np.where(greatest > _NONE, greatest, np.nan)
    return PumpParts(rise, volume, given_back, climbed)


def pump_scores(bars: Bars) -> Floats:
    """Return the lesser of rise and volume of the 12 bars up to each, times the share given back, [bars]."""
    parts = pump_parts(bars)
    return np.minimum(np.maximum(parts.rise, 0.0), np.maximum(parts.volume, 0.0)) * parts.given_back


def range_ratios(bars: Bars) -> Floats:
    """Return each bar's true range over the median of the 97 before it, [bars]; NaN where that is 0 or not known."""
    ratios = np.full(len(bars), np.nan)
    if len(bars) <= WINDOW + 1:
        return ratios
    ranges = np.asarray(talib.TRANGE(*scaled_prices(bars)[1:]))[1:]
    usual = medians_before(ranges, WINDOW)
    np.divide(ranges, usual, out=ratios[1:], where=usual > 0.0)
    return ratios


def wash_scores(bars: Bars) -> Floats:
    """Return volume score × (1 − range ratio), where both are above 0, else 0: much traded, little moved; [bars]."""
    return np.maximum(volume_basis(bars).score, 0.0) * np.maximum(0.0, 1.0 - range_ratios(bars))


def find_hints(bars: Bars, last: int) -> tuple[Hint, ...]:
    """Return the hints at manipulation in the last bars, by time; a shape that lasts is told at its first bar."""
    found = [*_pumps(bars, last), *_washes(bars, last)]
    return tuple(sorted(found, key=lambda hint: (hint.at_us, hint.kind)))


def _pumps(bars: Bars, last: int) -> list[Hint]:
    parts, scores = pump_parts(bars), pump_scores(bars)
    shape = (parts.rise >= PUMP_RISE) & (parts.volume >= PUMP_VOLUME) & (parts.given_back >= PUMP_GIVEN_BACK)
    hints = []
    for place in _starts(shape, last):
        rise, volume, back = float(parts.rise[place]), float(parts.volume[place]), float(parts.given_back[place])
        pct = 100.0 * math.expm1(float(parts.climbed[place]))
        evidence = {"rise_deviations": rise, "rise_pct": pct, "volume_score": volume, "given_back_share": back}
        text = (
            f"rose by {pct:.2f} % ({rise:.1f} deviations of a random walk) and lost {100 * back:.0f} % of it again "
            f"within {PUMP_BARS} bars, with volume up to {volume:.1f} robust deviations above usual"
        )
        hints.append(Hint("pump-and-dump", int(bars.closed_us[place]), float(scores[place]), evidence, text))
    return hints


def _washes(bars: Bars, last: int) -> list[Hint]:
    basis, ratios, scores = volume_basis(bars), range_ratios(bars), wash_scores(bars)
    hints = []
    for place in _starts((basis.score >= WASH_VOLUME) & (ratios <= WASH_RANGE), last):
        volume, ratio, usual = float(basis.score[place]), float(ratios[place]), basis.usual(place)
        traded = float(bars.volume[place])
        evidence = {"volume_score": volume, "volume": traded, "usual_volume": usual, "range_ratio": ratio}
        text = (
            f"volume {traded:.4g}, {traded / usual:.1f} times the usual {usual:.4g} ({volume:.1f} robust deviations), "
            f"while the price moved {ratio:.2f} times as far as usual"
        )
        hints.append(Hint("wash-trading", int(bars.closed_us[place]), float(scores[place]), evidence, text))
    return hints


def _starts(shape: Flags, last: int) -> list[int]:
    """Return the places among the last bars where a shape begins."""
    begins = shape.copy()
    begins[1:] &= ~shape[:-1]
    first = max(0, len(shape) - last)
    return [first + int(place) for place in np.flatnonzero(begins[first:])]


MANIPULATION_SCORES: dict[str, Indicator] = {
    each.name: each
    for each in (
        Indicator(
            "pump_score", pump_scores, WARM_UP, "deviations", "rise with volume, times the share of it lost again"
        ),
        Indicator("wash_score", wash_scores, WARM_UP, "robust deviations", "volume without a move of the price"),
    )
}
"""Scores of shapes, bar by bar."""
