"""The acceptance rows of the market: what is reported, and what is not called measured."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from examples import example

from qubic_lab.oracle.risk.warning_scores import IntervalEstimate
from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.records import Records
from qubic_lab.studies.acceptance import AcceptanceRow
from qubic_lab.studies.oracle_results import (
    AnomaliesRecord,
    AnomalyCurve,
    BestCoefficient,
    CalibrationErrorRecord,
    ConfidenceError,
    ConfidenceRecord,
    ForecastsRecord,
    HorizonRecord,
    RecordedEstimate,
    RiskRecord,
    SignalRecord,
    SignalsRecord,
    WarningsRecord,
    WorthRecord,
)


def row_of(id: str, **results: Any) -> AcceptanceRow:
    recorded = Records(results={name: asdict(each) for name, each in results.items()})
    (found,) = (row for row in judge({"study/k1": recorded}) if row.id == id)
    return found


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> RecordedEstimate:
    return RecordedEstimate(value, low, high)


def signals(measured: bool = True, evidence: bool = False) -> SignalsRecord:
    best = BestCoefficient(0.021, -0.01, 0.052, 0.4, 900)
    weak = SignalRecord("newsapi, 1 h", False, replace(best, ic=0.5, p_corrected=0.8))
    studies = (weak, SignalRecord("hacker-news, 1 h", evidence, best))
    return SignalsRecord(measured, None if measured else "no collected texts", studies)


def horizon(bars: str, hours: int) -> HorizonRecord:
    ratio, ece = estimate(1.0 + hours / 100, 0.99, 1.09), CalibrationErrorRecord(0.05, 0.03)
    return HorizonRecord(bars, hours, True, ratio, estimate(0.81, 0.78, 0.84), ece)


DAYS = HorizonRecord("1 day", 1, measured=False)
FORECASTS = ForecastsRecord((DAYS, horizon("15 min", 1), horizon("15 min", 2), horizon("1 h", 1)))
SMALL = example(AnomalyCurve, kind="jump", size=2.0, auc=0.6, low=0.5, high=0.7)
ANOMALIES = AnomaliesRecord(
    (
        replace(SMALL, size=8.0, auc=0.97, low=0.95, high=0.99),
        replace(SMALL, kind="outlier", size=8.0, auc=0.99, low=0.98, high=1.0),
        SMALL,
    )
)
CONFIDENCE = example(ConfidenceRecord, headlines=375, ece=ConfidenceError(0.069, 0.0, 0.087, 0.05, 0.081))


def validated(**changes: Any) -> AcceptanceRow:
    parts = {
        "signals": signals(),
        "forecasts_1_4h": FORECASTS,
        "anomalies": ANOMALIES,
        "sentiment_confidence": CONFIDENCE,
    }
    return row_of("13.7", **{name: each for name, each in (parts | changes).items() if each is not None})


def test_a_validation_of_all_four_parts_passes_and_tells_each() -> None:
    found = validated()
    assert (found.verdict, found.reason) == ("pass", "")
    told = found.measured.split("; ")
    assert told[0] == "sentiment of collected texts: no evidence of 2 series"
    assert "IC 0.021 (95 % interval -0.010 to 0.052)" in told[1] and "900 pairs" in told[1]
    assert "forecasts of 1, 2 h from bars of 15 min: error over that of a random walk 1.010 (0.990 to 1.090)" in told[2]
    assert "80 % intervals held 81.0 % (78.0 to 84.0)" in told[3]
    assert "at least 0.970 (0.950 to 0.990, jump)" in told[5]
    assert "evidence in 1 (hacker-news, 1 h) of 2 series" in validated(signals=signals(evidence=True)).measured


@pytest.mark.parametrize(
    ("part", "recorded", "missing"),
    [
        ("forecasts_1_4h", None, "forecasts"),
        ("anomalies", None, "anomalies"),
        ("sentiment_confidence", None, "confidence"),
        ("forecasts_1_4h", ForecastsRecord((DAYS,)), "forecasts"),
        ("anomalies", AnomaliesRecord((SMALL,)), "anomalies"),
        ("signals", signals(measured=False), "sentiment against returns (no collected texts)"),
    ],
)
def test_a_missing_part_is_named_and_the_rest_is_still_told(part: str, recorded: Any, missing: str) -> None:
    found = validated(**{part: recorded})
    assert (found.verdict, found.reason) == ("not measured here", f"missing: {missing}")
    assert ("IC" in found.measured) == (part != "signals")
    assert ("forecasts of 1, 2 h" in found.measured) == (part != "forecasts_1_4h")


def measured(value: float | None, low: float | None = None, high: float | None = None) -> IntervalEstimate:
    return IntervalEstimate(value=value, low=low, high=high)


def worth(name: str = "1 day", *, falls: int = 20, found: int = 12, p: float = 0.4, **changes: Any) -> WorthRecord:
    ours = example(
        WarningsRecord,
        warnings=30,
        precision=measured(0.4, 0.25, 0.58),
        precision_by_chance=0.31,
        falls=falls,
        found=found,
        recall=measured(0.6, 0.39, 0.78),
        recall_by_chance=0.1,
        time_under_warning=0.1,
        false_alarms_a_month=measured(0.9, 0.5, 1.4),
        lead_h=measured(48.0, 24.0, 72.0),
    )
    plain = {"bars_of": name, "drop": 0.1, "ours": replace(ours, **changes), "naive": replace(ours, found=10), "p": p}
    return WorthRecord(**plain, absent="")


def test_warnings_are_told_with_intervals_and_against_the_naive_rule() -> None:
    found = row_of("14", risk=RiskRecord((worth("15 min", found=18, p=0.01), worth())))
    assert found.verdict == "pass"
    assert (
        "bars of 1 day: precision 40 % (25 to 58) of 30 warnings, by chance 31 %; recall 60 % (39 to 78) of 20 falls "
        "of 10 %; false alarms a month 0.9 (0.5 to 1.4); lead 48.0 h (24.0 to 72.0)"
    ) in found.measured
    more, same = found.reason.split("; ")
    assert more == "bars of 15 min: evidence of more falls found than by volatility alone (18 and 10, p = 0.01)"
    assert same == "bars of 1 day: no evidence of more falls found than by volatility alone (12 and 10, p = 0.4)"
    assert "bars of 1 day: fewer falls" in row_of("14", risk=RiskRecord((worth(found=1, p=0.01),))).reason


def test_few_leads_have_no_interval_and_no_falls_no_verdict() -> None:
    few = worth(lead_h=measured(5.0), precision=measured(None))
    told = row_of("14", risk=RiskRecord((few,))).measured
    assert "lead 5.0 h (too few for an interval)" in told and "precision unknown of 30" in told
    nothing = (worth(falls=0), replace(worth("1 h"), ours=None, absent="40 bars: too few"))
    found = row_of("14", risk=RiskRecord(nothing))
    assert (found.verdict, found.reason) == (
        "not measured here",
        "1 day: no fall began while warnings were judged; 1 h: 40 bars: too few",
    )
    assert row_of("14").reason == "no finished run of risk_warnings this week"
