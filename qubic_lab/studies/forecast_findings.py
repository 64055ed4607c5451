"""Findings and records of forecasts of the next hours."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from qubic_lab.oracle.analysis.forecast import RULE
from qubic_lab.oracle.backtest.past_forecasts import Coverage, DailyEstimate, UpMoves
from qubic_lab.stats import holm
from qubic_lab.studies.forecast_accuracy import ALPHA, ForecastStudy, Horizon

Row = dict[str, Any]


def to_record(study: ForecastStudy) -> Row:
    """Return the study as plain values for JSON, which `oracle_results.ForecastsRecord` reads a part of.

    `error_ratio` is that of root mean squared errors over those of "the price stays"; `cw_…` is the test of Clark and
    West; `ece` is the calibration error of probabilities of a rise, beside its mean and 95 % quantile by chance. Not
    defined numbers are null; intervals are of 95 %.
    """
    measured = [_record_of(each) for each in study.horizons]
    rest = [
        {"bars": bars, "hours": hours, "measured": False, "reason": why} for (bars, hours), why in study.absent.items()
    ]
    evidence = any(each.evidence for each in study.horizons)
    return {"evidence": evidence, "verdict": accuracy_sentence(study), "horizons": [*measured, *rest]}


def _record_of(horizon: Horizon) -> Row:
    direction, levels = horizon.accuracy.direction, [_level(each) for each in horizon.coverage]
    told, corrected = horizon.calibration.raw, horizon.calibration.recalibrated
    return {
        "bars": horizon.bars,
        "hours": horizon.hours,
        "measured": True,
        "forecasts": horizon.forecasts,
        "apart": horizon.apart,
        "error_ratio": _plain(horizon.stays.error_ratio),
        "cw_statistic": horizon.stays.result.statistic,
        "cw_p": horizon.stays.result.p,
        "cw_p_holm": horizon.p,
        "verdict": horizon.verdict,
        "direction": {**_plain(direction.correct), "commoner": direction.majority, "p": direction.result.p},
        "coverage": levels,
        "coverage_80": next(each for each in levels if each["level"] == RULE.coverage),
        "positions_p": horizon.calibration.pit.p,
        "ece": _error(told),
        "ece_corrected": _error(corrected),
        "brier_skill": _plain(told.skill),
        "brier_skill_corrected": _plain(corrected.skill),
    }


def _level(found: Coverage) -> Row:
    row: Row = {"level": found.level, **_plain(found.held), "wide_pct": found.wide_pct}
    return row | {"flat_wide_pct": found.flat_wide_pct, "score_ratio": _plain(found.score_ratio)}


def _error(rises: UpMoves) -> Row:
    return {"value": rises.error, "chance": rises.error_chance, "chance_95": rises.error_most, "p": rises.p}


def _plain(estimate: DailyEstimate) -> Row:
    return {name: value if math.isfinite(value) else None for name, value in asdict(estimate).items()}


def findings(study: ForecastStudy) -> list[str]:
    """Say what forecasts are worth, whether intervals and probabilities are right, and what was not measured."""
    said = [accuracy_sentence(study)]
    if study.horizons:
        said += [*_error_sentences(study), direction_sentence(study)]
        said += [*interval_sentences(study), *rise_sentences(study)]
    return said + missing_sentences(study)


def accuracy_sentence(study: ForecastStudy) -> str:
    """Say in one sentence whether forecasts beat "the price stays"."""
    if not study.horizons:
        return "Forecasts of the next hours were not measured: no bars are fit for it."
    known = [each for each in study.horizons if each.evidence]
    better = [each for each in known if each.verdict == "better"]
    if better:
        return f'Forecasts beat "the price stays" {_names(better)}.'
    if known:
        return (
            f'Forecasts know more than "the price stays" {_names(known)}, but their errors are not shown to be smaller.'
        )
    return 'There is no evidence that forecasts know more than "the price stays".'


def _error_sentences(study: ForecastStudy) -> list[str]:
    ratios = [100 * (each.stays.error_ratio.value - 1.0) for each in study.horizons]
    counts = _range([each.forecasts for each in study.horizons], ",")
    p_values = [each.p for each in study.horizons if each.p is not None]
    least = f"the smallest p of Clark and West is {_p(min(p_values))} (Holm)" if p_values else "no test is possible"
    said = [
        f"Errors differ from those of a constant price by {_range(ratios, '+.1f')} %; {least}; {counts} forecasts each."
    ]
    if worse := sum(each.verdict == "worse" for each in study.horizons):
        said.append(f"Forecasts are worse than a constant price at {worse} of {len(study.horizons)} horizons.")
    return said


def interval_sentences(study: ForecastStudy) -> list[str]:
    """Say whether intervals hold what they promise."""
    held = _range([100 * each.interval.held.value for each in study.horizons], ".1f")
    levels = [(each, level) for each in study.horizons for level in each.coverage]
    off = [(abs(level.held.value - level.level), level, each) for each, level in levels if level.off]
    beyond = "none is off by more than chance"
    if off:
        _, level, where = max(off, key=lambda each: each[0])
        beyond = (
            f"{len(off)} are off by more than chance, most {100 * level.level:.0f} % {where.name}, which held "
            f"{100 * level.held.value:.1f} %"
        )
    uneven = [each for each in study.horizons if each.calibration.pit.p < ALPHA]
    score = _range([each.interval.score_ratio.value for each in study.horizons], ".2f")
    return [
        f"Intervals of {100 * RULE.coverage:.0f} % held {held} % of prices.",
        f"Of all {len(levels)} levels and horizons, {beyond}.",
        f"Prices {'do not fall' if uneven else 'fall'} evenly over the forecast distributions"
        f"{f' {_names(uneven)}' if uneven else ''}.",
        f"The intervals' score is {score} times that of a constant spread.",
    ]


def rise_sentences(study: ForecastStudy) -> list[str]:
    """Say whether probabilities of a rise are right, as given and corrected by earlier outcomes."""
    said = []
    for of, name in (("raw", "Probabilities of a rise"), ("recalibrated", "Corrected by earlier outcomes, they")):
        rises = [getattr(each.calibration, of) for each in study.horizons]
        wrong = f"{sum(each.p < ALPHA for each in rises)} of {len(rises)} horizons"
        error, most = (_range([getattr(each, part) for each in rises], ".3f") for part in ("error", "error_most"))
        skill = _range([each.skill.value for each in rises], "+.3f")
        said.append(
            f"{name} are wrong by more than chance at {wrong} (calibration error {error}, by chance up to {most}; "
            f"Brier skill {skill})."
        )
    return said


def direction_sentence(study: ForecastStudy) -> str:
    """Say how often forecasts had the direction of the move right."""
    found = [each.accuracy.direction for each in study.horizons]
    right = _range([100 * each.correct.value for each in found], ".1f")
    commoner = _range([100 * each.majority for each in found], ".1f")
    p_values = holm({number: each.result.p for number, each in enumerate(found) if each.result.p is not None})
    least = "no test is possible"
    if p_values:
        least = f"the smallest p of Pesaran and Timmermann is {min(p_values.values()):.2g} (Holm)"
    return f"The direction was right in {right} % of forecasts, the more common one in {commoner} %; {least}."


def missing_sentences(study: ForecastStudy) -> list[str]:
    """Say what was not measured, and why: once for bars on which nothing was."""
    found = []
    for bars in dict.fromkeys(bars for bars, _ in study.absent):
        why = {hours: reason for (length, hours), reason in study.absent.items() if length == bars}
        if not study.on(bars):
            why = {max(why): why[max(why)]}
        found += [f"Forecasts on bars of {bars} were not measured: {reason}." for reason in dict.fromkeys(why.values())]
    return found


def _names(horizons: Sequence[Horizon]) -> str:
    by_bars: dict[str, list[str]] = {}
    for each in horizons:
        by_bars.setdefault(each.bars, []).append(str(each.hours))
    return " and ".join(f"{', '.join(hours)} h ahead on bars of {bars}" for bars, hours in by_bars.items())


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "below 0.0001"


def _range(values: Sequence[float], form: str) -> str:
    known = [each for each in values if math.isfinite(each)]
    if not known:
        return "undefined"
    low, high = (format(each, form) for each in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"
