"""What the market's studies record, as the acceptance table reads it: validation (13.7) and warnings of risk (14).

A row passes where all is measured and shows what it claims; measured without it, it has no benefit. The types hold the
part of a record that is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qubic_lab.oracle.risk.warning_scores import IntervalEstimate, WarningScore
from qubic_lab.stats import BrierParts, ReliabilityBin, mcnemar_exact
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, Verdict, WeekResults, joined, too_few
from qubic_lab.studies.finding import Finding, estimate, say
from qubic_lab.studies.style import columns

ALPHA = 0.05
LARGE = 8.0
"""An anomaly of this many deviations or more is a large one."""
VALIDATION = Criterion(
    "13.7",
    "Validation of the oracle",
    "sentiment against returns: evidence; forecasts of 1–4 h: better than a random walk; large anomalies found; "
    "confidence calibrated",
    "oracle_backtest and oracle_overview",
)
WARNINGS = Criterion(
    "14",
    "Warnings of risk",
    "evidence of more falls found than by a naive rule under warning as long; precision, recall and lead time told",
    "risk_warnings",
)


@dataclass(frozen=True)
class RecordedEstimate:
    """A value with its 95 % interval; None where it is not known."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, interval: tuple[float, float]) -> "RecordedEstimate":
        """Return a value with its bootstrap interval, of which NaN is not known."""
        low, high = (None if math.isnan(each) else each for each in interval)
        return cls(None if math.isnan(value) else value, low, high)


def _known(found: RecordedEstimate | IntervalEstimate, digits: int = 3) -> Finding:
    return estimate(*(None if each is None else round(each, digits) for each in (found.value, found.low, found.high)))


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

    @property
    def shown(self) -> bool:
        """Whether any series predicts returns."""
        return any(each.evidence for each in self.studies)

    def text(self) -> str:
        """Say for how many series there is evidence, and name the most likely one."""
        evidence = [each.title for each in self.studies if each.evidence]
        text = "sentiment of collected texts: no evidence in {series} series"
        if evidence:
            text = "sentiment of collected texts: evidence in {count} of {series} series ({titles})"
        said = say(text, count=len(evidence), series=len(self.studies), titles=evidence)
        known = [each.best for each in self.studies if each.best]
        if not known:
            return str(said)
        best = min(known, key=lambda each: each.p_corrected)
        likely = say(
            "most likely is an information coefficient of {ic:.3f} (95 % interval {low:.3f} to {high:.3f}), p {p:p} of "
            "all tests, {pairs:pair}",
            p=best.p_corrected,
            **columns(best, "ic", "low", "high", "pairs"),
        )
        return joined(said, likely)


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

    @property
    def shortest(self) -> list[HorizonRecord]:
        """The measured forecasts from the shortest bars."""
        known = [each for each in self.horizons if each.measured]
        return [each for each in known if each.bars == known[0].bars]

    @property
    def shown(self) -> bool:
        """Whether all of these are better than a random walk, by their intervals."""
        ratios = [each.error_ratio for each in self.shortest]
        return all(each is not None and each.high is not None and each.high < 1.0 for each in ratios)

    def text(self) -> str:
        """Say what forecasts from the shortest bars are worth; empty where none was measured."""
        shortest = self.shortest
        if not shortest or not (coverage := shortest[0].coverage_80) or not (ece := shortest[0].ece):
            return ""
        return joined(
            say(
                "forecasts of {hours} h from bars of {bars}: error over that of a random walk {ratios:.3f}",
                hours=[each.hours for each in shortest],
                bars=shortest[0].bars,
                ratios=[_known(each.error_ratio) for each in shortest if each.error_ratio],
            ),
            say("80 % intervals held {held:percent}", held=_known(coverage)),
            say(
                "ECE of their chance of a rise {ece:.3f} ({chance:.3f} by chance)", ece=ece.value, chance=ece.chance_95
            ),
        )


