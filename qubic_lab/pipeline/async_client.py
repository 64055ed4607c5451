"""The asynchronous client, for servers: one event loop with many requests to a running pipeline."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.core import Completion, Request, StreamedToken
from qubic_lab.errors import DeadlineError, QubicLabError, RankError
from qubic_lab.pipeline.calls import (
    NO_PROGRESS_S,
    SERVICE,
    answer_of,
    as_request,
    generate_message,
    no_model_text,
    token_of,
)
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import TlsFiles, error_of, open_async_channel
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

CONNECT_TIMEOUT_S = 10.0


class AsyncStream:
    """The tokens of one answer as they come; after the last one `completion` holds the whole answer."""

    def __init__(self, pipeline: "AsyncPipeline", request: Request, replies: Any) -> None:
        self._pipeline = pipeline
        self._request = request
        self._replies = replies
        self.completion: Completion | None = None

    async def __aiter__(self) -> AsyncIterator[StreamedToken]:
        try:
            async for reply in self._replies:
                if reply.WhichOneof("event") == "token":
                    yield token_of(reply.token)
                else:
                    self.completion = answer_of(self._request, reply.end).completion
        except grpc.aio.AioRpcError as error:
            raise self._pipeline._error(error) from None

    def cancel(self) -> None:
        """Cancel the answer; its slot is free at the next step."""
        self._replies.cancel()


class AsyncPipeline:
    """A handle of a running pipeline; use it as an asynchronous context manager, or call `close`."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._channel = channel
        self._name = name
        self._stub = stub_of(channel, PIPELINE_SERVICE)

    @classmethod
    async def connect(cls, address: str, tls: TlsFiles | None = None) -> "AsyncPipeline":
        """Connect to a running pipeline; arguments and errors as for Pipeline.connect."""
        pipeline = cls(open_async_channel(address, tls), f"the pipeline at {address}")
        try:
            await asyncio.wait_for(pipeline._channel.channel_ready(), CONNECT_TIMEOUT_S)
        except TimeoutError:
            await pipeline.close()
            raise RankError(f"{pipeline._name} does not answer: check address and TLS files") from None
        try:
            await pipeline._wait_until_loaded(NO_PROGRESS_S)
        except BaseException:
            await pipeline.close()
            raise
        return pipeline

    async def generate(
        self, prompt: str | Request = "", *, id: str = "", deadline_s: float = 0.0, **options: Any
    ) -> Completion:
        """Answer one prompt; arguments and errors as for Pipeline.generate."""
        stream = self._ask(as_request(prompt, options), id, deadline_s, whole=True)
        async for _ in stream:
            pass
        if stream.completion is None:
            raise RankError(f"{self._name} ended an answer early")
        return stream.completion

    def stream(
        self, prompt: str | Request = "", *, id: str = "", deadline_s: float = 0.0, **options: Any
    ) -> AsyncStream:
        """Answer one prompt token by token; arguments and errors as for Pipeline.stream."""
        return self._ask(as_request(prompt, options), id, deadline_s, whole=False)

    async def cancel(self, id: str) -> bool:
        """Cancel a request by its id, whichever client sent it; return whether it was found."""
        try:
            return bool((await self._stub.Cancel(pb.CancelRequest(id=id))).found)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None

    async def close(self) -> None:
        """Close the connection; the pipeline keeps running."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncPipeline":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _ask(self, request: Request, id: str, deadline_s: float, *, whole: bool) -> AsyncStream:
        message = generate_message(request, id, deadline_s, whole=whole)
        return AsyncStream(self, request, self._stub.Generate(message))

    async def _wait_until_loaded(self, seconds: float) -> None:
        watched = health_pb2.HealthCheckRequest(service=SERVICE)
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        states = health.Watch(watched, timeout=seconds)
        try:
            async for state in states:
                if state.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineError(no_model_text(self._name, seconds)) from None
            raise self._error(error) from None
        finally:
            states.cancel()

    def _error(self, error: grpc.aio.AioRpcError) -> QubicLabError:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return RankError(f"{self._name} is gone ({error.details()})")
        return error_of(error)
