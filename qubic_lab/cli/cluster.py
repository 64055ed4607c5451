"""`qubic-lab cluster …`: run a whole cluster on this machine, and show the state of a cluster here or elsewhere."""

import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, note, print_json, print_tables, progress_bar, read_seconds
from qubic_lab.cli.upgrade import upgrade
from qubic_lab.cluster import background
from qubic_lab.cluster.supervisor import LOGS, ClusterPlan, ClusterState, MemberPlan, Supervisor
from qubic_lab.errors import InputError, QubicLabError, check_range
from qubic_lab.settings import settings

if TYPE_CHECKING:
    from qubic_lab.api.schemas import ClusterStatus, NodeStatus
    from qubic_lab.cluster.coordinator import RedisTimes

HOST = "127.0.0.1"
MOST_NODES, MOST_COORDINATORS, MOST_PORT = 64, 8, 65_535
SEEN_S = 5.0
REFRESH_S = 1.0
MOST_NAMED = 3
"""Members that are named while the command waits for them."""
_COMMAND = ("qubic_lab.cli.main", "--verbose")  # the output goes to a file
Row = tuple[str, ...]
TableRows = tuple[Row, list[Row]]


def up(
    nodes: Annotated[int, Option(help="Number of nodes, each with its own pipeline.")] = 3,
    ranks: options.Ranks = None,
    model: options.Model = "smollm2",
    slots: options.Slots = 4,
    dtype: options.Dtype = "bf16",
    threads: Annotated[
        int | None, Option(help="Compute threads of each rank.", show_default="cores / all ranks")
    ] = None,
    coordinators: Annotated[int, Option(help="Number of coordinators, each with its own port.")] = 1,
    port: Annotated[int, Option(help="HTTP port of the first coordinator, then of the others; 0: free ones.")] = 5000,
    balancer: options.Balancer = "two-choices",
    foreground: Annotated[bool, Option("--foreground", help="Run until SIGTERM or Ctrl-C.")] = False,
    json: options.Json = False,
) -> None:
    """Start Redis, coordinators and nodes on this machine.

    Returns when all of them are ready; processes that end later are restarted. The cluster runs until
    `qubic-lab cluster down`. If a process does not start, all of them are ended.
    """
    from qubic_lab.cluster.balance import make_balancer
    from qubic_lab.pipeline.config import PipelineConfig, resolve_config
    from qubic_lab.provenance import usable_cores

    folder = cluster_folder()
    check_range("--nodes", nodes, 1, MOST_NODES)
    check_range("--coordinators", coordinators, 1, MOST_COORDINATORS)
    make_balancer(balancer)
    background.check_none_runs(folder)
    ports = _free_ports(port, coordinators)
    with progress_bar() as progress:
        progress("checking the model", 0, 1)
        resolved = resolve_config(PipelineConfig(model, ranks, dtype=dtype, threads=threads, slots=slots))
        each = threads or max(1, usable_cores() // (nodes * resolved.ranks))
        pipeline = ("--model", model, "--ranks", resolved.ranks, "--dtype", dtype, "--slots", slots, "--threads", each)
        plan = make_plan(folder, ports, balancer, nodes, tuple(map(str, pipeline)))
        if not foreground:
            background.start(plan, _display(progress))
    if not foreground:
        _announce(plan, json)
        return
    note(f"starting; the output of its processes goes to {folder / LOGS}")
    with background.claimed(folder):
        Supervisor(plan, when_up=lambda: _announce(plan, json)).run()


def status(
    json: options.Json = False,
    watch: Annotated[
        bool | None, Option("--watch/--once", help="Refresh until Ctrl-C.", show_default="terminal")
    ] = None,
) -> None:
    """Show nodes, coordinators, tasks and Redis of a cluster.

    The cluster is the one at QUBIC_LAB_COORDINATOR, or else the one on this machine.
    """
    if json and watch:
        raise InputError("--json and --watch: give one of the two")
    snapshot = read_status()
    if json:
        print_json(snapshot.to_dict())
    elif sys.stdout.isatty() if watch is None else watch:
        _watch(snapshot)
    else:
        print_tables(snapshot.tables())


def down(timeout: Annotated[str, Option(help="Time for nodes to finish requests, at most 60 s.")] = "60s") -> None:
    """End the cluster that `qubic-lab cluster up` has started.

    Nodes end first, then coordinators, then Redis.
    """
    state = background.stop(cluster_folder(), read_seconds("--timeout", timeout))
    if state is None:
        note("no cluster runs here")
        return
    nodes, coordinators = (len(state.of_kind(kind)) for kind in ("node", "coordinator"))
    typer.echo(f"ended {_count(nodes, 'node')}, {_count(coordinators, 'coordinator')} and Redis")


def cluster_folder() -> Path:
    """Return the folder of the cluster that `qubic-lab cluster up` starts."""
    return settings().cache.absolute() / "cluster"


def make_plan(folder: Path, ports: Sequence[int], balancer: str, nodes: int, options: tuple[str, ...]) -> ClusterPlan:
    """Return what to run; all connections except HTTP use unix sockets in the private folder."""
    from qubic_lab.api.http_server import ServeConfig
    from qubic_lab.wire.channel import tls_from_settings

    members, urls, registries = [], [], []
    for number, port in enumerate(ports, 1):
        name, address = f"coordinator-{number}", f"{HOST}:{port}"
        registries.append(_socket(folder, name))
        urls.append(ServeConfig(address, settings().api_tokens, tls_from_settings()).url)
        command = ("coordinator", "--listen", address, "--nodes", registries[-1], "--balancer", balancer)
        members.append(MemberPlan(name, "coordinator", (*_COMMAND, *command), address))
    for number in range(1, nodes + 1):
        name = f"node-{number}"
        who = ("node", "--coordinator", ",".join(registries), "--name", name, "--listen", _socket(folder, name))
        members.append(MemberPlan(name, "node", (*_COMMAND, *who, *options)))
    return ClusterPlan(folder, tuple(urls), tuple(members))


def _socket(folder: Path, name: str) -> str:
    """Return the address of a member's unix socket.

    Raises:
        InputError: gRPC would read the address as two.
    """
    if "," in str(folder):
        raise InputError(f"{folder} contains a comma: set QUBIC_LAB_CACHE to a folder without one")
    return f"unix:{quote(str(folder / name))}.sock"


def _free_ports(first: int, count: int) -> list[int]:
    """Return ports of the loopback interface: `first` and those after it, or any free ones if it is 0.

    Raises:
        InputError: a port is in use or does not exist.
    """
    check_range("--port", first, 0, MOST_PORT + 1 - count)
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for number, listener in enumerate(listeners):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            port = first + number if first else 0
            try:
                listener.bind((HOST, port))
            except OSError as error:
                raise InputError(f"--port {port} cannot be used ({error.strerror}): give another one") from error
        return [listener.getsockname()[1] for listener in listeners]


def _display(progress: Callable[[str, int, int], None]) -> Callable[[ClusterState], None]:
    """Return a callback that shows which members are not ready yet."""

    def show(state: ClusterState) -> None:
        waiting = [member.name for member in state.members if not member.ready]
        more = f" and {len(waiting) - MOST_NAMED} more" if len(waiting) > MOST_NAMED else ""
        what = f"waiting for {', '.join(waiting[:MOST_NAMED])}{more}" if waiting else "starting Redis"
        progress(what, len(state.members) - len(waiting), len(state.members))

    return show


def _announce(plan: ClusterPlan, json: bool) -> None:
    """Print the URLs and an example request, or JSON, once every coordinator has seen the nodes."""
    nodes = sum(member.kind == "node" for member in plan.members)
    _wait_until_seen(plan.urls, nodes)
    if json:
        print_json({"urls": list(plan.urls), "nodes": nodes, "folder": str(plan.folder)})
        return
    typer.echo(f"{_count(nodes, 'node')}: {', '.join(plan.urls)} (described at {plan.urls[0]}/docs)")
    curl = ["curl", "-s"]
    if plan.urls[0].startswith("https:"):
        curl += ["--cacert", str(settings().tls_authority)]
    line = shlex.join([*curl, f"{plan.urls[0]}/api/ai/query", "-H", "Content-Type: application/json"])
    if settings().api_tokens is not None:
        line += ' -H "Authorization: Bearer $QUBIC_LAB_API_TOKEN"'
    typer.echo(f"""{line} -d '{{"prompt": "Why is the sky blue?", "max_new_tokens": 24}}'""")
    if not {*plan.urls} >= {*settings().coordinators}:
        note(f"for notebooks and other commands: export QUBIC_LAB_COORDINATOR={','.join(plan.urls)}")
    note("end it: qubic-lab cluster down")


def _wait_until_seen(urls: Sequence[str], nodes: int) -> None:
    """Wait until the coordinators, which look for nodes once a second, have seen them; skip those that refuse us."""
    from qubic_lab.api.client import CoordinatorClient

    deadline = time.monotonic() + SEEN_S
    for url in urls:
        with CoordinatorClient(url) as client, suppress(QubicLabError):
            while client.status().nodes.get("open", 0) < nodes and time.monotonic() < deadline:
                time.sleep(0.05)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


@dataclass(frozen=True)
class ClusterSnapshot:
    """The state of a cluster at one moment.

    `coordinators` are by URL: the status, or the error of asking for it. The first one that answers has seen the
    `nodes` and measured `redis`. `supervisor` is the state of the processes, if the cluster runs on this machine.
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

    def tables(self) -> list[TableRows]:
        """Return the tables that have rows, as headers and rows."""
        tables = _nodes(self.nodes), *_coordinators(self.coordinators), _redis(self.redis), _processes(self.supervisor)
        return [(header, rows) for header, rows in tables if rows]


def read_status() -> ClusterSnapshot:
    """Ask the coordinators for the state of the cluster.

    Raises:
        QubicLabError: no coordinator answers, and the cluster does not run on this machine.
    """
    from qubic_lab.api.client import CoordinatorClient
    from qubic_lab.cluster.coordinator import RedisTimes

    supervisor = background.running(cluster_folder())
    urls: Sequence[str] = settings().coordinators
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
    return ClusterSnapshot(coordinators, nodes, redis, supervisor)


def _watch(snapshot: ClusterSnapshot) -> None:
    """Show the cluster live until Ctrl-C, or the error while it does not answer."""
    with Live(_draw(snapshot), console=Console(highlight=False), auto_refresh=False) as live:
        live.refresh()
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(REFRESH_S)
                try:
                    live.update(_draw(read_status()), refresh=True)
                except QubicLabError as error:
                    live.update(Text(str(error)), refresh=True)


def _draw(snapshot: ClusterSnapshot) -> RenderableType:
    drawn = []
    for header, rows in snapshot.tables():
        table = Table(*header)
        for row in rows:
            table.add_row(*map(Text, row))
        drawn.append(table)
    return Group(*drawn)


def _nodes(nodes: "Sequence[NodeStatus]") -> TableRows:
    header = ("node", "model", "state", "score", "requests", "tokens/s", "tokens", "heartbeat", "restarts")
    return header, [
        (
            *(node.name, node.model, f"{node.gate or 'open'}{': ' if node.trouble else ''}{node.trouble}"),
            *(f"{node.score:.0f}", f"{node.outstanding.requests} of {node.slots}", f"{node.tokens_per_s:.1f}"),
            *(str(node.tokens), f"{node.heartbeat_age_s:.1f} s ago", str(node.restarts)),
        )
        for node in nodes
    ]


def _coordinators(coordinators: "dict[str, ClusterStatus | QubicLabError]") -> tuple[TableRows, TableRows]:
    """Return the table of coordinators, and that of the tasks in their common queue."""
    states = ("pending", "processing", "completed", "failed", "dead", "cancelled", "reclaimed")
    rows: list[Row] = []
    tasks: list[Row] = []
    for url, each in coordinators.items():
        if isinstance(each, QubicLabError):
            rows.append((url, str(each), "-"))
        else:
            rows.append((url, "ready" if each.ready else "no node is available", str(each.working)))
            tasks = [("tasks", *(str(getattr(each.tasks, name)) for name in states))]
    return (("coordinator", "state", "tasks in progress"), rows), (("", *states), tasks)


def _redis(times: "RedisTimes | None") -> TableRows:
    rows = [] if times is None else [("Redis", *(f"{ms:.2f}" for ms in (times.ping_ms, times.set_ms, times.get_ms)))]
    return ("", "PING ms", "SET ms", "GET ms"), rows


def _processes(state: ClusterState | None) -> TableRows:
    header = ("process", "pid", "state", "restarts", "output")
    if state is None:
        return header, []
    members = [(m.name, str(m.pid or "-"), _ready(m.ready), str(m.restarts), m.log) for m in state.members]
    redis = ("redis", str(state.redis_pid or "-"), _ready(state.redis_pid is not None), str(state.redis_restarts), "")
    return header, [("supervisor", str(state.pid), state.phase, "", ""), redis, *members]


def _ready(ready: bool) -> str:
    return "ready" if ready else "not ready"


COMMANDS: Commands = {
    "up": (up, "--nodes 3"),
    "status": (status, "--json"),
    "upgrade": (upgrade, "--node 'ssh {host} sudo systemctl restart qubic-node'"),
    "down": (down, "--timeout 20s"),
}
