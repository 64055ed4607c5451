"""Transaction times: each transaction of a writer has one stamp, and what was known at an instant never changes.

Writers go one at a time. A stamp is later than all stamps before it and than all instants that were asked about, so
what was known at an instant is settled once it was asked for. If the clock jumps back a little, stamps continue after
the newest one, and readers that ask about the stamp of a slow commit wait for it. If the newest one is far ahead, some
clock was wrong: nothing is written until that is mended (`clock_repair`), or all later stamps would be as wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from qubic_lab.errors import InputError, NotFoundError, QubicLabError
from qubic_lab.oracle.model.timestamps import SECOND_US, iso, now_us
from qubic_lab.oracle.store.tables import STAMPS

SETTLE_US = 2 * SECOND_US
"""The least age of an instant before one may ask what was known then; to read the newest, name no instant."""
MOST_AHEAD_US = 3_600 * SECOND_US
"""A newest stamp that is further ahead of this machine's clock is taken for that of a wrong clock."""
MOST_BATCH = 5_000
"""Most rows of one transaction, so that other writers do not wait for long."""
NEWEST = 1 << 62
"""An instant after every stamp: who reads as of it sees all rows."""
_ALL = "all"
_BEYOND = 1 << 63
"""Integers of this size do not fit into the database."""
_WRITERS_LOCK = 0x5142_4C42
"""An advisory lock of PostgreSQL: any number that nothing else in the database uses."""
_MOST_FETCHED = _MOST_NAMED = 1_000
"""Rows that are fetched at once; values that one query names."""
_STAMP = select(STAMPS.c.known_us).where(STAMPS.c.name == bindparam("name"))

Clock = Callable[[], int]
T = TypeVar("T")


@dataclass(frozen=True)
class Added:
    """The number of given rows, of those that were new, and of new ones that are later versions of others."""

    given: int = 0
    added: int = 0
    corrected: int = 0

    def __add__(self, other: "Added") -> "Added":
        return Added(self.given + other.given, self.added + other.added, self.corrected + other.corrected)


@dataclass
class Writer:
    """The only writing transaction.

    Attributes:
        connection: where to write; it is committed if `writing` ends without an error.
        known_us: the stamp of every row it writes, later than all that are committed.
        names: the subjects that rows were written about.
    """

    connection: Connection
    known_us: int
    names: set[str] = field(default_factory=set)

    def wrote(self, *names: str) -> None:
        """Note that rows about these subjects were written: their newest stamp is now this one."""
        self.names.update((_ALL, *names))


@contextmanager
def writing(engine: Engine, clock: Clock = now_us) -> Iterator[Writer]:
    """Yield a writer once all others have ended; commit what it wrote, or nothing after an error.

    Raises:
        QubicLabError: the newest stamp is far ahead of the clock.
    """
    with writing_alone(engine) as connection:
        newest_us, now = _read_stamp(connection, _ALL), clock()
        if newest_us > now + MOST_AHEAD_US:
            raise QubicLabError(
                f"the newest entry of the database is of {iso(newest_us)}, and this machine's clock says {iso(now)}: "
                "set the clock; if it is right, another one was wrong: run qubic-lab oracle repair-clock"
            )
        writer = Writer(connection, max(now, newest_us + 1))
        yield writer
        if writer.names:
            add = upsert(engine, STAMPS)
            query = add.on_conflict_do_update(index_elements=["name"], set_={"known_us": add.excluded.known_us})
            stamps = [{"name": name, "known_us": writer.known_us} for name in sorted(writer.names)]
            connection.execute(query, stamps)


@contextmanager
def writing_alone(engine: Engine) -> Iterator[Connection]:
    """Yield a transaction once all other writers have ended; commit it, or nothing after an error."""
    with engine.connect() as connection:
        try:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # an upgrade later could fail as "locked"
            else:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITERS_LOCK})
            yield connection
            connection.commit()
        except BaseException:
            connection.rollback()
            raise


def read_stamp(engine: Engine, name: str = _ALL) -> int:
    """Return the newest stamp of a subject, or of everything; 0 if nothing was written."""
    with engine.connect() as connection:
        return _read_stamp(connection, name)


