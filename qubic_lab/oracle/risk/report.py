"""The risk of a coin as clients read it: the level with its evidence, the next loss, and what past warnings were worth.

Losses and volatilities are log returns in per cent. Each part is computed from the bars, or `Missing` says why not.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from qubic_lab.errors import check_choice
from qubic_lab.oracle.model.bars import YEAR_US, Bars
from qubic_lab.oracle.model.coins import find_coin
from qubic_lab.oracle.model.response import (
    FRAME_S,
    AboutCoin,
    AgeS,
    Figure,
    Frame,
    FrameName,
    Instant,
    Missing,
    Money,
    OracleResponse,
    Part,
    PriceOrigin,
    age_s,
)
from qubic_lab.oracle.model.timestamps import HOUR_US, iso
from qubic_lab.oracle.risk.forecast_tests import MODELS, EvaluatedModel, evaluate_models
from qubic_lab.oracle.risk.inputs import RiskMarket, read_risk_market
from qubic_lab.oracle.risk.measures import LEVELS, MEASURES, Level, MeasureValues, WindowLengths, compute_measure
from qubic_lab.oracle.risk.models import ESTIMATORS, drawdown, garch_of, realised_volatility, recent_drawdown
from qubic_lab.oracle.risk.rules import Assessment, RiskEvidence, RiskRule, RuleLevels, assess, fit_rules, read_rules
from qubic_lab.oracle.risk.warning_scores import FALLS, WarningRecord, match_alarm_time, record_text
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.store.snapshot import Snapshot, reading

LEVEL: Level = "warning"
"""The least level that counts as a warning."""
TAIL_LEVELS = (0.01, 0.05)
TAIL_MODELS = tuple(name for name in MODELS if name != "constant normal")
REFIT_BARS = 100
LAST_WARNINGS = 5
NOT_INSTALLED = 'models of volatility need arch, which is not installed: pip install "qubic-lab[oracle]"'

PValue = Annotated[float | None, Field(description="p-value; null: there are too few data for the test")]
Loss = Annotated[float, Field(description="loss of the next bar in per cent: a log return with its sign reversed")]


@dataclass(frozen=True, kw_only=True)
class RiskBars(PriceOrigin):
    """The bars that were analysed: a fixed number of the last closed ones, at most.

    Attributes:
        missing: number of bars that are missing between the first and the last; they are not filled in.
        stale: the last bar is older than three bars and the usual delay of the source.
        other: the asset whose correlation is watched, and its source.
        sentiment: the model whose scores of texts are used, as they were known at each close.
    """

    bars: Annotated[int, Field(description="number of closed bars")]
    first_us: Instant
    last_us: Instant
    age_s: AgeS
    missing: int
    stale: bool
    volume: Annotated[bool, Field(description="whether the bars have volumes")]
    other: str | Missing
    sentiment: str | Missing


@dataclass(frozen=True, kw_only=True)
class RiskLevel(Part):
    """The level at the close of the last bar; it stands since the close at `since_us`."""

    level: Annotated[Level, Field(description="that of the highest rule")]
    since_us: Instant
    before: Annotated[Level | None, Field(description="the level before; null: it is the same since rules have values")]
    bars: Annotated[int, Field(description="how many bars ago it began")]
    evidence: tuple[RiskEvidence, ...]
    text: Annotated[str, Field(description="the level and its reasons in words")]


@dataclass(frozen=True, kw_only=True)
class CurrentRule(Part):
    """A rule at the last bar."""

    measure: Annotated[str, Field(description="what it watches")]
    level: Annotated[Level, Field(description="the rule's level now")]
    value: Annotated[Figure, Field(description="of the measure; null: not known")]
    unit: Annotated[str, Field(description="of the value")]
    watch: Annotated[float, Field(description="the least value for this level")]
    warning: Annotated[float, Field(description="the least value for this level")]
    alarm: Annotated[float, Field(description="the least value for this level")]
    hold: Annotated[int, Field(description="bars in a row below clears_below after which the level is left")]
    next_level: Annotated[Level | None, Field(description="null: there is no higher one")]
    to_next: Annotated[
        float | None, Field(description="distance to it; null: there is none, or the value is not known")
    ]
    clears_below: Annotated[
        float | None, Field(description="the level is left below this value; null: the rule is calm")
    ]


@dataclass(frozen=True, kw_only=True)
class CurrentMeasure(Part):
    """A measure at the last bar, and the share of its `bars` earlier values that are not above it; greater is worse."""

    value: Annotated[float | None, Field(description="null: not known")]
    percentile: Annotated[float | None, Field(description="between 0 and 1; null: not known")]
    bars: Annotated[int, Field(description="how many earlier values it is compared with")]
    unit: Annotated[str, Field(description="of the value")]
    description: Annotated[str, Field(description="what is measured")]
    parameters: Annotated[dict[str, int], Field(description="of the measure, by name")]


@dataclass(frozen=True, kw_only=True)
class BarVolatility(Part):
    """A standard deviation of log returns: of one bar, and of a year of a market that never closes."""

    bar_pct: Annotated[float, Field(description="of one bar, in per cent")]
    year_pct: Annotated[float, Field(description="of 365 days, in per cent")]


@dataclass(frozen=True, kw_only=True)
class NextBarVolatility(BarVolatility):
    """The forecast of a GARCH(1,1) model with Student's t, refitted every `refit_bars` bars, and how its fits ended."""

    fits: Annotated[int, Field(description="number of fits of the model")]
    failed: Annotated[int, Field(description="fits that found no solution")]
    refit_bars: Annotated[int, Field(description="bars between fits")]


