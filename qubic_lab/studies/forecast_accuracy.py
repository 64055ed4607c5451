"""The accuracy and calibration of forecasts of the next hours: the study and its tables.

Every forecast uses only bars before the price that it predicts. Every figure is compared with that of the simplest
forecast and with chance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    DayBootstrap,
    PastForecasts,
    calibration,
    coverage,
    past_forecasts,
    pit_values,
    recalibrated,
    up_probabilities,
)
from qubic_lab.oracle.inference.bootstrap import RESAMPLES
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing
from qubic_lab.stats import holm

Row = dict[str, Any]
Points = Callable[[Bars, int], Mapping[str, Floats]]
ALPHA = 0.05


@dataclass(frozen=True)
class Horizon:
    """Judged forecasts of one horizon on bars of one length.

    Attributes:
        bars: the length of the bars in words.
        apart: the number of forecasts that do not overlap.
        p: of Clark and West's test against "the price stays", corrected by Holm for all horizons of the study; None
            where the test gives none.
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
    """Judge the forecasts of each horizon on each series of bars.

    Args:
        series: by the length of the bars, in words.
        hours: to forecast.
        resamples: of days, for the intervals.
        draws: simulated histories of calibrated forecasts.
        seed: of both.
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
    corrected = _corrected({key: row["accuracy"] for key, row in found.items()})
    return ForecastStudy(tuple(Horizon(*key, **row, p=corrected.get(key)) for key, row in found.items()), absent)


def _corrected(found: Mapping[tuple[str, int], ForecastAccuracy]) -> dict[tuple[str, int], float]:
    known = {}
    for key, each in found.items():
        p = next(rival.result.p for rival in each.comparisons if rival.baseline == STAYS)
        if p is not None:
            known[key] = p
    return holm(known)


def looks_ahead(
    series: Mapping[str, Bars], hours: Sequence[int] = HOURS, points: Points = baseline_points
) -> list[str]:
    """Return the judged and simpler forecasts that change when the last third of the bars is cut off.

    Args:
        series: by the length of the bars.
        hours: to forecast.
        points: returns the simpler ones.
    """
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
            "bars of": each.bars,
            "hours": each.hours,
            "forecasts": each.forecasts,
            "apart": each.apart,
            "error_ratio": each.stays.error_ratio.value,
            "low": each.stays.error_ratio.low,
            "high": each.stays.error_ratio.high,
            "p": each.stays.result.p,
            "p by Holm": each.p,
            "held_pct": 100 * each.interval.held.value,
            "right_pct": 100 * each.accuracy.direction.correct.value,
            "commoner_pct": 100 * each.accuracy.direction.majority,
            "told": each.verdict,
        }
        for each in study.horizons
    ]


def error_rows(study: ForecastStudy) -> list[Row]:
    """Return each way to forecast with its errors, and the ratio of ours."""
    found = []
    for each in study.horizons:
        beside = {rival.baseline: rival for rival in each.accuracy.comparisons}
        for way in each.accuracy.errors:
            row = {"bars of": each.bars, "hours": each.hours, "forecast": way.forecast}
            row |= {"rms_pct": way.rms_pct, "mean_absolute_pct": way.mean_absolute_pct}
            if rival := beside.get(way.forecast):
                ratio = rival.error_ratio
                row |= {"ours over it": ratio.value, "low": ratio.low, "high": ratio.high}
                row |= {"test": rival.test, "statistic": rival.result.statistic, "p": rival.result.p}
            found.append(row)
    return found


def coverage_rows(study: ForecastStudy) -> list[Row]:
    """Return coverage and width of each level's intervals, beside those of a constant spread."""
    return [
        {
            "bars of": each.bars,
            "hours": each.hours,
            "promised_pct": 100 * level.level,
            "held_pct": 100 * level.held.value,
            "low": 100 * level.held.low,
            "high": 100 * level.held.high,
            "wide_pct": level.wide_pct,
            "constant: held_pct": 100 * level.flat_held.value,
            "constant: wide_pct": level.flat_wide_pct,
            "score over constant": level.score_ratio.value,
        }
        for each in study.horizons
        for level in each.coverage
    ]


def rise_rows(study: ForecastStudy) -> list[Row]:
    """Return the calibration of probabilities of a rise, as given and corrected by earlier outcomes."""
    return [
        {
            "bars of": each.bars,
            "hours": each.hours,
            "probability": name,
            "forecasts": rises.forecasts,
            "calibration error": rises.error,
            "by chance": rises.error_chance,
            "by chance up to": rises.error_most,
            "p": rises.p,
            "Brier": rises.brier.score,
            "reliability": rises.brier.reliability,
            "resolution": rises.brier.resolution,
            "uncertainty": rises.brier.uncertainty,
            "skill": rises.skill.value,
            "low": rises.skill.low,
            "high": rises.skill.high,
        }
        for each in study.horizons
        for name, rises in (("as told", each.calibration.raw), ("corrected", each.calibration.recalibrated))
    ]
