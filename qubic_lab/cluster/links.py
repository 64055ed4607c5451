"""The way from one node to another: round trips and bandwidth, through the same service and certificates as tasks."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import grpc
import grpc.aio

from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc
from qubic_lab.wire.channel import open_async_channel

LARGE_BYTES = 8 * 2**20
ROUND_TRIPS = 50
LARGE_ROUND_TRIPS = 5
CALL_S = 10.0


async def measure_links(addresses: Mapping[str, str]) -> list[pb.Link]:
    """Measure the way to each node service, one after the other; what cannot be measured says why."""
    return [await _measure(node, address) for node, address in addresses.items()]


async def _measure(node: str, address: str) -> pb.Link:
    try:
        channel = open_async_channel(address)
    except QubicLabError as error:
        return pb.Link(node=node, trouble=str(error))
    try:
        stub = cluster_pb2_grpc.NodeStub(channel)
        await _round_trip_s(stub, b"")  # the connection's own handshakes
        rtt_s = median([await _round_trip_s(stub, b"") for _ in range(ROUND_TRIPS)])
        large = bytes(LARGE_BYTES)
        large_s = median([await _round_trip_s(stub, large) for _ in range(LARGE_ROUND_TRIPS)])
        return pb.Link(node=node, rtt_ms=rtt_s * 1e3, gbps=2 * 8 * LARGE_BYTES / max(1e-9, large_s - rtt_s) / 1e9)
    except grpc.aio.AioRpcError as error:
        return pb.Link(node=node, trouble=f"{error.code().name}: {error.details()}")
    finally:
        await channel.close()


async def _round_trip_s(stub: Any, content: bytes) -> float:
    started = time.perf_counter()
    await stub.Echo(pb.Payload(content=content), timeout=CALL_S)
    return time.perf_counter() - started
