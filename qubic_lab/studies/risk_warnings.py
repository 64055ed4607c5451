"""Volatility, value at risk and warnings on past prices: what they said, on what evidence, and their worth.

Warnings are compared with a naive rule that warns for about the same share of the time, because any rule finds more
falls with more time under warning.
"""

import math
from collections.abc import Mapping, Sequence
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
from qubic_lab.studies.market_bars import StudyBars
from qubic_lab.studies.oracle_results import WarningsRecord, estimate_text
from qubic_lab.studies.style import columns

Row = dict[str, Any]
VAR_LEVELS = (0.01, 0.05)
"""The levels of tables and findings."""
CALIBRATED_LEVELS = (0.005, 0.01, 0.025, 0.05, 0.1)
"""The levels in pictures of calibration."""
AUTHORS = ("kupiec", "christoffersen")
"""Tests that are named after their authors."""
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


def findings(risks: Sequence[RiskStudy]) -> list[str]:
    """Say what warnings were worth, which level holds at the end, and how forecasts of losses did; then the caveats."""
    said = []
    for risk in risks:
        said += [*_warning_sentences(risk), _now_sentence(risk), *_tail_sentences(risk)]
    return said + [line for risk in risks for line in risk.bars.caveats]


def _tail_sentences(risk: RiskStudy) -> list[str]:
    title = f"Value at risk, bars of {risk.name}"
    if all(tail.test.conditional is None for tail in risk.tails):
        why = next(tail.test.missing for tail in risk.tails if tail.test.level in VAR_LEVELS)
        return [f"{title}: no model could be tested ({risk.volatility.missing or why})."]
    said = [f"{title}, {100 * level:g} %: {part}." for level in VAR_LEVELS for part in _level_parts(risk, level)]
    if risk.evenness.p is not None:
        verdict = "is rejected" if risk.evenness.p < ALPHA else "is not rejected"
        said.append(
            f"GARCH-t's whole distribution, bars of {risk.name}, {verdict} (Kolmogorov-Smirnov p = "
            f"{risk.evenness.p:.2g})."
        )
    return said


def _level_parts(risk: RiskStudy, level: float) -> list[str]:
    """Say how many models passed at a level, and which were rejected by which test."""
    tails = [tail for tail in risk.tails if tail.test.level == level]
    tested = [tail for tail in tails if tail.test.conditional is not None]
    if not tested:
        return [f"no model could be tested ({tails[0].test.missing})"]
    rejected = [f"{tail.model} by {_tests(by, tail.test.violations)}" for tail in tested if (by := tail.test.rejected)]
    expected = tested[0].test.expected
    few = ", too few to reject much" if expected < LEAST_EXPECTED else ""
    missing = f"; {len(tails) - len(tested)} could not be tested" if len(tested) < len(tails) else ""
    passed = (
        f"{len(tested) - len(rejected)} of {len(tested)} models passed every test "
        f"({expected:,.{0 if expected >= 10 else 1}f} losses beyond expected{few}){missing}"
    )
    return [passed, *([f"rejected are {', '.join(rejected)}"] if rejected else [])]


def _tests(rejecting: Mapping[str, float], beyond: int) -> str:
    """Name the tests that reject a model, with the number of losses beyond it."""
    names = [name.capitalize() if name in AUTHORS else name for name in rejecting]
    least = "p" if len(names) == 1 else "smallest p"
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{joined} ({beyond} losses, {least} = {min(rejecting.values()):.2g})"


def _warning_sentences(risk: RiskStudy) -> list[str]:
    found, title = risk.matched, f"Warnings, bars of {risk.name}"
    falls = f"of {100 * risk.drop:g} % within {span(_hours_ahead(risk))}"
    if found.comparison is None:
        return [f"{title}, could not be judged ({found.missing})."]
    ours, naive = found.comparison.ours, found.comparison.naive
    if not ours.falls:
        # An earlier fall may never have ended: the price stayed low.
        low = float((recent_drawdown(risk.bars.bars.close, risk.horizon_bars) >= risk.drop)[found.start :].mean())
        was_low = f" The price was already that low in {100 * low:.0f} % of them." if low > 0.0 else ""
        return [f"{title}, could not be judged: no fall {falls} began after the first {found.start} bars.{was_low}"]
    differs = found.comparison.p < ALPHA
    fewer = differs and found.comparison.only_ours < found.comparison.only_naive
    few = ", too few falls for evidence" if 2.0 * 0.5**ours.falls >= ALPHA else ""
    said = [
        f"{title}: {'' if differs else 'no '}evidence that they find {'fewer' if fewer else 'more'} falls than a rule "
        "on volatility alone.",
        f"They found {ours.found} of {ours.falls} falls {falls}, that rule {naive.found} (exact McNemar p = "
        f"{found.comparison.p:.2g}{few}).",
        f"They stood for {100 * ours.recall_by_chance:.0f} % of the time, that rule's for "
        f"{100 * naive.recall_by_chance:.0f} %.",
    ]
    if not ours.warnings:
        return [*said, "There were no warnings."]
    theirs = "none" if naive.precision.value is None else f"{100 * naive.precision.value:.0f} %"
    said.append(
        f"{ours.right} of {ours.warnings} warnings were right, {estimate_text(ours.precision, ' %', 100, 0)}; that "
        f"rule's: {theirs}; by chance: {100 * ours.precision_by_chance:.0f} %."
    )
    if ours.lead_h.value is not None:
        below = ""
        if found.fallen is not None:
            below = f", when the price was {100 * found.fallen:.1f} % below its recent high"
        said.append(f"The median lead time was {ours.lead_h.value:.1f} h{below}.")
    return said


def _hours_ahead(risk: RiskStudy) -> float:
    return risk.horizon_bars * risk.bars.frame_us / HOUR_US


def _now_sentence(risk: RiskStudy) -> str:
    last = risk.assessment.at(-1)
    because = f" ({'; '.join(each.text for each in last.evidence)})" if last.evidence else ""
    if risk.assessment.why_unknown:
        return f"The level at {iso(last.at_us)} is unknown: no rule has a value."
    return f"The level at {iso(last.at_us)}, by bars of {risk.name}, is {last.level}{because}."