@dataclass(frozen=True)
class RocCurve:
    """Shares of anomalies and of other bars that score at least a threshold, from the strictest one on.

    `auc`: probability that an anomaly scores higher than another bar (ties count half), with its 95 % interval.
    """

    false_alarms: tuple[float, ...]
    hits: tuple[float, ...]
    auc: float
    low: float
    high: float
    anomalies: int
    others: int


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

    @property
    def worst(self) -> AnomalyCurve | None:
        """The curve of large anomalies with the least area under it."""
        return min((each for each in self.curves if each.size >= LARGE), key=lambda each: each.auc, default=None)

    @property
    def shown(self) -> bool:
        """Whether large anomalies of every kind are told from other bars better than by chance."""
        return self.worst is not None and self.worst.low > 0.5

    def text(self) -> str:
        """Name the least area under the curves of large anomalies; empty where there are none."""
        if (worst := self.worst) is None:
            return ""
        text = (
            "anomalies of {large:g} deviations and more: area of at least {auc:.3f} ({low:.3f} to {high:.3f}, {kind})"
        )
        return str(say(text, large=LARGE, **columns(worst, "auc", "low", "high", "kind")))


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

    @property
    def shown(self) -> bool:
        """Whether the error is one that calibrated confidences have by chance."""
        return self.ece.value <= self.ece.chance_95

    def text(self) -> str:
        """Name the calibration error with its interval."""
        text = (
            "confidence in sentiment: ECE {value:.3f} ({low:.3f} to {high:.3f}, up to {chance_95:.3f} by chance), "
            "{headlines:headline}"
        )
        return str(say(text, headlines=self.headlines, **columns(self.ece, "value", "low", "high", "chance_95")))


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
        return joined(
            say(
                "bars of {bars}: precision {precision:percent} of {warnings:warning}, by chance {chance:percent}",
                bars=self.bars_of,
                precision=_known(ours.precision, 2),
                warnings=ours.warnings,
                chance=round(ours.precision_by_chance, 2),
            ),
            say(
                "recall {recall:percent} of {falls:fall} of {drop:percent}",
                recall=_known(ours.recall, 2),
                falls=ours.falls,
                drop=self.drop,
            ),
            say("false alarms a month {alarms:.1f}", alarms=_known(ours.false_alarms_a_month)),
            say("lead in hours {lead:.1f}", lead=_known(ours.lead_h)),
        )

    def verdict(self, alpha: float) -> Verdict:
        """Say whether more falls were found than by the naive rule, with evidence at the level `alpha`."""
        assert self.ours is not None and self.naive is not None and self.p is not None
        if self.p >= alpha:
            return "partial" if self.ours.falls < falls_needed(alpha) else "measured, no benefit"
        return "pass" if self.ours.found > self.naive.found else "fail"

    def comparison(self, alpha: float) -> str:
        """Say the verdict in words, with what it rests on."""
        assert self.ours is not None and self.naive is not None and self.p is not None
        verdict = self.verdict(alpha)
        text = (
            "bars of {bars}: {shown} falls found than by volatility alone ({ours} and {naive}, p {p:p}, evidence below "
            "{alpha:.2g})"
        )
        shown = say("no evidence of more")
        if verdict in ("pass", "fail"):
            shown = say("evidence of more" if verdict == "pass" else "fewer")
        compared = say(
            text, bars=self.bars_of, shown=shown, ours=self.ours.found, naive=self.naive.found, p=self.p, alpha=alpha
        )
        return joined(compared, too_few(self.ours.falls, falls_needed(alpha), say("falls")))


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
    why = next((each.reason for each in signals.values() if each.reason), "")
    sentiment = say("sentiment against returns ({why})", why=why) if why else say("sentiment against returns")
    parts: tuple[tuple[Finding, Mapping[str, Any]], ...] = (
        (sentiment, collected),
        (say("forecasts"), week.read("forecasts_1_4h", ForecastsRecord)),
        (say("anomalies"), week.read("anomalies", AnomaliesRecord)),
        (say("confidence"), week.read("sentiment_confidence", ConfidenceRecord)),
    )
    runs = [*collected, *signals, *(run for _, part in parts for run in part)]
    if not runs:
        return VALIDATION.not_measured()
    texts = [[text for each in part.values() if (text := each.text())] for _, part in parts]
    missing = [name for (name, _), said in zip(parts, texts, strict=True) if not said]
    measured = joined(*(text for said in texts for text in said))
    without = [name for name, part in parts if not all(each.shown for each in part.values() if each.text())]
    if without and not missing:
        return VALIDATION.row(measured, "measured, no benefit", say("not shown: {parts}", parts=without), runs[0])
    return VALIDATION.complete(measured, missing, runs[0])


def _warnings_row(week: WeekResults) -> AcceptanceRow:
    """Judge warnings on bars of every length: fewer falls found on one of them is a failure, more on one a pass.

    So that several lengths do not find evidence by chance, each has its share of the level (Bonferroni).
    """
    entries = [(run, each) for run, found in week.read("risk", RiskRecord).items() for each in found.worth]
    if not entries:
        return WARNINGS.not_measured()
    judged = [(run, each) for run, each in entries if each.ours is not None and each.ours.falls]
    if not judged:
        no_falls = say("no fall began while warnings were judged")
        said = {each.bars_of: each.absent or no_falls for _, each in entries}
        why = (say("bars of {bars}: {reason}", bars=bars, reason=reason) for bars, reason in said.items())
        return WARNINGS.row("", "not measured here", joined(*why))
    alpha = ALPHA / len(judged)
    found = {each.verdict(alpha): run for run, each in reversed(judged)}
    verdicts: tuple[Verdict, ...] = ("fail", "pass", "measured, no benefit", "partial")
    verdict = next(each for each in verdicts if each in found)
    measured = joined(*(each.text() for _, each in judged))
    reason = joined(*(each.comparison(alpha) for _, each in judged))
    return WARNINGS.row(measured, verdict, reason, found[verdict])


def falls_needed(alpha: float) -> int:
    """Return the fewest falls of which finding all, where the other rule finds none, is evidence."""
    return next(falls for falls in range(1, 64) if mcnemar_exact(falls, 0) < alpha)
