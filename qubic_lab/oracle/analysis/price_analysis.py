"""All that is told of one frame of bars at an instant: figures with their warm-up, or why they are not there."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.analysis import forecast as forecasting
from qubic_lab.oracle.analysis.anomalies import manipulation, returns, volume
from qubic_lab.oracle.analysis.forecast import Forecast, forecast_path, forecasts
from qubic_lab.oracle.analysis.indicators import INDICATORS, PATTERNS, CandlePattern, Indicator, compute
from qubic_lab.oracle.analysis.levels import PIVOTS, Breakout, Level, find_breakouts, find_levels
from qubic_lab.oracle.analysis.levels import RULE as LEVEL_RULE
from qubic_lab.oracle.analysis.trend import TRENDS, WINDOW, Trend, find_trend
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import HOUR_US, SECOND_US, iso

RECENT = 24
"""Breakouts and anomalies of the last so many bars are told."""
MOST_LEVELS = 10
"""The strongest so many are told."""
PATTERN_BARS = 3
"""Candle patterns that end in one of the last so many bars are told."""
_PATTERN_CONTEXT = 64
_FORECAST_HOURS = 4


def _forecast(part: str) -> Callable[[Bars], Floats]:
    def values(bars: Bars) -> Floats:
        if bars.frame_us > _FORECAST_HOURS * HOUR_US:
            return np.full(len(bars), np.nan)
        found: Floats = getattr(bars.once("path", lambda each: forecast_path(each, _FORECAST_HOURS)), part)
        return found

    return values


_RULE, _LONGEST_US = forecasting.RULE, _FORECAST_HOURS * HOUR_US
_FORECASTS = (
    Indicator(
        "forecast_4h", _forecast("point"), _RULE.window(_LONGEST_US) - 1, "log price", "log price expected in 4 hours"
    ),
    Indicator(
        "forecast_4h_half_width",
        _forecast("half_width"),
        _RULE.warm_up(_LONGEST_US, _FORECAST_HOURS),
        "log price",
        "half the interval of the log price in 4 hours; its warm-up is that of bars of 4 hours, shorter ones need more",
    ),
)
CAUSAL: dict[str, Indicator | CandlePattern] = {
    **INDICATORS,
    **PATTERNS,
    **TRENDS,
    **PIVOTS,
    **returns.RETURN_SCORES,
    **volume.VOLUME_SCORES,
    **manipulation.MANIPULATION_SCORES,
    **{each.name: each for each in _FORECASTS},
}
"""All that is told bar by bar: each value depends on its bar and earlier ones alone."""


@dataclass(frozen=True)
class Figure:
    """An indicator at the last bar. `warm_up`: bars before its first value; `age_s`: since that bar closed."""

    value: float
    unit: str
    warm_up: int
    age_s: float
    description: str


@dataclass(frozen=True)
class SeenPattern:
    """A candle pattern; `direction`: what books expect after it."""

    name: str
    direction: Literal["rise", "fall"]
    at_us: int
    meaning: str


@dataclass(frozen=True)
class Alert:
    """A bar that is unusual, and its numbers; `direction`: up or down of a return."""

    kind: Literal["outlier", "jump", "volume", "zero-volume"]
    at_us: int
    score: float | None
    evidence: dict[str, float]
    text: str


@dataclass(frozen=True)
class PriceAnalysis:
    """What the bars of a frame say at an instant.

    Attributes:
        missing: bars that are not there between the first and the last one.
        age_s: since the last bar closed; None where there is no bar.
        flagged: prices that cleaning flagged among those of the last 24 bars.
        patterns: of the last 3 bars, one after the other.
        levels: the strongest first. breakouts: of the last 24 bars.
        outliers, jumps, volumes, manipulation: of the last 24 bars.
        jump_test: whether there were jumps among the last 96 returns.
    """

    frame_s: int
    at_us: int
    bars: int
    first_us: int | None
    last_us: int | None
    age_s: float | None
    missing: int
    flagged: int
    close: float | Missing
    indicators: dict[str, Figure | Missing]
    patterns: tuple[SeenPattern, ...] | Missing
    trend: Trend | Missing
    forecasts: dict[str, Forecast | Missing]
    levels: tuple[Level, ...] | Missing
    breakouts: tuple[Breakout, ...] | Missing
    outliers: tuple[Alert, ...] | Missing
    jumps: tuple[Alert, ...] | Missing
    jump_test: returns.JumpTest | Missing
    volumes: tuple[Alert, ...] | Missing
    manipulation: tuple[manipulation.Hint, ...] | Missing
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON: instants in ISO 8601 without `_us` in their names, no infinities."""
        plain: dict[str, Any] = _plain(self)
        return plain


