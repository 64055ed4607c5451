"""Many requests over one stream of a pipeline: each has its own answer, errors and end, and nothing is left of any."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from qubic_lab.cluster import shared_stream
from qubic_lab.cluster.shared_stream import SharedStream
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import BusyError, ContextError, DeadlineError, InputError, RankError
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.calls import as_request, generate_message
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import open_async_channel, open_channel
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

pytestmark = [pytest.mark.dist, pytest.mark.anyio]

ENDLESS = Request("hi", sampling=SamplingParams(450, ignore_eos=True))


@pytest.fixture
def lab(two_ranks: Pipeline, tiny: Path) -> Pipeline:
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, threads=1, slots=2))
    return two_ranks


@pytest.fixture
async def shared(lab: Pipeline) -> AsyncIterator[SharedStream]:
    """A stream of these ranks; at the end nothing may be running."""
    async with open_async_channel(lab.address) as channel:
        yield (found := SharedStream(channel))
        await idle(lab)
        await found.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while not is_so():
            await asyncio.sleep(0.01)


async def idle(lab: Pipeline) -> None:
    await until(lambda: lab.stats().requests == 0)


def message(request: Request, *, whole: bool = False, samples: int = 1, deadline_s: float = 0.0) -> pb.GenerateRequest:
    return generate_message(request, "", deadline_s, samples, whole=whole)


async def read(shared: SharedStream, asked: pb.GenerateRequest) -> dict[int, tuple[list[int], list[int], str]]:
    """Return the tokens that came, those of the end, and the text, of each sample."""
    tokens: dict[int, list[int]] = {}
    ends: dict[int, tuple[list[int], list[int], str]] = {}
    async for reply in shared.generate(asked):
        if reply.WhichOneof("event") == "token":
            tokens.setdefault(reply.sample, []).append(reply.token.id)
        else:
            ends[reply.sample] = (tokens.get(reply.sample, []), list(reply.end.token_ids), reply.end.text)
    return ends


async def test_requests_that_share_a_stream_get_what_each_gets_alone(shared: SharedStream, lab: Pipeline) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 1.0}
    asked = [as_request(f"question {n}", {**options, "seed": n}) for n in range(8)]
    found = await asyncio.gather(*(read(shared, message(each)) for each in asked))
    alone = [lab.answer(each).completion for each in asked]
    assert [each[0] for each in found] == [(list(one.token_ids), list(one.token_ids), one.text) for one in alone]
    [whole] = (await read(shared, message(asked[3], whole=True))).values()
    assert whole == ([], list(alone[3].token_ids), alone[3].text)
    samples = await read(shared, message(asked[2], samples=2))
    of_seed = [lab.answer(as_request("question 2", {**options, "seed": seed})) for seed in (2, 3)]
    assert [samples[n][1] for n in (0, 1)] == [list(each.completion.token_ids) for each in of_seed]
    replayed = as_request("question 3", {**options, "seed": 3, "forced_token_ids": alone[3].token_ids})
    assert (await read(shared, message(replayed)))[0] == ([], list(alone[3].token_ids), alone[3].text)


async def test_each_error_is_that_of_its_request(shared: SharedStream, lab: Pipeline) -> None:
    long = asyncio.ensure_future(read(shared, message(ENDLESS)))
    wrong: list[tuple[pb.GenerateRequest, type[Exception], str]] = [
        (message(Request("x" * 2_000)), ContextError, "give a shorter one"),
        (pb.GenerateRequest(prompt="hi"), InputError, "top_p is 0"),
        (message(ENDLESS, deadline_s=0.05), DeadlineError, r"deadline of 0\.05 s"),
    ]
    for asked, kind, text in wrong:
        with pytest.raises(kind, match=text):
            await read(shared, asked)
    assert len((await long)[0][0]) == 450


async def test_a_reader_that_leaves_frees_its_slot_and_one_that_waits_keeps_nobody(
    shared: SharedStream, lab: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_stream, "MOST_OPEN", 2)
    unread, left = (shared.generate(message(ENDLESS)) for _ in range(2))
    async with aclosing(unread), aclosing(left):
        await anext(unread)
        await anext(left)
        with pytest.raises(BusyError, match="2 answers run, wait, or are not read"):
            await anext(shared.generate(message(ENDLESS)))
        await left.aclose()
        await until(lambda: lab.stats().requests == 1)
        short = Request("other", sampling=SamplingParams(5, ignore_eos=True))
        assert (await read(shared, message(short)))[0][1] == list(lab.answer(short).completion.token_ids)
        await idle(lab)  # all of the unread answer is here
        assert len([reply async for reply in unread]) == 450
    hurried = asyncio.ensure_future(read(shared, message(ENDLESS)))
    await asyncio.sleep(0)
    hurried.cancel()  # while it is being submitted
    await asyncio.gather(hurried, return_exceptions=True)


async def test_nothing_is_left_of_a_client_that_hangs_up(lab: Pipeline) -> None:
    async with open_async_channel(lab.address) as channel:
        shared = SharedStream(channel)
        reading = [asyncio.ensure_future(read(shared, message(ENDLESS))) for _ in range(3)]
        await until(lambda: lab.stats().requests == 3)
        await shared.close()
        for each in reading:
            with pytest.raises(RankError, match="was lost"):
                await each
        await idle(lab)
        short = Request("other", sampling=SamplingParams(5, ignore_eos=True))
        assert len((await read(shared, message(short)))[0][0]) == 5, "the next request opens another"
        await shared.close()


async def test_a_request_needs_a_listener_of_its_own_client(lab: Pipeline) -> None:
    asked = message(ENDLESS)
    with open_channel(lab.address) as channel:
        stub = stub_of(channel, PIPELINE_SERVICE)
        heard = stub.Listen(pb.ListenRequest(listener="mine"))
        assert not next(heard).parts
        stub.Submit(pb.Submission(listener="mine", call=7, request=asked))
        for again, text in (
            (lambda: stub.Submit(pb.Submission(listener="mine", call=7, request=asked)), "call 7 is in use"),
            (lambda: stub.Submit(pb.Submission(listener="other", call=7, request=asked)), "no such listener"),
            (lambda: next(stub.Listen(pb.ListenRequest(listener="mine"))), "empty or in use"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                again()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and text in str(caught.value.details())
        assert stub.Cancel(pb.CancelRequest(listener="mine", call=7)).found
        last = next(heard).parts[-1]
        while not last.HasField("failure"):
            last = next(heard).parts[-1]
        assert (last.call, last.failure.status, last.failure.text) == (7, 1, "the request was cancelled")
        assert not stub.Cancel(pb.CancelRequest(listener="mine", call=7)).found
    await idle(lab)
