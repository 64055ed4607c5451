"""The oracle of a process with many clients: responses come from the cache, or are computed in threads.

Beside it: the state of the oracle, and analyses that are kept as they were made.
"""

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import redis
from prometheus_client.metrics_core import Metric
from pydantic import Field
from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.errors import QubicLabError
from qubic_lab.oracle.alerts.store import AlertStore, RiskAlerts
from qubic_lab.oracle.ingest.http_rules import Period, Quotas, QuotaState
from qubic_lab.oracle.model.coins import COINS, find_coin
from qubic_lab.oracle.model.records import Frequency, Series
from qubic_lab.oracle.model.response import (
    FRAME_S,
    Frame,
    Instant,
    Missing,
    OracleResponse,
    Part,
    Window,
    to_json,
    to_plain,
)
from qubic_lab.oracle.model.timestamps import now_us
from qubic_lab.oracle.risk.inputs import companion
from qubic_lab.oracle.risk.report import prepare_models, read_risk
from qubic_lab.oracle.risk.rules import RiskRule, read_rules
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.serving import overview, prices
from qubic_lab.oracle.serving.cache import Cache, CacheCounts, Cached, CacheKind, code_version
from qubic_lab.oracle.serving.market import market_prices
from qubic_lab.oracle.store.fetch_log import SourceHealth, read_source_health
from qubic_lab.oracle.store.snapshot import MarketStore, Snapshot, reading
from qubic_lab.oracle.store.source_metrics import source_families
from qubic_lab.oracle.store.tables import LEASES, PRICE_ANALYSIS
from qubic_lab.oracle.store.text_reader import MARKET
from qubic_lab.oracle.store.transactions import check_as_of, writing

