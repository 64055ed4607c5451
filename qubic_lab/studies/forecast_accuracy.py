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
from qubic_lab.studies.style import columns

Row = dict[str, Any]
Points = Callable[[Bars, int], Mapping[str, Floats]]
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
    def name(self) -> str:
        """The horizon and the length of bars in words."""
        return f"{self.hours} h ahead on bars of {self.bars}"

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


def _cells(name: str, estimate: DailyEstimate, scale: float = 1.0) -> Row:
    return {name: scale * estimate.value, "low": scale * estimate.low, "high": scale * estimate.high}


def error_rows(study: ForecastStudy) -> list[Row]:
    """Return each way to forecast with its errors, and the ratio of ours."""
    found = []
    for each in study.horizons:
        beside = {rival.baseline: rival for rival in each.accuracy.comparisons}
        for way in each.accuracy.errors:
            row = _named(each) | columns(way, "forecast", "rms_pct", "mean_absolute_pct")
            if rival := beside.get(way.forecast):
                row |= _cells("ours over it", rival.error_ratio)
                row |= {"test": rival.test} | columns(rival.result, "statistic", "p")
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
    return {"evidence": evidence, "verdict": accuracy_sentence(study), "horizons": horizons}


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


def findings(study: ForecastStudy) -> list[str]:
    """Say what forecasts are worth, whether intervals and probabilities are right, and what was not measured."""
    said = [accuracy_sentence(study)]
    if study.horizons:
        said += [*_error_sentences(study), _direction_sentence(study)]
        said += [*_interval_sentences(study), *_rise_sentences(study)]
    return said + _missing_sentences(study)


def accuracy_sentence(study: ForecastStudy) -> str:
    """Say in one sentence whether forecasts beat "the price stays"."""
    if not study.horizons:
        return "Forecasts of the next hours were not measured: no bars are fit for it."
    known = [each for each in study.horizons if each.evidence]
    better = [each for each in known if each.verdict == "better"]
    if better:
        return f'Forecasts beat "the price stays" {_names(better)}.'
    if known:
        more = f'Forecasts know more than "the price stays" {_names(known)}'
        return f"{more}, but their errors are not shown to be smaller."
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


def _interval_sentences(study: ForecastStudy) -> list[str]:
    held = _range([100 * each.interval.held.value for each in study.horizons], ".1f")
    levels = [(level, each) for each in study.horizons for level in each.coverage]
    off = [(level, each) for level, each in levels if level.off]
    beyond = "none is off by more than chance"
    if off:
        level, where = max(off, key=lambda found: abs(found[0].held.value - found[0].level))
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


def _rise_sentences(study: ForecastStudy) -> list[str]:
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


def _direction_sentence(study: ForecastStudy) -> str:
    found = [each.accuracy.direction for each in study.horizons]
    right = _range([100 * each.correct.value for each in found], ".1f")
    commoner = _range([100 * each.majority for each in found], ".1f")
    p_values = holm({number: each.result.p for number, each in enumerate(found) if each.result.p is not None})
    least = "no test is possible"
    if p_values:
        least = f"the smallest p of Pesaran and Timmermann is {min(p_values.values()):.2g} (Holm)"
    return f"The direction was right in {right} % of forecasts, the more common one in {commoner} %; {least}."


def _missing_sentences(study: ForecastStudy) -> list[str]:
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
