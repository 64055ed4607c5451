"""The SQL database: SQLite in a file by default, PostgreSQL by its URL; opening it creates missing tables."""

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from prometheus_client import Counter
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from qubic_lab.errors import DatabaseGoneError, FullError, InputError, NotFoundError, QubicLabError
from qubic_lab.metrics import NAMESPACE
from qubic_lab.settings import settings

logger = logging.getLogger(__name__)

BACKENDS = ("sqlite", "postgresql")
BUSY_S, CONNECT_S = 30, 10
"""Times that a SQLite writer waits for another one, and that a connection to PostgreSQL may take."""
_UPGRADE_LOCK = 0x5142_4C41
"""Number of a PostgreSQL advisory lock that nothing else in the database uses."""
ERRORS = Counter("database_errors", "Calls to an SQL database that failed.", [], NAMESPACE, registry=None)
FULL_RETRY_S, GONE_RETRY_S = 10.0, 5.0
"""When a caller may ask again after the disk was full, and after the database did not answer."""
_ROOM_BYTES = 2**20
_DISK_FULL = "53100"
"""PostgreSQL's code for a full disk."""
_upgrading = threading.Lock()
"""Alembic keeps its state in module globals: two threads at once would migrate each other's database."""


def open_database(url: str | None = None, *, make: bool = True, setting: str = "QUBIC_LAB_DATABASE_URL") -> Engine:
    """Return an engine on `url`, else QUBIC_LAB_DATABASE_URL, else a SQLite file in the data folder.

    The project's migrations create or change tables, in one process at a time. Without `make`, a SQLite file must
    exist. `setting` is named in an error as what sets the URL.

    Raises:
        InputError: not a URL, a URL of another kind of database, or a file in a folder that does not exist.
        NotFoundError: a file that does not exist, without `make`.
        QubicLabError: the database cannot be reached, or a later version of this project made it.
    """
    parsed = _parse(url)
    shown = parsed.render_as_string(hide_password=True)
    if _is_file(parsed):
        file = Path(str(parsed.database))
        if not make and not file.exists():
            raise NotFoundError(f"database file {file} does not exist: check the path")
        if url or settings().database_url:
            _check_folder(file, setting)
        else:
            _make_folder(file)
    engine = _engine(parsed, shown)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    try:
        with _told_of(shown, setting), _upgrading, _alone(parsed), engine.connect() as connection, _locked(connection):
            _upgrade(connection)
    except BaseException:
        engine.dispose()
        raise
    event.listen(engine, "handle_error", lambda context: _gone(context, shown))
    return engine


def missing_migrations(url: str | None = None, setting: str = "QUBIC_LAB_DATABASE_URL") -> list[str] | None:
    """Return the migrations that a database still lacks, the next one first; None: it has no tables yet.

    Nothing is changed. Arguments and errors as for `open_database`.
    """
    parsed = _parse(url)
    if _is_file(parsed) and not (file := Path(str(parsed.database))).exists():
        if url or settings().database_url:
            _check_folder(file, setting)
        return None
    engine = _engine(parsed, shown := parsed.render_as_string(hide_password=True))
    try:
        with _told_of(shown, setting), _upgrading, engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current is None:
                return None
            steps = ScriptDirectory.from_config(_config(connection)).iterate_revisions("head", current)
            return [step.revision for step in steps][::-1]
    except CommandError as error:
        raise _too_new(error) from error
    finally:
        engine.dispose()


def shown_url(url: str | None = None) -> str:
    """Return the URL of a database as for `open_database`, without its password."""
    return _parse(url).render_as_string(hide_password=True)


def storable(value: Any) -> Any:
    """Return a value of JSON whose texts any database takes: without NUL characters, and valid Unicode."""
    if isinstance(value, str):
        if value.isascii() and "\0" not in value:
            return value
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    if isinstance(value, Mapping):
        return {storable(name): storable(each) for name, each in value.items()}
    return value


def _engine(parsed: URL, shown: str) -> Engine:
    is_sqlite = parsed.get_backend_name() == "sqlite"
    waits = {"timeout": BUSY_S} if is_sqlite else {"connect_timeout": CONNECT_S}
    try:
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=waits)
    except ModuleNotFoundError as error:
        raise QubicLabError(f"database {shown} needs {error.name}: pip install 'qubic-lab[postgres]'") from error
    event.listen(engine, "handle_error", lambda context: ERRORS.inc())
    event.listen(engine, "handle_error", lambda context: _full(context.original_exception, parsed, shown))
    if is_sqlite:
        event.listen(engine, "handle_error", lambda context: _damage(context.original_exception, shown))
    return engine


