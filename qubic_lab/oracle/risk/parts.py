"""What is told of risk, part by part, as clients read it."""

import math
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from qubic_lab.oracle.model.bars import YEAR_US
from qubic_lab.oracle.model.candles import Candles
from qubic_lab.oracle.model.response import Frame, Missing, age_s
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, iso
from qubic_lab.oracle.risk import windows
from qubic_lab.oracle.risk.comparison import Matched, match_alarm_time
from qubic_lab.oracle.risk.current import ahead, measure_all, rank, standing
from qubic_lab.oracle.risk.drawdown import drawdown, recent_drawdown
from qubic_lab.oracle.risk.market import RiskMarket
from qubic_lab.oracle.risk.measures import MEASURES, Market, Measured
from qubic_lab.oracle.risk.responses import (
    Interval,
    PastWarning,
    RiskBars,
    RiskDrawdown,
    RiskEvidence,
    RiskLevel,
    RiskMeasure,
    RiskRecord,
    RiskRule,
    RiskVolatility,
    TailRisk,
    Volatility,
    VolatilityForecast,
    WarningRecord,
)
from qubic_lab.oracle.risk.rules import LEVELS, Level, Rule, Windows, fit_rules
from qubic_lab.oracle.risk.tail_tests import ALPHA
from qubic_lab.oracle.risk.tails import MODELS, Tail, evaluate_models
from qubic_lab.oracle.risk.volatility import ESTIMATORS, garch_of, realised_volatility
from qubic_lab.oracle.risk.warnings import Assessment, Estimate, Evidence, Track, WarningScore, assess

LEVEL: Level = "warning"
"""From which on a level counts as a warning."""
FALLS: dict[Frame, tuple[int, float]] = {"1h": (DAY_US, 0.04), "4h": (3 * DAY_US, 0.07), "1d": (7 * DAY_US, 0.1)}
"""Within so long, and so deep, is the fall that is to be warned of: round numbers, chosen before any history."""
TAIL_LEVELS = (0.01, 0.05)
TAIL_MODELS = tuple(name for name in MODELS if name != "constant normal")
REFIT_BARS = 100
LAST_WARNINGS = 5
NOT_INSTALLED = 'models of volatility need arch, which is not installed: pip install "qubic-lab[oracle]"'


def prepare_models() -> None:
    """Import what fits models, where it is installed: it takes a second that the first answer need not wait."""
    with suppress(ModuleNotFoundError):
        import_module("arch")


def assess_market(market: Market, rules: Sequence[Rule]) -> Assessment:
    """Return the level of risk at each bar, by rules with windows that fit the bars' length."""
    return assess(market, fit_rules(rules, Windows.of(market.candles.frame_us)))


def why_no_level(assessment: Assessment) -> str:
    """Return why the last bar has no level; empty where it has one."""
    if all(track.measured.absent for track in assessment.tracks):
        return f"no rule has a value: {next(iter(assessment.absent.values()))}"
    return ""


def silent_rules(assessment: Assessment, bar: int = -1) -> str:
    """Return how many rules have no value at a bar, in brackets and after a space; empty where all have one."""
    tracks = assessment.tracks
    silent = sum(math.isnan(track.measured.values[bar]) for track in tracks)
    return f" ({silent} of {len(tracks)} rules have no value here)" if silent else ""


def risk_parts(looked: RiskMarket, frame: Frame, at_us: int, rules: Sequence[Rule]) -> dict[str, Any]:
    """Return the parts of an answer about risk by their names."""
    if not len(looked.candles):
        return no_parts("no bar of this frame has closed yet")
    if find_spec("arch") is None:
        return no_parts(NOT_INSTALLED)
    candles, lengths = looked.candles, Windows.of(looked.candles.frame_us)
    assessment = assess_market(looked.market, rules)
    reason = why_no_level(assessment)
    measures = measure_all(looked.market, assessment.tracks, lengths, REFIT_BARS)
    return {
        "analysed": _bars(looked, at_us),
        "level": Missing(reason=reason) if reason else _level(assessment, looked.is_stale(at_us)),
        "rules": {track.rule.name: _rule(track) for track in assessment.tracks},
        "measures": {name: _measure(name, each) for name, each in measures.items()},
        "volatility": _volatility(candles, lengths),
        "tails": _tails(candles, lengths),
        "drawdown": _drawdown(candles, lengths),
        "warnings": Missing(reason=reason) if reason else _warnings(assessment),
        "record": _record(candles, assessment, lengths, frame),
    }