@dataclass(frozen=True, kw_only=True)
class RiskVolatility(Part):
    """The volatility of the last `bars` bars by estimator, and the forecast for the next bar."""

    bars: Annotated[int, Field(description="number of bars behind the estimates")]
    realised: dict[str, BarVolatility | Missing]
    forecast: NextBarVolatility | Missing


@dataclass(frozen=True, kw_only=True)
class TailRisk(Part):
    """The loss of the next bar at a probability, by one model, and how the model's past forecasts did.

    Attributes:
        tested: number of past bars with a forecast made before them; of these, `beyond` had a loss above value at risk.
        kupiec_p: of the test whether `beyond` is as expected.
        independence_p: of the test whether such losses follow each other too often; christoffersen_p: of both at once.
        shortfall_p: of the test whether such losses exceed expected shortfall on average.
        rejected_by: tests with a p-value below 0.05; with several models and tests, some reject by chance.
        not_tested: why the model was not tested; empty if it was.
    """

    model: Annotated[str, Field(description="the model's name")]
    probability: Annotated[float, Field(description="that the loss is larger than value at risk")]
    value_at_risk_pct: Loss
    shortfall_pct: Loss
    tested: int
    beyond: Annotated[int, Field(description="past bars with a larger loss than value at risk")]
    expected: Annotated[float, Field(description="how many such bars the probability leads to")]
    kupiec_p: PValue
    independence_p: PValue
    christoffersen_p: PValue
    shortfall_p: PValue
    rejected_by: tuple[str, ...]
    not_tested: str


@dataclass(frozen=True, kw_only=True)
class RiskDrawdown(Part):
    """How far the last close is below the highest of all analysed bars, and of the last `recent_bars` bars."""

    drawdown_pct: Annotated[float, Field(description="below the highest of all bars, in per cent")]
    highest: Money
    highest_at_us: Instant
    recent_pct: Annotated[
        float | None, Field(description="below the highest of the last recent_bars bars, in per cent; null: not known")
    ]
    recent_bars: Annotated[int, Field(description="number of bars that count as recent")]


