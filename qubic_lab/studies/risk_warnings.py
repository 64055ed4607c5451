"""Volatility, value at risk and warnings on past prices: what they said, on what evidence, and their worth.

Warnings are compared with a naive rule that warns for about the same share of the time, because any rule finds more
falls with more time under warning.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import HOUR_US, iso
from qubic_lab.oracle.risk.forecast_tests import (
    ALPHA,
    MODELS,
    EvaluatedModel,
    Evenness,
    LossCoverage,
    coverage,
    evaluate_models,
    evenness,
    probability_transform,
)
from qubic_lab.oracle.risk.measures import LEVELS, MEASURES, RiskInputs, WindowLengths
from qubic_lab.oracle.risk.models import LEAST_FIT, VolatilityForecast, garch_forecast, least_bars, recent_drawdown
from qubic_lab.oracle.risk.rules import Assessment, RiskRule, assess, fit_rules, read_rules
from qubic_lab.oracle.risk.warning_scores import MatchedWarnings, WarningScore, match_alarm_time, span
from qubic_lab.studies.finding import Finding, answering, estimate, say
from qubic_lab.studies.market_bars import StudyBars
from qubic_lab.studies.oracle_results import WarningsRecord
from qubic_lab.studies.style import columns

Row = dict[str, Any]
QUESTION = "warning"
VAR_LEVELS = (0.01, 0.05)
"""The levels of tables and findings."""
CALIBRATED_LEVELS = (0.005, 0.01, 0.025, 0.05, 0.1)
"""The levels in pictures of calibration."""
MODEL_NAMES = {each: each for each in MODELS}
TEST_NAMES = {
    "kupiec": "Kupiec",
    "independence": "independence",
    "christoffersen": "Christoffersen",
    "shortfall": "shortfall",
}
LEVEL_NAMES = {each: each for each in LEVELS}
LEAST_EXPECTED = 5.0
"""With fewer expected losses beyond value at risk, tests can hardly reject a model."""
_WINDOWED = ("filtered historical", "historical")
"""Models that need a longer window of returns for a rarer level."""


@dataclass(frozen=True, eq=False)
class RiskStudy:
    """All measures of some bars; `level` is the lowest one that counts as a warning.

    Attributes:
        tails: of each of `CALIBRATED_LEVELS` and model, where a window is long enough; `coverages`: of each of them,
            None where it could not be tested.
        evenness: of the probabilities that GARCH-t gave to the returns that followed.
        horizon_bars, drop: a warning is right if the close falls by `drop` below a recent high within the horizon.
    """

    bars: StudyBars
    windows: WindowLengths
    returns: Floats
    volatility: VolatilityForecast
    tails: tuple[EvaluatedModel, ...]
    coverages: tuple[LossCoverage | None, ...]
    evenness: Evenness
    assessment: Assessment
    level: str
    horizon_bars: int
    drop: float
    matched: MatchedWarnings

    @property
    def name(self) -> str:
        """The bars' length."""
        return self.bars.name


def study_risk(
    bars: StudyBars, *, horizon_us: int, drop: float, level: str = "warning", rules: str = "", refit_bars: int = 50
) -> RiskStudy:
    """Measure volatility, value at risk and warnings of some bars; the last need bars beyond their warm-up.

    A warning of `level` or above looks `horizon_us` ahead for a fall by `drop`, 0 to 1, from the highest close within
    the horizon. `rules`: a YAML file; empty: those of the project. `refit_bars`: between two fits of the GARCH model.

    Raises:
        InputError: rules, a level, a horizon or a drop that cannot be used.
    """
    check_choice("level", level, LEVELS[1:])
    if horizon_us <= 0:
        raise InputError(f"warnings look {span(horizon_us / HOUR_US)} ahead: give a time above 0")
    closed, lengths = bars.bars, WindowLengths.of(bars.frame_us)
    returns = closed.log_returns
    volatility = garch_forecast(returns, refit_bars)
    horizon_bars = max(2, round(horizon_us / bars.frame_us))
    assessment = assess(RiskInputs(closed), rules_of(bars.frame_us, rules))
    matched = match_alarm_time(closed, assessment, level, horizon_bars, drop, lengths)
    tails, coverages = _tails(returns, volatility, lengths)
    even = evenness(probability_transform(returns, volatility))
    found = (returns, volatility, tails, coverages, even, assessment)
    return RiskStudy(bars, lengths, *found, level, horizon_bars, drop, matched)


