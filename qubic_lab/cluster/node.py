"""A node: keeps one replica running, answers coordinators, and sends heartbeats with its state.

It outlives its pipeline: when a rank is lost it restarts the whole group, and is not ready meanwhile. It has no
credentials for Redis and knows only the addresses of coordinators.
"""

import asyncio
import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health

from qubic_lab import tracing
from qubic_lab.cluster.calls import most_tokens, wait_at_most, with_pauses
from qubic_lab.cluster.http_health import HealthPage, health_host
from qubic_lab.cluster.identity import new_identity
from qubic_lab.cluster.links import measure_links
from qubic_lab.cluster.meter import meter_host, open_meter
from qubic_lab.cluster.registry import HEARTBEAT_S, check_registration
from qubic_lab.cluster.replica import Replica, keep_running
from qubic_lab.cluster.vitals import disk_bytes, read_shares, resident_bytes
from qubic_lab.errors import InputError, QubicLabError, check_at_least, check_range
from qubic_lab.lifeline import CTRL_C_S
from qubic_lab.settings import settings
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.channel import SERVER_OPTIONS, certificate_ends_s, error_of, read_host, status_of
from qubic_lab.wire.members import MemberGuard, listen_as, open_member_channel
from qubic_lab.wire.services import NODE_SERVICE, REGISTRY_SERVICE, add_service, stub_of

