"""Routes that answer questions: `/api/ai/…`."""

import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from qubic_lab.api.consensus import ConsensusQuery, answer_query
from qubic_lab.api.problems import problem
from qubic_lab.api.responses import (
    STREAMED,
    EventStream,
    as_lines,
    cancel_task,
    key_of,
    read_answer,
    read_events,
    until_done,
)
from qubic_lab.api.schemas import ConsensusResponse, Query, QueryResponse
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.errors import InputError
from qubic_lab.votes.service import VoteService

NO_NODE_HEADERS = {"Retry-After": "5"}
Key = Annotated[str | None, Header(description="a repeated request with the same key gets the first answer")]
LastEvent = Annotated[int, Header(description="number of the last event received; needs the same key", ge=0)]


def make_routes(coordinator: Coordinator, votes: VoteService | None = None) -> APIRouter:
    """Return the routes of a coordinator; without `votes` no vote can be asked for."""
    routes = APIRouter(prefix="/api/ai", tags=["ai"])

    @routes.post("/query", response_model=QueryResponse | ConsensusResponse, responses=STREAMED)
    @routes.post("/single_query", response_model=QueryResponse, responses=STREAMED)
    async def answer(
        query: Query, request: Request, idempotency_key: Key = None, last_event_id: LastEvent = 0
    ) -> QueryResponse | ConsensusResponse | Response:
        """Answer a question with one node, as a whole or, with `stream`, as server-sent events.

        With another `mode` several nodes vote, as in consensus_query; mode auto takes one node if the cluster is busy.

        Without the header Idempotency-Key the work ends when the client disconnects. With it the work goes on, and the
        same request gets the answer, or the stream from the event after Last-Event-ID.
        """
        started_s = time.perf_counter()
        if query.mode != "single":
            if votes is None or query.stream or idempotency_key is not None or "single" in request.url.path:
                why = (
                    "this coordinator holds none"
                    if votes is None
                    else "no stream, no Idempotency-Key, at /api/ai/query"
                )
                raise InputError(
                    f"mode is {query.mode!r}: votes are as plain requests only ({why}); ask with mode single"
                )
            return await answer_query(coordinator, votes, ConsensusQuery.of(query), request)
        key = key_of(idempotency_key, getattr(request.state, "client", ""))
        if last_event_id and key is None:
            raise InputError("Last-Event-ID continues an earlier request: send the Idempotency-Key that it had")
        if not len(coordinator.fleet):
            return problem(503, "No node", "no node is registered: start one with qubic-lab node", NO_NODE_HEADERS)
        task_id = await coordinator.submit(query.to_message(), query.priority, key)
        if query.stream:
            events = read_events(coordinator, task_id, started_s, last_event_id)
            end = None if key else partial(cancel_task, coordinator, task_id)
            return EventStream(as_lines(events, query.deadline_s), end)
        whole = read_answer(coordinator, task_id, started_s, query.deadline_s, keep=key is not None)
        return await until_done(request, whole)

    return routes
