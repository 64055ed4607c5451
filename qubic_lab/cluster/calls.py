"""What coordinators and nodes make of a task's call: its request, its tokens, and what its failure says."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from qubic_lab.errors import InputError
from qubic_lab.wire import pipeline_pb2

CHARACTERS_A_TOKEN = 4
"""Of English text, roughly: what a prompt takes is estimated before any tokenizer has seen it."""
NODE = "node"
"""Where a task's payload names the only node that may answer it."""
Item = TypeVar("Item")


class Failure(Enum):
    """What a failed call says."""

    UNREACHABLE = "nothing was asked: the node does not answer"
    BUSY = "nothing was begun: the node takes nothing now"
    TASK = "the task itself is at fault"
    LOST = "the replica was lost"
    TRY = "this try failed"


NOT_BEGUN = (Failure.UNREACHABLE, Failure.BUSY)
"""Another node may be asked, as if this one had not been."""
_FAILURES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Failure.BUSY,
    grpc.StatusCode.INVALID_ARGUMENT: Failure.TASK,
    grpc.StatusCode.UNAVAILABLE: Failure.LOST,
    grpc.StatusCode.ABORTED: Failure.LOST,
    grpc.StatusCode.CANCELLED: Failure.LOST,  # by the node, which ends
}


def failure_of(code: grpc.StatusCode) -> Failure:
    """Return what the status of a call says that was sent over a standing connection.

    A connection that breaks before the first answer may have broken because of it: that the node did not begin is
    certain only where it says so.
    """
    return _FAILURES.get(code, Failure.TRY)


def payload_of(request: pipeline_pb2.GenerateRequest, node: str = "") -> dict[str, Any]:
    """Return a request as the queue keeps it; with `node` no other one may answer it."""
    content: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return content | {NODE: node} if node else content


def node_of(payload: dict[str, Any]) -> str:
    """Return the only node that may answer a task, or an empty name where any may."""
    return str(payload.get(NODE, ""))


def request_of(payload: dict[str, Any], items: Sequence[dict[str, Any]]) -> pipeline_pb2.GenerateRequest:
    """Return the request of a task, to go on after the tokens that earlier tries have given.

    Of several samples each is given as a whole, and a second try begins all of them anew.

    Raises:
        InputError: the payload is none that `payload_of` made.
    """
    try:
        content = {name: value for name, value in payload.items() if name != NODE}
        request = ParseDict(content, pipeline_pb2.GenerateRequest())
    except ParseError as error:
        raise InputError(f"the task holds no request ({error})") from error
    if request.samples <= 1:
        request.forced_token_ids.extend(item["id"] for item in items)
    return request


def item_of(token: pipeline_pb2.Token) -> dict[str, Any]:
    """Return a token as progress keeps it: id, text and, if they were asked for, log-probabilities."""
    item: dict[str, Any] = {"id": token.id, "text": token.text}
    if token.HasField("logprob"):
        item["logprob"] = token.logprob
        item["top_logprobs"] = [[top.id, top.logprob] for top in token.top]
    return item


def most_tokens(request: pipeline_pb2.GenerateRequest) -> int:
    """Return how many tokens a request may take: new ones at most, and a prompt's by its length."""
    prompt = len(request.token_ids) or len(request.prompt) // CHARACTERS_A_TOKEN
    answers = max(1, request.samples) * request.sampling.max_new_tokens
    return prompt + answers


async def with_pauses(items: AsyncGenerator[Item, None], pause_s: float) -> AsyncGenerator[Item | None, None]:
    """Yield items as they come, and None whenever none has come for `pause_s` seconds; close `items` at the end."""
    following: asyncio.Future[Item] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait({following}, timeout=pause_s)
            if not done:
                yield None
                continue
            item, following = following, None
            try:
                yield item.result()
            except StopAsyncIteration:
                return
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await items.aclose()


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not for longer.

    Not by `asyncio.wait_for`: before Python 3.12 that forgets a cancellation which comes together with the event.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