def _tails(
    returns: Floats, volatility: VolatilityForecast, lengths: WindowLengths
) -> tuple[tuple[EvaluatedModel, ...], tuple[LossCoverage | None, ...]]:
    """Return the forecasts of all levels, and how often losses were beyond each on the bars that they are tested on."""
    tails: list[EvaluatedModel] = []
    for level in CALIBRATED_LEVELS:
        short = least_bars(level) > lengths.tail_bars
        models = [model for model in MODELS if not (short and model in _WINDOWED)]
        tails += evaluate_models(returns, volatility, (level,), lengths.tail_bars, models)
    first = LEAST_FIT + lengths.tail_bars + 1
    covered = (None if tail.test.missing else coverage(returns, tail.forecast, first) for tail in tails)
    return tuple(tails), tuple(covered)


def rules_of(frame_us: int, file: str = "") -> tuple[RiskRule, ...]:
    """Return the rules of a file or of the project, with windows for days where bars are that long."""
    return fit_rules(read_rules(Path(file) if file else None), frame_us)


def looks_ahead(risk: RiskStudy, cuts: int = 3, seed: int = 0, rules: str = "") -> bool:
    """Say whether any level of the past changes when later bars are cut off, at some bars drawn by chance.

    Raises:
        InputError: a seed below 0, or rules that cannot be read.
    """
    check_at_least("seed", seed, 0)
    inputs, levels = RiskInputs(risk.bars.bars), risk.assessment.levels
    chosen = rules_of(risk.bars.frame_us, rules)
    low = min(len(levels) - 1, risk.assessment.warm_up + 1)
    drawn = np.random.default_rng(seed).integers(low, len(levels), cuts).tolist()
    return not all(np.array_equal(assess(inputs.first(each), chosen).levels, levels[:each]) for each in drawn)


def shortfall_is_above(risk: RiskStudy) -> bool:
    """Say whether expected shortfall is at least value at risk wherever there are both."""
    pairs = [(tail.forecast.es, tail.forecast.var) for tail in risk.tails]
    return all(bool((es[known] >= var[known]).all()) for es, var in pairs for known in [~np.isnan(es + var)])


def tail_rows(risks: Sequence[RiskStudy]) -> list[Row]:
    """Return how forecasts of losses stood against what came; p-values below 0.05 reject them."""
    return [
        {
            "bars of": risk.name,
            "model": tail.model,
            "level_pct": 100 * tail.test.level,
            "bars": tail.test.bars,
            "beyond": tail.test.violations,
            "expected": tail.test.expected,
            **{f"{name}_p": p for name, p in tail.test.p_values.items()},
            "not tested because": tail.test.missing,
        }
        for risk in risks
        for tail in risk.tails
        if tail.test.level in VAR_LEVELS
    ]


def score_rows(risks: Sequence[RiskStudy]) -> list[Row]:
    """Return what our warnings and the matched naive rule's were worth, with 95 % intervals."""
    return [
        {
            "bars of": risk.name,
            "warnings": name,
            "time_under_warning_pct": 100 * score.recall_by_chance,
            "raised": score.warnings,
            "right": score.right,
            "precision": score.precision.shown(),
            "by chance": f"{score.precision_by_chance:.2f}",
            **columns(score, "falls", "found"),
            "recall": score.recall.shown(),
            "false a month": score.false_alarms_a_month.shown(),
            "lead_h": score.lead_h.shown(),
        }
        for risk in risks
        if (both := risk.matched.comparison) is not None
        for name, score in (("ours", both.ours), ("naive", both.naive))
    ]


def warning_rows(risks: Sequence[RiskStudy], count: int = 5) -> list[Row]:
    """Return the last warnings of each with the evidence that raised them."""
    return [
        {
            "bars of": risk.name,
            "at": iso(each.at_us),
            **columns(each, "level", "before"),
            "evidence": "; ".join(evidence.text for evidence in each.evidence),
        }
        for risk in risks
        for each in risk.assessment.warnings(risk.level)[-count:]
    ]


def now_rows(risks: Sequence[RiskStudy]) -> list[Row]:
    """Return the level of each rule at the last bar, with its value and what it must reach for a warning."""
    return [
        {
            "bars of": risk.name,
            "at": iso(int(risk.assessment.closed_us[-1])),
            "rule": track.rule.name,
            "level": "unknown" if track.measured.missing else LEVELS[int(track.levels[-1])],
            "value": None if math.isnan(track.measured.values[-1]) else float(track.measured.values[-1]),
            "warning from": track.rule.warning,
            "unit": MEASURES[track.rule.measure].unit,
            "not known because": track.measured.missing,
        }
        for risk in risks
        for track in risk.assessment.rules
    ]


