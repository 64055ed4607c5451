"""A node: it keeps one replica up, answers coordinators, and says every few seconds that it lives and how it is.

It outlives its pipeline: when a rank is lost it starts the whole group again, and is not ready meanwhile. It holds no
credentials of Redis; what it knows of the cluster is the addresses of coordinators.
"""

import asyncio
import logging
import signal
import socket
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health

from qubic_lab.cluster.calls import most_tokens, wait_at_most, with_pauses
from qubic_lab.cluster.links import measure_links
from qubic_lab.cluster.registry import HEARTBEAT_S, check_registration
from qubic_lab.cluster.replica import Replica
from qubic_lab.cluster.vitals import read_shares
from qubic_lab.errors import InputError, QubicLabError, check_at_least
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc, pipeline_pb2
from qubic_lab.wire.channel import SERVER_OPTIONS, error_of, listen, open_async_channel, status_of

SERVICE = "qubic_lab.cluster.v1.Node"
"""The node's name to the health service: SERVING while its pipeline is up and it is not draining."""
SIGN_OF_LIFE_S = 1.0
"""So often does a task that has no new token show that it is worked on."""
CALL_S = 5.0
DRAIN_S = 60.0
"""So long may what has begun go on when the node is told to end."""
STOP_S = 1.0
"""So long may the last answers take on their way out."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeConfig:
    """Who a node is and whom it serves.

    Attributes:
        name: unlike that of any other; with certificates it ends with a name that stands in this host's.
        coordinators: addresses of the coordinators' registry service; one that answers is enough.
        listen: where coordinators and other nodes reach this one, as `HOST:PORT` or `unix:PATH`; port 0 takes any.
        type: whole, stage or expert.
        weight: its share in weighted round robin.

    Raises:
        InputError: no coordinator, or a weight below 1.
    """

    name: str
    coordinators: tuple[str, ...]
    listen: str = "127.0.0.1:0"
    type: str = "whole"
    weight: int = 1

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 1)
        if not self.coordinators:
            raise InputError("no coordinator is given: a node needs the address of one at least")


class Node(cluster_pb2_grpc.NodeServicer):
    """A node; `run` is all of its life, and `end` the begin of its end."""

    def __init__(self, config: NodeConfig, replica: Replica) -> None:
        self._config = config
        self._replica = replica
        self._registration = pb.NodeRegistration(node=config.name, type=config.type, weight=config.weight)
        self._state = pb.NodeState()
        self._under_way: dict[object, tuple[str, int]] = {}  # of each task who sent it, and its tokens at most
        self._changed = asyncio.Event()  # the next heartbeat is due at once
        self._ending = asyncio.Event()
        self._health = aio_health.HealthServicer()

    def end(self) -> None:
        """Let `run` end: take nothing new, end what has begun, leave."""
        self._ending.set()

    async def run(self) -> None:
        """Serve until `end`, SIGTERM or SIGINT; then end what has begun, leave, and end the replica.

        Raises:
            InputError: the address cannot be used, or the model cannot be had.
            QubicLabError: the replica does not come up at its first start, or a coordinator refuses this node.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.end)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        cluster_pb2_grpc.add_NodeServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._registration.address = reachable(self._config.listen, listen(server, self._config.listen))
        await self._set_ready(False)
        await server.start()
        try:
            self._registration.capabilities.CopyFrom(await self._replica.start())
            check_registration(self._registration)
            await self._set_ready(True)
            await self._live()
        finally:
            await self._replica.stop()
            await server.stop(STOP_S)

    async def Run(self, request: pb.TaskRequest, context: Any) -> None:
        """Work on a task: say at once that it has begun, pass on the pipeline's replies, and tell how long it took."""
        if not self._state.ready or self._state.draining:
            why = "draining" if self._state.draining else "not ready"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"it takes nothing now: it is {why}")
        started, finished, this = time.perf_counter(), False, object()
        self._under_way[this] = request.coordinator, most_tokens(request.request)
        try:
            await self._work(request.request, context)
            finished = True
            await context.write(pb.TaskResponse(done=pb.Done(node_ms=(time.perf_counter() - started) * 1_000)))
        except QubicLabError as error:
            await context.abort(status_of(error), str(error))
        finally:
            del self._under_way[this]
            self._state.finished += finished
            self._state.failed += not finished

    async def Echo(self, request: pb.Payload, context: Any) -> pb.Payload:
        """Send the payload back."""
        return request

    async def MeasureLinks(self, request: pb.LinksRequest, context: Any) -> pb.LinksReply:
        """Measure the ways to other nodes, one after the other."""
        return pb.LinksReply(links=await measure_links(request.addresses))

    async def _work(self, request: pipeline_pb2.GenerateRequest, context: Any) -> None:
        """Pass on the pipeline's replies, and signs of life between them; its errors are raised."""
        await context.write(pb.TaskResponse(alive=pb.SignOfLife()))
        async with aclosing(with_pauses(self._replica.generate(request), SIGN_OF_LIFE_S)) as replies:
            async for reply in replies:
                if reply is None:
                    await context.write(pb.TaskResponse(alive=pb.SignOfLife()))
                else:
                    self._state.tokens += reply.WhichOneof("event") == "token"
                    await context.write(pb.TaskResponse(reply=reply))

    async def _live(self) -> None:
        """Keep the replica up and the node registered until it is told to end; a refused node ends, too."""
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
        """Take nothing new, and wait for what has begun."""
        self._state.draining = True
        self._changed.set()
        await self._tell_health()
        deadline = time.monotonic() + DRAIN_S
        while self._under_way and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _keep_replica(self) -> None:
        """Start the group again whenever it is lost."""
        pause_s = _FIRST_PAUSE_S
        while True:
            loss = await self._replica.lost()
            logger.warning("%s: %s; starting again", self._config.name, loss)
            await self._set_ready(False, str(loss))
            while not self._state.ready:
                try:
                    await self._replica.start()
                except QubicLabError as error:
                    logger.warning("%s: %s; again in %g s", self._config.name, error, pause_s)
                    self._state.trouble = str(error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                else:
                    pause_s = _FIRST_PAUSE_S
                    self._state.restarts += 1
                    await self._set_ready(True)

    async def _stay_registered(self) -> None:
        """Be registered at one coordinator after the other, as long as each answers.

        Raises:
            QubicLabError: a coordinator refuses this node.
        """
        told: dict[str, str | None] = {}  # what is wrong with each is said once, not at each try
        for address in cycle(self._config.coordinators):
            channel = open_async_channel(address)
            try:
                await self._beat_at(cluster_pb2_grpc.RegistryStub(channel))
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT):
                    raise error_of(error) from None
                level = logging.INFO if told.get(address) == error.details() else logging.WARNING
                logger.log(level, "%s: coordinator %s: %s; trying on", self._config.name, address, error.details())
                told[address] = error.details()
            finally:
                await channel.close()
            await asyncio.sleep(_FIRST_PAUSE_S)

    async def _beat_at(self, registry: Any) -> None:
        """Register, and send heartbeats until this node is unknown there; when it is told to end, leave."""
        registered = await registry.Register(self._registration, timeout=CALL_S)
        who = {"node": self._config.name, "session": registered.session}
        try:
            while True:
                self._changed.clear()
                await registry.Beat(pb.Heartbeat(state=self._measured(), **who), timeout=CALL_S)
                await wait_at_most(self._changed, registered.beat_every_s or HEARTBEAT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        except asyncio.CancelledError:
            with suppress(grpc.aio.AioRpcError):
                await registry.Leave(pb.LeaveRequest(**who), timeout=CALL_S)
            raise

    def _measured(self) -> pb.NodeState:
        """Return its state with what can be measured now."""
        state = self._state
        state.cpu_share, state.memory_share = read_shares()
        state.loads.clear()
        for coordinator, tokens in self._under_way.values():
            state.loads[coordinator].requests += 1
            state.loads[coordinator].tokens += tokens
        return state

    async def _set_ready(self, ready: bool, trouble: str = "") -> None:
        self._state.ready, self._state.trouble = ready, trouble
        self._changed.set()
        await self._tell_health()

    async def _tell_health(self) -> None:
        serving = self._state.ready and not self._state.draining
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)


def reachable(address: str, port: int) -> str:
    """Return where others reach a service that listens at `address`; `port` is what it got for port 0.

    Raises:
        InputError: it listens on every interface, which is no address to reach it by.
    """
    if address.startswith("unix:"):
        return address
    host = address.rpartition(":")[0]
    if host in ("0.0.0.0", "[::]"):
        raise InputError(f"{address} is every interface: give the address that others reach this host by")
    return f"{host}:{port}"


def default_name() -> str:
    """Return this host's name."""
    return socket.gethostname()
