"""Copies of what a cluster must not lose: SQL databases and the queue in Redis, as one archive with hashes.

Databases are kept as SQLite files whatever they were, so that each can be restored into SQLite or PostgreSQL.
"""

import base64
import gzip
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import qubic_lab.oracle.backtest.ledger
import qubic_lab.oracle.store.tables
import qubic_lab.votes.history  # noqa: F401 (these three define all tables)
from qubic_lab import __version__
from qubic_lab.cluster.redis_server import connect
from qubic_lab.cluster.tasks import SavedKey, TaskQueue
from qubic_lab.database import open_database
from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.folders import problems, read_manifest, write_manifest
from qubic_lab.schema import metadata

KIND = "backup"
QUEUE = "queue.jsonl"
COPY_S = 600.0
"""Longest time for Redis to give or take the whole queue."""
ROWS = 1_000


@dataclass(frozen=True)
class Places:
    """Where a cluster's state is: SQL databases by name, and the URL of Redis; empty: no queue."""

    databases: Mapping[str, str]
    redis: str = ""


@dataclass(frozen=True)
class Saved:
    """What an archive holds: rows of each table by database, and tasks that the queue knows.

    Attributes:
        version: of the project that wrote it.
        saved_utc: when that began.
        databases: for each database the rows of each table that has some.
        tasks: number of tasks ever submitted to the queue; None: it holds no queue.
    """

    version: str
    saved_utc: str
    databases: Mapping[str, Mapping[str, int]]
    tasks: int | None


def save(places: Places, file: Path) -> Saved:
    """Write an archive, readable by its owner only, while the cluster may go on working.

    The queue is of one moment, and so is each database, a little later.

    Raises:
        InputError: the file exists, or cannot be written.
        QubicLabError: a database or Redis cannot be reached.
    """
    if file.exists():
        raise InputError(f"{file} exists: give another name, or remove it")
    with _folder(file.parent) as folder:
        about: dict[str, Any] = {"version": __version__, "saved_utc": datetime.now(UTC).isoformat(timespec="seconds")}
        about |= {"tasks": _save_queue(places.redis, folder / QUEUE) if places.redis else None, "databases": {}}
        for name, url in places.databases.items():
            _save_database(url, copy := folder / f"{name}.sqlite")
            about["databases"][name] = _rows_of(copy)
        write_manifest(folder, {"kind": KIND, **about})
        whole = folder / "whole"
        with tarfile.open(whole, "x:gz", compresslevel=6) as archive:
            for each in sorted(folder.iterdir()):
                if each != whole:
                    archive.add(each, each.name)
        try:
            os.link(whole, file)  # fails where the file exists by now
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}") from error
    return Saved(**about)


def restore(file: Path, places: Places, replace: bool = False) -> Saved:
    """Write what an archive holds into databases and Redis, which nobody else uses meanwhile.

    Nothing is written before the whole archive is checked and all places are known to be empty. With `replace`, SQLite
    files are moved aside and the queue is replaced; a PostgreSQL database must be empty, since its ledger cannot be
    removed.

    Raises:
        InputError: the archive is damaged or none, or a place is not empty.
        QubicLabError: a database or Redis cannot be reached.
    """
    with _folder(None) as folder:
        saved = _unpack(file, folder)
        for name in saved.databases:
            if name not in places.databases:
                raise InputError(f"{file} holds the database {name!r}, for which there is no place")
        for name in saved.databases:
            _check_empty(places.databases[name], replace)
        if saved.tasks is not None:
            if not places.redis:
                raise InputError(f"{file} holds a queue: give --redis URL, the Redis that it is for")
            with connect(places.redis, COPY_S) as client:
                if not replace and (count := TaskQueue(client).counts().submitted):
                    raise InputError(f"the queue in Redis holds {count} tasks: take an empty Redis, or give --replace")
        for name in saved.databases:
            _restore_database(folder / f"{name}.sqlite", places.databases[name], replace)
        if saved.tasks is not None:
            with connect(places.redis, COPY_S) as client:
                TaskQueue(client).restore([*_read_queue(folder / QUEUE)])
        return saved


def _save_queue(url: str, file: Path) -> int:
    with connect(url, COPY_S) as client:
        queue = TaskQueue(client)
        saved, tasks = queue.save(), queue.counts().submitted
    with file.open("w", encoding="ascii") as out:
        for each in saved:
            key, content = (base64.b64encode(part).decode() for part in (each.key, each.content))
            out.write(json.dumps({"key": key, "lives_ms": each.lives_ms, "content": content}) + "\n")
    return tasks


def _read_queue(file: Path) -> Iterator[SavedKey]:
    with file.open(encoding="ascii") as lines:
        for line in map(json.loads, lines):
            yield SavedKey(base64.b64decode(line["key"]), line["lives_ms"], base64.b64decode(line["content"]))