STAMP_S = 1.0
"""Seconds between two looks for new data, and so the longest time that a stale response passes for fresh."""
PAST_S = 3_600.0
"""Seconds that a response about an earlier instant is fresh: what was known then never changes."""
_ORACLE = Path(__file__).parents[1]
_OF_CACHE = set(OracleResponse.__dataclass_fields__)
"""Fields that `served` adds."""
_KEPT = {"last", "analysed", "indicators", "patterns", "trend_details", "levels", "breakouts", "forecasts", "anomalies"}
"""Parts of an analysis that are kept."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Range:
    """The part of a history that is asked for; see `prices.price_history`."""

    start_us: int | None = None
    end_us: int | None = None
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class LeaseState(Part):
    """The process that may collect: one at a time."""

    name: Annotated[str, Field(description="what is leased")]
    holder: Annotated[str, Field(description="the process that has it")]
    until_us: Instant
    held: Annotated[bool, Field(description="whether it still counts")]


@dataclass(frozen=True, kw_only=True)
class OracleStatus(Part):
    """The sources, quotas, leases of the collector, and the cache; null: Redis does not answer."""

    as_of_us: Instant
    sources: tuple[SourceHealth, ...]
    quotas: tuple[QuotaState, ...]
    leases: tuple[LeaseState, ...]
    cache: tuple[CacheCounts, ...] | None


class Oracle:
    """Responds to many clients of one process; belongs to one event loop.

    `open_engine` opens the database, with the first request; `client` is of the Redis that all processes share.
    `frequencies` of prices or texts and `limits` of requests are each source's, by its name. Without `rules` of risk
    those that come with the project count.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        client: "redis.Redis",
        clock: Callable[[], int] = now_us,
        frequencies: Mapping[str, Frequency] | None = None,
        limits: Mapping[str, Mapping[Period, int]] | None = None,
        weighting: Weighting = WEIGHTING,
        rules: Sequence[RiskRule] | None = None,
    ) -> None:
        self._weighting, self._rules = weighting, read_rules() if rules is None else tuple(rules)
        self.cache = Cache(client, f"{_version_of_code()}-{_short(weighting, self._rules)}", clock=clock)
        self._open_engine, self._clock, self._frequencies = cache(open_engine), clock, frequencies
        self._began_us = clock()
        self._opened: MarketStore | None = None
        self._opening = threading.Lock()
        self._limits = limits or {}
        self._stamps: dict[str, tuple[float, asyncio.Task[dict[str, int]]]] = {}  # when to look again, the last look

    def store(self) -> MarketStore:
        """Return the store, opening the database first: call this in a thread.

        Raises:
            QubicLabError: it cannot be opened.
        """
        with self._opening:
            if self._opened is None:
                found = MarketStore(self._open_engine(), self._clock, self._frequencies)
                _warm_up(found)  # takes a second now, but many if it competes with requests
                self._opened = found
            return self._opened

    async def sentiment(
        self, coin: str | None = None, window: Window = "24h", as_of_us: int | None = None, assumed: bool = False
    ) -> Cached:
        """Return `overview.sentiment` as JSON; errors as there. `assumed`: see `MarketStore.snapshot`."""
        id = None if coin is None else find_coin(coin).id
        compute = partial(overview.sentiment, coin=id, window=window, weighting=self._weighting)
        watched = () if id is None else (id,)
        return await self._cached("sentiment", ("sentiment", id or MARKET, window), compute, watched, as_of_us, assumed)

    async def price_analysis(
        self, coin: str | None = None, frame: Frame = "1h", as_of_us: int | None = None, assumed: bool = False
    ) -> Cached:
        """Return `prices.price_analysis` as JSON, without a coin `market_prices`; errors as there.

        `assumed`: see `MarketStore.snapshot`.
        """
        shared: dict[str, Any] = {"frame": frame, "weighting": self._weighting, "rules": self._rules}
        if coin is None:
            key = ("price_analysis", MARKET, frame)
            return await self._cached("price", key, partial(market_prices, **shared), (), as_of_us, assumed)
        id = find_coin(coin).id
        compute = partial(prices.price_analysis, coin=id, **shared)
        watched = tuple(dict.fromkeys((id, companion(id))))  # the level of risk depends on both
        return await self._cached("price", ("price_analysis", id, frame), compute, watched, as_of_us, assumed)

    async def risk(self, coin: str, frame: Frame = "1h", as_of_us: int | None = None, assumed: bool = False) -> Cached:
        """Return `read_risk` as JSON; errors as there. `assumed`: see `MarketStore.snapshot`."""
        id = find_coin(coin).id
        compute = partial(read_risk, coin=id, frame=frame, weighting=self._weighting, rules=self._rules)
        watched = tuple(dict.fromkeys((id, companion(id))))  # the level depends on both
        return await self._cached("price", ("risk", id, frame), compute, watched, as_of_us, assumed)

    async def market_overview(
        self, coins: Sequence[str] = (), as_of_us: int | None = None, assumed: bool = False
    ) -> Cached:
        """Return `overview.market_overview` as JSON; errors as there. `assumed`: see `MarketStore.snapshot`."""
        ids = tuple(dict.fromkeys(find_coin(coin).id for coin in coins))
        compute = partial(overview.market_overview, coins=ids, weighting=self._weighting)
        return await self._cached("price", ("market_overview", *ids), compute, ids, as_of_us, assumed)

    async def text_history(
        self, coin: str, asked: Range, duplicates: bool = False, as_of_us: int | None = None
    ) -> Cached:
        """Return `overview.text_history` as JSON; errors as there."""
        id = find_coin(coin).id
        compute = partial(overview.text_history, coin=id, **asdict(asked), duplicates=duplicates)
        key = ("texts", id, *map(str, (*asdict(asked).values(), int(duplicates))))
        return await self._cached("news", key, compute, (id,), as_of_us)

    async def price_history(
        self,
        coin: str,
        asked: Range,
        source: str | None = None,
        interval_s: int | None = None,
        as_of_us: int | None = None,
    ) -> prices.PriceHistory:
        """Return `prices.price_history`; errors as there. Pages are not cached."""

        def compute() -> prices.PriceHistory:
            snapshot = self.store().snapshot(as_of_us)
            return prices.price_history(snapshot, coin, **asdict(asked), source=source, interval_s=interval_s)

        return await asyncio.to_thread(compute)

    async def alerts(self, limit: int = 20, coin: str | None = None, as_of_us: int | None = None) -> RiskAlerts:
        """Return the last risk alerts, the newest first, with their present delivery.

        Raises:
            NotFoundError: an unknown coin.
            InputError: a limit that is out of range, or an `as_of_us` that is not settled yet.
        """
        id = None if coin is None else find_coin(coin).id

        def read() -> RiskAlerts:
            snapshot = self.store().snapshot(as_of_us)
            with reading():
                alerts = AlertStore(snapshot.store.engine).last(limit, id, as_of_us)
            return RiskAlerts(as_of_us=snapshot.at_us, alerts=tuple(alerts))

        return await asyncio.to_thread(read)

    async def status(self) -> OracleStatus:
        """Return the state of the sources, quotas, the collector and the cache.

        Raises:
            QubicLabError: the database cannot be read.
        """
        counts = await self.cache.counts()
        return await asyncio.to_thread(self._status, counts)

    @reading()
    def _status(self, counts: Mapping[CacheKind, CacheCounts] | None) -> OracleStatus:
        store = self.store()
        now = store.clock()
        with store.engine.connect() as connection:
            leases = list(connection.execute(select(LEASES).order_by(LEASES.c.name)).mappings())
        uses = Quotas(store.engine, store.clock).report(self._limits)
        return OracleStatus(
            as_of_us=now,
            sources=read_source_health(store.engine, now),
            quotas=tuple(use for use in uses if use.limit is not None or use.used),
            leases=tuple(LeaseState(**row, held=row["until_us"] > now) for row in leases),
            cache=None if counts is None else tuple(counts.values()),
        )

    async def source_families(self) -> list[Metric]:
        """Return the metrics of sources and prices.

        Raises:
            QubicLabError: the database cannot be opened.
            SQLAlchemyError: it cannot be read.
        """

        def read() -> list[Metric]:
            with self._opening:
                engine = self._open_engine()
            return source_families(engine, self._clock(), self._began_us)

        return await asyncio.to_thread(read)

    async def close(self) -> None:
        """Wait for what is under way, and close the cache."""
        await self.cache.close()

    async def _cached(
        self,
        kind: CacheKind,
        key: tuple[str, ...],
        compute: Callable[[Snapshot], OracleResponse],
        coins: tuple[str, ...],
        as_of_us: int | None,
        assumed: bool = False,
    ) -> Cached:
        """Return a response: about now it is stale once there are new data, about the past it never is.

        With what is assumed of archives, one about the past is stale as well once another archive is imported.
        """
        ttl_s, version = None, 0
        if as_of_us is not None:
            check_as_of(as_of_us, self._clock())
            key, ttl_s = (*key, str(as_of_us), *["assumed"] * assumed), PAST_S
        if as_of_us is None or assumed:
            version = await self._version(coins)

        def body() -> bytes:
            return to_json(compute(self.store().snapshot(as_of_us, assumed)), _OF_CACHE)

        return await self.cache.get(kind, key, body, ttl_s=ttl_s, version=version)

    async def _version(self, coins: tuple[str, ...]) -> int:
        """Return the stamp of the newest data of some coins or of all; 0 if the database does not answer."""
        now, ids = time.monotonic(), coins or tuple(COINS)
        old = [id for id in ids if id not in self._stamps or self._stamps[id][0] <= now]
        if old:
            looking = asyncio.ensure_future(asyncio.to_thread(self._read_stamps, old))
            self._stamps.update(dict.fromkeys(old, (now + STAMP_S, looking)))
        version = 0
        for id in ids:
            task = self._stamps[id][1]
            try:
                found = task.result() if task.done() else await asyncio.shield(task)
            except (SQLAlchemyError, QubicLabError):
                return 0
            version = max(version, found[id])
        return version

    def _read_stamps(self, coins: Sequence[str]) -> dict[str, int]:
        store = self.store()
        return {coin: store.stamp(coin) for coin in coins}


