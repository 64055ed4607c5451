"""Requests that a source allows in a day or a month: counted in the database for all processes, and planned ahead."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Engine, and_, select

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.model.timestamps import SECOND_US, from_us, iso, now_us, to_us
from qubic_lab.oracle.store.tables import QUOTAS
from qubic_lab.oracle.store.transactions import upsert

Period = Literal["half-day", "day", "month"]
PERIODS: tuple[Period, ...] = ("half-day", "day", "month")
NO_LIMIT = 1_000_000_000
"""Requests left without a quota."""


class QuotaError(QubicLabError):
    """A source's quota is used up; `retry_after_s`: when the next period begins."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class QuotaUse:
    """Requests counted in the present period; `limit` and `left` are None without a quota."""

    source: str
    period: Period
    started_us: int
    ends_us: int
    used: int
    limit: int | None
    left: int | None


def bounds(period: Period, at_us: int) -> tuple[int, int]:
    """Return the first instant of the period of UTC that `at_us` lies in, and of the next one."""
    midnight = from_us(at_us).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "month":
        first = midnight.replace(day=1)
        return to_us(first), to_us((first + timedelta(days=32)).replace(day=1))
    if period == "day":
        return to_us(midnight), to_us(midnight + timedelta(days=1))
    half: datetime = midnight + timedelta(hours=12 * (from_us(at_us).hour // 12))
    return to_us(half), to_us(half + timedelta(hours=12))


def spread(left: int, ends_us: int, now_us: int, wanted_s: float, cost: int = 1) -> float:
    """Return the seconds between polls, `wanted_s` or more, with which the requests left last until the period's end.

    `cost`: requests of a poll; with too few left for one, the answer is the rest of the period.
    """
    remaining_s = max(0.0, (ends_us - now_us) / SECOND_US)
    polls = left // cost
    return max(wanted_s, remaining_s / polls if polls > 0 else remaining_s)


class Quotas:
    """The counts in a database that `open_database` opened; periods are of UTC."""

    def __init__(self, engine: Engine, clock: Callable[[], int] = now_us) -> None:
        self._engine = engine
        self._clock = clock

    def use(self, source: str, limits: Mapping[Period, int], cost: int = 1) -> None:
        """Count `cost` requests before they are sent: in all periods, or in none if one has too few left.

        Raises:
            QuotaError: too few are left.
        """
        now = self._clock()
        with self._engine.connect() as connection:
            for period in PERIODS:  # always in this order, so that two processes cannot wait for each other
                started, ends = bounds(period, now)
                limit = limits.get(period, NO_LIMIT)
                row = upsert(self._engine, QUOTAS).values(source=source, period=period, started_us=started, used=cost)
                count = row.on_conflict_do_update(
                    index_elements=[QUOTAS.c.source, QUOTAS.c.period, QUOTAS.c.started_us],
                    set_={"used": QUOTAS.c.used + cost},
                    where=QUOTAS.c.used + cost <= limit,
                )
                if cost > limit or connection.execute(count.returning(QUOTAS.c.used)).first() is None:
                    connection.rollback()
                    raise QuotaError(
                        f"{source}'s quota of {limit} requests a {period} is used up: more from {iso(ends)}",
                        (ends - now) / SECOND_US,
                    )
            connection.commit()

    def report(self, limits: Mapping[str, Mapping[Period, int]]) -> tuple[QuotaUse, ...]:
        """Return what each source has used in the present periods, those without a quota included."""
        now = self._clock()
        return tuple(
            self._use(source, period, each.get(period), now) for source, each in limits.items() for period in PERIODS
        )

    def plan(self, source: str, limits: Mapping[Period, int], wanted_s: float, cost: int = 1) -> float:
        """Return how many seconds to leave between polls of `cost` requests so that no quota is used up early."""
        now = self._clock()
        uses = [(self._use(source, period, limit, now), limit) for period, limit in limits.items()]
        spreads = (spread(limit - use.used, use.ends_us, now, wanted_s, cost) for use, limit in uses)
        return max([wanted_s, *spreads])

    def spare(self, source: str, limits: Mapping[Period, int], period_s: float, cost: int = 1) -> int:
        """Return how many requests a backfill may use now: those that polling each `period_s` will not need.

        Raises:
            InputError: the period is not above 0.
        """
        if not period_s > 0:
            raise InputError(f"period between polls is {period_s} s: it must be above 0")
        now = self._clock()
        spare = NO_LIMIT
        for period, limit in limits.items():
            use = self._use(source, period, limit, now)
            polls = int((use.ends_us - now) / SECOND_US / period_s) + 1
            spare = min(spare, limit - use.used - polls * cost)
        return max(0, spare)

    def _use(self, source: str, period: Period, limit: int | None, now: int) -> QuotaUse:
        started, ends = bounds(period, now)
        row = and_(QUOTAS.c.source == source, QUOTAS.c.period == period, QUOTAS.c.started_us == started)
        with self._engine.connect() as connection:
            used = connection.execute(select(QUOTAS.c.used).where(row)).scalar() or 0
        return QuotaUse(source, period, started, ends, used, limit, None if limit is None else max(0, limit - used))
