"""Checks of a cluster's network: whether nodes answer, and the links between them, measured with the nodes' service.

The limits are the project's own. A pipeline over several hosts sends a few kilobytes per token, so the round-trip time
matters most; weights and long prompts need bandwidth.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc
from qubic_lab.wire.members import open_member_channel

LARGE_BYTES = 8 * 2**20
ROUND_TRIPS = 50
LARGE_ROUND_TRIPS = 5
CALL_S = 10.0
MEASURE_S = 60.0
"""Time limit for the measurement of one link."""


@dataclass(frozen=True)
class LinkLimits:
    """The longest round trip in ms, and the least bandwidth in 10⁹ bits/s."""

    rtt_ms: float = 5.0
    gbps: float = 1.0


@dataclass(frozen=True)
class NodeLink:
    """Medians of a link from one node to another; `trouble`: why it could not be measured."""

    to: str
    rtt_ms: float
    gbps: float
    trouble: str


@dataclass(frozen=True)
class NodeLinkReport:
    """A node's health check, in ms, and its links; `trouble`: why the node could not be asked."""

    node: str
    serving: bool
    health_ms: float
    trouble: str
    links: list[NodeLink]


def trouble_of(link: NodeLink, limits: LinkLimits) -> str:
    """Return what is wrong with a link and the remedy; empty if nothing is wrong."""
    if link.trouble:
        return f"{link.trouble}: check firewall, address and certificates"
    found = []
    if link.rtt_ms >= limits.rtt_ms:
        found.append(f"a round trip takes {limits.rtt_ms:g} ms or more: use hosts of one zone")
    if link.gbps <= limits.gbps:
        found.append(f"bandwidth is {limits.gbps:g} Gbit/s or less: use the private interface, or larger machines")
    return "; ".join(found)


async def check_node(node: str, address: str, others: Mapping[str, str]) -> NodeLinkReport:
    """Check the health of a node, and let it measure the links to others (addresses by name)."""
    try:
        channel = open_member_channel(address)
    except QubicLabError as error:
        return NodeLinkReport(node, False, 0.0, str(error), [])
    try:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)  # opens the connection
        started = time.perf_counter()
        state = await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)
        health_ms = (time.perf_counter() - started) * 1e3
        request = pb.LinksRequest(addresses=others)
        reply = await cluster_pb2_grpc.NodeStub(channel).MeasureLinks(request, timeout=MEASURE_S * max(1, len(others)))
        serving = state.status == health_pb2.HealthCheckResponse.SERVING
        links = [NodeLink(each.node, each.rtt_ms, each.gbps, each.trouble) for each in reply.links]
        return NodeLinkReport(node, serving, health_ms, "", links)
    except grpc.aio.AioRpcError as error:
        return NodeLinkReport(node, False, 0.0, f"{error.code().name}: {error.details()}", [])
    finally:
        await channel.close()


async def measure_links(addresses: Mapping[str, str]) -> list[pb.Link]:
    """Measure the link to each node, one after the other; failed measurements say why in `trouble`."""
    return [await _measure(node, address) for node, address in addresses.items()]


async def _measure(node: str, address: str) -> pb.Link:
    try:
        channel = open_member_channel(address)
    except QubicLabError as error:
        return pb.Link(node=node, trouble=str(error))
    try:
        async with asyncio.timeout(MEASURE_S):
            stub = cluster_pb2_grpc.NodeStub(channel)
            await _round_trip_s(stub, b"")  # opens the connection
            rtt_s = median([await _round_trip_s(stub, b"") for _ in range(ROUND_TRIPS)])
            large = bytes(LARGE_BYTES)
            large_s = median([await _round_trip_s(stub, large) for _ in range(LARGE_ROUND_TRIPS)])
        return pb.Link(node=node, rtt_ms=rtt_s * 1e3, gbps=2 * 8 * LARGE_BYTES / max(1e-9, large_s - rtt_s) / 1e9)
    except grpc.aio.AioRpcError as error:
        return pb.Link(node=node, trouble=f"{error.code().name}: {error.details()}")
    except TimeoutError:
        return pb.Link(node=node, trouble=f"not measured within {MEASURE_S:g} s")
    finally:
        await channel.close()


async def _round_trip_s(stub: Any, content: bytes) -> float:
    started = time.perf_counter()
    await stub.Echo(pb.Payload(content=content), timeout=CALL_S)
    return time.perf_counter() - started
