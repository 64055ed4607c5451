"""Turns a task's progress into a response, whole or as events; a client that disconnects ends the work."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Header, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qubic_lab.api.problems import problem_of
from qubic_lab.api.schemas import QueryResponse, Token
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.tasks import TaskOutcome
from qubic_lab.errors import ContextError, DeadlineError, InputError, QubicLabError, RankError, RequestCancelled

MOST_KEY_CHARACTERS = 200
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=MOST_KEY_CHARACTERS,
        json_schema_extra={"pattern": "^[!-~]([ -~]*[!-~])?$"},  # what HTTP carries unchanged
        description="on a coordinator the same request with the same key gets the first one's answer",
    ),
]
HangUp = Annotated[
    Literal["cancel"] | None,
    Header(
        description="cancel: with an Idempotency-Key the work also ends when the client hangs up, if it does not ask "
        "again at this coordinator soon"
    ),
]
T = TypeVar("T")
Event = tuple[str, int, dict[str, Any]]
"""Name (token or end), number and data."""

logger = logging.getLogger(__name__)


def key_of(key: str | None, client: str) -> str | None:
    """Return a client's key for the queue; different clients may use the same key."""
    return f"{client}:{key}" if client and key is not None else key


async def until_done(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of some work; cancel it if the client disconnects or this is cancelled.

    Raises:
        RequestCancelled: the client disconnected.
    """
    working = asyncio.ensure_future(work)
    disconnecting = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestCancelled("the client disconnected")
    finally:
        for each in (working, disconnecting):
            each.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":  # the body has been read already
        pass


async def first_of(parts: AsyncGenerator[T, None]) -> T:
    """Return the first part of an answer, so that what fails before it gets its status: then the parts are closed."""
    try:
        return await anext(parts)
    except BaseException:
        await parts.aclose()
        raise


async def read_answer(
    coordinator: Coordinator,
    task_id: str,
    started_s: float,
    deadline_s: float,
    *,
    leave: Callable[[], Awaitable[None]] | None = None,
    is_auto: bool = False,
) -> QueryResponse:
    """Wait for a task's whole answer to a request that arrived at `started_s`, by `time.perf_counter`.

    After the deadline (from now) or a cancellation the task is left as `leave` does, by default cancelled.

    Raises:
        DeadlineError: there is no answer by the deadline.
        InputError: the task itself is at fault.
        RequestCancelled: the task was cancelled.
        RankError: every attempt was lost.
    """
    items: list[dict[str, Any]] = []
    outcome: TaskOutcome | None = None
    try:
        async with asyncio.timeout(deadline_s), aclosing(coordinator.follow(task_id, whole=True)) as followed:
            async for progress in followed:
                items += progress.items
                outcome = progress.outcome
    except (TimeoutError, asyncio.CancelledError) as error:
        await (leave() if leave else cancel_task(coordinator, task_id))
        if isinstance(error, TimeoutError):
            raise _too_late(deadline_s) from None
        raise
    assert outcome is not None  # `follow` goes on until there is one
    answer = _answer_of(outcome, items, started_s)
    count_answer(coordinator, "single", is_auto, answer.total_ms / 1_000, len(answer.token_ids))
    return answer


async def read_events(
    coordinator: Coordinator, task_id: str, started_s: float, after: int = 0
) -> AsyncGenerator[Event, None]:
    """Yield a task's tokens after the first `after` as they arrive, then its end; errors as `read_answer`."""
    items: list[dict[str, Any]] = []
    async with aclosing(coordinator.follow(task_id)) as followed:
        async for progress in followed:
            for item in progress.items:
                items.append(item)
                if len(items) > after:
                    token = Token(index=len(items) - 1, **item)
                    yield "token", len(items), token.model_dump(exclude_defaults=True)
            if progress.outcome is not None:
                answer = _answer_of(progress.outcome, items, started_s)
                count_answer(coordinator, "single", False, answer.total_ms / 1_000, len(answer.token_ids))
                yield "end", len(items), answer.model_dump(exclude_none=True)


def count_answer(coordinator: Coordinator, mode: str, is_auto: bool, seconds: float, tokens: int) -> None:
    """Add an answer to the sums of its mode; it is `is_auto` if the load decided on the mode."""
    for name, value in {"votes": 1, "auto": is_auto, "seconds": seconds, "tokens": tokens}.items():
        coordinator.answers[f"{mode} {name}"] += value


_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "description": "what it is: the description of the route names the kinds"},
        "id": {"type": "string", "description": "its number, from 1 on; a client shows the last one as Last-Event-ID"},
        "data": {"type": "string", "description": "a JSON object"},
    },
    "required": ["event", "data"],
}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
"""The description of an answer as server-sent events in OpenAPI."""


class EventStream(StreamingResponse):
    """Server-sent events; `end` is awaited after the response, even if nobody has read it."""

    def __init__(self, lines: AsyncGenerator[str, None], end: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._lines, self._end = lines, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._lines.aclose()
            finally:
                if self._end is not None:
                    await asyncio.shield(self._end())


async def as_lines(events: AsyncGenerator[Event, None], deadline_s: float) -> AsyncGenerator[str, None]:
    """Yield events, which have `deadline_s` from now, as lines of server-sent events; an error becomes the last one."""
    deadline = asyncio.get_running_loop().time() + deadline_s
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline):  # only for the event: a slow reader is not our error
                    name, number, data = await anext(events)
            except StopAsyncIteration:
                return
            except (TimeoutError, QubicLabError) as error:
                shown = _too_late(deadline_s) if isinstance(error, TimeoutError) else error
                yield f"event: error\ndata: {bytes(problem_of(shown).body).decode()}\n\n"
                return
            yield f"event: {name}\nid: {number}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def leave_task(coordinator: Coordinator, task_id: str, asker: str, has_key: bool, hang_up: str | None) -> None:
    """Let a task end that its client has left: at once without a key, and with one only if the client wants that."""
    if not has_key:
        await cancel_task(coordinator, task_id)
    elif hang_up:
        coordinator.leave(task_id, asker)


async def cancel_task(coordinator: Coordinator, task_id: str) -> None:
    """Cancel a task that no client can ask for again; a task that has ended stays as it is."""
    try:
        await coordinator.cancel(task_id)
    except QubicLabError as error:
        logger.info("task %s is not cancelled: %s", task_id, error)


def _too_late(deadline_s: float) -> DeadlineError:
    return DeadlineError(f"the answer took longer than its deadline of {deadline_s:g} s")


def _answer_of(outcome: TaskOutcome, items: list[dict[str, Any]], started_s: float) -> QueryResponse:
    logprobs = [item["logprob"] for item in items if "logprob" in item]
    return QueryResponse(
        task_id=outcome.task_id,
        token_ids=[item["id"] for item in items],
        logprobs=logprobs or None,
        attempts=outcome.attempts,
        total_ms=(time.perf_counter() - started_s) * 1_000,
        **result_of(outcome),
    )


def result_of(outcome: TaskOutcome) -> dict[str, Any]:
    """Return the result of a task; errors as for `read_answer`."""
    match outcome.state:
        case "completed":
            assert outcome.result is not None
            return outcome.result
        case "failed":
            raise (ContextError if outcome.code == ContextError.code else InputError)(outcome.why)
        case "cancelled":
            raise RequestCancelled("the request was cancelled")
        case _:
            where = f"/api/cluster/tasks/{outcome.task_id}"
            raise RankError(f"all {outcome.attempts} attempts were lost: {where} describes each")
