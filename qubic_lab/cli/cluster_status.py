"""`qubic-lab cluster status`: what coordinators tell of a cluster, and its processes where it runs on this machine."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qubic_lab.cli import options
from qubic_lab.cli.console import print_json, print_table
from qubic_lab.errors import InputError, QubicLabError

if TYPE_CHECKING:
    from qubic_lab.api.schemas import ClusterStatus, NodeStatus
    from qubic_lab.cluster.coordinator import RedisTimes
    from qubic_lab.cluster.supervisor import ClusterState

LOOK_S = 1.0
Row = tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """A cluster at one moment.

    Attributes:
        coordinators: of each URL what the coordinator says, or why it says nothing.
        nodes: as the first one that answers sees them.
        redis: how long it takes, as the same one measures it.
        supervisor: where the cluster runs on this machine.
    """

    coordinators: "dict[str, ClusterStatus | QubicLabError]"
    nodes: "list[NodeStatus]"
    redis: "RedisTimes | None"
    supervisor: "ClusterState | None"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "coordinators": {
                url: {"trouble": str(each)} if isinstance(each, QubicLabError) else each.model_dump()
                for url, each in self.coordinators.items()
            },
            "nodes": [node.model_dump() for node in self.nodes],
            "redis": self.redis and asdict(self.redis),
            "supervisor": self.supervisor and asdict(self.supervisor),
        }

    def tables(self) -> list[tuple[Row, list[Row]]]:
        """Return headers and rows for those who read them."""
        tables = _nodes(self), _coordinators(self), _tasks(self), _redis(self), _processes(self)
        return [(header, rows) for header, rows in tables if rows]


def folder() -> Path:
    """Return the folder of the cluster that `qubic-lab cluster up` starts."""
    from qubic_lab.settings import settings

    return settings().cache.absolute() / "cluster"


def status(
    json: options.Json = False,
    watch: Annotated[
        bool | None,
        typer.Option("--watch/--once", help="Look again each second until Ctrl-C.", show_default="on a terminal"),
    ] = None,
) -> None:
    """Show nodes, coordinators, tasks and Redis of the cluster at QUBIC_LAB_COORDINATOR, else of the one here."""
    if json and watch:
        raise InputError("--json and --watch: give one of the two")
    seen = look()
    if json:
        print_json(seen.to_dict())
    elif sys.stdout.isatty() if watch is None else watch:
        _watch(seen)
    else:
        for header, rows in seen.tables():
            print_table(header, rows)
            typer.echo()


def look() -> Seen:
    """Ask the coordinators.

    Raises:
        QubicLabError: none answers, and the cluster is none of this machine.
    """
    from qubic_lab.api.client import CoordinatorClient
    from qubic_lab.cluster import background
    from qubic_lab.cluster.coordinator import RedisTimes
    from qubic_lab.settings import settings

    supervisor = background.running(folder())
    urls: Sequence[str] = [settings().coordinator]
    if supervisor is not None and "coordinator" not in settings().model_fields_set:
        urls = supervisor.urls
    elif supervisor is not None and urls[0] not in supervisor.urls:
        supervisor = None
    coordinators: dict[str, ClusterStatus | QubicLabError] = {}
    nodes: list[NodeStatus] = []
    redis = None
    for url in urls:
        with CoordinatorClient(url) as client:
            try:
                coordinators[url] = client.status()
                if redis is None:
                    nodes = client.nodes()
                    redis = RedisTimes(**client.call("GET", "/api/cluster/redis"))
            except QubicLabError as error:
                if supervisor is None:
                    raise
                coordinators[url] = error
    return Seen(coordinators, nodes, redis, supervisor)


def _watch(seen: Seen) -> None:
    """Show the cluster live until Ctrl-C; that it does not answer for a while is shown, too."""
    with Live(_draw(seen), console=Console(highlight=False), auto_refresh=False) as live:
        live.refresh()
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(LOOK_S)
                try:
                    live.update(_draw(look()), refresh=True)
                except QubicLabError as error:
                    live.update(Text(str(error)), refresh=True)


def _draw(seen: Seen) -> RenderableType:
    drawn = []
    for header, rows in seen.tables():
        table = Table(*header)
        for row in rows:
            table.add_row(*map(Text, row))
        drawn.append(table)
    return Group(*drawn)


def _nodes(seen: Seen) -> tuple[Row, list[Row]]:
    header = ("node", "model", "state", "score", "requests", "tokens/s", "tokens", "heartbeat", "restarts")
    return header, [
        (
            node.name,
            node.model,
            f"{node.gate or 'open'}{': ' if node.trouble else ''}{node.trouble}",
            f"{node.score:.0f}",
            f"{node.outstanding.requests} of {node.slots}",
            f"{node.tokens_per_s:.1f}",
            str(node.tokens),
            f"{node.heartbeat_age_s:.1f} s ago",
            str(node.restarts),
        )
        for node in seen.nodes
    ]


def _coordinators(seen: Seen) -> tuple[Row, list[Row]]:
    rows: list[Row] = []
    for url, each in seen.coordinators.items():
        if isinstance(each, QubicLabError):
            rows.append((url, str(each), "-"))
        else:
            rows.append((url, "ready" if each.ready else "no node may be chosen", str(each.working)))
    return ("coordinator", "state", "works on"), rows


def _tasks(seen: Seen) -> tuple[Row, list[Row]]:
    names = ("pending", "processing", "completed", "failed", "dead", "cancelled", "reclaimed")
    rows: list[Row] = []
    for each in seen.coordinators.values():
        if not isinstance(each, QubicLabError):
            rows = [("tasks", *(str(getattr(each.tasks, name)) for name in names))]  # all count the same queue
    return ("", *names), rows


def _redis(seen: Seen) -> tuple[Row, list[Row]]:
    rows: list[Row] = []
    if (times := seen.redis) is not None:
        rows = [("Redis", *(f"{ms:.2f}" for ms in (times.ping_ms, times.set_ms, times.get_ms)))]
    return ("", "PING ms", "SET ms", "GET ms"), rows


def _processes(seen: Seen) -> tuple[Row, list[Row]]:
    header = ("process", "pid", "state", "restarts", "output")
    if (state := seen.supervisor) is None:
        return header, []
    members = [
        (each.name, str(each.pid or "-"), "ready" if each.ready else "not ready", str(each.restarts), each.log)
        for each in state.members
    ]
    redis_state = "not ready" if state.redis_pid is None else "ready"
    redis = ("redis", str(state.redis_pid or "-"), redis_state, str(state.redis_restarts), "")
    return header, [("supervisor", str(state.pid), state.phase, "", ""), redis, *members]
