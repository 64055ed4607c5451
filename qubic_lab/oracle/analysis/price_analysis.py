"""The analysis of a frame of bars at an instant: each part has its values, or says why it has none."""

import math
from typing import Literal

import numpy as np

from qubic_lab.oracle.analysis import anomalies
from qubic_lab.oracle.analysis.forecast import FORECASTS, forecasts
from qubic_lab.oracle.analysis.indicators import INDICATORS, PATTERNS, Indicator, compute
from qubic_lab.oracle.analysis.results import (
    AnalysedBars,
    Anomalies,
    BarAnalysis,
    IndicatorValue,
    JumpTest,
    SeenPattern,
    UnusualBar,
)
from qubic_lab.oracle.analysis.trend_and_levels import (
    LEVEL_RULE,
    PIVOTS,
    TRENDS,
    WINDOW,
    find_breakouts,
    find_levels,
    find_trend,
)
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import SECOND_US

RECENT = 24
"""Number of last bars whose breakouts and anomalies are reported."""
MOST_LEVELS = 10
"""The largest number of levels; the strongest are kept."""
PATTERN_BARS = 3
"""Number of last bars whose candle patterns are reported."""
_PATTERN_CONTEXT = 64
NO_BARS = "no bar of this frame has closed yet"
CAUSAL = {**INDICATORS, **PATTERNS, **TRENDS, **PIVOTS, **anomalies.SCORES, **FORECASTS}
"""Everything that is computed bar by bar: each value depends on its bar and earlier ones alone."""


def analyse(bars: Bars, at_us: int, source: str, interval_s: int) -> BarAnalysis:
    """Return the analysis of an asset's bars of one length at an instant; bars that close later are ignored.

    `source` and `interval_s` are those of the prices that the bars are made from.
    """
    bars = bars.until(at_us)
    if not len(bars):
        return BarAnalysis.missing(NO_BARS)
    last_us = int(bars.closed_us[-1])
    age_s = (at_us - last_us) / SECOND_US
    missing = int(bars.steps.sum()) - len(bars)
    without_levels = _why_no_levels(bars)
    return BarAnalysis(
        analysed=AnalysedBars(
            source=source,
            interval_s=interval_s,
            bars=len(bars),
            first_us=int(bars.closed_us[0]),
            last_us=last_us,
            age_s=age_s,
            missing=missing,
            notes=_notes(bars, missing),
        ),
        indicators={name: _value(INDICATORS[name], each, age_s) for name, each in compute(bars).items()},
        patterns=_patterns(bars),
        trend=find_trend(bars) or _too_few(WINDOW + 1, len(bars)),
        levels=without_levels or find_levels(bars)[:MOST_LEVELS],
        breakouts=without_levels or find_breakouts(bars, RECENT),
        forecasts=forecasts(bars),
        anomalies=Anomalies(
            outliers=_unusual_returns(bars, "outlier", "robust deviations of the 97 returns before"),
            jumps=_unusual_returns(bars, "jump", "deviations of the bipower variation before"),
            jump_test=_jump_test(bars),
            volumes=_unusual_volumes(bars, source),
            manipulation=_why_no_volumes(bars, source) or anomalies.find_hints(bars, RECENT),
        ),
    )


def _value(indicator: Indicator, values: Floats, age_s: float) -> IndicatorValue | Missing:
    if len(values) <= indicator.warm_up:
        return _too_few(indicator.warm_up + 1, len(values))
    if math.isnan(values[-1]):
        of_volume = indicator.name in ("obv", "volume_balance")
        return Missing("volumes are not known or 0" if of_volume else "the price did not move")
    return IndicatorValue(
        value=float(values[-1]),
        unit=indicator.unit,
        warm_up=indicator.warm_up,
        age_s=age_s,
        description=indicator.description,
    )


def _too_few(needed: int, known: int) -> Missing:
    return Missing(f"{needed} bars are needed, {known} {'is' if known == 1 else 'are'} known")


def _patterns(bars: Bars) -> tuple[SeenPattern, ...] | Missing:
    """Return the patterns of the last bars; each depends on 13 bars at most."""
    warm_up = max(each.warm_up for each in PATTERNS.values())
    if len(bars) <= warm_up:
        return _too_few(warm_up + 1, len(bars))
    tail = bars.tail(_PATTERN_CONTEXT)
    if not (tail.high > tail.low).any():
        return Missing("open, high, low and close are one price in each bar: no candle has a body or shadows")
    found = {name: pattern(tail) for name, pattern in PATTERNS.items()}
    return tuple(
        SeenPattern(
            name=name,
            direction="rise" if values[place] > 0 else "fall",
            at_us=int(tail.closed_us[place]),
            meaning=PATTERNS[name].description,
        )
        for place in range(max(0, len(tail) - PATTERN_BARS), len(tail))
        for name, values in found.items()
        if abs(values[place]) > 0
    )