@contextmanager
def _told_of(shown: str, setting: str) -> Iterator[None]:
    """Turn what a database raises into one line with its URL and the setting."""
    try:
        yield
    except (SQLAlchemyError, OSError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise QubicLabError(f"database {shown} cannot be used ({reason}): check {setting}") from error


def check_url() -> None:
    """Check the URL of the configured database and its folder without opening it.

    Raises:
        InputError: not a URL, a URL of another kind of database, or a file in a folder that does not exist.
    """
    parsed = _parse(None)
    if settings().database_url and _is_file(parsed):
        _check_folder(Path(str(parsed.database)), "QUBIC_LAB_DATABASE_URL")


def _parse(url: str | None) -> URL:
    url = url or settings().database_url or f"sqlite:///{settings().data / 'qubic-lab.db'}"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InputError("the database's URL cannot be read: give sqlite:///FILE or postgresql://…") from error
    if backend not in BACKENDS:
        raise InputError(f"database URL with {backend!r}: it must begin with sqlite:/// or postgresql://")
    return parsed.set(drivername="postgresql+psycopg") if backend == "postgresql" else parsed


def _is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")


def _check_folder(file: Path, setting: str) -> None:
    if not file.parent.is_dir():
        raise InputError(f"folder {file.parent} of database {file.name} does not exist: make it, or mend {setting}")


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent} cannot be made ({error.strerror}): set QUBIC_LAB_DATA to another") from error


def _full(error: BaseException | None, url: URL, shown: str) -> FullError | None:
    """Return the error of a full disk, with the remedy, in place of the driver's own; None for all others."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        is_full = code == sqlite3.SQLITE_FULL
        if code & 0xFF == sqlite3.SQLITE_IOERR and _is_file(url):  # of a file beside it that could not grow
            is_full = disk_usage(Path(str(url.database)).parent).free < _ROOM_BYTES
    else:
        is_full = getattr(error, "sqlstate", None) == _DISK_FULL
    if not is_full:
        return None
    logger.error("database %s: %s", shown, str(error).strip().partition("\n")[0])
    return FullError(
        "the disk of the database is full: free space there. What was stored before is kept, and no restart is needed",
        FULL_RETRY_S,
    )


def _gone(context: ExceptionContext, shown: str) -> DatabaseGoneError | None:
    """Return the error of a server that does not answer in place of the driver's own; None for all others."""
    if context.is_pre_ping or not (context.is_disconnect or context.connection is None):
        return None
    reason = str(context.original_exception).strip().partition("\n")[0]
    logger.error("database %s does not answer: %s", shown, reason)
    return DatabaseGoneError("the database does not answer: start it, no other restart is needed", GONE_RETRY_S)


def _damage(error: BaseException | None, shown: str) -> QubicLabError | None:
    """Return the error of a damaged file in place of SQLite's own, which has no class for it; None for all others."""
    is_damage = type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)  # of SQLite's message
    if not is_damage and not str(error).startswith(("Could not decode", "no such")):
        return None
    return QubicLabError(f"database {shown} is damaged, or none of this project ({error}): restore it from a copy")


def _set_up_sqlite(connection: Any, record: Any) -> None:
    """Let readers work beside a writer, and lose no commit when a process dies."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


@contextmanager
def _alone(url: URL) -> Iterator[None]:
    """Lock a SQLite file before the first connection to it; a new one can be read by its owner only.

    Switching a new file to WAL does not wait as writes do: it fails at once with "database is locked".
    """
    if not _is_file(url):
        yield
        return
    lock = os.open(f"{url.database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.close(os.open(str(url.database), os.O_RDONLY | os.O_CREAT, 0o600))
        yield
    finally:
        os.close(lock)


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """Let one process at a time change the tables of a PostgreSQL database."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _UPGRADE_LOCK})
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _UPGRADE_LOCK})
        connection.commit()


def _upgrade(connection: Connection) -> None:
    try:
        command.upgrade(_config(connection), "head")
    except CommandError as error:
        raise _too_new(error) from error
    connection.commit()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _too_new(error: CommandError) -> QubicLabError:
    return QubicLabError(f"the database was made by a later version of this project ({error}): update it")
