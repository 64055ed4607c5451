"""What the market's studies record, as the acceptance table reads it: validation (13.7) and warnings of risk (14).

Both criteria ask for measurements, not for success. The types hold the part of a record that is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qubic_lab.oracle.risk.warning_scores import IntervalEstimate, WarningScore
from qubic_lab.stats import BrierParts, ReliabilityBin
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, WeekResults
from qubic_lab.studies.anomaly_trials import RocCurve

ALPHA = 0.05
LARGE = 8.0
"""An anomaly of this many deviations or more is a large one."""
VALIDATION = Criterion(
    "13.7",
    "Validation of the oracle",
    "sentiment against returns, forecasts of 1–4 h, anomalies and confidence: measured, with intervals",
    "oracle_backtest and oracle_overview",
)
WARNINGS = Criterion(
    "14",
    "Warnings of risk",
    "backtested beside a naive rule: precision, recall, false alarms and lead time, with intervals",
    "risk_warnings",
)


@dataclass(frozen=True)
class RecordedEstimate:
    """A value with its 95 % interval; None where it is not known."""

    value: float | None
    low: float | None
    high: float | None


def estimate_text(
    estimate: RecordedEstimate | IntervalEstimate, unit: str = "", scale: float = 1.0, digits: int = 1
) -> str:
    """Return a value with its interval, as far as they are known."""
    if estimate.value is None:
        return "unknown"
    value = f"{scale * estimate.value:.{digits}f}{unit}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (too few for an interval)"
    return f"{value} ({scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f})"


@dataclass(frozen=True)
class BestCoefficient:
    """The information coefficient with the smallest corrected p-value of a series of scores."""

    ic: float
    low: float
    high: float
    p_corrected: float
    pairs: int


@dataclass(frozen=True)
class SignalRecord:
    """Whether one series of scores predicts returns."""

    title: str
    evidence: bool
    best: BestCoefficient | None


@dataclass(frozen=True)
class SignalsRecord:
    """Sentiment against returns; `measured` on collected texts, or the `reason` why not."""

    measured: bool
    reason: str | None
    studies: tuple[SignalRecord, ...]

    def text(self) -> str:
        """Say for how many series there is evidence, and name the most likely one."""
        evidence = [each.title for each in self.studies if each.evidence]
        said = f"evidence in {len(evidence)} ({'; '.join(evidence)})" if evidence else "no evidence"
        said = f"sentiment of collected texts: {said} of {len(self.studies)} series"
        known = [each.best for each in self.studies if each.best]
        if not known:
            return said
        best = min(known, key=lambda each: each.p_corrected)
        return (
            f"{said}; most likely is IC {best.ic:.3f} (95 % interval {best.low:.3f} to {best.high:.3f}), "
            f"p = {best.p_corrected:.2g} of all tests, {best.pairs} pairs"
        )


@dataclass(frozen=True)
class CalibrationErrorRecord:
    """An expected calibration error, and the one that 95 % of calibrated forecasts would not exceed."""

    value: float
    chance_95: float


@dataclass(frozen=True)
class HorizonRecord:
    """Forecasts of some hours from bars of one length; not `measured`: without figures."""

    bars: str
    hours: int
    measured: bool
    error_ratio: RecordedEstimate | None = None
    coverage_80: RecordedEstimate | None = None
    ece: CalibrationErrorRecord | None = None


@dataclass(frozen=True)
class ForecastsRecord:
    """Forecasts of all horizons, those of the shortest bars first."""

    horizons: tuple[HorizonRecord, ...]

    def text(self) -> str:
        """Say what forecasts from the shortest bars are worth; empty where none was measured."""
        known = [each for each in self.horizons if each.measured]
        shortest = [each for each in known if each.bars == known[0].bars]
        if not shortest or not (coverage := shortest[0].coverage_80) or not (ece := shortest[0].ece):
            return ""
        ratios = ", ".join(estimate_text(each.error_ratio, digits=3) for each in shortest if each.error_ratio)
        return (
            f"forecasts of {', '.join(str(each.hours) for each in shortest)} h from bars of {known[0].bars}: error "
            f"over that of a random walk {ratios}; 80 % intervals held {estimate_text(coverage, ' %', 100)}; ECE of "
            f"their chance of a rise {ece.value:.3f} ({ece.chance_95:.3f} by chance)"
        )


@dataclass(frozen=True, kw_only=True)
class AnomalyCurve(RocCurve):
    """How well anomalies of one kind and size are found among other bars."""

    kind: str
    size: float
    bars: str


@dataclass(frozen=True)
class AnomaliesRecord:
    """The curves of all kinds and sizes."""

    curves: tuple[AnomalyCurve, ...]

    def text(self) -> str:
        """Name the least area under the curves of large anomalies; empty where there are none."""
        large = (each for each in self.curves if each.size >= LARGE)
        worst = min(large, key=lambda each: each.auc, default=None)
        if worst is None:
            return ""
        area = f"area of at least {worst.auc:.3f} ({worst.low:.3f} to {worst.high:.3f}, {worst.kind})"
        return f"anomalies of {LARGE:g} deviations and more: {area}"


@dataclass(frozen=True)
class ConfidenceError:
    """An expected calibration error with its interval; by `chance`: the mean and 95 % quantile were it calibrated."""

    value: float
    low: float
    high: float
    chance: float
    chance_95: float


@dataclass(frozen=True)
class ConfidenceRecord:
    """How right the probability is that a sentiment model gives to its own label, on headlines it never saw.

    `brier_skill` is over always saying the accuracy, with an interval by groups of like headlines.
    """

    model: str
    headlines: int
    groups: int
    accuracy: float
    ece: ConfidenceError
    brier: BrierParts
    brier_skill: RecordedEstimate
    bins: tuple[ReliabilityBin, ...]

    def text(self) -> str:
        """Name the calibration error with its interval."""
        ece = self.ece
        return (
            f"confidence in sentiment: ECE {ece.value:.3f} ({ece.low:.3f} to {ece.high:.3f}; up to "
            f"{ece.chance_95:.3f} by chance), {self.headlines} headlines"
        )


@dataclass(frozen=True, kw_only=True)
class WarningsRecord(WarningScore):
    """What the warnings of one rule were worth, and the share of the time that they stood for."""

    time_under_warning: float


@dataclass(frozen=True)
class WorthRecord:
    """Our warnings on bars of one length beside the naive rule's; without them `absent` says why.

    `p`: of the exact McNemar test of which rule finds more falls of at least `drop`.
    """

    bars_of: str
    drop: float
    ours: WarningsRecord | None
    naive: WarningsRecord | None
    p: float | None
    absent: str

    def text(self) -> str:
        """Name precision, recall, false alarms and lead time."""
        assert self.ours is not None
        ours = self.ours
        return (
            f"bars of {self.bars_of}: precision {estimate_text(ours.precision, ' %', 100, 0)} of {ours.warnings} "
            f"warnings, by chance {100 * ours.precision_by_chance:.0f} %; recall "
            f"{estimate_text(ours.recall, ' %', 100, 0)} of {ours.falls} falls of {100 * self.drop:g} %; false alarms "
            f"a month {estimate_text(ours.false_alarms_a_month)}; lead {estimate_text(ours.lead_h, ' h')}"
        )

    def comparison(self) -> str:
        """Say whether more falls were found than by the naive rule."""
        assert self.ours is not None and self.naive is not None and self.p is not None
        verdict = "no evidence of more"
        if self.p < ALPHA:
            verdict = "evidence of more" if self.ours.found > self.naive.found else "fewer"
        return (
            f"bars of {self.bars_of}: {verdict} falls found than by volatility alone ({self.ours.found} and "
            f"{self.naive.found}, p = {self.p:.2g})"
        )


@dataclass(frozen=True)
class RiskRecord:
    """What warnings were worth, for each length of bars."""

    worth: tuple[WorthRecord, ...]


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge sentiment against returns, forecasts, anomalies and confidence; and warnings of risk."""
    return [_validation_row(week), _warnings_row(week)]


