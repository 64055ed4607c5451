"""Checks of a cluster's network: whether nodes answer, and the links between them, measured from node to node.

The limits are the project's own. A pipeline over several hosts sends a few kilobytes per token, so the round-trip time
matters most; weights and long prompts need bandwidth.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.cluster.http_health import time_health
from qubic_lab.cluster.meter import PINGS, PlainLink, measure_plain, meter_host
from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.members import open_member_channel
from qubic_lab.wire.services import NODE_SERVICE, stub_of

CALL_S = 10.0
MEASURE_S = 60.0
"""Time limit for the measurement of one link."""
MOST_LOSS = 0.01


@dataclass(frozen=True)
class LinkLimits:
    """The longest mean round trip in ms, and the least bandwidth in 10⁹ bits/s."""

    rtt_ms: float = 5.0
    gbps: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NodeLink(PlainLink):
    """A link from one node to another.

    Attributes:
        rtt_min_ms: the shortest round trip of a small message.
        rtt_ms: the mean round trip.
        rtt_p95_ms: 95 % of the round trips are shorter.
        loss: share of the messages that were lost, 0 to 1.
        gbps: bandwidth in 10⁹ bits/s.
        iperf3_gbps: the same by iperf3; 0: not measured.
        to: name of the other node.
        health_ms: time of the other node's health page over HTTP; 0: it has none for others.
        trouble: why the link could not be measured; then all figures are 0.
    """

    to: str
    health_ms: float
    trouble: str

    def text(self) -> str:
        """Return the figures in one line."""
        rtt = f"{self.rtt_min_ms:.2f} / {self.rtt_ms:.2f} / {self.rtt_p95_ms:.2f} ms, {self.loss:.0%} lost"
        http = f", HTTP {self.health_ms:.2f} ms" if self.health_ms else ""
        iperf3 = f" (iperf3 {self.iperf3_gbps:.2f})" if self.iperf3_gbps else ""
        return f"{rtt}{http}, {self.gbps:.2f}{iperf3} Gbit/s"


@dataclass(frozen=True)
class NodeLinkReport:
    """A node's health checks and its links.

    Attributes:
        node: its name.
        serving: whether it takes requests.
        health_ms: time of the health check over gRPC.
        http_ms: time of the health page over HTTP; 0: it has none for others.
        trouble: why the node could not be asked; empty: it could.
        links: to each other node.
    """

    node: str
    serving: bool
    health_ms: float
    http_ms: float
    trouble: str
    links: list[NodeLink]


def trouble_of(link: NodeLink, limits: LinkLimits) -> str:
    """Return what is wrong with a link and the remedy; empty if nothing is wrong."""
    if link.trouble:
        return f"{link.trouble}: check firewall, address and certificates"
    found = []
    if link.rtt_ms >= limits.rtt_ms:
        found.append(f"a round trip takes {limits.rtt_ms:g} ms or more: use hosts of one zone")
    if link.loss > MOST_LOSS:
        found.append(f"{link.loss:.0%} of {PINGS} pings were lost: look for an overloaded machine or link")
    if link.gbps <= limits.gbps:
        found.append(f"bandwidth is {limits.gbps:g} Gbit/s or less: use the private interface, or larger machines")
    return "; ".join(found)


async def check_node(
    node: str, address: str, health_url: str, others: Mapping[str, str], urls: Mapping[str, str], iperf3: bool = False
) -> NodeLinkReport:
    """Check the health of a node, and let it measure the links to others (addresses and health pages by name)."""
    try:
        channel = open_member_channel(address)
    except QubicLabError as error:
        return NodeLinkReport(node, False, 0.0, 0.0, str(error), [])
    try:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)  # opens the connection
        started = time.perf_counter()
        state = await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)
        health_ms = (time.perf_counter() - started) * 1e3
        http_ms = await time_health(health_url) if health_url else 0.0
        request = pb.LinksRequest(addresses=others, health_urls=urls, iperf3=iperf3)
        reply = await stub_of(channel, NODE_SERVICE).MeasureLinks(request, timeout=MEASURE_S * max(1, len(others)))
        serving = state.status == health_pb2.HealthCheckResponse.SERVING
        return NodeLinkReport(node, serving, health_ms, http_ms, "", [_read(each) for each in reply.links])
    except grpc.aio.AioRpcError as error:
        return NodeLinkReport(node, False, 0.0, 0.0, f"{error.code().name}: {error.details()}", [])
    except QubicLabError as error:
        return NodeLinkReport(node, False, 0.0, 0.0, str(error), [])
    finally:
        await channel.close()


async def measure_links(request: pb.LinksRequest) -> list[pb.Link]:
    """Measure the link to each node, one after the other; failed measurements say why in `trouble`."""
    return [
        await _measure(node, address, request.health_urls.get(node, ""), request.iperf3)
        for node, address in request.addresses.items()
    ]


async def _measure(node: str, address: str, health_url: str, iperf3: bool) -> pb.Link:
    try:
        channel = open_member_channel(address)
    except QubicLabError as error:
        return pb.Link(node=node, trouble=str(error))
    try:
        async with asyncio.timeout(MEASURE_S):
            health_ms = await time_health(health_url) if health_url else 0.0
            meter = await stub_of(channel, NODE_SERVICE).OpenMeter(pb.MeterRequest(iperf3=iperf3), timeout=CALL_S)
            plain = await asyncio.to_thread(measure_plain, meter_host(address), meter)
        return pb.Link(node=node, health_ms=health_ms, **asdict(plain))
    except QubicLabError as error:
        return pb.Link(node=node, trouble=str(error))
    except grpc.aio.AioRpcError as error:
        return pb.Link(node=node, trouble=f"{error.code().name}: {error.details()}")
    except TimeoutError:
        return pb.Link(node=node, trouble=f"not measured within {MEASURE_S:g} s")
    finally:
        await channel.close()


def _read(link: pb.Link) -> NodeLink:
    return NodeLink(
        to=link.node, **{each.name: getattr(link, each.name) for each in fields(NodeLink) if each.name != "to"}
    )
