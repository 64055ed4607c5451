"""The acceptance rows of the market: what is told, and what is not called measured."""

from typing import Any

import pytest

from qubic_lab.runs.acceptance import judge
from qubic_lab.runs.records import Records
from qubic_lab.studies.acceptance import AcceptanceRow


def row_of(id: str, **results: dict[str, Any]) -> AcceptanceRow:
    (found,) = (row for row in judge({"study/k1": Records(results=results)}) if row.id == id)
    return found


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def signals(measured: bool = True, evidence: bool = False) -> dict[str, Any]:
    best = {"ic": 0.021, "low": -0.01, "high": 0.052, "p_corrected": 0.4, "pairs": 900}
    weak = {"title": "newsapi, 1 h", "evidence": False, "best": {**best, "p_corrected": 0.8, "ic": 0.5}}
    studies = [weak, {"title": "hacker-news, 1 h", "evidence": evidence, "best": best}]
    return {"measured": measured, "reason": None if measured else "no collected texts", "studies": studies}


def forecasts() -> dict[str, Any]:
    def horizon(bars: str, hours: int) -> dict[str, Any]:
        return {
            "bars": bars,
            "hours": hours,
            "measured": True,
            "error_ratio": estimate(1.0 + hours / 100, 0.99, 1.09),
            "coverage_80": estimate(0.81, 0.78, 0.84),
            "ece": {"value": 0.05, "chance_95": 0.03},
        }

    days = {"bars": "1 day", "hours": 1, "measured": False, "reason": "bars of 1 day are longer than 1 h"}
    return {"horizons": [days, horizon("15 min", 1), horizon("15 min", 2), horizon("1 h", 1)]}


ANOMALIES = {
    "curves": [
        {"kind": "jump", "size": 8.0, "auc": 0.97, "low": 0.95, "high": 0.99},
        {"kind": "outlier", "size": 8.0, "auc": 0.99, "low": 0.98, "high": 1.0},
        {"kind": "jump", "size": 2.0, "auc": 0.6, "low": 0.5, "high": 0.7},
    ]
}
CONFIDENCE = {"headlines": 375, "ece": {**estimate(0.069, 0.0, 0.087), "chance_95": 0.081}}


def validated(**changes: Any) -> AcceptanceRow:
    parts = {
        "signals": signals(),
        "forecasts_1_4h": forecasts(),
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


def test_simulated_sentiment_is_no_measurement_and_the_rest_is_still_told() -> None:
    found = validated(signals=signals(measured=False))
    assert found.verdict == "not measured here"
    assert found.reason == "missing: sentiment against returns (no collected texts)"
    assert "IC" not in found.measured and "forecasts of 1, 2 h" in found.measured


@pytest.mark.parametrize(
    ("missing", "name"),
    [("forecasts_1_4h", "forecasts"), ("anomalies", "anomalies"), ("sentiment_confidence", "confidence")],
)
def test_a_missing_part_is_named(missing: str, name: str) -> None:
    found = validated(**{missing: None})
    assert (found.verdict, found.reason) == ("not measured here", f"missing: {name}")


def test_small_anomalies_alone_or_days_alone_measure_nothing() -> None:
    small = {"curves": [each for each in ANOMALIES["curves"] if each["size"] < 8.0]}
    assert validated(anomalies=small).verdict == "not measured here"
    days = {"horizons": [each for each in forecasts()["horizons"] if not each["measured"]]}
    assert validated(forecasts_1_4h=days).reason == "missing: forecasts"


def worth(name: str = "1 day", *, falls: int = 20, found: int = 12, p: float = 0.4, **changes: Any) -> dict[str, Any]:
    ours = {
        "warnings": 30,
        "precision": estimate(0.4, 0.25, 0.58),
        "precision_by_chance": 0.31,
        "falls": falls,
        "found": found,
        "recall": estimate(0.6, 0.39, 0.78),
        "false_alarms_a_month": estimate(0.9, 0.5, 1.4),
        "lead_h": estimate(48.0, 24.0, 72.0),
    }
    entry = {"bars_of": name, "drop": 0.1, "ours": ours, "naive": {"found": 10}, "p": p, "absent": ""}
    return entry | changes


def test_warnings_are_told_with_intervals_and_against_the_naive_rule() -> None:
    found = row_of("14", risk={"worth": [worth("15 min", found=18, p=0.01), worth()]})
    assert found.verdict == "pass"
    assert (
        "bars of 1 day: precision 40 % (25 to 58) of 30 warnings, by chance 31 %; recall 60 % (39 to 78) of 20 falls "
        "of 10 %; false alarms a month 0.9 (0.5 to 1.4); lead 48.0 h (24.0 to 72.0)"
    ) in found.measured
    more, same = found.reason.split("; ")
    assert more == "bars of 15 min: evidence of more falls found than by volatility alone (18 and 10, p = 0.01)"
    assert same == "bars of 1 day: no evidence of more falls found than by volatility alone (12 and 10, p = 0.4)"
    assert "bars of 1 day: fewer falls" in row_of("14", risk={"worth": [worth(found=1, p=0.01)]}).reason


def test_few_leads_have_no_interval_and_no_falls_no_verdict() -> None:
    few = worth()
    few["ours"] = few["ours"] | {"lead_h": estimate(5.0), "precision": estimate(None)}
    told = row_of("14", risk={"worth": [few]}).measured
    assert "lead 5.0 h (too few for an interval)" in told and "precision unknown of 30" in told
    nothing = [worth(falls=0), worth("1 h", ours=None, absent="40 bars: too few")]
    found = row_of("14", risk={"worth": nothing})
    assert (found.verdict, found.reason) == (
        "not measured here",
        "1 day: no fall began while warnings were judged; 1 h: 40 bars: too few",
    )
    assert row_of("14").reason == "no finished run of risk_warnings this week"