def _save_database(url: str, copy: Path) -> None:
    with _opened(url, make=False) as engine:
        if engine.dialect.name == "sqlite":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM INTO ?", (str(copy),))
            return
        with (
            _opened(f"sqlite:///{copy}") as target,
            engine.connect().execution_options(isolation_level="REPEATABLE READ") as source,
        ):
            _copy_rows(source, target)
        _close(copy)


def _check_empty(url: str, replace: bool) -> None:
    """Raise an InputError if a database has rows, and may not be replaced."""
    parsed = sa.make_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    if is_file:
        if not (file := Path(str(parsed.database))).exists():
            return
        _check_closed(file)
        if replace:
            return
    with _opened(url) as engine, engine.connect() as connection:
        full = {table.name: count for table in metadata.sorted_tables if (count := _count(connection, table))}
    if full:
        what = ", ".join(f"{count:,} in {name}" for name, count in full.items())
        remedy = "give --replace, which moves it aside" if is_file else "create an empty one, and name it in the URL"
        raise InputError(f"database {parsed.render_as_string()} has rows ({what}): {remedy}")


def _check_closed(file: Path) -> None:
    """Raise an InputError if a process has a SQLite file open: it would go on writing into the one moved aside."""
    with closing(sqlite3.connect(file, timeout=0.0)) as connection, suppress(sqlite3.DatabaseError):
        try:
            connection.execute("PRAGMA journal_mode = DELETE")  # only who is alone may leave the mode that we set
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise InputError(
                    f"{file} is open in another process: end its coordinators and collector first"
                ) from None
            raise


def _restore_database(copy: Path, url: str, replace: bool) -> None:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        file = Path(str(parsed.database))
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        shutil.copyfile(copy, new)
        new.chmod(0o600)
        if file.exists():
            if replace:
                _close(file)
                file.replace(file.with_name(f"{file.name}.{time.strftime('%Y%m%dT%H%M%S')}"))
            for left in ("-wal", "-shm"):
                file.with_name(file.name + left).unlink(missing_ok=True)
        new.replace(file)
        open_database(url).dispose()  # migrated to this version
        return
    with _opened(f"sqlite:///{copy}") as source, _opened(url) as target, source.connect() as connection:
        _copy_rows(connection, target)


@contextmanager
def _opened(url: str, *, make: bool = True) -> Iterator[sa.Engine]:
    engine = open_database(url, make=make)
    try:
        yield engine
    finally:
        engine.dispose()


def _copy_rows(source: sa.Connection, target: sa.Engine) -> None:
    """Add all rows of a database to an empty one, in one transaction."""
    with target.begin() as connection:
        for table in metadata.sorted_tables:
            rows = source.execution_options(stream_results=True, yield_per=ROWS).execute(sa.select(table))
            for part in rows.mappings().partitions():
                connection.execute(
                    sa.insert(table), [{name: _in_utc(value) for name, value in row.items()} for row in part]
                )
            counted = table.autoincrement_column
            if target.dialect.name == "postgresql" and counted is not None and isinstance(counted.type, sa.Integer):
                newest = connection.execute(sa.select(sa.func.max(counted))).scalar()
                if newest is not None:
                    place = sa.func.pg_get_serial_sequence(table.name, counted.name)
                    connection.execute(sa.select(sa.func.setval(place, newest)))


def _in_utc(value: Any) -> Any:
    """Return a time in UTC, which is what SQLite keeps, without saying so."""
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return value


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _rows_of(copy: Path) -> dict[str, int]:
    with sqlite3.connect(copy) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in sorted(names)}
    connection.close()
    return {name: count for name, count in counts.items() if count and name != "alembic_version"}


def _close(file: Path) -> None:
    """Bring what is beside a SQLite file into it."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    Path(f"{file}.lock").unlink(missing_ok=True)


def _unpack(file: Path, folder: Path) -> Saved:
    """Extract an archive and check each file of it.

    Raises:
        InputError: it is none, or damaged.
    """
    try:
        with gzip.open(file) as stream:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                archive.extractall(folder, filter="data")
            while stream.read(2**20):  # to its end, where the checksum of all of it is
                pass
        manifest = read_manifest(folder) or {}
        found = problems(folder)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist: check the path") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error, ModelError) as error:
        reason = str(error).replace(f"{folder}/", "").partition(": make the folder")[0]
        raise InputError(f"{file} is damaged, or no backup ({reason}): take another copy of it") from error
    if manifest.get("kind") != KIND:
        raise InputError(f"{file} is no backup of this project: give one that qubic-lab backup has written")
    if found:
        raise InputError(f"{file} is damaged: {found[0].removeprefix(f'{folder}/')}; take another copy of it")
    return Saved(**{field.name: manifest[field.name] for field in fields(Saved)})


@contextmanager
def _folder(beside: Path | None) -> Iterator[Path]:
    """Yield a private folder that is removed at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".qubic-lab-", dir=beside))
    except OSError as error:
        raise InputError(f"{beside} cannot be written ({error.strerror}): give another folder") from error
    before = os.umask(0o077)
    try:
        yield folder
    finally:
        os.umask(before)
        shutil.rmtree(folder, ignore_errors=True)
