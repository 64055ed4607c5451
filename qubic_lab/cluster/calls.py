"""Calls from coordinators to nodes: connections, requests, tokens, and the meaning of failures."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Container, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from qubic_lab.core import ScoredToken, StreamedToken, TopToken
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.wire import cluster_pb2, pipeline_pb2
from qubic_lab.wire.members import node_token, open_member_channel
from qubic_lab.wire.services import NODE_SERVICE, stub_of

CONNECT_S = 3.0
CHARACTERS_A_TOKEN = 4
"""Rough value for English text, to estimate the tokens of a prompt without a tokenizer."""
NODE = "node"
"""Key of a task's payload for the only node that may answer it."""
BODY = "body"
"""Key of a task's payload for the digest of what the request was made of."""
PROMPT = "prompt_scores"
"""Key of a result for the scored tokens of its prompt."""
Item = TypeVar("Item")


class Failure(Enum):
    """What a failed call means."""

    UNREACHABLE = "nothing was asked: the node does not answer"
    BUSY = "nothing was started: the node takes no requests now"
    TASK = "the task itself is at fault"
    LOST = "the replica was lost"
    TRY = "this try failed"


NOT_BEGUN = (Failure.UNREACHABLE, Failure.BUSY)
"""Failures after which another node may be asked as if this one had not been."""
_FAILURES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Failure.BUSY,
    grpc.StatusCode.INVALID_ARGUMENT: Failure.TASK,
    grpc.StatusCode.OUT_OF_RANGE: Failure.TASK,
    grpc.StatusCode.UNAVAILABLE: Failure.LOST,
    grpc.StatusCode.ABORTED: Failure.LOST,
    grpc.StatusCode.CANCELLED: Failure.LOST,  # by a node that is ending
}


def failure_of(code: grpc.StatusCode) -> Failure:
    """Return the meaning of the status of a call that was sent over an established connection.

    A connection that breaks before the first answer may have broken because of the call, so only the node itself can
    say that it did not start.
    """
    return _FAILURES.get(code, Failure.TRY)


def payload_of(request: pipeline_pb2.GenerateRequest, node: str = "", body: str = "") -> dict[str, Any]:
    """Return a request in the queue's form; with `node` only that node may answer it; `body` as BODY."""
    content: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return content | {name: value for name, value in ((NODE, node), (BODY, body)) if value}


def node_of(payload: dict[str, Any]) -> str:
    """Return the only node that may answer a task, or an empty name if any node may."""
    return str(payload.get(NODE, ""))


def is_bound(payload: dict[str, Any]) -> bool:
    """Return whether only some nodes may answer a task: one, or those with its model."""
    return bool(node_of(payload) or payload.get("model"))


def request_of(payload: dict[str, Any], items: Sequence[dict[str, Any]]) -> pipeline_pb2.GenerateRequest:
    """Return the request of a task, which continues after the tokens of earlier tries.

    Requests for several samples start again from the beginning, so only whole answers are asked for.

    Raises:
        InputError: the payload was not made by `payload_of`.
    """
    try:
        content = {name: value for name, value in payload.items() if name not in (NODE, BODY)}
        request = ParseDict(content, pipeline_pb2.GenerateRequest())
    except ParseError as error:
        raise InputError(f"the task has no valid request ({error})") from error
    request.whole = request.samples > 1
    if not request.whole:
        request.forced_token_ids.extend(item["id"] for item in items)
    return request


def item_of(token: pipeline_pb2.Token) -> dict[str, Any]:
    """Return a token in the form of progress: id, text and, if requested, log-probabilities.

    Bytes have a character each (Latin-1); `raw` is left out if it is the text, or empty.
    """
    item: dict[str, Any] = {"id": token.id, "text": token.text}
    if token.raw not in (b"", token.text.encode()):
        item["raw"] = token.raw.decode("latin-1")
    if token.HasField("logprob"):
        item |= _logprobs_of(token)
    return item


def token_of(item: dict[str, Any]) -> StreamedToken:
    """Return a token from its form of progress."""
    raw = item["raw"].encode("latin-1") if "raw" in item else item["text"].encode()
    return StreamedToken(item["id"], item["text"], item.get("logprob"), _top_of(item), raw)


def packed_scores(end: pipeline_pb2.End) -> str:
    """Return the scored tokens of a prompt in the form of a result: as a message, in base64."""
    return base64.b64encode(pipeline_pb2.End(prompt=end.prompt).SerializeToString()).decode()