def no_parts(reason: str) -> dict[str, Any]:
    """Return the same parts, all absent."""
    names = ("analysed", "level", "volatility", "tails", "drawdown", "warnings", "record")
    return {**{name: Missing(reason=reason) for name in names}, "rules": {}, "measures": {}}


def _bars(looked: RiskMarket, at_us: int) -> RiskBars:
    candles, series = looked.candles, looked.candidate.series
    first, last = int(candles.closed_us[0]), int(candles.closed_us[-1])
    return RiskBars(
        source=series.source,
        interval_s=series.interval_s,
        bars=len(candles),
        first=iso(first),
        last=iso(last),
        age_s=age_s(last, at_us),
        missing=(last - first) // candles.frame_us + 1 - len(candles),
        stale=looked.is_stale(at_us),
        volume=not np.isnan(candles.volume).all(),
        other=looked.other,
        sentiment=looked.sentiment,
    )


def evidence_of(found: Evidence) -> RiskEvidence:
    """Return a rule's evidence for clients."""
    return RiskEvidence(text=str(found), **{name: getattr(found, name) for name in found.__dataclass_fields__})


def _level(assessment: Assessment, stale: bool) -> RiskLevel:
    now, last = standing(assessment), assessment.at(-1)
    before = f" (before: {now.before})" if now.before else ""
    because = "; ".join(map(str, last.evidence)) or "no rule has reached its first level"
    because += silent_rules(assessment)
    old = f" The last bar closed at {iso(last.closed_us)}: this is old." if stale else ""
    return RiskLevel(
        level=now.level,
        since=iso(now.since_us),
        before=now.before,
        bars=now.bars,
        evidence=[evidence_of(each) for each in last.evidence],
        text=f"{now.level} since {iso(now.since_us)}{before}: {because}.{old}",
    )


def _rule(track: Track) -> RiskRule | Missing:
    if track.measured.absent:
        return Missing(reason=track.measured.absent)
    rule, value, level = track.rule, float(track.measured.values[-1]), int(track.levels[-1])
    following = ahead(rule, level, value)
    return RiskRule(
        measure=rule.measure,
        level=LEVELS[level],
        value=_known(value),
        unit=MEASURES[rule.measure].unit,
        watch=rule.watch,
        warning=rule.warning,
        alarm=rule.alarm,
        hold=rule.hold,
        next_level=following.next_level,
        to_next=following.to_next,
        clears_below=following.clears_below,
    )


def _measure(name: str, measured: Measured) -> RiskMeasure | Missing:
    if measured.absent:
        return Missing(reason=measured.absent)
    found = rank(measured.values)
    return RiskMeasure(
        value=found.value,
        percentile=found.percentile,
        bars=found.bars,
        unit=MEASURES[name].unit,
        description=MEASURES[name].description,
        parameters=dict(measured.parameters),
    )


def _volatility(candles: Candles, lengths: Windows) -> RiskVolatility:
    year = math.sqrt(YEAR_US / candles.frame_us)
    realised: dict[str, Volatility | Missing] = {}
    for name in ESTIMATORS:
        value = float(realised_volatility(candles, lengths.bars, name)[-1])
        short = Missing(reason=f"{len(candles)} bars: it needs {lengths.bars + ESTIMATORS[name].extra}")
        realised[name] = short if math.isnan(value) else Volatility(bar_pct=100 * value, year_pct=100 * value * year)
    forecast: VolatilityForecast | Missing
    if (found := garch_of(candles, REFIT_BARS)).absent:
        forecast = Missing(reason=found.absent)
    else:
        value = 100 * float(found.sigma[-1])
        forecast = VolatilityForecast(
            bar_pct=value, year_pct=value * year, fits=found.fits, failed=found.failed, refit_bars=REFIT_BARS
        )
    return RiskVolatility(bars=lengths.bars, realised=realised, forecast=forecast)


def _tails(candles: Candles, lengths: Windows) -> list[TailRisk] | Missing:
    returns = windows.log_returns(candles)
    tails = evaluate_models(returns, garch_of(candles, REFIT_BARS), TAIL_LEVELS, lengths, TAIL_MODELS)
    found = [_tail(each) for each in tails if not math.isnan(each.forecast.var[-1])]
    return found or Missing(reason=f"{len(candles)} bars: a model needs {lengths.tail_bars + 1} at least")