def _warm_up(store: MarketStore) -> None:
    """Import and read in advance what many responses need; if that fails, they report the error."""
    if find_spec("talib"):  # its import takes half a second
        import_module("qubic_lab.oracle.analysis.price_analysis")
    prepare_models()
    try:
        store.warm_up()
    except (SQLAlchemyError, QubicLabError) as error:
        logger.info("nothing was read in advance: %s", str(error).partition("\n")[0])


def _version_of_code() -> str:
    """Return a version of the code behind responses; it differs with and without TA-Lib or arch."""
    rooms = (_ORACLE / name for name in ("model", "store", "analysis", "sentiment", "risk", "serving"))
    return "-".join((code_version(*rooms), *map(_library_version, ("ta-lib", "arch"))))


def _library_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "without"


def _short(weighting: Weighting, rules: Sequence[RiskRule]) -> str:
    """Return a hash of them for keys, as responses depend on them."""
    plain = json.dumps([asdict(weighting), *map(asdict, rules)], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:8]


def served(cached: Cached) -> bytes:
    """Return a response as it is sent: the stored bytes, with age and cache state in front."""
    return b'{"age_s":%.3f,"cache":"%s",' % (cached.age_s, cached.outcome.encode()) + cached.body[1:]


def keep_analysis(store: MarketStore, analysis: prices.PriceAnalysis, version: str) -> bool:
    """Keep an analysis in the database, and return whether it is new: one is enough for the same bars and version.

    An analysis without bars is not kept. `version` is that of the code that made it; see `analysis_version`.
    """
    bars = analysis.analysed
    if isinstance(bars, Missing):
        return False
    series = Series(analysis.coin, bars.source, bars.interval_s, analysis.last.currency)
    values = {
        "series_id": store.prices.id_of(series),
        "frame_s": FRAME_S[analysis.frame],
        "at_us": bars.last_us,
        "version": version,
    }
    same = (PRICE_ANALYSIS.c[name] == value for name, value in values.items())
    with writing(store.engine, store.clock) as writer:
        if writer.connection.execute(select(PRICE_ANALYSIS.c.at_us).where(*same)).first():
            return False
        result = {name: value for name, value in to_plain(analysis).items() if name in _KEPT}
        writer.connection.execute(insert(PRICE_ANALYSIS).values(**values, known_us=writer.known_us, result=result))
        writer.wrote()
    return True


def analysis_version() -> str:
    """Return a version that changes with the code of the analysis."""
    return code_version(_ORACLE / "model", _ORACLE / "analysis")
