"""Judge what the market's studies recorded: validation (13.7) and warnings of risk (14).

Both criteria ask for measurements, not for success: that nothing is predicted is a result, and is told in the row.
"""

from collections.abc import Mapping
from typing import Any

from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, WeekResults

Result = Mapping[str, Any]

ALPHA = 0.05
LARGE = 8.0
"""Deviations from which on an anomaly is a large one."""


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


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge sentiment against returns, forecasts, anomalies and confidence; and warnings of risk."""
    return [_validation_row(week), _warnings_row(week)]


def _validation_row(week: WeekResults) -> AcceptanceRow:
    names = ("signals", "forecasts_1_4h", "anomalies", "sentiment_confidence")
    signals, forecasts, anomalies, confidence = (week.read(name, dict[str, Any]) for name in names)
    found = signals | forecasts | anomalies | confidence
    if not found:
        return VALIDATION.not_measured()
    collected = {run: each for run, each in signals.items() if each["measured"]}
    parts = {
        "sentiment against returns": [_signals_text(each) for each in collected.values()],
        "forecasts": [text for each in forecasts.values() if (text := _forecasts_text(each))],
        "anomalies": [text for each in anomalies.values() if (text := _anomalies_text(each))],
        "confidence": [_confidence_text(each) for each in confidence.values()],
    }
    reasons = {"sentiment against returns": next((each["reason"] for each in signals.values() if each["reason"]), "")}
    missing = [f"{name} ({reasons[name]})" if reasons.get(name) else name for name, said in parts.items() if not said]
    measured = "; ".join(text for said in parts.values() for text in said)
    return VALIDATION.complete(measured, missing, next(iter(collected or found)))


def _signals_text(result: Result) -> str:
    studies = result["studies"]
    evidence = [each["title"] for each in studies if each["evidence"]]
    said = f"evidence in {len(evidence)} ({'; '.join(evidence)})" if evidence else "no evidence"
    best = min((each["best"] for each in studies if each["best"]), key=lambda each: each["p_corrected"], default=None)
    least = ""
    if best is not None:
        least = (
            f"; most likely is IC {best['ic']:.3f} (95 % interval {best['low']:.3f} to {best['high']:.3f}), "
            f"p = {best['p_corrected']:.2g} of all tests, {best['pairs']} pairs"
        )
    return f"sentiment of collected texts: {said} of {len(studies)} series{least}"


def _forecasts_text(result: Result) -> str:
    """Return what forecasts of the shortest bars are worth; empty where none was measured."""
    known = [each for each in result["horizons"] if each["measured"]]
    if not known:
        return ""
    shortest = [each for each in known if each["bars"] == known[0]["bars"]]
    ratios = ", ".join(
        f"{each['error_ratio']['value']:.3f} ({each['error_ratio']['low']:.3f} to {each['error_ratio']['high']:.3f})"
        for each in shortest
    )
    hours = ", ".join(f"{each['hours']}" for each in shortest)
    held = shortest[0]["coverage_80"]
    return (
        f"forecasts of {hours} h from bars of {known[0]['bars']}: error over that of a random walk {ratios}; 80 % "
        f"intervals held {100 * held['value']:.1f} % ({100 * held['low']:.1f} to {100 * held['high']:.1f}); ECE of "
        f"their chance of a rise {shortest[0]['ece']['value']:.3f} ({shortest[0]['ece']['chance_95']:.3f} by chance)"
    )


def _anomalies_text(result: Result) -> str:
    """Return the least area under the curves of large anomalies; empty where there are none."""
    large = [each for each in result["curves"] if each["size"] >= LARGE]
    if not large:
        return ""
    worst = min(large, key=lambda each: float(each["auc"]))
    return (
        f"anomalies of {LARGE:g} deviations and more: area of at least {worst['auc']:.3f} ({worst['low']:.3f} to "
        f"{worst['high']:.3f}, {worst['kind']})"
    )


def _confidence_text(result: Result) -> str:
    ece = result["ece"]
    return (
        f"confidence in sentiment: ECE {ece['value']:.3f} ({ece['low']:.3f} to {ece['high']:.3f}; up to "
        f"{ece['chance_95']:.3f} by chance), {result['headlines']} headlines"
    )


def _warnings_row(week: WeekResults) -> AcceptanceRow:
    found = week.read("risk", dict[str, Any])
    if not found:
        return WARNINGS.not_measured()
    entries = [(run, each) for run, result in found.items() for each in result["worth"]]
    judged = [(run, each) for run, each in entries if each["ours"] is not None and each["ours"]["falls"]]
    if not judged:
        no_falls = "no fall began while warnings were judged"
        why = "; ".join(dict.fromkeys(f"{each['bars_of']}: {each['absent'] or no_falls}" for _, each in entries))
        return WARNINGS.row("", "not measured here", why)
    measured = "; ".join(_worth_text(each) for _, each in judged)
    return WARNINGS.row(measured, "pass", "; ".join(_against_naive(each) for _, each in judged), judged[0][0])


def _worth_text(worth: Mapping[str, Any]) -> str:
    ours = worth["ours"]
    return (
        f"bars of {worth['bars_of']}: precision {_share(ours['precision'])} of {ours['warnings']} warnings, by chance "
        f"{100 * ours['precision_by_chance']:.0f} %; recall {_share(ours['recall'])} of {ours['falls']} falls of "
        f"{100 * worth['drop']:g} %; false alarms a month {_estimate(ours['false_alarms_a_month'])}; lead "
        f"{_estimate(ours['lead_h'], ' h')}"
    )


def _against_naive(worth: Mapping[str, Any]) -> str:
    ours, naive, p = worth["ours"], worth["naive"], worth["p"]
    differ = p < ALPHA
    more = (
        "evidence of more"
        if differ and ours["found"] > naive["found"]
        else "fewer"
        if differ
        else "no evidence of more"
    )
    return (
        f"bars of {worth['bars_of']}: {more} falls found than by volatility alone ({ours['found']} and "
        f"{naive['found']}, p = {p:.2g})"
    )


def _share(estimate: Mapping[str, float | None]) -> str:
    return _estimate({name: None if value is None else 100.0 * value for name, value in estimate.items()}, " %", 0)


def _estimate(estimate: Mapping[str, float | None], unit: str = "", digits: int = 1) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None:
        return "unknown"
    if low is None or high is None:
        return f"{value:.{digits}f}{unit} (too few for an interval)"
    return f"{value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"
