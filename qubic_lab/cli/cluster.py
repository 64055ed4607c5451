"""`qubic-lab cluster …`: a whole cluster on this machine by one command, and how a cluster is, here or elsewhere."""

import shlex
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from qubic_lab.cli import cluster_status, options
from qubic_lab.cli.console import note, progress_bar, read_seconds
from qubic_lab.errors import InputError, QubicLabError, check_range

if TYPE_CHECKING:
    from qubic_lab.cluster.supervisor import ClusterPlan, ClusterState

HOST = "127.0.0.1"
MOST_NODES, MOST_COORDINATORS, MOST_PORT = 64, 8, 65_535
SEEN_S = 5.0
MOST_NAMED = 3
"""Members that are named while they are waited for."""
_COMMAND = ("qubic_lab.cli.main", "--verbose")  # what they print goes to a file


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Run a whole cluster on this machine; see how a cluster is.",
        epilog="Example: qubic-lab cluster up --nodes 3",
        rich_markup_mode=None,
    )
    group.command(epilog="Example: qubic-lab cluster up --nodes 3 --model smollm2")(up)
    group.command(epilog="Example: qubic-lab cluster status --json")(cluster_status.status)
    group.command(epilog="Example: qubic-lab cluster down --timeout 20s")(down)
    app.add_typer(group, name="cluster")


