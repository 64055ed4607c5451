"""The answers of a pipeline to one process, all over one stream: a message has the tokens of all requests of a step."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from qubic_lab import tracing
from qubic_lab.errors import BusyError, QubicLabError, RankError
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import error_of, error_of_number
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

MOST_OPEN = 224
"""Answers that run, wait, or are not read to their end: what is not read yet is kept here."""
CLOSE_S = 1.0
LOST = "the pipeline was lost during the answer"

_Arriving = asyncio.Queue[pb.GenerateReply | QubicLabError]


class SharedStream:
    """Asks a pipeline over a channel; the stream is opened with the first request, and again after a loss."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = stub_of(channel, PIPELINE_SERVICE)
        self._stream: _Stream | None = None
        self._leaving: set[asyncio.Future[None]] = set()

    async def generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateReply, None]:
        """Answer a request; closing the generator frees its slot.

        Raises:
            QubicLabError: as for the pipeline's service; a RankError if the pipeline is lost.
        """
        if self._stream is None or self._stream.error is not None:
            self._stream = _Stream(self._stub)
        stream = self._stream
        number, arriving = stream.add()
        submitting: asyncio.Future[Any] | None = None
        missing = max(1, request.samples)
        try:
            await stream.opened.wait()
            if stream.error is None:
                submission = pb.Submission(listener=stream.name, call=number, request=request)
                submitting = asyncio.ensure_future(_submit(self._stub, submission))
                await asyncio.shield(submitting)
            while missing:
                reply = await arriving.get()
                if isinstance(reply, QubicLabError):
                    missing = 0
                    raise reply
                missing -= reply.WhichOneof("event") == "end"
                yield reply
        finally:
            del stream.arriving[number]
            if missing and submitting is not None:
                leaving = asyncio.ensure_future(self._leave(stream, number, submitting))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """End the stream and all requests; the channel is the caller's."""
        if self._stream is not None:
            await self._stream.close()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _leave(self, stream: "_Stream", number: int, submitting: "asyncio.Future[Any]") -> None:
        """Cancel a request, also one that is just being submitted."""
        await asyncio.wait({submitting})
        if submitting.cancelled() or submitting.exception() is not None or stream.error is not None:
            return
        try:
            await self._stub.Cancel(pb.CancelRequest(listener=stream.name, call=number))
        except grpc.aio.AioRpcError as error:
            stream.end(_error_of(error))  # which ends all of it


class _Stream:
    """One call of Listen, and what comes over it."""

    def __init__(self, stub: Any) -> None:
        self.name = secrets.token_hex(16)
        self.opened = asyncio.Event()
        self.error: QubicLabError | None = None
        self.arriving: dict[int, _Arriving] = {}
        self._stub = stub
        self._numbers = itertools.count()
        self._heard = stub.Listen(pb.ListenRequest(listener=self.name))
        self._reading = asyncio.ensure_future(self._read())

    def add(self) -> tuple[int, _Arriving]:
        """Return the number of a new request, and where its replies come; a BusyError if there are too many."""
        if len(self.arriving) >= MOST_OPEN:
            raise BusyError(f"{MOST_OPEN} answers run, wait, or are not read to their end: try again later")
        number = next(self._numbers)
        arriving = self.arriving[number] = _Arriving()
        return number, arriving

    def end(self, error: QubicLabError) -> None:
        """End all requests with an error."""
        self.error = self.error or error
        for arriving in self.arriving.values():
            arriving.put_nowait(self.error)
        self.opened.set()

    async def close(self) -> None:
        """End the call, and all requests."""
        self.end(RankError(LOST))
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        with suppress(grpc.aio.AioRpcError):  # after a round trip nothing of the call is under way in gRPC's own thread
            await self._stub.Stats(pb.StatsRequest(), timeout=CLOSE_S)

    async def _read(self) -> None:
        error: QubicLabError = RankError(LOST)
        try:
            async for heard in self._heard:
                self.opened.set()
                for part in heard.parts:
                    arriving = self.arriving.get(part.call)
                    if arriving is None:  # its client has gone
                        continue
                    is_reply = part.WhichOneof("what") == "reply"
                    failure = part.failure
                    arriving.put_nowait(part.reply if is_reply else error_of_number(failure.status, failure.text))
        except grpc.aio.AioRpcError as found:
            error = _error_of(found)
        finally:
            self._heard.cancel()
            self.end(error)


async def _submit(stub: Any, submission: pb.Submission) -> None:
    try:
        await stub.Submit(submission, metadata=tracing.metadata())
    except grpc.aio.AioRpcError as error:
        raise _error_of(error) from None


def _error_of(error: grpc.aio.AioRpcError) -> QubicLabError:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return RankError(LOST)
    return error_of(error)
