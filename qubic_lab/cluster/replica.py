"""What a node runs: a pipeline, started here, spoken to through its service, and started again when it is lost."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from qubic_lab.errors import QubicLabError, RankError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2, pipeline_pb2_grpc
from qubic_lab.wire.channel import error_of, open_async_channel

LOOK_S = 0.1
SPEED_TOKENS = 16
"""New tokens of the answer that tells a pipeline's speed."""
SPEED_PROMPT = "How fast are you?"


class Replica(Protocol):
    """What a node runs; a test may put something else in its place."""

    async def start(self) -> pb.Capabilities:
        """Come up, again after a loss, and tell what it can do.

        Raises:
            QubicLabError: it does not come up.
        """

    def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Answer a request; its slot is free when the generator is closed.

        Raises:
            QubicLabError: as the pipeline's service; a RankError where it is lost.
        """

    async def lost(self) -> QubicLabError:
        """Return when it is lost, with the reason."""

    async def stop(self) -> None:
        """End it; nothing stays behind."""


class Launched(Protocol):
    """A pipeline that was started here; whoever wires a node makes it."""

    @property
    def address(self) -> str:
        """Where its service listens."""

    @property
    def ended(self) -> bool:
        """Whether it is gone."""

    def capabilities(self) -> pb.Capabilities:
        """Return what it can do, but for its speed."""

    def loss(self) -> QubicLabError:
        """Return why it is gone; to be asked when it is."""

    def close(self) -> None:
        """End it."""


class PipelineReplica:
    """A pipeline as a node runs it; `launch` starts one and blocks until it has loaded its model."""

    def __init__(self, launch: Callable[[], Launched]) -> None:
        self._launch = launch
        self._launched: Launched | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def start(self) -> pb.Capabilities:
        """Start the ranks, and let them answer a short question: its speed is what the node tells of itself."""
        await self.stop()
        self._launched = await asyncio.to_thread(self._launch)
        self._channel = open_async_channel(self._launched.address)
        self._stub = pipeline_pb2_grpc.PipelineStub(self._channel)
        capabilities = await asyncio.to_thread(self._launched.capabilities)
        capabilities.tokens_per_s = await self._speed()
        return capabilities

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Answer a request; errors as of `Replica.generate`."""
        call = self._stub.Generate(request)
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise RankError("the pipeline was lost in mid-answer") from None
            raise error_of(error) from None
        finally:
            call.cancel()

    async def lost(self) -> QubicLabError:
        """Return when the ranks are gone, with the one that went first."""
        assert self._launched is not None
        while not self._launched.ended:
            await asyncio.sleep(LOOK_S)
        return await asyncio.to_thread(self._launched.loss)

    async def stop(self) -> None:
        """Hang up and end the ranks."""
        if self._channel is not None:
            await self._channel.close()
        if self._launched is not None:
            await asyncio.to_thread(self._launched.close)
        self._channel = self._launched = None

    async def _speed(self) -> float:
        """Return the new tokens of one short answer a second."""
        sampling = pipeline_pb2.Sampling(max_new_tokens=SPEED_TOKENS, top_p=1.0, ignore_eos=True)
        request = pipeline_pb2.GenerateRequest(prompt=SPEED_PROMPT, sampling=sampling)
        speed = 0.0
        async for reply in self.generate(request):
            if reply.WhichOneof("event") == "end":
                speed = reply.end.tokens_per_s
        return speed