def _measured(risk: RiskStudy) -> Row:
    matched, both = risk.matched, risk.matched.comparison
    return {
        "bars_of": risk.name,
        "bars": len(risk.bars.bars),
        **columns(risk, "drop", "horizon_bars", "level"),
        **columns(risk.assessment, "warm_up", "settled"),
        "now": to_plain(risk.assessment.at(-1)),
        "absent": risk.assessment.missing,
        "garch": {"fits": risk.volatility.fits, "failed": risk.volatility.failed, "absent": risk.volatility.missing},
        "tails": [
            {"model": tail.model, **asdict(tail.test), "coverage": covered}
            for tail, covered in zip(risk.tails, risk.coverages, strict=True)
        ],
        "garch_t_evenness": risk.evenness,
        "warnings": {
            "comparison": both,
            "ours_share": both.ours.recall_by_chance if both else 0.0,
            "naive_share": both.naive.recall_by_chance if both else 0.0,
            "fallen_at_warning": matched.fallen,
            "naive_quantile": None if math.isnan(matched.quantile) else matched.quantile,
            "absent": matched.missing,
        },
    }


def record(risks: Sequence[RiskStudy]) -> Row:
    """Return all results as plain values for JSON, which `oracle_results.RiskRecord` reads the part `worth` of."""
    return {"risks": [_measured(risk) for risk in risks], "worth": [_worth(risk) for risk in risks]}


def _worth(risk: RiskStudy) -> Row:
    found, closed = risk.matched, risk.assessment.closed_us
    row = {
        "bars_of": risk.name,
        **columns(risk.bars, "coin", "source"),
        "from": iso(int(closed[0])),
        "to": iso(int(closed[-1])),
        **columns(risk, "level", "drop"),
        "horizon_h": _hours_ahead(risk),
        "absent": found.missing,
    }
    if (both := found.comparison) is None:
        return row | dict.fromkeys(("months", "ours", "naive", "p"))
    return (
        row
        | {"ours": _warnings_record(both.ours), "naive": _warnings_record(both.naive)}
        | columns(both, "months", "p")
    )


def _warnings_record(score: WarningScore) -> WarningsRecord:
    return WarningsRecord(time_under_warning=score.recall_by_chance, **vars(score))


def findings(risks: Sequence[RiskStudy]) -> list[Finding]:
    """Say what warnings were worth, which level holds at the end, and how forecasts of losses did."""
    said = []
    for risk in risks:
        said += [*_warning_findings(risk), _now_finding(risk), *_tail_findings(risk)]
    return answering(QUESTION, said)


def _tail_findings(risk: RiskStudy) -> list[Finding]:
    if all(tail.test.conditional is None for tail in risk.tails):
        why = next(tail.test.missing for tail in risk.tails if tail.test.level in VAR_LEVELS)
        text = "Value at risk, bars of {bars}: no model could be tested ({reason})."
        return [say(text, bars=risk.name, reason=risk.volatility.missing or why)]
    said = [each for level in VAR_LEVELS for each in _level_findings(risk, level)]
    if (p := risk.evenness.p) is not None:
        text = "GARCH-t's whole distribution, bars of {bars}, is not rejected (Kolmogorov-Smirnov p {p:p})."
        if p < ALPHA:
            text = "GARCH-t's whole distribution, bars of {bars}, is rejected (Kolmogorov-Smirnov p {p:p})."
        said.append(say(text, bars=risk.name, p=p))
    return said


def _level_findings(risk: RiskStudy, level: float) -> list[Finding]:
    """Say how many models passed at a level, and which were rejected by which test."""
    tails = [tail for tail in risk.tails if tail.test.level == level]
    tested = [tail for tail in tails if tail.test.conditional is not None]
    values: Row = {"bars": risk.name, "level": level}
    if not tested:
        text = "Value at risk, bars of {bars}, {level:percent}: no model could be tested ({reason})."
        return [say(text, reason=tails[0].test.missing, **values)]
    rejected = [_rejection(tail) for tail in tested if tail.test.rejected]
    expected = tested[0].test.expected
    values |= {"passed": len(tested) - len(rejected), "tested": len(tested)}
    values |= {"expected": round(expected, 0 if expected >= 10 else 1)}
    text = (
        "Value at risk, bars of {bars}, {level:percent}: {passed} of {tested:model} passed every test ({expected:,g} "
        "losses beyond expected)."
    )
    if expected < LEAST_EXPECTED:
        text = (
            "Value at risk, bars of {bars}, {level:percent}: {passed} of {tested:model} passed every test "
            "({expected:,g} losses beyond expected, too few to reject much)."
        )
    said = [say(text, **values)]
    if len(tested) < len(tails):
        text = "Value at risk, bars of {bars}, {level:percent}: {missing:model} could not be tested."
        said.append(say(text, missing=len(tails) - len(tested), **values))
    if rejected:
        text = "Value at risk, bars of {bars}, {level:percent}: rejected are {rejected}."
        said.append(say(text, rejected=rejected, **values))
    return said