def analyse(bars: Bars, at_us: int) -> PriceAnalysis:
    """Return what bars say at an instant; those that close later are not looked at.

    Args:
        bars: of one asset, and of one length.
        at_us: the instant.

    Raises:
        InputError: bars without a length.
    """
    check_at_least("length of the bars in microseconds", bars.frame_us, 1)
    bars = bars.until(at_us)
    count = len(bars)
    last_us = int(bars.closed_us[-1]) if count else None
    age_s = None if last_us is None else (at_us - last_us) / SECOND_US
    values = compute(bars)
    atr = values["atr_14"]
    with_levels = _why_no_levels(bars)
    trend = find_trend(bars, values["adx_14"])
    return PriceAnalysis(
        frame_s=bars.frame_us // SECOND_US,
        at_us=at_us,
        bars=count,
        first_us=int(bars.closed_us[0]) if count else None,
        last_us=last_us,
        age_s=age_s,
        missing=int(bars.steps.sum()) - count,
        flagged=int(bars.flagged[-RECENT:].sum()),
        close=float(bars.close[-1]) if count else Missing(reason="no bar is known"),
        indicators={name: _figure(INDICATORS[name], each, bars, age_s) for name, each in values.items()},
        patterns=_patterns(bars),
        trend=trend or _too_few(WINDOW + 1, count),
        forecasts=forecasts(bars),
        levels=with_levels or find_levels(bars, atr)[:MOST_LEVELS],
        breakouts=with_levels or find_breakouts(bars, RECENT, atr),
        outliers=_outliers(bars),
        jumps=_jumps(bars),
        jump_test=_jump_test(bars),
        volumes=_volumes(bars),
        manipulation=_why_no_volumes(bars) or manipulation.find_hints(bars, RECENT),
        notes=_notes(bars),
    )


def _figure(indicator: Indicator, values: Floats, bars: Bars, age_s: float | None) -> Figure | Missing:
    if len(bars) <= indicator.warm_up:
        return _too_few(indicator.warm_up + 1, len(bars))
    value = float(values[-1])
    if math.isnan(value):
        of_volume = indicator.name in ("obv", "volume_balance")
        return Missing(reason="volumes are not known or 0" if of_volume else "the price did not move")
    assert age_s is not None
    return Figure(value, indicator.unit, indicator.warm_up, age_s, indicator.description)


def _too_few(needed: int, known: int) -> Missing:
    return Missing(reason=f"{needed} bars are needed, {known} {'is' if known == 1 else 'are'} known")


def _patterns(bars: Bars) -> tuple[SeenPattern, ...] | Missing:
    """Return the patterns of the last bars; all look at 13 bars at the most."""
    warm_up = max(each.warm_up for each in PATTERNS.values())
    if len(bars) <= warm_up:
        return _too_few(warm_up + 1, len(bars))
    tail = bars.slice(max(0, len(bars) - _PATTERN_CONTEXT), len(bars))
    if not (tail.high > tail.low).any():
        return Missing(reason="open, high, low and close are one price in each bar: no candle has a body or shadows")
    found = {name: pattern(tail) for name, pattern in PATTERNS.items()}
    return tuple(
        SeenPattern(name, "rise" if values[place] > 0 else "fall", int(tail.closed_us[place]), PATTERNS[name].meaning)
        for place in range(max(0, len(tail) - PATTERN_BARS), len(tail))
        for name, values in found.items()
        if abs(values[place]) > 0
    )


def _why_no_levels(bars: Bars) -> Missing | None:
    needed = max(2 * LEVEL_RULE.side, INDICATORS["atr_14"].warm_up) + 2
    if len(bars) < needed:
        return _too_few(needed, len(bars))
    still = not (bars.high[-LEVEL_RULE.bars :] > bars.low[-LEVEL_RULE.bars :].min()).any()
    return Missing(reason=f"the price did not move in the last {LEVEL_RULE.bars} bars") if still else None


def _why_no_volumes(bars: Bars) -> Missing | None:
    if not len(bars) or np.isnan(bars.volume).all():
        return Missing(reason="no volume is known")
    needed = volume.VOLUME_SCORES["volume_score"].warm_up + 1
    traded = int(np.count_nonzero(bars.volume > 0.0))
    if traded < needed:
        return Missing(reason=f"{needed} bars with a volume above 0 are needed, {traded} are known")
    return None