SERVICE = "qubic_lab.cluster.v1.Node"
"""The node's name in the health service: SERVING while its pipeline is up and it is not draining."""
KEEP_ALIVE_S = 1.0
"""Interval of keep-alives while a task has no new token."""
CALL_S = 5.0
DRAIN_S = 60.0
"""Time limit for unfinished requests when the node ends."""
STOP_S = 1.0
"""Time limit for sending the last answers."""
_PAUSE_S = 1.0
"""Before another coordinator is asked."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeConfig:
    """Name, addresses and role of a node.

    With certificates the name ends with one from this host's certificate. One of the coordinators that answers is
    enough. The node listens at `HOST:PORT` or `unix:PATH`; port 0 takes any free port. Its type is whole or expert,
    its weight that in weighted round robin. A node that was restarted shows the identity of before, and so gets its
    name at once; others must wait until the name is free. `/health` is served over HTTP at `health_port`; 0 is any
    free one. Coordinators reach it at `address`, by default where it listens.

    Raises:
        InputError: there is no coordinator, or the weight is below 1.
    """

    name: str
    coordinators: tuple[str, ...]
    listen: str = "127.0.0.1:0"
    type: str = "whole"
    weight: int = 1
    identity: str = field(default_factory=new_identity, repr=False)
    health_port: int = 0
    address: str = ""

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 1)
        check_range("health_port", self.health_port, 0, 65_535)
        if not self.coordinators:
            raise InputError("no coordinator is given: a node needs the address of at least one")


class Node:
    """A node; `run` runs it until `end` is called."""

    def __init__(self, config: NodeConfig, replica: Replica) -> None:
        self._config = config
        self._replica = replica
        self._registration = pb.NodeRegistration(
            node=config.name, type=config.type, weight=config.weight, identity=config.identity
        )
        self._state = pb.NodeState()
        self._running: dict[object, tuple[str, int]] = {}  # of each task: its coordinator and upper token estimate
        self._changed = asyncio.Event()  # the next heartbeat is due at once
        self._ending, self._end_by_s = asyncio.Event(), math.inf
        self._look_s = -math.inf  # when processes, disk and certificate are looked at again
        self._health = aio_health.HealthServicer()
        self._page = HealthPage(self._tell_page)

    def end(self, within_s: float = DRAIN_S) -> None:
        """End `run`: take no new requests, finish the running ones within this time, and leave."""
        self._end_by_s = min(self._end_by_s, time.monotonic() + within_s)
        self._ending.set()

    async def run(self) -> None:
        """Serve until `end`, SIGTERM or SIGINT (hurried); then finish the running requests, leave, end the replica.

        Raises:
            InputError: the address cannot be used, or the model cannot be loaded.
            QubicLabError: the replica's first start fails, or a coordinator refuses this node.
        """
        for number, within_s in ((signal.SIGTERM, DRAIN_S), (signal.SIGINT, CTRL_C_S)):
            asyncio.get_running_loop().add_signal_handler(number, self.end, within_s)
        server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[guard := MemberGuard()])
        add_service(server, NODE_SERVICE, self)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = listen_as("node", server, self._config.listen)
        self._registration.address = guard.address = self._config.address or reachable(self._config.listen, port)
        await self._set_ready(False)
        await server.start()
        asking = asyncio.ensure_future(self._look_for_strangers())
        try:
            await self._open_page()
            if (capabilities := await self._start_replica()) is None:
                return
            self._registration.capabilities.CopyFrom(capabilities)
            check_registration(self._registration)
            await self._set_ready(True)
            await self._live()
        finally:
            asking.cancel()
            self._page.stop()
            await self._replica.stop()
            await server.stop(STOP_S)

    async def Run(self, request: pb.TaskRequest, context: Any) -> None:
        """Run a task: confirm the start, pass on the pipeline's replies, and report the time taken."""
        if not self._state.ready or self._state.draining:
            why = "draining" if self._state.draining else "not ready"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"it takes no requests now: it is {why}")
        with (
            tracing.following(dict(context.invocation_metadata() or ())),
            tracing.span("node", node=self._config.name, task=request.task),
        ):
            await self._run_task(request, context)

    async def _run_task(self, request: pb.TaskRequest, context: Any) -> None:
        started, finished, cancelled, this = time.perf_counter(), False, False, object()
        self._running[this] = request.coordinator, most_tokens(request.request)
        try:
            rest = await self._work(request, context)
            finished = True
            node_ms = (time.perf_counter() - started) * 1_000
            await context.write(_together([*rest, pb.TaskResponse(done=pb.Done(node_ms=node_ms))]))
            logger.info("task %s: ran for %.0f ms", request.task, node_ms)
        except QubicLabError as error:
            await context.abort(status_of(error), str(error))
        except asyncio.CancelledError:  # nobody wants the answer any more
            cancelled = True
            raise
        finally:
            del self._running[this]
            self._state.finished += finished
            self._state.failed += not (finished or cancelled)

    async def Echo(self, request: pb.Payload, context: Any) -> pb.Payload:
        """Send the payload back."""
        return request

    async def OpenMeter(self, request: pb.MeterRequest, context: Any) -> pb.Meter:
        """Open a port for one measurement over a plain socket."""
        try:
            return open_meter(meter_host(self._registration.address), request.iperf3)
        except QubicLabError as error:
            await context.abort(status_of(error), str(error))
            raise  # never reached: abort raises

    async def MeasureLinks(self, request: pb.LinksRequest, context: Any) -> pb.LinksReply:
        """Measure the links to other nodes, one after the other."""
        return pb.LinksReply(links=await measure_links(request))

    async def _work(self, request: pb.TaskRequest, context: Any) -> list[pb.TaskResponse]:
        """Pass on the pipeline's replies, with keep-alives between them; its errors are raised.

        Returns what is still to be sent, with the end: each message costs more than what it says.
        """
        asked, missing = request.request, max(1, request.request.samples)
        if not request.together:
            await context.write(pb.TaskResponse(alive=pb.SignOfLife()))
        async with aclosing(with_pauses(self._replica.generate(asked), KEEP_ALIVE_S)) as paused:
            async for replies in paused:
                for reply in replies:
                    self._state.tokens += len(reply.end.token_ids) if asked.whole else reply.HasField("token")
                    missing -= reply.HasField("end")
                responses = [pb.TaskResponse(reply=reply) for reply in replies]
                if request.together and not missing:
                    return responses
                if request.together or not responses:
                    await context.write(_together(responses or [pb.TaskResponse(alive=pb.SignOfLife())]))
                else:
                    for response in responses:
                        await context.write(response)
        return []

    async def _start_replica(self) -> pb.Capabilities | None:
        """Start the replica and return its capabilities, or None if `end` was called meanwhile."""
        starting, ending = asyncio.ensure_future(self._replica.start()), asyncio.ensure_future(self._ending.wait())
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if starting.done():
            return starting.result()
        starting.cancel()
        return None

    async def _live(self) -> None:
        """Keep the replica running and the node registered until `end` is called, or a coordinator refuses the node."""
        ending = asyncio.ensure_future(self._ending.wait())
        tasks = [asyncio.ensure_future(self._keep_replica()), asyncio.ensure_future(self._stay_registered()), ending]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _drain(self) -> None:
        """Take no new requests, and wait for the running ones."""
        self._state.draining = True
        self._changed.set()
        await self._tell_health()
        while self._running and time.monotonic() < self._end_by_s:
            await asyncio.sleep(0.05)

    async def _keep_replica(self) -> None:
        """Restart the pipeline whenever it is lost."""
        async for trouble in keep_running(self._replica):
            if trouble is None:
                self._state.restarts += 1
                await self._set_ready(True)
            else:
                logger.warning("%s: %s; restarting", self._config.name, trouble)
                await self._set_ready(False, str(trouble))

    async def _stay_registered(self) -> None:
        """Stay registered at one coordinator as long as it answers, then at the next.

        Raises:
            QubicLabError: a coordinator refuses this node.
        """
        logged: dict[str, str | None] = {}  # each error of a coordinator is a warning once only
        for address in cycle(self._config.coordinators):
            channel = open_member_channel(address)
            try:
                await self._beat_at(stub_of(channel, REGISTRY_SERVICE))
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT):
                    raise error_of(error) from None
                level = logging.INFO if logged.get(address) == error.details() else logging.WARNING
                logger.log(level, "%s: coordinator %s: %s; retrying", self._config.name, address, error.details())
                logged[address] = error.details()
            finally:
                await channel.close()
            await asyncio.sleep(_PAUSE_S)

    async def _look_for_strangers(self) -> None:
        """Tell of coordinators that do not share the node token now: a model takes long to load."""
        for address in self._config.coordinators:
            channel = open_member_channel(address)
            try:
                await stub_of(channel, REGISTRY_SERVICE).Beat(pb.Heartbeat(node=self._config.name), timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    logger.warning("%s: coordinator %s: %s", self._config.name, address, error.details())
            finally:
                await channel.close()

    async def _beat_at(self, registry: Any) -> None:
        """Register, and send heartbeats until the coordinator no longer knows this node; leave when cancelled."""
        registered = await registry.Register(self._registration, timeout=CALL_S)
        who = {"node": self._config.name, "session": registered.session}
        try:
            while True:
                self._changed.clear()
                await registry.Beat(pb.Heartbeat(state=await self._measured(), **who), timeout=CALL_S)
                await wait_at_most(self._changed, registered.beat_every_s or HEARTBEAT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        except asyncio.CancelledError:
            with suppress(grpc.aio.AioRpcError):
                await registry.Leave(pb.LeaveRequest(**who), timeout=CALL_S)
            raise

    async def _measured(self) -> pb.NodeState:
        """Return the state with current measurements."""
        state = self._state
        held = await self._replica.stats() if state.ready else pipeline_pb2.StatsReply()
        state.context_tokens, state.most_context_tokens = held.context_tokens, held.most_context_tokens
        state.ClearField("ranks")
        state.ranks.extend(held.ranks)
        if time.monotonic() >= self._look_s:  # not with each heartbeat that a change brings
            self._look_s = time.monotonic() + HEARTBEAT_S / 2
            state.resident_bytes = resident_bytes()
            state.disk_free_bytes, state.disk_size_bytes = disk_bytes(settings().cache)
            state.certificate_ends_s = certificate_ends_s()
        state.cpu_share, state.memory_share = read_shares()
        state.loads.clear()
        for coordinator, tokens in self._running.values():
            state.loads[coordinator].requests += 1
            state.loads[coordinator].tokens += tokens
        return state

    async def _set_ready(self, ready: bool, trouble: str = "") -> None:
        self._state.ready, self._state.trouble = ready, trouble
        self._changed.set()
        await self._tell_health()

    async def _open_page(self) -> None:
        """Serve `/health` over HTTP, and name its port if others can reach it."""
        address = self._registration.address
        host = health_host(address)
        port = await self._page.start(host, self._config.health_port)
        if address.startswith("unix:") or host == read_host(address):
            self._registration.health_port = port
        logger.info("%s: health at http://%s:%d/health", self._config.name, host, port)

    def _tell_page(self) -> tuple[bool, dict[str, str]]:
        state = "draining" if self._state.draining else "serving" if self._state.ready else "starting"
        return state == "serving", {"status": state, "node": self._config.name}

    async def _tell_health(self) -> None:
        serving = self._state.ready and not self._state.draining
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _together(responses: Sequence[pb.TaskResponse]) -> pb.TaskResponse:
    """Return one message of all of at least one response."""
    first, *more = responses
    first.more.extend(more)
    return first


def reachable(address: str, port: int) -> str:
    """Return the address at which others reach a service that listens at `address`; `port` is its real port.

    Raises:
        InputError: it listens on all interfaces, so others cannot know which address to use.
    """
    if address.startswith("unix:"):
        return address
    host = address.rpartition(":")[0]
    if host in ("0.0.0.0", "[::]"):
        raise InputError(f"{address} is all interfaces: give the address at which others reach this host")
    return f"{host}:{port}"
