"""Databases for tests: a PostgreSQL server of our own, started from its binaries; and reading all pages of a query."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import qubic_lab.database
from qubic_lab.database import open_database
from qubic_lab.errors import QubicLabError

SERVER_USER = "nobody"
"""PostgreSQL refuses to run as root: there it runs as this one."""


def _binary(name: str) -> str | None:
    """Return a program of PostgreSQL: on PATH, or where Debian keeps it."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(versions[-1]) if versions else None)


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a server that listens on a unix socket alone, and ends afterwards."""
    initdb, pg_ctl = _binary("initdb"), _binary("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed here")
    user = SERVER_USER if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="qlab-pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = f"{folder}/data"
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={"LC_ALL": "C"})

        run(initdb, "-D", data, "-U", "lab", "-A", "trust", "-E", "UTF8", "--no-sync")
        run(pg_ctl, "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql://lab@/postgres?host={folder}"
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")


def emptied(url: str) -> str:
    """Return the URL of a PostgreSQL database, after dropping all that is in it."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))  # whatever version it says it is
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def open_with_empty_tables(url: str) -> sa.Engine:
    """Open a PostgreSQL database and empty its tables, which takes less time than to make them."""
    try:
        engine = open_database(url)
    except QubicLabError:  # another test left tables of a later version
        return open_database(emptied(url))
    names = [name for name in sa.inspect(engine).get_table_names() if name != "alembic_version"]
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))  # triggers keep some rows
        connection.execute(sa.text(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"))
    return engine


def migrate(engine: sa.Engine, version: str) -> None:
    """Take a database back to an earlier version of its tables."""
    config = Config()
    config.set_main_option("script_location", str(Path(qubic_lab.database.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, version)


def all_pages(page: Callable[..., Any], name: str, limit: int, **options: Any) -> list[Any]:
    """Return the rows of all pages; `name` is the attribute of a page that holds its rows."""
    found, cursor = [], None
    while True:
        got = page(limit=limit, cursor=cursor, **options)
        found += getattr(got, name)
        assert len(getattr(got, name)) == limit or got.next_cursor is None
        if (cursor := got.next_cursor) is None:
            return found