def check_as_of(as_of_us: int, now_us: int) -> int:
    """Return `as_of_us` if what was known then is settled by now.

    Raises:
        NotFoundError: it is too recent, or in the future.
    """
    if as_of_us > now_us - SETTLE_US:
        raise NotFoundError(
            f"as_of {iso(as_of_us)} is too late: it must be {SETTLE_US // SECOND_US} s or more before now "
            f"({iso(now_us)}); leave it out for the newest"
        )
    return as_of_us


def check_range_us(start_us: int, end_us: int) -> None:
    """Check that a range of instants, its end exclusive, has any.

    Raises:
        NotFoundError: it is empty, or its start after its end.
    """
    if start_us > end_us:
        raise NotFoundError(f"range starts at {iso(start_us)}, after its end at {iso(end_us)}: exchange them")
    if start_us == end_us:
        raise NotFoundError(f"range from {iso(start_us)} to the same instant is empty: give a later end")


def was_known(rows: Any) -> sa.ColumnElement[bool]:
    """Return whether rows were known at the instant of a query: recorded by then, or assumed to have been known.

    `rows` are the columns of a table with both times. Queries get their values from `known_at`.
    """
    return sa.or_(rows.known_us <= bindparam("known_us"), rows.assumed_us <= bindparam("assumed_us"))


def known_at(known_us: int, assumed: bool) -> dict[str, int]:
    """Return the values of a query with `was_known`; what is assumed of archives counts only if it is asked for."""
    return {"known_us": known_us, "assumed_us": known_us if assumed else -_BEYOND}


def assumed_time(rows: Any, at: Any, delay_us: int | None) -> Any:
    """Return the value of `assumed_us`: some time after `at`, at the latest when a row was recorded; or none."""
    return (
        sa.null() if delay_us is None else sa.case((at + delay_us < rows.known_us, at + delay_us), else_=rows.known_us)
    )


def settle(engine: Engine, known_us: int, clock: Clock = now_us) -> None:
    """Make sure that no row will ever be written with a stamp of `known_us` or before.

    Raises:
        NotFoundError: it is too recent, or in the future.
    """
    check_as_of(known_us, clock())
    if known_us <= read_stamp(engine):
        return  # every writer's stamp is later than the newest committed one
    with writing(engine, lambda: known_us) as writer:  # waits for the present writer
        if writer.known_us == known_us:
            writer.wrote()


def read_cursor(cursor: str, parts: int) -> tuple[int, ...]:
    """Return the numbers in a page's cursor.

    Raises:
        InputError: no page gave it.
    """
    try:
        found = tuple(int(part) for part in cursor.split("_"))
    except ValueError:
        found = ()
    if len(found) != parts or any(abs(part) >= _BEYOND for part in found):
        raise InputError(f"cursor {cursor!r} is none that a page gave: leave it out for the first page")
    return found


def upsert(engine: Engine, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an insert into a table that has `on_conflict_do_…` methods, in the dialect of the database."""
    return sqlite.insert(table) if engine.dialect.name == "sqlite" else postgresql.insert(table)


def insert_rows(connection: Connection, table: sa.Table, names: Iterable[str], rows: list[tuple[Any, ...]]) -> None:
    """Insert rows, with values in the order of `names`, as fast as the database can."""
    columns = list(names)
    if connection.dialect.name == "postgresql":
        copied = f"COPY {table.name} ({', '.join(chr(34) + name + chr(34) for name in columns)}) FROM STDIN"
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(copied) as copy:
            for row in rows:
                copy.write_row(row)
        return
    marks = ", ".join("?" * len(columns))
    listed = ", ".join(f'"{name}"' for name in columns)
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({listed}) VALUES ({marks})", rows)


def fetch_tuples(
    connection: Connection, query: Any, values: Mapping[str, Any] | None = None
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a query in lists, as the driver returns them: numbers, texts and None need no conversion.

    `values` are the query's parameters by name.
    """
    cursor: Any = connection.execute(query, values).cursor
    while rows := cursor.fetchmany(_MOST_FETCHED):
        yield rows


def chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield values in parts that a query can name."""
    for start in range(0, len(values), _MOST_NAMED):
        yield values[start : start + _MOST_NAMED]


def _read_stamp(connection: Connection, name: str) -> int:
    return int(connection.execute(_STAMP, {"name": name}).scalar() or 0)
