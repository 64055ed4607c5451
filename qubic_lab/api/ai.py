"""Routes that answer questions: `/api/ai/…`."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse

from qubic_lab.api.answers import Event, as_lines, read_answer, read_events
from qubic_lab.api.schemas import Answer, Query
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.errors import BusyError, DeadlineError, InputError, NotFoundError, RequestCancelled

MOST_KEY_CHARACTERS = 200
NO_NODE_RETRY_S = 5.0
Key = Annotated[str | None, Header(description="a repeated request with the same key gets the first one's answer")]
LastEvent = Annotated[int, Header(description="number of the last event that was seen; with the same key", ge=0)]


def make_routes(coordinator: Coordinator) -> APIRouter:
    """Return the routes of a coordinator."""
    routes = APIRouter(prefix="/api/ai", tags=["ai"])

    @routes.post("/query", response_model=Answer)
    @routes.post("/single_query", response_model=Answer)
    async def answer(
        query: Query, request: Request, idempotency_key: Key = None, last_event_id: LastEvent = 0
    ) -> Answer | StreamingResponse:
        """Answer a question by one node: as a whole, or with `stream` as server-sent events.

        Without the header Idempotency-Key a client that hangs up ends its work; with it the work goes on, and the same
        request gets the answer, or the stream from the event after Last-Event-ID.
        """
        started_s = time.perf_counter()
        key = _key_of(idempotency_key, getattr(request.state, "client", ""))
        if not len(coordinator.fleet):
            raise BusyError("no node is registered: start one with qubic-lab node", NO_NODE_RETRY_S)
        task_id = await coordinator.submit(query.to_message(), query.priority, key)
        if query.stream:
            events = _while_read(coordinator, task_id, read_events(coordinator, task_id, started_s, last_event_id), key)
            lines = as_lines(events, lambda: asyncio.timeout(query.deadline_s))
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return await _while_awaited(coordinator, task_id, request, started_s, query.deadline_s, key)

    return routes


def _key_of(key: str | None, client: str) -> str | None:
    """Return a client's key as the queue has it: two clients may use the same one."""
    if key is None:
        return None
    if not 0 < len(key) <= MOST_KEY_CHARACTERS:
        raise InputError(f"Idempotency-Key has {len(key)} characters: give 1 to {MOST_KEY_CHARACTERS}")
    return f"{client}:{key}"


async def _while_awaited(
    coordinator: Coordinator, task_id: str, request: Request, started_s: float, deadline_s: float, key: str | None
) -> Answer:
    """Wait for the answer, the deadline, or the client's hanging up; a task that nobody may ask for again ends then."""
    answering = asyncio.ensure_future(read_answer(coordinator, task_id, started_s))
    hanging_up = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({answering, hanging_up}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return await answering
        if hanging_up.done():
            raise RequestCancelled("the client hung up")
        raise DeadlineError(f"the answer took longer than its deadline of {deadline_s:g} s")
    finally:
        answered = answering.done()
        answering.cancel()
        hanging_up.cancel()
        if not answered and key is None:
            await _cancel(coordinator, task_id)


async def _while_read(
    coordinator: Coordinator, task_id: str, events: AsyncGenerator[Event, None], key: str | None
) -> AsyncGenerator[Event, None]:
    """Pass events on; when nobody reads on before their end, a task that nobody may ask for again ends."""
    ended = False
    try:
        async with aclosing(events):
            async for event in events:
                ended = event[0] == "end"
                yield event
    finally:
        if not ended and key is None:
            await asyncio.shield(_cancel(coordinator, task_id))


async def _cancel(coordinator: Coordinator, task_id: str) -> None:
    with suppress(NotFoundError):
        await coordinator.cancel(task_id)


async def _hung_up(request: Request) -> None:
    """Return when the client is gone; its body has been read, so nothing else comes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