@dataclass(frozen=True, kw_only=True)
class PastWarning(Part):
    """A past rise of the level, and its evidence."""

    at_us: Instant
    level: Annotated[Level, Field(description="the level after the rise")]
    before: Annotated[Level, Field(description="the level before it")]
    evidence: Annotated[tuple[str, ...], Field(description="why, in words")]


@dataclass(frozen=True, kw_only=True)
class RiskReport(AboutCoin, OracleResponse):
    """The level of risk of a coin by rules, with its evidence, and what such warnings were worth in the coin's past.

    All of it uses bars that were closed at `as_of`, and what was known then. It is no advice.
    """

    frame: FrameName
    as_of_us: Instant
    analysed: RiskBars | Missing
    level: RiskLevel | Missing
    rules: dict[str, CurrentRule | Missing]
    measures: dict[str, CurrentMeasure | Missing]
    volatility: RiskVolatility | Missing
    tails: tuple[TailRisk, ...] | Missing
    drawdown: RiskDrawdown | Missing
    warnings: Annotated[tuple[PastWarning, ...] | Missing, Field(description="the last ones, the newest first")]
    record: WarningRecord | Missing


def prepare_models() -> None:
    """Import the library that fits models, if it is installed, so that the first response need not wait a second."""
    with suppress(ModuleNotFoundError):
        import_module("arch")


def read_level(
    snapshot: Snapshot, coin: str, frame: Frame, weighting: Weighting = WEIGHTING, rules: Sequence[RiskRule] = ()
) -> RiskLevel | Missing:
    """Return the level of `read_risk` alone, which takes a fraction of its time; or why there is none.

    Raises:
        NotFoundError: no price of the coin is known.
    """
    market = _market(snapshot, coin, frame, weighting)
    if isinstance(market, Missing):
        return market
    assessment = assess(market.inputs, fit_rules(rules or read_rules(), market.bars.frame_us))
    if assessment.why_unknown:
        return Missing(assessment.why_unknown)
    return current_level(assessment, market.is_stale(snapshot.at_us))


def _market(snapshot: Snapshot, coin: str, frame: Frame, weighting: Weighting) -> RiskMarket | Missing:
    """Return a coin's inputs of risk, with at least one bar; or why nothing can be computed."""
    market = read_risk_market(snapshot, coin, frame, weighting)
    if isinstance(market, RiskMarket) and not len(market.bars):
        return Missing("no bar of this frame has closed yet")
    if isinstance(market, RiskMarket) and find_spec("arch") is None:
        return Missing(NOT_INSTALLED)
    return market


@reading()
def read_risk(
    snapshot: Snapshot, coin: str, frame: Frame = "1h", weighting: Weighting = WEIGHTING, rules: Sequence[RiskRule] = ()
) -> RiskReport:
    """Return the report of a coin's risk from a snapshot, by the given rules or those of the project.

    Parts that cannot be computed say why.

    Raises:
        NotFoundError: an unknown coin, or one whose price is not known.
        InputError: another frame.
    """
    known = find_coin(coin)
    check_choice("frame", frame, FRAME_S)
    at_us, market = snapshot.at_us, _market(snapshot, known.id, frame, weighting)
    about: dict[str, Any] = {**known.identity, "frame": frame, "as_of_us": at_us}
    if isinstance(market, Missing):
        names = ("analysed", "level", "volatility", "tails", "drawdown", "warnings", "record")
        parts: dict[str, Any] = dict.fromkeys(names, market)
        return RiskReport(**about, **parts, rules={}, measures={})
    bars, lengths = market.bars, WindowLengths.of(market.bars.frame_us)
    assessment = assess(market.inputs, fit_rules(rules or read_rules(), bars.frame_us))
    unknown = Missing(assessment.why_unknown) if assessment.why_unknown else None
    return RiskReport(
        **about,
        analysed=_bars(market, at_us),
        level=unknown or current_level(assessment, market.is_stale(at_us)),
        rules={each.rule.name: current_rule(each) for each in assessment.rules},
        measures=_measures(market, assessment, lengths),
        volatility=_volatility(bars, lengths),
        tails=_tails(bars, lengths),
        drawdown=_drawdown(bars, lengths),
        warnings=unknown or _last_warnings(assessment),
        record=_record(bars, assessment, lengths, frame),
    )


