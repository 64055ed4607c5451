"""The chain of the ledger: each entry holds the SHA-256 of the one before, so that none changes or goes unseen.

Whoever holds the database can still write a whole new chain. The hash of the newest entry, its head, binds all entries
so far for everyone who has kept it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from qubic_lab.database import open_database
from qubic_lab.errors import QubicLabError
from qubic_lab.oracle.store.transactions import NEWEST, Writer
from qubic_lab.schema import metadata
from qubic_lab.settings import cache_folder, settings

ENTRIES = sa.Table(
    "ledger_entries",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("family", sa.String(128), nullable=False),
    sa.Column("recorded_us", sa.BigInteger, nullable=False),
    sa.Column("about", sa.BigInteger),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.UniqueConstraint("about"),
    sa.UniqueConstraint("previous"),
    sa.UniqueConstraint("hash"),
    sa.Index(None, "kind", "family"),
)
"""One row per entry, numbered from 1; the database refuses to change or remove rows, and a second entry after one.

`kind` is trial, claim or score. `about` is the number of the claim that a score belongs to: one score each.
"""
START = "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True)
class LedgerEntry:
    """An entry of the ledger; its time is the transaction time of the database (see `transactions.writing`)."""

    number: int
    kind: str
    family: str
    recorded_us: int
    about: int | None
    content: Mapping[str, Any]
    hash: str


@dataclass(frozen=True)
class ChainHead:
    """The number of entries and the hash of the newest one; of an empty ledger 0 and `START`."""

    entries: int
    hash: str


@contextmanager
def ledger_database(url: str = "", *, make: bool = True) -> Iterator[sa.Engine]:
    """Give the database of the ledger: `url`, else QUBIC_LAB_LEDGER_URL, else `ledger.db` in the cache folder.

    Raises:
        NotFoundError: there is no such file, without `make`.
        InputError: a URL that cannot be read.
        QubicLabError: the database cannot be used.
    """
    chosen = url or settings().ledger_url or f"sqlite:///{cache_folder() / 'ledger.db'}"
    engine = open_database(chosen, make=make, setting="QUBIC_LAB_LEDGER_URL")
    try:
        yield engine
    finally:
        engine.dispose()


def append(writer: Writer, kind: str, family: str, content: Mapping[str, Any], about: int | None = None) -> int:
    """Add an entry in the writer's transaction, which no other writer shares, and return its number."""
    query = sa.select(ENTRIES.c.number, ENTRIES.c.hash).order_by(ENTRIES.c.number.desc()).limit(1)
    last = writer.connection.execute(query).first()
    number, previous = (1, START) if last is None else (last.number + 1, last.hash)
    values = {"number": number, "kind": kind, "family": family, "recorded_us": writer.known_us, "about": about}
    values |= {"content": canonical(content).decode(), "previous": previous}
    writer.connection.execute(sa.insert(ENTRIES).values({**values, "hash": _hash(values)}))
    writer.wrote()
    return number


def read_entries(connection: sa.Connection, *kinds: str, until_us: int = NEWEST, **equal: Any) -> list[LedgerEntry]:
    """Return the entries of some kinds up to an instant, with equal columns, in order; the chain is not checked."""
    wanted = [ENTRIES.c[name] == value for name, value in equal.items()]
    query = sa.select(ENTRIES).where(ENTRIES.c.kind.in_(kinds), ENTRIES.c.recorded_us <= until_us, *wanted)
    return [_entry(row) for row in connection.execute(query.order_by(ENTRIES.c.number))]


def read_head(connection: sa.Connection, until_us: int = NEWEST) -> ChainHead:
    """Return the head of the chain, or what it was at an instant."""
    query = sa.select(ENTRIES.c.number, ENTRIES.c.hash).where(ENTRIES.c.recorded_us <= until_us)
    last = connection.execute(query.order_by(ENTRIES.c.number.desc()).limit(1)).first()
    return ChainHead(0, START) if last is None else ChainHead(last.number, last.hash)


def count_entries(connection: sa.Connection, kind: str, until_us: int = NEWEST) -> int:
    """Return the number of entries of a kind up to an instant."""
    query = sa.select(sa.func.count()).where(ENTRIES.c.kind == kind, ENTRIES.c.recorded_us <= until_us)
    return int(connection.execute(query).scalar_one())


def has_head(connection: sa.Connection, head: str) -> bool:
    """Return whether a hash is that of an entry, or of the empty ledger: then all up to that entry is as it was."""
    query = sa.select(sa.func.count()).select_from(ENTRIES).where(ENTRIES.c.hash == head)
    return head == START or bool(connection.execute(query).scalar_one())


def check_chain(connection: sa.Connection) -> Iterator[LedgerEntry]:
    """Yield all entries in order, each after its number, its hash and that of the entry before were checked.

    Raises:
        QubicLabError: at the first entry that is not as it was written.
    """
    previous = START
    for number, row in enumerate(connection.execute(sa.select(ENTRIES).order_by(ENTRIES.c.number)), start=1):
        if row.number != number:
            raise broken(number, "it is missing")
        if row.previous != previous:
            raise broken(number, "it does not follow the entry before it")
        if _hash(dict(row._mapping)) != row.hash:
            raise broken(number, "its hash is not that of its content")
        previous = row.hash
        yield _entry(row)


def broken(number: int, why: str) -> QubicLabError:
    """Return the error that the ledger is broken at an entry."""
    return QubicLabError(
        f"the ledger is broken at entry {number}: {why}; restore the database from a copy from before, whose head a "
        "weekly page shows"
    )


def canonical(value: Any) -> bytes:
    """Return plain values as JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _hash(values: Mapping[str, Any]) -> str:
    named = ("number", "kind", "family", "recorded_us", "about", "content", "previous")
    return hashlib.sha256(canonical([values[name] for name in named])).hexdigest()


def _entry(row: sa.Row[Any]) -> LedgerEntry:
    content = json.loads(row.content)
    return LedgerEntry(row.number, row.kind, row.family, row.recorded_us, row.about, content, row.hash)
