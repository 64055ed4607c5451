"""Each request to a source: what was asked, what came of it, and how many rows it brought."""

from dataclasses import dataclass, fields
from typing import Literal

from sqlalchemy import Engine, case, func, insert, select

from qubic_lab.errors import check_choice, check_range
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.store.tables import FETCHES

Outcome = Literal["ok", "not_modified", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "not_modified", "failed")
MOST_FETCHES = 1_000


@dataclass(frozen=True)
class Fetch:
    """A request with its retries.

    Attributes:
        job: what of the collector asked for it.
        request: the address and its parameters, without any key.
        started_us: microseconds since 1970 in UTC; `seconds`: how long all attempts took.
        status: of HTTP, the last one; None where there was no answer.
        outcome: "ok", "not_modified" (nothing new) or "failed".
        error: why it failed, in one line without any key.
        rows_given, rows_added: how many rows the answer had, and how many of them were new.
    """

    source: str
    job: str
    request: str
    started_us: int
    seconds: float
    attempts: int
    status: int | None
    outcome: Outcome
    error: str | None = None
    rows_given: int = 0
    rows_added: int = 0

    def __post_init__(self) -> None:
        check_choice("outcome of a fetch", self.outcome, OUTCOMES)


@dataclass(frozen=True, kw_only=True)
class StoredFetch(Fetch):
    """A fetch in the log; `id` is what rows that it brought refer to."""

    id: int


@dataclass(frozen=True)
class FetchCounts(Part):
    """What came of a source's fetches; `last_ok_us`: when the last one began that was answered, if any was."""

    source: str
    ok: int
    not_modified: int
    failed: int
    rows_added: int
    last_ok_us: Instant | None


class FetchLog:
    """The log in a database that `open_database` opened; threads may share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, fetch: Fetch) -> int:
        """Keep a fetch, and return its id."""
        values = {each.name: getattr(fetch, each.name) for each in fields(Fetch)}
        with self._engine.begin() as connection:
            return int(connection.execute(insert(FETCHES).values(values).returning(FETCHES.c.id)).scalar_one())

    def brought(self, fetch_id: int, given: int, added: int) -> None:
        """Note how many rows a fetch brought, once they are in the database."""
        with self._engine.begin() as connection:
            connection.execute(
                FETCHES.update().where(FETCHES.c.id == fetch_id).values(rows_given=given, rows_added=added)
            )

    def recent(self, source: str | None = None, limit: int = 50) -> list[StoredFetch]:
        """Return the last fetches, of one source or of all, the newest first.

        Raises:
            InputError: the limit is out of range.
        """
        check_range("limit", limit, 1, MOST_FETCHES)
        query = select(*(FETCHES.c[each.name] for each in fields(StoredFetch)))
        query = query.order_by(FETCHES.c.started_us.desc(), FETCHES.c.id.desc()).limit(limit)
        if source is not None:
            query = query.where(FETCHES.c.source == source)
        with self._engine.connect() as connection:
            return [StoredFetch(**row) for row in connection.execute(query).mappings()]

    def counts(self, since_us: int) -> list[FetchCounts]:
        """Return what came of each source's fetches that began at `since_us` or later, by source."""
        answered = FETCHES.c.outcome != "failed"
        query = select(
            FETCHES.c.source,
            *(func.sum(case((FETCHES.c.outcome == outcome, 1), else_=0)).label(outcome) for outcome in OUTCOMES),
            func.sum(FETCHES.c.rows_added).label("rows_added"),
            func.max(case((answered, FETCHES.c.started_us))).label("last_ok_us"),
        )
        query = query.where(FETCHES.c.started_us >= since_us).group_by(FETCHES.c.source).order_by(FETCHES.c.source)
        with self._engine.connect() as connection:
            return [
                FetchCounts(
                    row.source, int(row.ok), int(row.not_modified), int(row.failed), int(row.rows_added), row.last_ok_us
                )
                for row in connection.execute(query)
            ]
