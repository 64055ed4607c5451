"""Tables of signal studies: plain rows, an empty cell where a number is not known."""

from collections.abc import Sequence
from typing import Any

from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.inference.conditional_returns import EventStudy
from qubic_lab.studies.signal_studies import SignalStudy, round_trip_bps

Row = dict[str, Any]


def information_rows(studies: Sequence[SignalStudy]) -> list[Row]:
    """Return every coefficient that was looked at."""
    return [
        {
            "scores": study.title,
            "horizon": row.horizon,
            "pairs": row.found.pairs,
            "effective": row.found.effective,
            "ic": row.found.ic,
            "low": row.found.low,
            "high": row.found.high,
            "pearson": row.found.pearson,
            "p alone": row.p,
            "p by Holm": row.p_holm,
            "p corrected": row.p_corrected,
            "detectable": row.detectable,
            "evidence": row.evidence,
            "why not": row.found.absent,
        }
        for study in studies
        for row in study.coefficients
    ]


def summary_rows(studies: Sequence[SignalStudy], costs: Costs) -> list[Row]:
    """Return one row for each series: its best horizon, how soon it fades, what it would earn, and who leads.

    `edge_bps`: half of the spread over one bar, what one trade gains; `round_trip_bps`: what it costs to go in and out.
    """
    return [
        {
            "scores": study.title,
            "bars with a score": study.aligned.scored,
            "best horizon": None if study.best is None else study.best.horizon,
            "ic": None if study.best is None else study.best.found.ic,
            "p corrected": None if study.best is None else study.best.p_corrected,
            "half-life, bars": study.decay.half_life,
            "edge_bps": study.spreads[0].edge_bps,
            "round_trip_bps": round_trip_bps(costs),
            "leads": study.lead.verdict,
            "before_events_pct": _percent(study.signed_events, "before"),
            "after_events_pct": _percent(study.signed_events, "after"),
            "evidence": study.evidence,
        }
        for study in studies
    ]


def _percent(study: EventStudy, name: str) -> float | None:
    move = getattr(study, name)
    return None if move is None else 100.0 * float(move.mean)


def spread_rows(studies: Sequence[SignalStudy]) -> list[Row]:
    """Return the spread between the highest and the lowest bucket by series and horizon, in basis points."""
    return [
        {
            "scores": study.title,
            "horizon": each.horizon,
            "bars": sum(bucket.bars for bucket in each.buckets),
            "spread_bps": _bps(each.spread),
            "low_bps": _bps(each.low),
            "high_bps": _bps(each.high),
            "monotone p": each.monotone_p,
            "why not": each.absent,
        }
        for study in studies
        for each in study.spreads
    ]


def _bps(value: float | None) -> float | None:
    return None if value is None else 1e4 * value


def event_rows(studies: Sequence[SignalStudy]) -> list[Row]:
    """Return what prices did around events, in percent of the price, by series and kind."""
    found = []
    for study in studies:
        for each in study.events:
            row: Row = {"scores": study.title, "events": each.kind, "found": each.found, "used": each.used}
            for name in ("before", "first", "after"):
                move = getattr(each, name)
                row[f"{name}_pct"] = None if move is None else 100.0 * move.mean
                row[f"{name} low"] = None if move is None else 100.0 * move.low
                row[f"{name} high"] = None if move is None else 100.0 * move.high
                row[f"{name} p by Holm"] = None if move is None else move.p_holm
            found.append({**row, "why not": each.absent})
    return found


def lead_rows(studies: Sequence[SignalStudy]) -> list[Row]:
    """Return which comes first, by series."""
    found = []
    for study in studies:
        row: Row = {"scores": study.title, "bars": study.lead.bars}
        for name, side in (("ahead", study.lead.ahead), ("before", study.lead.before)):
            row[f"{name}: lag"] = None if side is None else side.lag
            row[f"{name}: correlation"] = None if side is None else side.correlation
            row[f"{name}: p by Holm"] = None if side is None else side.p_holm
            row[f"{name}: Wald p"] = None if side is None else side.wald_p
        found.append({**row, "verdict": study.lead.verdict, "why not": study.lead.absent})
    return found