def up(
    nodes: Annotated[int, typer.Option(help="Nodes, each with a pipeline of its own.")] = 3,
    ranks: options.Ranks = None,
    model: options.Model = "smollm2",
    slots: Annotated[int, typer.Option(help="Requests decoding together in a lane of a node.")] = 4,
    dtype: options.Dtype = "bf16",
    threads: Annotated[
        int | None, typer.Option(help="Compute threads of each rank.", show_default="cores / (nodes × ranks)")
    ] = None,
    coordinators: Annotated[int, typer.Option(help="Coordinators, each at a port of its own.")] = 1,
    port: Annotated[int, typer.Option(help="HTTP port of the first, the others' follow; 0: any free ones.")] = 5000,
    balancer: Annotated[str, typer.Option(help="How a node is chosen.")] = "two-choices",
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Run until SIGTERM or Ctrl-C, in place of going on in the background.")
    ] = False,
) -> None:
    """Start Redis, coordinators and nodes on this machine; return when all are ready. What ends is started again.

    The cluster goes on until `qubic-lab cluster down`; where something does not come up, nothing is left running.
    """
    from qubic_lab.cluster import background
    from qubic_lab.cluster.balance import make_balancer
    from qubic_lab.cluster.supervisor import LOGS, Supervisor
    from qubic_lab.pipeline.config import PipelineConfig, resolve_config
    from qubic_lab.provenance import usable_cores

    folder = cluster_status.folder()
    check_range("--nodes", nodes, 1, MOST_NODES)
    check_range("--coordinators", coordinators, 1, MOST_COORDINATORS)
    make_balancer(balancer)
    background.check_none_runs(folder)
    ports = _free_ports(port, coordinators)
    with progress_bar() as progress:
        progress("looking at the model", 0, 1)
        resolved = resolve_config(PipelineConfig(model, ranks, dtype=dtype, threads=threads, slots=slots))
        each = threads or max(1, usable_cores() // (nodes * resolved.ranks))
        pipeline = ("--model", model, "--ranks", resolved.ranks, "--dtype", dtype, "--slots", slots, "--threads", each)
        plan = make_plan(folder, ports, balancer, nodes, tuple(map(str, pipeline)))
        if not foreground:
            background.start(plan, _display(progress))
    if not foreground:
        _announce(plan)
        return
    note(f"starting; what its processes print goes to {folder / LOGS}")
    with background.claimed(folder):
        Supervisor(plan, when_up=lambda: _announce(plan)).run()


def down(
    timeout: Annotated[str, typer.Option(help="Nodes may go on so long with what they have begun, 60 s at most.")] = (
        "60s"
    ),
) -> None:
    """End the cluster that `qubic-lab cluster up` has started: nodes first, then coordinators, then Redis."""
    from qubic_lab.cluster import background

    state = background.stop(cluster_status.folder(), read_seconds("--timeout", timeout))
    if state is None:
        note("no cluster runs here")
        return
    typer.echo(
        f"ended {_count(state.of_kind('node'), 'node')}, {_count(state.of_kind('coordinator'), 'coordinator')}"
        " and Redis"
    )


def make_plan(
    folder: Path, ports: Sequence[int], balancer: str, nodes: int, pipeline: tuple[str, ...]
) -> "ClusterPlan":
    """Return what to run; within the machine everything but HTTP goes by unix sockets in the private folder."""
    from qubic_lab.api.serve import ServeConfig
    from qubic_lab.cluster.supervisor import ClusterPlan, MemberPlan
    from qubic_lab.settings import settings
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
        members.append(MemberPlan(name, "node", (*_COMMAND, *who, *pipeline)))
    return ClusterPlan(folder, tuple(urls), tuple(members))


def _socket(folder: Path, name: str) -> str:
    """Return the address of a member's unix socket.

    Raises:
        InputError: gRPC would take it for two.
    """
    if "," in str(folder):
        raise InputError(f"{folder} has a comma in it: set QUBIC_LAB_CACHE to a folder without")
    return f"unix:{quote(str(folder / name))}.sock"


def _free_ports(first: int, count: int) -> list[int]:
    """Return ports of the loopback interface: `first` and those after it, or for 0 any free ones.

    Raises:
        InputError: another process listens at one of them, or there is no such port.
    """
    check_range("--port", first, 0, MOST_PORT + 1 - count)
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for number, listener in enumerate(listeners):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself will do
            port = first + number if first else 0
            try:
                listener.bind((HOST, port))
            except OSError as error:
                raise InputError(f"--port {port} cannot be used ({error.strerror}): give another one") from error
        return [listener.getsockname()[1] for listener in listeners]


def _display(progress: Callable[[str, int, int], None]) -> "Callable[[ClusterState], None]":
    """Return a watcher that shows who is waited for."""

    def show(state: "ClusterState") -> None:
        waiting = [member.name for member in state.members if not member.ready]
        more = f" and {len(waiting) - MOST_NAMED} more" if len(waiting) > MOST_NAMED else ""
        what = f"waiting for {', '.join(waiting[:MOST_NAMED])}{more}" if waiting else "starting Redis"
        progress(what, len(state.members) - len(waiting), len(state.members))

    return show


def _announce(plan: "ClusterPlan") -> None:
    """Print where to ask, with a line that asks, once every coordinator has seen the nodes."""
    from qubic_lab.settings import settings

    nodes = [member for member in plan.members if member.kind == "node"]
    _wait_until_seen(plan.urls, len(nodes))
    typer.echo(f"{_count(nodes, 'node')}: {', '.join(plan.urls)} (described at {plan.urls[0]}/docs)")
    curl = ["curl", "-s"]
    if plan.urls[0].startswith("https:"):
        curl += ["--cacert", str(settings().tls_authority)]
    line = shlex.join([*curl, f"{plan.urls[0]}/api/ai/query", "-H", "Content-Type: application/json"])
    if settings().api_tokens is not None:
        line += ' -H "Authorization: Bearer $QUBIC_LAB_API_TOKEN"'
    typer.echo(f"""{line} -d '{{"prompt": "Why is the sky blue?", "max_new_tokens": 24}}'""")
    if settings().coordinator not in plan.urls:
        note(f"for notebooks and other commands: export QUBIC_LAB_COORDINATOR={plan.urls[0]}")
    note("end it: qubic-lab cluster down")


def _wait_until_seen(urls: Sequence[str], nodes: int) -> None:
    """Give coordinators, which look for nodes once a second, the time to; those that we may not ask, none."""
    from qubic_lab.api.client import CoordinatorClient

    deadline = time.monotonic() + SEEN_S
    for url in urls:
        with CoordinatorClient(url) as client, suppress(QubicLabError):
            while client.status().nodes.get("open", 0) < nodes and time.monotonic() < deadline:
                time.sleep(0.05)


def _count(members: Sequence[object], what: str) -> str:
    return f"{len(members)} {what}{'s' if len(members) != 1 else ''}"
