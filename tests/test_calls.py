"""Requests survive the queue as they are, failures say what they mean, and pauses lose nothing."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.cluster.calls import (
    Failure,
    failure_of,
    item_of,
    most_tokens,
    packed_scores,
    payload_of,
    request_of,
    scored_tokens_of,
    token_of,
    wait_at_most,
    with_pauses,
)
from qubic_lab.core import ScoredToken, StreamedToken, TopToken
from qubic_lab.errors import InputError, RankError
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import status_of

FIVE = pb.Sampling(max_new_tokens=5)
COUNTS = st.integers(0, 2**32 - 1)
REQUESTS = st.builds(
    pb.GenerateRequest,
    prompt=st.text(),
    raw=st.booleans(),
    messages=st.lists(st.builds(pb.ChatMessage, role=st.text(), content=st.text()), max_size=3),
    prompt_logprobs=st.none() | COUNTS,
    sampling=st.builds(
        pb.Sampling,
        max_new_tokens=COUNTS,
        temperature=st.floats(0, 100),
        top_p=st.floats(0, 1),
        top_k=COUNTS,
        seed=st.integers(0, 2**64 - 1),
        ignore_eos=st.booleans(),
        stop=st.lists(st.text(), max_size=3),
        logprobs=st.booleans(),
        top_logprobs=COUNTS,
    ),
)


@given(REQUESTS)
def test_a_request_is_the_same_behind_the_queue(request_: pb.GenerateRequest) -> None:
    assert request_of(payload_of(request_), []) == request_


def test_a_request_goes_on_after_the_tokens_that_are_known() -> None:
    request = pb.GenerateRequest(prompt="hi", sampling=FIVE)
    going_on = request_of(payload_of(request), [{"id": 7, "text": "a"}, {"id": 0, "text": ""}])
    assert going_on == pb.GenerateRequest(prompt="hi", sampling=FIVE, forced_token_ids=[7, 0])


def test_samples_start_again_and_come_whole() -> None:
    payload = payload_of(pb.GenerateRequest(prompt="hi", sampling=FIVE, samples=2))
    assert request_of(payload, [{"sample": 1}]) == pb.GenerateRequest(prompt="hi", sampling=FIVE, samples=2, whole=True)


@pytest.mark.parametrize("payload", [{"unknown": 1}, {"prompt": 1}, {"sampling": {"seed": -1}}])
def test_payloads_that_hold_no_request(payload: dict[str, object]) -> None:
    with pytest.raises(InputError, match="has no valid request"):
        request_of(payload, [])


def test_a_token_keeps_what_was_asked_for() -> None:
    assert item_of(pb.Token(id=3, text="é")) == {"id": 3, "text": "é"}
    told = pb.Token(id=3, text="é", logprob=0.0, top=[pb.TopToken(id=3, logprob=0.0)])
    assert item_of(told) == {"id": 3, "text": "é", "logprob": 0.0, "top_logprobs": [[3, 0.0]], "top_raw": [""]}


RAW = st.binary(max_size=4)
TOPS = st.lists(st.builds(pb.TopToken, id=COUNTS, logprob=st.floats(-9, 0), raw=RAW), max_size=3)


@given(st.builds(pb.Token, id=COUNTS, text=st.text(), logprob=st.none() | st.floats(-9, 0), raw=RAW), TOPS)
def test_a_token_is_the_same_behind_the_queue(token: pb.Token, top: list[pb.TopToken]) -> None:
    if token.HasField("logprob"):
        token.top.extend(top)
    found = token_of(json.loads(json.dumps(item_of(token))))
    logprob = token.logprob if token.HasField("logprob") else None
    tops = tuple(TopToken(top.id, top.logprob, top.raw) for top in token.top)
    assert found == StreamedToken(token.id, token.text, logprob, tops, token.raw or token.text.encode())


@given(st.lists(st.tuples(RAW, st.floats(-9, 0), TOPS), max_size=4))
def test_a_scored_prompt_is_the_same_behind_the_queue(rows: list[tuple[bytes, float, list[pb.TopToken]]]) -> None:
    prompt = [pb.ScoredToken(id=n, raw=raw, logprob=logprob, top=top) for n, (raw, logprob, top) in enumerate(rows)]
    found = scored_tokens_of(json.loads(json.dumps(packed_scores(pb.End(prompt=[pb.ScoredToken(raw=b"a"), *prompt])))))
    assert found[0] == ScoredToken(0, b"a")
    assert found[1:] == tuple(
        ScoredToken(n, raw, logprob, tuple(TopToken(each.id, each.logprob, each.raw) for each in top))
        for n, (raw, logprob, top) in enumerate(rows)
    )


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": "x" * 40}, 15),
        ({"token_ids": [1, 2]}, 7),
        ({"messages": [pb.ChatMessage(content="x" * 8), pb.ChatMessage(content="x" * 4)]}, 8),
        ({"token_ids": [1, 2], "samples": 3}, 17),
    ],
)
def test_the_most_tokens_of_a_request(fields: dict[str, Any], tokens: int) -> None:
    assert most_tokens(pb.GenerateRequest(sampling=FIVE, **fields)) == tokens


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (status_of(InputError("")), Failure.TASK),
        (status_of(RankError("")), Failure.LOST),
        (grpc.StatusCode.UNAVAILABLE, Failure.LOST),
        (grpc.StatusCode.CANCELLED, Failure.LOST),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Failure.BUSY),
        (grpc.StatusCode.FAILED_PRECONDITION, Failure.TRY),
        (grpc.StatusCode.UNKNOWN, Failure.TRY),
        (grpc.StatusCode.DATA_LOSS, Failure.TRY),
    ],
)
def test_what_the_end_of_a_call_says(code: grpc.StatusCode, failure: Failure) -> None:
    assert failure_of(code) is failure


class Items:
    """Two items with a long pause between them; `ended` tells whether they were closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = asyncio.Event()
        self.ended = False
        self._error = error

    async def give(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
            await self.go_on.wait()
            if self._error is not None:
                raise self._error
            yield 2
        finally:
            self.ended = True


@pytest.mark.anyio
async def test_pauses_come_between_items_and_lose_none() -> None:
    items = Items()
    found = list[list[int]]()
    async for together in with_pauses(items.give(), 0.01):
        found.append(together)
        if found.count([]) == 3:
            items.go_on.set()
    assert [each for each in found if each] == [[1], [2]] and found[-1] == [2] and found.count([]) >= 3
    assert items.ended


@pytest.mark.anyio
async def test_what_comes_together_is_yielded_together() -> None:
    items = Items()
    items.go_on.set()
    assert [together async for together in with_pauses(items.give(), 60.0)] == [[1, 2]]


@pytest.mark.anyio
async def test_errors_pass_through_pauses() -> None:
    items = Items(RankError("lost"))
    items.go_on.set()
    paused = with_pauses(items.give(), 60.0)
    assert await anext(paused) == [1]
    with pytest.raises(RankError):
        await anext(paused)
    assert items.ended


@pytest.mark.anyio
@pytest.mark.parametrize("count", [1, 2])
async def test_whoever_stops_listening_closes_what_is_listened_to(count: int) -> None:
    """After an item, and in a pause."""
    items = Items()
    paused = with_pauses(items.give(), 0.01)
    for _ in range(count):
        await anext(paused)
    await paused.aclose()
    assert items.ended


@pytest.mark.anyio
async def test_a_wait_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()
    await wait_at_most(event, 0.001)
    event.set()
    await wait_at_most(event, 3_600.0)
