"""The log of requests to sources, and the sources' health that follows from it."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import Engine, case, func, insert, select

from qubic_lab.oracle.model.response import Instant, Part, age_s
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.store.tables import FETCHES

Outcome = Literal["ok", "not_modified", "failed"]
LATEST = 20
"""The number of last requests that a source's health is computed from."""
ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class Fetch(Part):
    """A request to a source, with its retries.

    Attributes:
        request: the address and its parameters, without any key.
        seconds: the duration of all attempts.
        status: the last HTTP status; None without an answer.
        rows_given, rows_added: the number of rows in the answer, and of new ones among them.
    """

    source: str
    job: str
    request: str
    started_us: Instant
    seconds: float
    attempts: int
    status: int | None
    outcome: Outcome
    error: str | None = None
    rows_given: int = 0
    rows_added: int = 0


@dataclass(frozen=True, kw_only=True)
class SourceHealth(Part):
    """How the latest requests to a source went. `state`: whether the last one succeeded."""

    source: Annotated[str, Field(description="the source's name")]
    state: Literal["ok", "failing"]
    requests: Annotated[int, Field(description="the latest ones, of which `failed` failed")]
    failed: Annotated[int, Field(description="how many of the latest requests failed")]
    last_success_us: Instant | None
    last_success_age_s: Annotated[float | None, Field(description="seconds before as_of")]
    last_error: Annotated[str | None, Field(description="of the last request, where it failed")]


@dataclass(frozen=True)
class FetchCounts(Part):
    """The outcomes of a source's fetches; `last_ok_us`: when the last one that was answered began, if any."""

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
        """Log a fetch, and return its id, which the rows that it brought refer to."""
        values = {each.name: getattr(fetch, each.name) for each in fields(Fetch)}
        logged = insert(FETCHES).values(values).returning(FETCHES.c.id)
        with self._engine.begin() as connection:
            return int(connection.execute(logged).scalar_one())

    def brought(self, fetch_id: int, given: int, added: int) -> None:
        """Log how many rows a fetch brought, once they are in the database."""
        changed = FETCHES.update().where(FETCHES.c.id == fetch_id).values(rows_given=given, rows_added=added)
        with self._engine.begin() as connection:
            connection.execute(changed)

    def recent(self, source: str | None = None, limit: int = 50) -> list[Fetch]:
        """Return the last fetches of one source or of all, the newest first."""
        query = select(*(FETCHES.c[each.name] for each in fields(Fetch)))
        query = query.order_by(FETCHES.c.started_us.desc(), FETCHES.c.id.desc()).limit(limit)
        if source is not None:
            query = query.where(FETCHES.c.source == source)
        with self._engine.connect() as connection:
            return [Fetch(**row) for row in connection.execute(query).mappings()]

    def counts(self, since_us: int) -> list[FetchCounts]:
        """Return the outcomes of each source's fetches since `since_us`, in order of source."""
        outcome = FETCHES.c.outcome
        query = select(
            FETCHES.c.source,
            *(func.sum(case((outcome == name, 1), else_=0)).label(name) for name in ("ok", "not_modified", "failed")),
            func.sum(FETCHES.c.rows_added).label("rows_added"),
            func.max(case((outcome != "failed", FETCHES.c.started_us))).label("last_ok_us"),
        )
        query = query.where(FETCHES.c.started_us >= since_us).group_by(FETCHES.c.source).order_by(FETCHES.c.source)
        with self._engine.connect() as connection:
            return [FetchCounts(**row) for row in connection.execute(query).mappings()]


def read_source_health(engine: Engine, now_us: int) -> tuple[SourceHealth, ...]:
    """Return how the latest requests to each source went, in order of their names."""
    log, found = FetchLog(engine), []
    query = select(func.min(FETCHES.c.source))
    with engine.connect() as connection:  # one look at the index for each source: the log may be long
        source = connection.execute(query).scalar()
        while source is not None:
            found.append(source)
            source = connection.execute(query.where(FETCHES.c.source > source)).scalar()
    return tuple(_health(source, log.recent(source, LATEST), now_us) for source in found)


def _health(source: str, fetches: list[Fetch], now_us: int) -> SourceHealth:
    last, failing = fetches[0], fetches[0].outcome == "failed"
    success = next((each for each in fetches if each.outcome != "failed"), None)
    ended_us = None if success is None else success.started_us + int(success.seconds * SECOND_US)
    return SourceHealth(
        source=source,
        state="failing" if failing else "ok",
        requests=len(fetches),
        failed=sum(each.outcome == "failed" for each in fetches),
        last_success_us=ended_us,
        last_success_age_s=None if ended_us is None else age_s(ended_us, now_us),
        last_error=(last.error or "it does not say why")[:ERROR_CHARACTERS] if failing else None,
    )