def _bars(market: RiskMarket, at_us: int) -> RiskBars:
    bars, series = market.bars, market.source.series
    first, last = int(bars.closed_us[0]), int(bars.closed_us[-1])
    return RiskBars(
        source=series.source,
        interval_s=series.interval_s,
        bars=len(bars),
        first_us=first,
        last_us=last,
        age_s=age_s(last, at_us),
        missing=(last - first) // bars.frame_us + 1 - len(bars),
        stale=market.is_stale(at_us),
        volume=not np.isnan(bars.volume).all(),
        other=market.other,
        sentiment=market.sentiment,
    )


def current_level(assessment: Assessment, stale: bool) -> RiskLevel:
    """Return the level at the last bar, and since when it stands; there is a bar after the warm-up."""
    levels, last = assessment.levels, assessment.at(-1)
    changed = np.flatnonzero(np.diff(levels[assessment.warm_up :]) != 0)
    since = assessment.warm_up + (int(changed[-1]) + 1 if changed.size else 0)
    before = LEVELS[int(levels[since - 1])] if changed.size else None
    since_us = int(assessment.closed_us[since])
    because = "; ".join(each.text for each in last.evidence) or "no rule has reached its first level"
    return RiskLevel(
        level=last.level,
        since_us=since_us,
        before=before,
        bars=last.bar - since,
        evidence=last.evidence,
        text=(
            f"{last.level} since {iso(since_us)}{f' (before: {before})' if before else ''}: {because}"
            f"{assessment.silent_rules()}."
            f"{f' The last bar closed at {iso(last.at_us)}: this is old.' if stale else ''}"
        ),
    )


def current_rule(found: RuleLevels) -> CurrentRule | Missing:
    """Return a rule at the last bar, or why it has no value at any bar."""
    if found.measured.missing:
        return Missing(found.measured.missing)
    rule, value, level = found.rule, float(found.measured.values[-1]), int(found.levels[-1])
    ahead = rule.thresholds[level] if level < len(rule.thresholds) else None
    return CurrentRule(
        measure=rule.measure,
        level=LEVELS[level],
        value=value,
        unit=MEASURES[rule.measure].unit,
        watch=rule.watch,
        warning=rule.warning,
        alarm=rule.alarm,
        hold=rule.hold,
        next_level=None if ahead is None else LEVELS[level + 1],
        to_next=None if ahead is None or math.isnan(value) else ahead - value,
        clears_below=rule.thresholds[level - 1] * rule.clear if level else None,
    )


def _measures(
    market: RiskMarket, assessment: Assessment, lengths: WindowLengths
) -> dict[str, CurrentMeasure | Missing]:
    """Return all measures; those of rules have the parameters of the first such rule."""
    found: dict[str, MeasureValues] = {}
    for each in assessment.rules:
        found.setdefault(each.rule.measure, each.measured)
    for name, measure in MEASURES.items():
        if name not in found:
            own = {"refit_bars": REFIT_BARS} if "refit_bars" in measure.parameters else {}
            found[name] = compute_measure(name, market.inputs, {**lengths.parameters(name), **own})
    return {name: current_measure(name, found[name]) for name in MEASURES}


def current_measure(name: str, measured: MeasureValues) -> CurrentMeasure | Missing:
    """Return a measure at the last bar, and its rank among earlier values; or why it has no value at any bar."""
    if measured.missing:
        return Missing(measured.missing)
    value, earlier = float(measured.values[-1]), measured.values[:-1]
    earlier = earlier[~np.isnan(earlier)]
    known = not math.isnan(value)
    return CurrentMeasure(
        value=value if known else None,
        percentile=float((earlier <= value).mean()) if known and len(earlier) else None,
        bars=len(earlier),
        unit=MEASURES[name].unit,
        description=MEASURES[name].description,
        parameters=dict(measured.parameters),
    )


