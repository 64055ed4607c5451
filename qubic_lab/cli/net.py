"""`qubic-lab net check`: whether the machines of a cluster can reach each other, and how fast."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, print_json, print_table, progress_bar, split_list
from qubic_lab.cluster.links import LinkLimits, NodeLink, trouble_of
from qubic_lab.errors import QubicLabError
from qubic_lab.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qubic_lab.api.client import CoordinatorClient


@dataclass(frozen=True)
class NetworkCheck:
    """One check from `source` to `target`: its result, and what is wrong with it (empty: nothing)."""

    what: str
    source: str
    target: str
    found: str
    trouble: str


def check(
    coordinator: Annotated[
        str | None, Option(metavar="URL,…", help="Coordinators.", show_default="QUBIC_LAB_COORDINATOR")
    ] = None,
    rtt_ms: Annotated[float, Option(help="Limit of the round-trip time between nodes.")] = 5.0,
    gbps: Annotated[float, Option(help="Least bandwidth between nodes in 10⁹ bits/s.")] = 1.0,
    iperf3: Annotated[bool, Option("--iperf3", help="Also run iperf3, where both nodes have it.")] = False,
    json: options.Json = False,
) -> None:
    """Check coordinators, Redis, nodes, and the links between nodes.

    A link shows min / mean / p95 of 100 pings and the bandwidth over plain sockets. The exit status is 1 if something
    is wrong.
    """
    urls = split_list("--coordinator", coordinator or settings().coordinator)
    with progress_bar() as progress:
        checks = list(run_checks(urls, LinkLimits(rtt_ms, gbps), iperf3, progress))
    wrong = sum(bool(each.trouble) for each in checks)
    if json:
        print_json({"checks": [asdict(each) for each in checks], "wrong": wrong, "rtt_ms": rtt_ms, "gbps": gbps})
    else:
        rows = [(e.what, e.source, e.target, e.found, "wrong" if e.trouble else "good") for e in checks]
        print_table(("check", "from", "to", "found", "verdict"), rows)
        for each in checks:
            if each.trouble:
                typer.echo(f"{each.source} → {each.target}: {each.trouble}")
    if wrong:
        raise QubicLabError(f"{wrong} of {len(checks)} checks failed: the output says why")


def run_checks(
    urls: tuple[str, ...],
    limits: LinkLimits,
    iperf3: bool,
    progress: "Callable[[str, int, int], None]",
    host: str = "",
) -> "Iterator[NetworkCheck]":
    """Yield the checks of the coordinators at `urls`, of their Redis, and of the nodes of the first.

    Links are measured from all nodes, or from those of a host alone.
    """
    from qubic_lab.api.client import CoordinatorClient

    for number, url in enumerate(urls):
        with CoordinatorClient(url) as client:
            try:
                name = str(client.call("GET", "/health")["coordinator"])
            except QubicLabError as error:
                yield NetworkCheck("health", "here", url, "no answer", str(error))
                continue
            yield NetworkCheck("health", "here", url, name, "")
            yield _redis(client, name)
            if number == 0:  # all coordinators see the same nodes
                yield from _nodes(client, name, limits, iperf3, progress, host)


def _redis(client: "CoordinatorClient", name: str) -> NetworkCheck:
    try:
        times = client.call("GET", "/api/cluster/redis")
    except QubicLabError as error:
        return NetworkCheck("redis", name, "redis", "no answer", str(error))
    text = ", ".join(f"{what} {times[f'{what.lower()}_ms']:.2f} ms" for what in ("PING", "SET", "GET"))
    return NetworkCheck("redis", name, "redis", text, "")


def _nodes(
    client: "CoordinatorClient",
    name: str,
    limits: LinkLimits,
    iperf3: bool,
    progress: "Callable[[str, int, int], None]",
    host: str,
) -> "Iterator[NetworkCheck]":
    nodes = client.nodes()
    for number, node in enumerate(nodes):
        if host and node.name.rpartition("@")[2] != host:
            yield NetworkCheck("health", name, node.name, node.gate or "open", node.trouble or node.gate or "")
            continue
        progress(f"from {node.name}", number, len(nodes))
        found = client.links(node.name, iperf3)
        http = f", HTTP {found['http_ms']:.2f} ms" if found["http_ms"] else ""
        state = f"{found['health_ms']:.2f} ms{http}" if found["serving"] else "not serving"
        why = found["trouble"] or ("" if found["serving"] else node.trouble or node.gate or "not serving")
        yield NetworkCheck("health", name, node.name, state, why)
        for each in found["links"]:
            link = NodeLink(**each)
            yield NetworkCheck("link", node.name, link.to, link.text(), trouble_of(link, limits))
    if not nodes:
        why = "no node is registered: start one with qubic-lab node"
        yield NetworkCheck("health", name, "nodes", "none", why)


COMMANDS: Commands = {"check": (check, "--coordinator http://127.0.0.1:5000")}