def _rejection(tail: EvaluatedModel) -> Finding:
    """Name the tests that reject a model, with the number of losses beyond it and their smallest p."""
    by = tail.test.rejected
    return say(
        "{model} ({losses} losses, smallest p {p:p}, by: {tests})",
        model=say(MODEL_NAMES[tail.model]),
        losses=tail.test.violations,
        p=min(by.values()),
        tests=[say(TEST_NAMES[name]) for name in by],
    )


def _warning_findings(risk: RiskStudy) -> list[Finding]:
    found = risk.matched
    values: Row = {"bars": risk.name, "drop": risk.drop, "within": _span(_hours_ahead(risk))}
    if found.comparison is None:
        judged = say("Warnings on bars of {bars} could not be judged.", **values)
        return [judged, say("They could not be judged because: {reason}.", reason=found.missing)]
    ours, naive = found.comparison.ours, found.comparison.naive
    if not ours.falls:
        return _no_falls(risk, values)
    p, falls = found.comparison.p, ours.falls
    values |= {"key": ours.recall.value, "low": ours.recall.low, "high": ours.recall.high, "falls": falls}
    values |= {"unit": say("of falls"), "found": ours.found, "naive": naive.found, "p": p}
    text = "{bars} warnings found {found} of {falls:fall}, a simple volatility rule {naive}: no clear difference."
    if p < ALPHA:
        text = "{bars} warnings found {found} of {falls:fall}, a simple volatility rule {naive}: clearly more."
        if found.comparison.only_ours < found.comparison.only_naive:
            text = "{bars} warnings found {found} of {falls:fall}, a simple volatility rule {naive}: clearly fewer."
    compared = (
        "They found {found} of {falls:fall} of {drop:percent} within {within}, volatility alone {naive} (exact McNemar "
        "p {p:p})."
    )
    if 2.0 * 0.5**falls >= ALPHA:
        compared = (
            "They found {found} of {falls:fall} of {drop:percent} within {within}, volatility alone {naive} (exact "
            "McNemar p {p:p}, too few falls for evidence)."
        )
    said = [
        say(text, rule="percent", **values),
        say(compared, **values),
        say(
            "They stood for {ours:percent} of the time, those by volatility alone for {naive:percent}.",
            ours=round(ours.recall_by_chance, 2),
            naive=round(naive.recall_by_chance, 2),
        ),
    ]
    return [*said, *_worth_findings(found)] if ours.warnings else [*said, say("There were no warnings.")]


def _no_falls(risk: RiskStudy, values: Row) -> list[Finding]:
    """Say that nothing fell; an earlier fall may never have ended: the price stayed low."""
    start = risk.matched.start
    said = [
        say(
            "Warnings on bars of {bars} could not be judged: no fall of {drop:percent} within {within} began.", **values
        ),
        say("They are judged after the first {start} bars.", start=start),
    ]
    low = float((recent_drawdown(risk.bars.bars.close, risk.horizon_bars) >= risk.drop)[start:].mean())
    if low > 0.0:
        said.append(say("The price was already that low in {low:percent} of the bars after them.", low=round(low, 2)))
    return said


def _worth_findings(found: MatchedWarnings) -> list[Finding]:
    """Say how many warnings were right, and how long before the fall they came."""
    assert found.comparison is not None
    ours, naive = found.comparison.ours, found.comparison.naive
    said = [
        say(
            "{right} of {warnings:warning} were right, {share:percent}; by volatility alone: {naive:percent}; by "
            "chance: {chance:percent}.",
            right=ours.right,
            warnings=ours.warnings,
            share=estimate(*(_whole(each) for each in (ours.precision.value, ours.precision.low, ours.precision.high))),
            naive=say("none") if naive.precision.value is None else _whole(naive.precision.value),
            chance=_whole(ours.precision_by_chance),
        )
    ]
    if (lead := ours.lead_h.value) is not None:
        if found.fallen is None:
            said.append(say("The median lead time was {lead:.1f} h.", lead=lead))
        else:
            text = "The median lead time was {lead:.1f} h, when the price was {fallen:percent} below its recent high."
            said.append(say(text, lead=lead, fallen=found.fallen))
    return said


def _whole(share: float | None) -> float | None:
    """Return a share in whole per cent: more digits say nothing of so few warnings."""
    return None if share is None else round(share, 2)


def _span(hours: float) -> Finding:
    return say("{hours:g} h", hours=hours) if hours < 48 else say("{days:g} days", days=hours / 24)


def _hours_ahead(risk: RiskStudy) -> float:
    return risk.horizon_bars * risk.bars.frame_us / HOUR_US


def _now_finding(risk: RiskStudy) -> Finding:
    last = risk.assessment.at(-1)
    if risk.assessment.why_unknown:
        return say("The level at {at} is unknown: no rule has a value.", at=iso(last.at_us))
    text = "The level at {at}, by bars of {bars}, is {level}."
    return say(text, at=iso(last.at_us), bars=risk.name, level=say(LEVEL_NAMES[last.level]))