def _tail(tail: Tail) -> TailRisk:
    test = tail.test
    return TailRisk(
        model=tail.model,
        probability=test.level,
        value_at_risk_pct=100 * float(tail.forecast.var[-1]) + 0.0,  # no -0.0 of prices that stand still
        shortfall_pct=100 * float(tail.forecast.es[-1]) + 0.0,
        tested=test.bars,
        beyond=test.violations,
        expected=test.expected,
        **{f"{name}_p": value for name, value in test.p_values.items()},
        rejected_by=list(test.rejected),
        not_tested=test.absent,
    )


def _drawdown(candles: Candles, lengths: Windows) -> RiskDrawdown:
    highest = int(np.argmax(candles.close))
    recent = math.nan
    if len(candles) >= lengths.bars:
        recent = float(recent_drawdown(candles, lengths.bars)[-1])
    return RiskDrawdown(
        drawdown_pct=100 * float(drawdown(candles.close)[-1]),
        highest=float(candles.close[highest]),
        highest_at=iso(int(candles.closed_us[highest])),
        recent_pct=None if math.isnan(recent) else 100 * recent,
        recent_bars=lengths.bars,
    )


def _warnings(assessment: Assessment) -> list[PastWarning]:
    return [
        PastWarning(
            at=iso(each.closed_us), level=each.level, before=each.before, evidence=[str(one) for one in each.evidence]
        )
        for each in reversed(assessment.warnings(LEVEL)[-LAST_WARNINGS:])
    ]


def _record(candles: Candles, assessment: Assessment, lengths: Windows, frame: Frame) -> RiskRecord | Missing:
    horizon_us, drop = FALLS[frame]
    horizon_bars = horizon_us // candles.frame_us
    found = match_alarm_time(candles, assessment, LEVEL, horizon_bars, drop, lengths)
    if found.comparison is None:
        return Missing(reason=found.absent)
    comparison = found.comparison
    return RiskRecord(
        level=LEVEL,
        horizon_h=horizon_us / HOUR_US,
        drop_pct=100 * drop,
        start=iso(int(candles.closed_us[found.start])),
        end=iso(int(candles.closed_us[-1])),
        months=comparison.ours.months,
        ours=_score(comparison.ours),
        naive=_score(comparison.naive),
        naive_quantile=found.quantile,
        only_ours=comparison.only_ours,
        only_naive=comparison.only_naive,
        p=comparison.p,
        fallen_pct=None if found.fallen is None else 100 * found.fallen,
        text=record_text(found, drop, horizon_us / HOUR_US),
    )


def record_text(found: Matched, drop: float, horizon_h: float) -> str:
    """Say in a sentence what warnings were worth, or why that is not known."""
    assert found.comparison is not None
    ours, naive = found.comparison.ours, found.comparison.naive
    period = f"{ours.months:.1f} months" if ours.months >= 2 else f"{ours.months * 365 / 12:.0f} days"
    what = f"falls of {100 * drop:g} % within {span(horizon_h)}"
    if not ours.events and not ours.warnings:
        return f"Nothing is known of such warnings: in {period} there were none, and no {what}."
    right = "none was raised"
    if ours.warnings:
        right = f"{ours.right} of {ours.warnings} warnings were right{_between(ours.precision)}"
        right += f", {100 * ours.precision_by_chance:.0f} % would be by chance"
    if not ours.events:
        return f"In {period} there were no {what}, so none of the warnings ({ours.warnings}) was right."
    better = found.comparison.p < ALPHA
    verdict = "not shown to differ from"
    if better:
        verdict = "more than" if found.comparison.only_ours > found.comparison.only_naive else "fewer than"
    return (
        f"In {period} {ours.found} of {ours.events} {what} were found{_between(ours.recall)} with "
        f"{100 * found.ours_share:.0f} % of the time under warning; {right}. This is {verdict} what a rule on "
        f"volatility alone finds ({naive.found}, with {100 * found.naive_share:.0f} % of the time; p = "
        f"{found.comparison.p:.2g})."
    )


def span(hours: float) -> str:
    """Return so many hours in words."""
    return f"{hours:g} h" if hours < 48 else f"{hours / 24:g} days"


def _between(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({100 * estimate.low:.0f} to {100 * estimate.high:.0f} %)"


def _score(score: WarningScore) -> WarningRecord:
    return WarningRecord(
        warnings=score.warnings,
        right=score.right,
        precision=_interval(score.precision),
        precision_by_chance=score.precision_by_chance,
        falls=score.events,
        found=score.found,
        recall=_interval(score.recall),
        recall_by_chance=score.recall_by_chance,
        false_alarms_a_month=_interval(score.false_alarms_a_month),
        lead_h=_interval(score.lead_h),
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
