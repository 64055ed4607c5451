"""Routes that answer questions: `/api/ai/…`."""

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from qubic_lab.api.consensus import ConsensusQuery, answer_query
from qubic_lab.api.problems import Problem
from qubic_lab.api.responses import (
    STREAMED,
    EventStream,
    HangUp,
    IdempotencyKey,
    as_lines,
    key_of,
    leave_task,
    read_answer,
    read_events,
    until_done,
)
from qubic_lab.api.schemas import ConsensusResponse, Query, QueryResponse, SingleQuery
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.core import MAX_COUNT
from qubic_lab.errors import ConflictError, InputError, NotFoundError
from qubic_lab.votes.service import VoteService

NO_NODE_HEADERS = {"Retry-After": "5"}
LastEvent = Annotated[
    int, Header(description="number of the last event received; needs the same key", ge=0, le=MAX_COUNT)
]


def make_routes(coordinator: Coordinator, votes: VoteService | None = None) -> APIRouter:
    """Return the routes of a coordinator; without `votes` no vote can be asked for."""
    routes = APIRouter(prefix="/api/ai", tags=["ai"])

    @routes.post("/single_query", response_model=QueryResponse, responses=STREAMED)
    async def answer_alone(
        query: SingleQuery,
        request: Request,
        idempotency_key: IdempotencyKey = None,
        last_event_id: LastEvent = 0,
        x_qubic_hang_up: HangUp = None,
    ) -> QueryResponse | Response:
        """Answer a question with one node, as a whole or, with `stream`, as server-sent events.

        Without the header Idempotency-Key the work ends when the client disconnects. With it the work goes on, and the
        same request gets the answer, or the stream from the event after Last-Event-ID.
        """
        return await answer_with_one(query, request, idempotency_key, last_event_id, x_qubic_hang_up)

    @routes.post("/query", response_model=QueryResponse | ConsensusResponse, responses=STREAMED)
    async def answer(
        query: Query,
        request: Request,
        idempotency_key: IdempotencyKey = None,
        last_event_id: LastEvent = 0,
        x_qubic_hang_up: HangUp = None,
    ) -> QueryResponse | ConsensusResponse | Response:
        """Answer a question with one node as single_query does, or with several.

        With another `mode` several nodes vote, as in consensus_query; mode auto takes one node if the cluster is busy.
        A vote has no stream and no Idempotency-Key.
        """
        if query.mode == "single":
            return await answer_with_one(query, request, idempotency_key, last_event_id, x_qubic_hang_up)
        if votes is None or query.stream:
            why = "this coordinator holds no votes" if votes is None else "a vote has no stream"
            raise InputError(f"mode is {query.mode!r}, but {why}: ask with mode single")
        if idempotency_key is not None:
            raise ConflictError(f"mode is {query.mode!r}, but a vote takes no Idempotency-Key: leave one of them out")
        return await answer_query(coordinator, votes, ConsensusQuery.of(query), request)

    async def answer_with_one(
        query: Query, request: Request, idempotency_key: str | None, last_event_id: int, hang_up: str | None
    ) -> QueryResponse | Response:
        started_s = time.perf_counter()
        key = key_of(idempotency_key, getattr(request.state, "client", ""))
        if last_event_id and key is None:
            raise NotFoundError("Last-Event-ID continues an earlier request: send the Idempotency-Key that it had")
        if not len(coordinator.fleet):
            return Problem(503, "No node", "no node is registered: start one with qubic-lab node", NO_NODE_HEADERS)
        asker = coordinator.new_asker()
        task_id = await coordinator.submit(
            query.to_message(),
            query.priority,
            key,
            asker=asker,
            whole=not query.stream,
            deadline_s=query.deadline_s,
        )
        leave = partial(leave_task, coordinator, task_id, asker, key is not None, hang_up)
        if query.stream:
            events = read_events(coordinator, task_id, started_s, last_event_id)
            return EventStream(as_lines(events, query.deadline_s), leave)
        whole = read_answer(coordinator, task_id, started_s, query.deadline_s, leave=leave)
        return await until_done(request, whole)

    return routes
