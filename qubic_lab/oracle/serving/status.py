"""How the oracle does: its sources, their quotas, the collector's lease, and the cache."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select

from qubic_lab.oracle.ingest.http_rules import Period, Quotas, QuotaState
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.serving.cache import CacheCounts, CacheKind
from qubic_lab.oracle.store.fetch_log import SourceHealth, read_source_health
from qubic_lab.oracle.store.snapshot import MarketStore, reading
from qubic_lab.oracle.store.tables import LEASES


@dataclass(frozen=True, kw_only=True)
class LeaseState(Part):
    """The process that may collect: one at a time."""

    name: str
    holder: str
    until_us: Instant
    held: bool


@dataclass(frozen=True, kw_only=True)
class OracleStatus(Part):
    """The sources, quotas, leases of the collector, and the cache; null: Redis does not answer."""

    as_of_us: Instant
    sources: tuple[SourceHealth, ...]
    quotas: tuple[QuotaState, ...]
    leases: tuple[LeaseState, ...]
    cache: tuple[CacheCounts, ...] | None


@reading()
def read_status(
    store: MarketStore, limits: Mapping[str, Mapping[Period, int]], cache: Mapping[CacheKind, CacheCounts] | None
) -> OracleStatus:
    """Return the status at this instant.

    Args:
        store: the database.
        limits: each source's quotas, by its name and period.
        cache: how the cache served requests of each kind; None: Redis does not answer.

    Raises:
        QubicLabError: the database cannot be read.
    """
    now = store.clock()
    with store.engine.connect() as connection:
        leases = list(connection.execute(select(LEASES).order_by(LEASES.c.name)))
    return OracleStatus(
        as_of_us=now,
        sources=read_source_health(store.engine, now),
        quotas=tuple(
            each for each in Quotas(store.engine, store.clock).report(limits) if each.limit is not None or each.used
        ),
        leases=tuple(
            LeaseState(name=row.name, holder=row.holder, until_us=row.until_us, held=row.until_us > now)
            for row in leases
        ),
        cache=None if cache is None else tuple(cache.values()),
    )