def _volatility(bars: Bars, lengths: WindowLengths) -> RiskVolatility:
    year = math.sqrt(YEAR_US / bars.frame_us)
    realised: dict[str, BarVolatility | Missing] = {}
    for name in ESTIMATORS:
        value = 100 * float(realised_volatility(bars, lengths.bars, name)[-1])
        realised[name] = BarVolatility(bar_pct=value, year_pct=value * year)
        if math.isnan(value):
            realised[name] = Missing(f"{len(bars)} bars: too few for a window of {lengths.bars}")
    found = garch_of(bars, REFIT_BARS)
    value = 100 * float(found.sigma[-1])
    forecast = NextBarVolatility(
        bar_pct=value, year_pct=value * year, fits=found.fits, failed=found.failed, refit_bars=REFIT_BARS
    )
    return RiskVolatility(
        bars=lengths.bars, realised=realised, forecast=Missing(found.missing) if found.missing else forecast
    )


def _tails(bars: Bars, lengths: WindowLengths) -> tuple[TailRisk, ...] | Missing:
    found = evaluate_models(bars.log_returns, garch_of(bars, REFIT_BARS), TAIL_LEVELS, lengths.tail_bars, TAIL_MODELS)
    known = tuple(_tail(each) for each in found if not math.isnan(each.forecast.var[-1]))
    return known or Missing(f"{len(bars)} bars: a model needs {lengths.tail_bars + 1} at least")


def _tail(found: EvaluatedModel) -> TailRisk:
    test = found.test
    return TailRisk(
        model=found.model,
        probability=test.level,
        value_at_risk_pct=100 * float(found.forecast.var[-1]) + 0.0,  # turns the -0.0 of constant prices into 0.0
        shortfall_pct=100 * float(found.forecast.es[-1]) + 0.0,
        tested=test.bars,
        beyond=test.violations,
        expected=test.expected,
        **{f"{name}_p": value for name, value in test.p_values.items()},
        rejected_by=tuple(test.rejected),
        not_tested=test.missing,
    )


def _drawdown(bars: Bars, lengths: WindowLengths) -> RiskDrawdown:
    highest = int(np.argmax(bars.close))
    recent = 100 * float(recent_drawdown(bars.close, lengths.bars)[-1])
    return RiskDrawdown(
        drawdown_pct=100 * float(drawdown(bars.close)[-1]),
        highest=float(bars.close[highest]),
        highest_at_us=int(bars.closed_us[highest]),
        recent_pct=None if math.isnan(recent) else recent,
        recent_bars=lengths.bars,
    )


def _last_warnings(assessment: Assessment) -> tuple[PastWarning, ...]:
    return tuple(
        PastWarning(
            at_us=each.at_us, level=each.level, before=each.before, evidence=tuple(e.text for e in each.evidence)
        )
        for each in reversed(assessment.warnings(LEVEL)[-LAST_WARNINGS:])
    )


def _record(bars: Bars, assessment: Assessment, lengths: WindowLengths, frame: Frame) -> WarningRecord | Missing:
    horizon_us, drop = FALLS[frame]
    found = match_alarm_time(bars, assessment, LEVEL, horizon_us // bars.frame_us, drop, lengths)
    if found.comparison is None:
        return Missing(found.missing)
    return WarningRecord(
        level=LEVEL,
        horizon_h=horizon_us / HOUR_US,
        drop_pct=100 * drop,
        start_us=int(bars.closed_us[found.start]),
        end_us=int(bars.closed_us[-1]),
        naive_quantile=found.quantile,
        fallen_pct=None if found.fallen is None else 100 * found.fallen,
        text=record_text(found.comparison, drop, horizon_us / HOUR_US),
        **vars(found.comparison),
    )
