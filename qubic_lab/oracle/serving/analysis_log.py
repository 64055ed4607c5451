"""Analyses as they were when they were made, so that a forecast can be held against what came."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select

from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing
from qubic_lab.oracle.serving.cache import code_version
from qubic_lab.oracle.serving.responses import PriceAnalysis
from qubic_lab.oracle.store.tables import MARKET_SERIES, PRICE_ANALYSIS
from qubic_lab.oracle.store.transactions import Clock, writing

_KEPT = {"last", "analysed", "indicators", "patterns", "trend", "levels", "breakouts", "forecasts", "anomalies"}


@dataclass(frozen=True)
class StoredAnalysis:
    """What was said of a coin's bars when the last of them had closed (`at_us`), and when it was kept here."""

    coin: str
    source: str
    interval_s: int
    frame_s: int
    at_us: int
    known_us: int
    version: str
    result: dict[str, Any]


class AnalysisLog:
    """The analyses in a database that `open_database` opened.

    Args:
        engine: of the database.
        clock: gives the time in microseconds.
        version: of the code that computes; analyses by other code are rows of their own.
    """

    def __init__(self, engine: Engine, clock: Clock, version: str) -> None:
        self._engine, self._clock, self._version = engine, clock, version

    def keep(self, analysis: PriceAnalysis) -> bool:
        """Keep an analysis; tell whether it is new: of the same bars by the same code one is enough."""
        if isinstance(analysis.analysed, Missing):
            return False
        values = {
            "series_id": self._series(analysis),
            "frame_s": FRAME_S[analysis.frame],
            "at_us": analysis.analysed.last_us,
            "version": self._version,
        }
        same = [PRICE_ANALYSIS.c[name] == value for name, value in values.items()]
        with writing(self._engine, self._clock) as writer:
            if writer.connection.execute(select(PRICE_ANALYSIS.c.at_us).where(*same)).first():
                return False
            result = analysis.model_dump(mode="json", include=_KEPT, by_alias=True)
            writer.connection.execute(insert(PRICE_ANALYSIS).values(**values, known_us=writer.known_us, result=result))
            writer.wrote()
        return True

    def read(self, coin: str, frame: Frame, limit: int = 100) -> list[StoredAnalysis]:
        """Return the last analyses of a coin's frame, the newest first."""
        series = ("coin", "source", "interval_s")
        own = ("frame_s", "at_us", "known_us", "version", "result")
        query = select(*(MARKET_SERIES.c[name] for name in series), *(PRICE_ANALYSIS.c[name] for name in own))
        query = query.join(MARKET_SERIES, MARKET_SERIES.c.id == PRICE_ANALYSIS.c.series_id)
        query = query.where(MARKET_SERIES.c.coin == coin, PRICE_ANALYSIS.c.frame_s == FRAME_S[frame])
        query = query.order_by(PRICE_ANALYSIS.c.at_us.desc(), PRICE_ANALYSIS.c.known_us.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [StoredAnalysis(*row) for row in connection.execute(query)]

    def _series(self, analysis: PriceAnalysis) -> int:
        assert not isinstance(analysis.analysed, Missing)
        query = select(MARKET_SERIES.c.id).where(
            MARKET_SERIES.c.coin == analysis.coin,
            MARKET_SERIES.c.source == analysis.analysed.source,
            MARKET_SERIES.c.interval_s == analysis.analysed.interval_s,
            MARKET_SERIES.c.currency == analysis.last.currency,
        )
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())


def analysis_version() -> str:
    """Return what changes with the code of the analysis."""
    oracle = Path(__file__).parents[1]
    return code_version(oracle / "model", oracle / "analysis")
