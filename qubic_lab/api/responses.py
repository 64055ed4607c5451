"""How a task's progress becomes an answer: whole, or event by event."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from qubic_lab.api.problems import problem_of
from qubic_lab.api.schemas import QueryResponse, Token
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.tasks import TaskOutcome
from qubic_lab.errors import DeadlineError, InputError, QubicLabError, RankError, RequestCancelled

Event = tuple[str, int, dict[str, Any]]
"""Its name (token or end), its number, and its data."""


async def read_answer(coordinator: Coordinator, task_id: str, started_s: float) -> QueryResponse:
    """Return a task's whole answer when it is there; `started_s` by `time.perf_counter`.

    Raises:
        InputError: the task itself was at fault.
        RequestCancelled: it was cancelled.
        RankError: every try was lost.
    """
    items: list[dict[str, Any]] = []
    outcome: TaskOutcome | None = None
    async with aclosing(coordinator.follow(task_id, whole=True)) as followed:
        async for progress in followed:
            items += progress.items
            outcome = progress.outcome
    assert outcome is not None  # else follow would go on
    return answer_of(outcome, items, started_s)


async def read_events(
    coordinator: Coordinator, task_id: str, started_s: float, after: int = 0
) -> AsyncGenerator[Event, None]:
    """Yield a task's tokens after the first `after` as they come, then its end; errors as of `read_answer`."""
    items: list[dict[str, Any]] = []
    async with aclosing(coordinator.follow(task_id)) as followed:
        async for progress in followed:
            for item in progress.items:
                items.append(item)
                if len(items) > after:
                    token = Token(index=len(items) - 1, **item)
                    yield "token", len(items), token.model_dump(exclude_defaults=True)
            if progress.outcome is not None:
                answer = answer_of(progress.outcome, items, started_s)
                yield "end", len(items), answer.model_dump(exclude_none=True)


def answer_of(outcome: TaskOutcome, items: list[dict[str, Any]], started_s: float) -> QueryResponse:
    """Return a completed task's answer; errors as of `read_answer`."""
    if outcome.state != "completed":
        raise _error_of(outcome)
    assert outcome.result is not None
    logprobs = [item["logprob"] for item in items if "logprob" in item]
    return QueryResponse(
        task_id=outcome.task_id,
        token_ids=[item["id"] for item in items],
        logprobs=logprobs or None,
        attempts=outcome.attempts,
        total_ms=(time.perf_counter() - started_s) * 1_000,
        **outcome.result,
    )


async def as_lines(events: AsyncGenerator[Event, None], deadline_s: float) -> AsyncGenerator[str, None]:
    """Return events as lines of a stream (server-sent events); an error becomes the last event.

    Args:
        events: closed at the end.
        deadline_s: from now until the last event.
    """
    deadline = asyncio.get_running_loop().time() + deadline_s
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline):  # for the event alone: a slow reader is not our error
                    name, number, data = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                yield _error_line(DeadlineError(f"the answer took longer than its deadline of {deadline_s:g} s"))
                return
            except QubicLabError as error:
                yield _error_line(error)
                return
            yield f"event: {name}\nid: {number}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _error_line(error: QubicLabError) -> str:
    return f"event: error\ndata: {bytes(problem_of(error).body).decode()}\n\n"


def _error_of(outcome: TaskOutcome) -> QubicLabError:
    if outcome.state == "failed":
        return InputError(outcome.why)
    if outcome.state == "cancelled":
        return RequestCancelled("the request was cancelled")
    return RankError(f"all {outcome.attempts} tries were lost: /api/cluster/tasks/{outcome.task_id} tells of each")
