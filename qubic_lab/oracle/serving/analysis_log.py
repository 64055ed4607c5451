"""Keeps analyses as they were when they were made, so that a forecast can be held against what came."""

from pathlib import Path

from sqlalchemy import insert, select

from qubic_lab.oracle.model.response import FRAME_S, Missing, to_plain
from qubic_lab.oracle.serving.cache import code_version
from qubic_lab.oracle.serving.prices import PriceAnalysis
from qubic_lab.oracle.store.snapshot import MarketStore
from qubic_lab.oracle.store.tables import MARKET_SERIES, PRICE_ANALYSIS
from qubic_lab.oracle.store.transactions import writing

_KEPT = {"last", "analysed", "indicators", "patterns", "trend", "levels", "breakouts", "forecasts", "anomalies"}


def keep_analysis(store: MarketStore, analysis: PriceAnalysis, version: str) -> bool:
    """Keep an analysis in the database, and return whether it is new: one is enough for the same bars and version.

    Args:
        store: where the analysis was made.
        analysis: one without bars is not kept.
        version: of the code that made it; see `analysis_version`.
    """
    bars = analysis.analysed
    if isinstance(bars, Missing):
        return False
    series = {
        "coin": analysis.coin,
        "source": bars.source,
        "interval_s": bars.interval_s,
        "currency": analysis.last.currency,
    }
    id = select(MARKET_SERIES.c.id).where(*(MARKET_SERIES.c[name] == value for name, value in series.items()))
    with writing(store.engine, store.clock) as writer:
        values = {
            "series_id": writer.connection.execute(id).scalar_one(),
            "frame_s": FRAME_S[analysis.frame],
            "at_us": bars.last_us,
            "version": version,
        }
        same = (PRICE_ANALYSIS.c[name] == value for name, value in values.items())
        if writer.connection.execute(select(PRICE_ANALYSIS.c.at_us).where(*same)).first():
            return False
        result = {name: value for name, value in to_plain(analysis).items() if name in _KEPT}
        writer.connection.execute(insert(PRICE_ANALYSIS).values(**values, known_us=writer.known_us, result=result))
        writer.wrote()
    return True


def analysis_version() -> str:
    """Return a version that changes with the code of the analysis."""
    oracle = Path(__file__).parents[1]
    return code_version(oracle / "model", oracle / "analysis")