def scored_tokens_of(packed: str) -> tuple[ScoredToken, ...]:
    """Return the scored tokens of a prompt from the form of a result; an empty one has none."""
    return tuple(
        ScoredToken(
            token.id,
            token.raw,
            token.logprob if token.HasField("logprob") else None,
            tuple(TopToken(top.id, top.logprob, top.raw) for top in token.top),
        )
        for token in pipeline_pb2.End.FromString(base64.b64decode(packed)).prompt
    )


def _logprobs_of(token: pipeline_pb2.Token) -> dict[str, Any]:
    """Return log-probabilities: the token's, and ids with those of the likeliest; their bytes come beside them."""
    return {
        "logprob": token.logprob,
        "top_logprobs": [[top.id, top.logprob] for top in token.top],
        "top_raw": [top.raw.decode("latin-1") for top in token.top],
    }


def _top_of(item: dict[str, Any]) -> tuple[TopToken, ...]:
    pairs = zip(item.get("top_logprobs", ()), item.get("top_raw", ()), strict=True)
    return tuple(TopToken(id, logprob, raw.encode("latin-1")) for (id, logprob), raw in pairs)


def most_tokens(request: pipeline_pb2.GenerateRequest) -> int:
    """Return an upper estimate of a request's tokens: all new tokens, and the prompt's by its length."""
    characters = len(request.prompt) + sum(len(message.content) for message in request.messages)
    prompt = len(request.token_ids) or characters // CHARACTERS_A_TOKEN
    answers = max(1, request.samples) * request.sampling.max_new_tokens
    return prompt + answers


async def with_pauses(items: AsyncGenerator[Item, None], pause_s: float) -> AsyncGenerator[list[Item], None]:
    """Yield items as they come, in a list those that come together; after `pause_s` seconds without one an empty list.

    `items` are closed at the end.
    """
    loop, found, news = asyncio.get_running_loop(), list[Item](), asyncio.Event()

    async def read() -> None:  # in one task: one for each item would cost more than the rest
        async for item in items:
            found.append(item)
            news.set()

    reading = asyncio.ensure_future(read())
    reading.add_done_callback(lambda _: news.set())
    try:
        while not (reading.done() and not found):
            news.clear()
            if not (found or reading.done()):
                timer = loop.call_later(pause_s, news.set)
                try:
                    await news.wait()
                finally:
                    timer.cancel()
                if not (found or reading.done()):
                    yield []
            while found:
                together = [*found]
                found.clear()
                yield together
        reading.result()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await items.aclose()


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event for a limited time.

    `asyncio.wait_for` is not used because before Python 3.12 it loses a cancellation that comes together with the
    event.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Channels:
    """Connections to nodes by address; each is opened when it is first needed, and reopened when it has broken.

    With a node token nothing is asked over a connection before the node has proved it.
    """

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._proved: set[grpc.aio.Channel] = set()

    async def ready(self, address: str) -> grpc.aio.Channel:
        """Return an established connection, so that a failed call over it may have reached the node.

        The caller holds it while the call runs.

        Raises:
            QubicLabError: nothing answers at the address, or it is no node of this cluster.
            InputError: as for `open_member_channel`.
        """
        if address not in self._channels:
            self._channels[address] = open_member_channel(address)
        channel = self._channels[address]
        try:
            async with asyncio.timeout(CONNECT_S):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    self._proved.discard(channel)
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise TimeoutError
                    await channel.wait_for_state_change(state)
                if channel not in self._proved and node_token() is not None:
                    await stub_of(channel, NODE_SERVICE).Echo(cluster_pb2.Payload())
                    self._proved.add(channel)
        except grpc.aio.AioRpcError as error:
            raise QubicLabError(str(error.details())) from None
        except TimeoutError:
            # gRPC would wait longer and longer before the next try, and would keep using its first certificates.
            if self._channels.get(address) is channel:
                del self._channels[address]
            raise QubicLabError(f"nothing answers at {address}") from None
        return channel

    def keep(self, addresses: Container[str]) -> None:
        """Drop all other connections; each closes when its last call has ended."""
        self._channels = {address: channel for address, channel in self._channels.items() if address in addresses}
        self._proved.intersection_update(self._channels.values())

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            await channel.close()
