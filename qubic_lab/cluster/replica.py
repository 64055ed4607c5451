"""The replica of a node: a pipeline that is started here, used through its service, and restarted when it is lost."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import Any, Protocol

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.cluster.shared_stream import SharedStream
from qubic_lab.errors import QubicLabError, RankError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.channel import open_async_channel, open_channel
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

LOOK_S = 0.1
STATS_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between two tries to restart."""
SPEED_TOKENS = 16
"""New tokens of the answer that measures a pipeline's speed."""
SPEED_PROMPT = "How fast are you?"


class Replica(Protocol):
    """What a node runs."""

    async def start(self) -> pb.Capabilities:
        """Start, or restart after a loss, and return the capabilities; a QubicLabError if it does not start."""

    def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Answer a request; closing the generator frees its slot.

        Raises:
            QubicLabError: as for the pipeline's service; a RankError if the pipeline is lost.
        """

    async def stats(self) -> pipeline_pb2.StatsReply:
        """Return what it holds now; nothing if it does not answer."""

    async def lost(self) -> QubicLabError:
        """Wait until the replica is lost, and return the reason."""

    async def stop(self) -> None:
        """End the replica."""


class Launched(Protocol):
    """A pipeline that was started on this host, or joined."""

    @property
    def address(self) -> str:
        """Address of its service."""

    @property
    def ended(self) -> bool:
        """Whether it has ended."""

    def capabilities(self) -> pb.Capabilities:
        """Return its capabilities without its speed."""

    def loss(self) -> QubicLabError:
        """Return why it has ended."""

    def close(self) -> None:
        """End the pipeline."""


class Joinable(Protocol):
    """A connection to a pipeline that others started."""

    def capabilities(self) -> pb.Capabilities:
        """Return its capabilities without its speed."""

    def close(self) -> None:
        """Close the connection; the pipeline goes on."""


class Joined:
    """A pipeline at an address that others started; it has ended when a watch of its health does."""

    def __init__(self, address: str, connect: Callable[[str], Joinable]) -> None:
        self.address, self.ended = address, False
        self._pipeline = connect(address)
        self._channel = open_channel(address)
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._watch = health.Watch(health_pb2.HealthCheckRequest())  # if nobody held it, it would end
        self._watch.add_callback(self._end)

    def _end(self) -> None:
        self.ended = True

    def capabilities(self) -> pb.Capabilities:
        """Return its capabilities without its speed."""
        return self._pipeline.capabilities()

    def loss(self) -> RankError:
        """Return why it has ended."""
        return RankError(f"the pipeline at {self.address} is gone")

    def close(self) -> None:
        """Close the connections; the pipeline goes on."""
        self._pipeline.close()
        self._channel.close()


class PipelineReplica:
    """A pipeline as the replica of a node; `launch` starts one and blocks until it has loaded its model."""

    def __init__(self, launch: Callable[[], Launched]) -> None:
        self._launch = launch
        self._launched: Launched | None = None
        self._channel: grpc.aio.Channel | None = None
        self._answers: SharedStream | None = None

    async def start(self) -> pb.Capabilities:
        """Start the ranks, and measure the speed of a short answer for the capabilities."""
        await self.stop()
        self._launched = await asyncio.wrap_future(_begin(self._launch))
        self._channel = open_async_channel(self._launched.address)
        self._answers = SharedStream(self._channel)
        capabilities = await asyncio.to_thread(self._launched.capabilities)
        capabilities.tokens_per_s = await self._speed()
        return capabilities

    def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Answer a request; errors as for `Replica.generate`."""
        if self._answers is None:
            raise RankError("the pipeline restarts")
        return self._answers.generate(request)

    async def stats(self) -> pipeline_pb2.StatsReply:
        """Return what the pipeline holds now; nothing if it does not answer."""
        if self._channel is None:
            return pipeline_pb2.StatsReply()
        try:
            stub = stub_of(self._channel, PIPELINE_SERVICE)
            reply: pipeline_pb2.StatsReply = await stub.Stats(pipeline_pb2.StatsRequest(), timeout=STATS_S)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):  # it is lost, or restarts
            return pipeline_pb2.StatsReply()
        return reply

    async def lost(self) -> QubicLabError:
        """Wait until the ranks are gone, and return the error that names the first one lost."""
        assert self._launched is not None
        while not self._launched.ended:
            await asyncio.sleep(LOOK_S)
        return await asyncio.to_thread(self._launched.loss)

    async def stop(self) -> None:
        """Close the connection and end the ranks."""
        if self._answers is not None:
            await self._answers.close()
        if self._channel is not None:
            await self._channel.close()
        if self._launched is not None:
            await asyncio.to_thread(self._launched.close)
        self._answers = self._channel = self._launched = None

    async def _speed(self) -> float:
        """Return the tokens/s of a short answer."""
        sampling = pipeline_pb2.Sampling(max_new_tokens=SPEED_TOKENS, top_p=1.0, ignore_eos=True)
        request = pipeline_pb2.GenerateRequest(prompt=SPEED_PROMPT, sampling=sampling, whole=True)
        speed = 0.0
        async for reply in self.generate(request):
            speed = reply.end.tokens_per_s
        return speed


async def keep_running(replica: Replica) -> AsyncGenerator[QubicLabError | None, None]:
    """Restart a replica whenever it is lost; yield why it does not run, at each try, and None when it runs again."""
    while True:
        yield await replica.lost()
        pause_s, running = FIRST_PAUSE_S, False
        while not running:
            try:
                await replica.start()
                running = True
            except QubicLabError as error:
                yield error
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        yield None


def _begin(launch: Callable[[], Launched]) -> "Future[Launched]":
    """Launch in a thread that does not keep the process: the end of a node need not wait until its model is loaded."""
    launched: Future[Launched] = Future()
    launched.set_running_or_notify_cancel()

    def run() -> None:
        try:
            launched.set_result(launch())
        except BaseException as error:  # the waiting loop raises it
            launched.set_exception(error)

    threading.Thread(target=run, name="launch", daemon=True).start()
    return launched
