"""The accuracy and calibration of forecasts of the next hours: the study, its record, tables and findings.

Every forecast uses only bars before the price that it predicts. Every figure is compared with that of the simplest
forecast and with chance.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qubic_lab.oracle.analysis.forecast import HOURS, RULE
from qubic_lab.oracle.backtest.forecast_accuracy import (
    STAYS,
    BaselineComparison,
    ForecastAccuracy,
    accuracy,
    baseline_points,
)
from qubic_lab.oracle.backtest.past_forecasts import (
    DRAWS,
    Calibration,
    Coverage,
    DailyEstimate,
    DayBootstrap,
    PastForecasts,
    UpMoves,
    calibration,
    coverage,
    past_forecasts,
    pit_values,
    recalibrated,
    up_probabilities,
)
from qubic_lab.oracle.inference.resampling import RESAMPLES
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.stats import holm
from qubic_lab.studies.finding import Finding, answering, extent, say
from qubic_lab.studies.style import columns

Row = dict[str, Any]
Points = Callable[[Bars, int], Mapping[str, Floats]]
QUESTION = "prediction"
ALPHA = 0.05


@dataclass(frozen=True)
class Horizon:
    """Judged forecasts of one horizon on bars of one length, `apart` of which do not overlap.

    `p` is of Clark and West's test against "the price stays", corrected by Holm for all horizons of the study.
    """

    bars: str
    hours: int
    forecasts: int
    apart: int
    accuracy: ForecastAccuracy
    coverage: tuple[Coverage, ...]
    calibration: Calibration
    p: float | None

    @property
    def stays(self) -> BaselineComparison:
        """Our forecasts beside "the price stays"."""
        return next(each for each in self.accuracy.comparisons if each.baseline == STAYS)

    @property
    def interval(self) -> Coverage:
        """The interval of the level that the service reports."""
        return next(each for each in self.coverage if each.level == RULE.coverage)

    @property
    def evidence(self) -> bool:
        """Whether forecasts have information beyond the last price."""
        return self.p is not None and self.p < ALPHA

    @property
    def verdict(self) -> str:
        """The worth of the forecasts beside "the price stays"."""
        ratio = self.stays.error_ratio
        if self.evidence and ratio.high < 1.0:
            return "better"
        if self.evidence:
            return "something is known, but errors are not shown to be smaller"
        return "worse" if ratio.low > 1.0 else "no evidence"


@dataclass(frozen=True)
class ForecastStudy:
    """All horizons on bars of all lengths; `absent`: (bars, hours) → why nothing could be judged."""

    horizons: tuple[Horizon, ...]
    absent: Mapping[tuple[str, int], str]

    def on(self, bars: str) -> tuple[Horizon, ...]:
        """Return the horizons on bars of one length."""
        return tuple(each for each in self.horizons if each.bars == bars)

    def ends(self, bars: str) -> tuple[Horizon, ...]:
        """Return the shortest and the longest horizon on bars of one length."""
        found = sorted(self.on(bars), key=lambda each: each.hours)
        return (*found[:1], *found[1:][-1:])

    @property
    def lengths(self) -> tuple[str, ...]:
        """The lengths of bars on which something was measured."""
        return tuple(dict.fromkeys(each.bars for each in self.horizons))


def study_forecasts(
    series: Mapping[str, Bars],
    hours: Sequence[int] = HOURS,
    *,
    resamples: int = RESAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
) -> ForecastStudy:
    """Judge the forecasts of each horizon on each series of bars, named by their length.

    `resamples` are of days, for intervals; `draws` are simulated histories of calibrated forecasts.
    """
    found: dict[tuple[str, int], Row] = {}
    absent: dict[tuple[str, int], str] = {}
    for length, bars in series.items():
        for each in hours:
            past = past_forecasts(bars, each)
            if isinstance(past, Missing):
                absent[length, each] = past.reason
                continue
            days = DayBootstrap(past.closed_us, resamples, seed)
            found[length, each] = {
                "forecasts": len(past),
                "apart": past.apart,
                "accuracy": accuracy(past, baseline_points(bars, each), days),
                "coverage": coverage(past, days),
                "calibration": calibration(past, days, draws, seed),
            }
    horizons = {key: Horizon(*key, **row, p=None) for key, row in found.items()}
    corrected = holm({key: p for key, each in horizons.items() if (p := each.stays.result.p) is not None})
    return ForecastStudy(tuple(replace(each, p=corrected.get(key)) for key, each in horizons.items()), absent)


def looks_ahead(
    series: Mapping[str, Bars], hours: Sequence[int] = HOURS, points: Points = baseline_points
) -> list[str]:
    """Return the judged and simpler forecasts that change when the last third of the bars is cut off."""
    guilty = []
    for length, bars in series.items():
        cut = 2 * len(bars) // 3
        for each in hours:
            whole, part = (past_forecasts(given, each) for given in (bars, bars.slice(0, cut)))
            if isinstance(whole, Missing) or isinstance(part, Missing):
                continue
            pairs = {"our forecast": (_columns(whole)[: len(part)], _columns(part))}
            later = points(bars.slice(0, cut), each)
            pairs |= {name: (values[:cut], later[name]) for name, values in points(bars, each).items()}
            guilty += [
                f"{name}, {each} h ahead on bars of {length}"
                for name, (before, after) in pairs.items()
                if not np.array_equal(before, after, equal_nan=True)
            ]
    return guilty


def _columns(past: PastForecasts) -> Floats:
    """Return all figures of each forecast, [forecasts, figures]."""
    told = up_probabilities(past)
    figures = (past.point, past.scale, past.known, past.flat, pit_values(past), told, recalibrated(past, told))
    return np.column_stack([*figures, past.reach])


def summary_rows(study: ForecastStudy) -> list[Row]:
    """Return a row for each horizon: accuracy and coverage of its forecasts."""
    return [
        {
            **_named(each),
            **columns(each, "forecasts", "apart"),
            **_cells("error_ratio", each.stays.error_ratio),
            "p": each.stays.result.p,
            "p by Holm": each.p,
            "held_pct": 100 * each.interval.held.value,
            "right_pct": 100 * each.accuracy.direction.correct.value,
            "commoner_pct": 100 * each.accuracy.direction.majority,
            "told": each.verdict,
        }
        for each in study.horizons
    ]


def _named(horizon: Horizon) -> Row:
    return {"bars of": horizon.bars, "hours": horizon.hours}


def _cells(name: str, estimate: DailyEstimate) -> Row:
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}


def error_rows(study: ForecastStudy) -> list[Row]:
    """Return each way to forecast with its errors, and the ratio of ours."""
    found = []
    for each in study.horizons:
        beside = {other.baseline: other for other in each.accuracy.comparisons}
        for way in each.accuracy.errors:
            row = _named(each) | columns(way, "forecast", "rms_pct", "mean_absolute_pct")
            if other := beside.get(way.forecast):
                row |= _cells("ours over it", other.error_ratio)
                row |= {"test": other.test} | columns(other.result, "statistic", "p")
            found.append(row)
    return found


def to_record(study: ForecastStudy) -> Row:
    """Return the study as plain values for JSON, which `oracle_results.ForecastsRecord` reads a part of.

    `error_ratio` is that of root mean squared errors over those of "the price stays"; `cw_…` is the test of Clark and
    West; `ece` is the calibration error of probabilities of a rise, beside its mean and 95 % quantile by chance.
    """
    horizons = [_record_of(each) for each in study.horizons]
    for (bars, hours), why in study.absent.items():
        horizons.append({"bars": bars, "hours": hours, "measured": False, "reason": why})
    evidence = any(each.evidence for each in study.horizons)
    return {"evidence": evidence, "verdict": str(accuracy_finding(study)), "horizons": horizons}


def _record_of(horizon: Horizon) -> Row:
    direction, levels = horizon.accuracy.direction, [_level(each) for each in horizon.coverage]
    told, corrected = horizon.calibration.raw, horizon.calibration.recalibrated
    return {
        **columns(horizon, "bars", "hours", "forecasts", "apart"),
        "measured": True,
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
    score_ratio = _plain(found.score_ratio)
    return columns(found, "level", "wide_pct", "flat_wide_pct") | _plain(found.held) | {"score_ratio": score_ratio}


def _error(rises: UpMoves) -> Row:
    return {"value": rises.error, "chance": rises.error_chance, "chance_95": rises.error_most, "p": rises.p}


def _plain(estimate: DailyEstimate) -> Row:
    return {name: value if math.isfinite(value) else None for name, value in asdict(estimate).items()}


def findings(study: ForecastStudy) -> list[Finding]:
    """Say what forecasts are worth, whether intervals and probabilities are right, and what was not measured."""
    said = [accuracy_finding(study)]
    if study.horizons:
        said += [*_error_findings(study), _direction_finding(study)]
        said += [*_interval_findings(study), *_rise_findings(study)]
    return answering(QUESTION, said + _missing_findings(study))


def accuracy_finding(study: ForecastStudy) -> Finding:
    """Say in one sentence whether forecasts beat "the price stays"."""
    if not study.horizons:
        return say("Forecasts of the next hours were not measured: no bars are fit for it.")
    known = [each for each in study.horizons if each.evidence]
    better = [each for each in known if each.verdict == "better"]
    if better:
        return say('Forecasts beat "the price stays" {where}.', where=_where(better))
    if known:
        text = 'Forecasts know more than "the price stays" {where}; smaller errors are not shown.'
        return say(text, where=_where(known))
    return say('There is no evidence that forecasts know more than "the price stays".')


def _error_findings(study: ForecastStudy) -> list[Finding]:
    p_values = [each.p for each in study.horizons if each.p is not None]
    said = [
        say(
            "Errors differ from those of a constant price by {ratios:+.1f} %; {forecasts} forecasts each.",
            ratios=extent(100 * (each.stays.error_ratio.value - 1.0) for each in study.horizons),
            forecasts=extent(each.forecasts for each in study.horizons),
        )
    ]
    if p_values:
        said.append(say("The smallest p of Clark and West is {p:.2g} (Holm).", p=min(p_values)))
    if worse := sum(each.verdict == "worse" for each in study.horizons):
        text = "Forecasts are worse than a constant price at {worse} of {horizons:horizon}."
        said.append(say(text, worse=worse, horizons=len(study.horizons)))
    return said


def _interval_findings(study: ForecastStudy) -> list[Finding]:
    levels = [(level, each) for each in study.horizons for level in each.coverage]
    off = [(level, each) for level, each in levels if level.off]
    beyond = say("Of all {levels} levels and horizons, none is off by more than chance.", levels=len(levels))
    if off:
        level, where = max(off, key=lambda found: abs(found[0].held.value - found[0].level))
        beyond = say(
            "Of all {levels} levels and horizons, {off} are off by more than chance, most {level:percent} {where}, "
            "which held {held:percent}.",
            levels=len(levels),
            off=len(off),
            level=level.level,
            where=_where([where]),
            held=level.held.value,
        )
    uneven = [each for each in study.horizons if each.calibration.pit.p < ALPHA]
    even = say("Prices fall evenly over the forecast distributions.")
    if uneven:
        even = say("Prices do not fall evenly over the forecast distributions {where}.", where=_where(uneven))
    return [
        say(
            "Intervals of {level:percent} held {held:.1f} % of prices.",
            level=RULE.coverage,
            held=extent(100 * each.interval.held.value for each in study.horizons),
        ),
        beyond,
        even,
        say(
            "The intervals' score is {score:.2f} times that of a constant spread.",
            score=extent(each.interval.score_ratio.value for each in study.horizons),
        ),
    ]


def _rise_findings(study: ForecastStudy) -> list[Finding]:
    def values(rises: Sequence[UpMoves]) -> Row:
        return {
            "wrong": sum(each.p < ALPHA for each in rises),
            "horizons": len(rises),
            "error": extent(each.error for each in rises),
            "most": extent(each.error_most for each in rises),
            "skill": extent(each.skill.value for each in rises),
        }

    return [
        say(
            "Probabilities of a rise are wrong by more than chance at {wrong} of {horizons:horizon} (calibration error "
            "{error:.3f}, by chance up to {most:.3f}; Brier skill {skill:+.3f}).",
            **values([each.calibration.raw for each in study.horizons]),
        ),
        say(
            "Corrected by earlier outcomes, they are wrong by more than chance at {wrong} of {horizons:horizon} "
            "(calibration error {error:.3f}, by chance up to {most:.3f}; Brier skill {skill:+.3f}).",
            **values([each.calibration.recalibrated for each in study.horizons]),
        ),
    ]


def _direction_finding(study: ForecastStudy) -> Finding:
    found = [each.accuracy.direction for each in study.horizons]
    p_values = holm({number: each.result.p for number, each in enumerate(found) if each.result.p is not None})
    values: Row = {"right": extent(100 * each.correct.value for each in found)}
    values["commoner"] = extent(100 * each.majority for each in found)
    if not p_values:
        text = (
            "The direction was right in {right:.1f} % of forecasts, the more common one in {commoner:.1f} %; no test "
            "is possible."
        )
        return say(text, **values)
    return say(
        "The direction was right in {right:.1f} % of forecasts, the more common one in {commoner:.1f} %; the smallest "
        "p of Pesaran and Timmermann is {p:.2g} (Holm).",
        p=min(p_values.values()),
        **values,
    )


def _missing_findings(study: ForecastStudy) -> list[Finding]:
    """Say what was not measured, and why: once for bars on which nothing was."""
    found = []
    for bars in dict.fromkeys(bars for bars, _ in study.absent):
        why = {hours: reason for (length, hours), reason in study.absent.items() if length == bars}
        if not study.on(bars):
            why = {max(why): why[max(why)]}
        text = "Forecasts on bars of {bars} were not measured: {reason}."
        found += [say(text, bars=bars, reason=reason) for reason in dict.fromkeys(why.values())]
    return found


def _where(horizons: Sequence[Horizon]) -> list[Finding]:
    by_bars: dict[str, list[int]] = {}
    for each in horizons:
        by_bars.setdefault(each.bars, []).append(each.hours)
    return [say("{hours} h ahead on bars of {bars}", hours=hours, bars=bars) for bars, hours in by_bars.items()]