def _why_no_levels(bars: Bars) -> Missing | None:
    needed = max(2 * LEVEL_RULE.side, INDICATORS["atr_14"].warm_up) + 2
    if len(bars) < needed:
        return _too_few(needed, len(bars))
    still = not (bars.high[-LEVEL_RULE.bars :] > bars.low[-LEVEL_RULE.bars :].min()).any()
    return Missing(f"the price did not move in the last {LEVEL_RULE.bars} bars") if still else None


def _recent(scores: Floats, threshold: float) -> list[int]:
    """Return the rows among the last bars whose score reaches the threshold in either direction."""
    first = max(0, len(scores) - RECENT)
    return [first + int(place) for place in np.flatnonzero(np.abs(scores[first:]) >= threshold)]


def _unusual_returns(bars: Bars, kind: Literal["outlier", "jump"], unit: str) -> tuple[UnusualBar, ...] | Missing:
    indicator = anomalies.SCORES[f"{kind}_score"]
    if len(bars) <= indicator.warm_up:
        return _too_few(indicator.warm_up + 1, len(bars))
    scores = indicator(bars)
    found = []
    for place in _recent(scores, anomalies.OUTLIER_THRESHOLD if kind == "outlier" else anomalies.JUMP_THRESHOLD):
        steps, score = int(bars.steps[place]), float(scores[place])
        pct = 100.0 * math.expm1(bars.log_close[place] - bars.log_close[place - 1])
        found.append(
            UnusualBar(
                kind=kind,
                at_us=int(bars.closed_us[place]),
                score=score,
                evidence={"return_pct": pct, "bars": float(steps)},
                text=f"{pct:+.2f} % in {steps} bar{'s' * (steps != 1)}: {score:+.1f} {unit}",
            )
        )
    return tuple(found)


def _jump_test(bars: Bars) -> JumpTest | Missing:
    needed = anomalies.BIPOWER_WINDOW + 1
    if len(bars) < needed:
        return _too_few(needed, len(bars))
    found = anomalies.jump_test(bars.step_returns[-anomalies.BIPOWER_WINDOW :])
    return found or Missing(f"the price hardly moved in the last {needed} bars")


def _why_no_volumes(bars: Bars, source: str) -> Missing | None:
    if np.isnan(bars.volume).all():
        return Missing(f"no volume is known: {source} gives none of a bar; import bars that have volumes")
    needed = anomalies.VOLUME_WARM_UP + 1
    traded = int(np.count_nonzero(bars.volume > 0.0))
    return Missing(f"{needed} bars with a volume above 0 are needed, {traded} are known") if traded < needed else None


def _unusual_volumes(bars: Bars, source: str) -> tuple[UnusualBar, ...] | Missing:
    zeros = max(0, len(bars) - RECENT) + np.flatnonzero(bars.volume[-RECENT:] == 0.0)
    found = [
        UnusualBar(kind="zero-volume", at_us=at_us, score=None, evidence={"volume": 0.0}, text="nothing was traded")
        for at_us in bars.closed_us[zeros].tolist()
    ]
    if missing := _why_no_volumes(bars, source):
        return tuple(found) or missing
    basis = anomalies.volume_basis(bars)
    for place in _recent(basis.score, anomalies.VOLUME_THRESHOLD):
        volume, usual, score = float(bars.volume[place]), basis.usual(place), float(basis.score[place])
        same_time = f"at this time of day on {anomalies.DAYS} days"
        when = same_time if basis.same_time[place] else f"in {anomalies.VOLUME_WINDOW} bars"
        found.append(
            UnusualBar(
                kind="volume",
                at_us=int(bars.closed_us[place]),
                score=score,
                evidence={"volume": volume, "usual": usual, "ratio": volume / usual},
                text=f"{volume / usual:.2g} times the usual volume {when} before it: {score:+.1f} robust deviations",
            )
        )
    return tuple(sorted(found, key=lambda each: each.at_us))


def _notes(bars: Bars, missing: int) -> tuple[str, ...]:
    """Return what a reader must know to interpret the values."""
    unknown, zero = int(np.isnan(bars.volume).sum()), int(np.count_nonzero(bars.volume == 0.0))
    notes = [
        f"{missing} bars are missing and were not filled in: indicators count bars, returns and forecasts take time"
    ] * bool(missing)
    notes += [f"{unknown} of {len(bars)} bars have no known volume"] * bool(unknown)
    notes += [f"in {zero} of {len(bars)} bars nothing was traded"] * bool(zero)
    return (*notes, f"support and resistance are of the last {LEVEL_RULE.bars} bars", anomalies.NOT_VISIBLE)