def _recent(scores: Floats, threshold: float) -> list[int]:
    """Return the places among the last bars whose score is at least the threshold up or down."""
    first = max(0, len(scores) - RECENT)
    return [first + int(place) for place in np.flatnonzero(np.abs(scores[first:]) >= threshold)]


def _outliers(bars: Bars) -> tuple[Alert, ...] | Missing:
    indicator = returns.RETURN_SCORES["outlier_score"]
    if len(bars) <= indicator.warm_up:
        return _too_few(indicator.warm_up + 1, len(bars))
    scores = indicator(bars)
    return tuple(
        _return_alert(bars, "outlier", place, float(scores[place]), "robust deviations of the 97 returns before")
        for place in _recent(scores, returns.OUTLIER_THRESHOLD)
    )


def _jumps(bars: Bars) -> tuple[Alert, ...] | Missing:
    indicator = returns.RETURN_SCORES["jump_score"]
    if len(bars) <= indicator.warm_up:
        return _too_few(indicator.warm_up + 1, len(bars))
    scores = indicator(bars)
    return tuple(
        _return_alert(bars, "jump", place, float(scores[place]), "deviations of the bipower variation before")
        for place in _recent(scores, returns.jump_threshold())
    )


def _return_alert(bars: Bars, kind: Literal["outlier", "jump"], place: int, score: float, what: str) -> Alert:
    steps = int(bars.steps[place])
    pct = 100.0 * math.expm1(bars.log_close[place] - bars.log_close[place - 1])
    text = f"{pct:+.2f} % in {steps} bar{'s' * (steps != 1)}: {score:+.1f} {what}"
    return Alert(kind, int(bars.closed_us[place]), score, {"return_pct": pct, "bars": float(steps)}, text)


def _jump_test(bars: Bars) -> returns.JumpTest | Missing:
    needed = returns.BIPOWER_WINDOW + 1
    if len(bars) < needed:
        return _too_few(needed, len(bars))
    found = returns.jump_test(bars.step_returns[-returns.BIPOWER_WINDOW :])
    return found or Missing(reason=f"the price hardly moved in the last {needed} bars")


def _volumes(bars: Bars) -> tuple[Alert, ...] | Missing:
    if not len(bars) or np.isnan(bars.volume).all():
        return Missing(reason="no volume is known")
    first = max(0, len(bars) - RECENT)
    alerts = [
        Alert("zero-volume", int(bars.closed_us[place]), None, {"volume": 0.0}, "nothing was traded")
        for place in range(first, len(bars))
        if bars.volume[place] == 0.0
    ]
    if (why := _why_no_volumes(bars)) is not None:
        return tuple(alerts) if alerts else why
    basis = volume.volume_basis(bars)
    for place in _recent(basis.score, volume.THRESHOLD):
        traded, usual, score = float(bars.volume[place]), basis.usual(place), float(basis.score[place])
        when = f"at this time of day on {volume.DAYS} days" if basis.same_time[place] else f"in {volume.WINDOW} bars"
        evidence = {"volume": traded, "usual": usual, "ratio": traded / usual}
        text = f"{traded / usual:.2g} times the usual volume {when} before it: {score:+.1f} robust deviations"
        alerts.append(Alert("volume", int(bars.closed_us[place]), score, evidence, text))
    return tuple(sorted(alerts, key=lambda alert: alert.at_us))


def _notes(bars: Bars) -> tuple[str, ...]:
    """Return what must be known to read the figures."""
    missing = int(bars.steps.sum()) - len(bars)
    unknown, zero = int(np.isnan(bars.volume).sum()), int(np.count_nonzero(bars.volume == 0.0))
    notes = [
        f"{missing} bars are missing and were not filled in: indicators count bars, returns and forecasts take time"
    ] * bool(missing)
    notes += [f"{unknown} of {len(bars)} bars have no known volume"] * bool(unknown)
    notes += [f"in {zero} of {len(bars)} bars nothing was traded"] * bool(zero)
    return (*notes, f"support and resistance are of the last {LEVEL_RULE.bars} bars", manipulation.NOT_VISIBLE)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for each in fields(value):
            name, content = each.name, getattr(value, each.name)
            if name.endswith("_us"):
                name, content = name.removesuffix("_us"), None if content is None else iso(content)
            found[name] = _plain(content)
        return found
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
