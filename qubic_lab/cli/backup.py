"""`qubic-lab backup` and `qubic-lab restore`: databases and queue of a cluster as one checked archive."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import counts_text, note, print_json

if TYPE_CHECKING:
    from qubic_lab.backup import Places, Saved

Redis = Annotated[
    str | None,
    Option(metavar="URL", help="Redis of the queue.", show_default="QUBIC_LAB_REDIS_URL, or that of this machine"),
]


def backup(
    file: Annotated[Path, Argument(metavar="FILE", help="A new archive, such as cluster.tar.gz.")],
    redis: Redis = None,
    json: options.Json = False,
) -> None:
    """Save databases and queue into one archive.

    The cluster may go on working. It holds votes, market data, the ledger of trials, and all tasks with their answers;
    not models, runs, reports, tokens, certificates or settings.
    """
    from qubic_lab import backup as archives

    with ExitStack() as stack:
        saved = archives.save(_places(stack, redis, made=True), file)
    _show(saved, file, json)


def restore(
    file: Annotated[Path, Argument(metavar="FILE", help="An archive of `qubic-lab backup`.")],
    redis: Redis = None,
    replace: Annotated[
        bool, Option("--replace", help="Move SQLite files aside, and replace the queue, where they are not empty.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Write an archive back into databases and queue.

    Stop coordinators and the collector first. Nothing is written unless the whole archive is sound and all places are
    empty. A SQLite archive may go into PostgreSQL, and the other way.
    """
    from qubic_lab import backup as archives

    with ExitStack() as stack:
        saved = archives.restore(file, _places(stack, redis, made=False), replace)
    _show(saved, file, json)


def _places(stack: ExitStack, redis: str | None, made: bool) -> "Places":
    """Return where the state of the settings is; with `made`, without databases and an own Redis that are not there."""
    import sqlalchemy as sa

    from qubic_lab.backup import Places
    from qubic_lab.settings import settings

    main = settings().database_url or f"sqlite:///{(settings().data / 'qubic-lab.db').absolute()}"
    databases = {"database": main}
    ledger = settings().ledger_url or f"sqlite:///{(settings().cache / 'ledger.db').absolute()}"
    if ledger != main:
        databases["ledger"] = ledger
    for name, url in list(databases.items() if made else ()):
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
            note(f"there is no {name} yet at {parsed.database}")
            del databases[name]
    return Places(databases, redis or settings().redis_url or _own_redis(stack, made))


def _own_redis(stack: ExitStack, made: bool) -> str:
    """Return the URL of Redis of the cluster on this machine; of one that is down, run it meanwhile."""
    from qubic_lab.cli.cluster import cluster_folder
    from qubic_lab.cluster import background
    from qubic_lab.cluster.redis_server import RedisServer
    from qubic_lab.settings import settings

    if (state := background.running(cluster_folder())) is not None:
        return state.redis
    folders = [cluster_folder() / "redis", settings().cache.absolute() / "redis"]
    there = [folder for folder in folders if folder.is_dir()]
    if made and not there:
        note(f"there is no queue yet in {settings().cache}")
        return ""
    return stack.enter_context(RedisServer((there or folders)[0])).url


def _show(saved: "Saved", file: Path, json: bool) -> None:
    if json:
        print_json({"file": str(file), **asdict(saved)})
        return
    typer.echo(f"{file}: saved {saved.saved_utc} by version {saved.version}")
    for name, rows in saved.databases.items():
        typer.echo(f"{name}: {counts_text(rows) or 'no rows'}")
    typer.echo("no queue" if saved.tasks is None else f"queue: {saved.tasks} tasks were submitted")