def _validation_row(week: WeekResults) -> AcceptanceRow:
    signals = week.read("signals", SignalsRecord)
    collected = {run: each for run, each in signals.items() if each.measured}
    parts: dict[str, Mapping[str, Any]] = {
        "sentiment against returns": collected,
        "forecasts": week.read("forecasts_1_4h", ForecastsRecord),
        "anomalies": week.read("anomalies", AnomaliesRecord),
        "confidence": week.read("sentiment_confidence", ConfidenceRecord),
    }
    runs = [*collected, *signals, *(run for part in parts.values() for run in part)]
    if not runs:
        return VALIDATION.not_measured()
    texts = {name: [text for each in part.values() if (text := each.text())] for name, part in parts.items()}
    why = next((f" ({each.reason})" for each in signals.values() if each.reason), "")
    missing = [name + why * (part is collected) for name, part in parts.items() if not texts[name]]
    return VALIDATION.complete("; ".join(text for said in texts.values() for text in said), missing, runs[0])


def _warnings_row(week: WeekResults) -> AcceptanceRow:
    entries = [(run, each) for run, found in week.read("risk", RiskRecord).items() for each in found.worth]
    if not entries:
        return WARNINGS.not_measured()
    judged = [(run, each) for run, each in entries if each.ours is not None and each.ours.falls]
    if not judged:
        no_falls = "no fall began while warnings were judged"
        why = "; ".join(dict.fromkeys(f"{each.bars_of}: {each.absent or no_falls}" for _, each in entries))
        return WARNINGS.row("", "not measured here", why)
    measured = "; ".join(each.text() for _, each in judged)
    return WARNINGS.row(measured, "pass", "; ".join(each.comparison() for _, each in judged), judged[0][0])
