"""`/v1/responses`: a text or turns in, a message out, as the openai package reads it; refusals, errors, votes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from words import Words, text_of

from qubic_lab.api.openai.consensus import SampleElector
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.responses import REFUSED, ResponseObject
from qubic_lab.api.openai.schemas import REFUSED as ALL_REFUSED
from qubic_lab.api.openai.serve import create_app
from qubic_lab.errors import BusyError, RankError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

pytestmark = pytest.mark.anyio
PATH = "/v1/responses"
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@asynccontextmanager
async def served(replica: Words) -> AsyncIterator[httpx2.AsyncClient]:
    metrics = PipelineMetrics()
    answerer = PipelineAnswerer(replica, metrics)
    elector = SampleElector(answerer)
    transport = httpx2.ASGITransport(create_app(answerer, metrics, elector=elector), raise_app_exceptions=False)
    async with answerer.running(), httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http
    elector.end()


@asynccontextmanager
async def packaged(replica: Words) -> AsyncIterator["AsyncOpenAI"]:
    """Yield the openai package's client."""
    import openai

    async with (
        served(replica) as http,
        openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        yield client


async def test_a_text_is_the_turn_of_the_user() -> None:
    replica = Words()
    async with packaged(replica) as client:
        found = await client.responses.create(
            model="words",
            input="Hello",
            instructions="Be brief.",
            max_output_tokens=7,
            metadata={"a": "b"},
            extra_body={
                "seed": 5,
                "top_k": 3,
                "min_p": 0.1,
                "stop": "w9",
                "presence_penalty": 1,
                "logit_bias": {"4": 2},
            },
        )
    ResponseObject.model_validate(found.model_dump(mode="json"))
    [asked] = replica.asked
    assert [(each.role, each.content) for each in asked.messages] == [("system", "Be brief."), ("user", "Hello")]
    assert (asked.whole, asked.sampling.temperature, asked.sampling.max_new_tokens) == (True, 1.0, 7)
    assert found.output_text == text_of(5, 7)
    sampling = asked.sampling
    assert (sampling.seed, sampling.top_k, sampling.min_p, list(sampling.stop)) == (5, 3, 0.1, ["w9"])
    assert (sampling.presence_penalty, dict(sampling.logit_bias)) == (1.0, {4: 2.0})
    assert (found.status, found.incomplete_details and found.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert (found.model, found.metadata, found.model_extra["qubic"]) == (
        "words",
        {"a": "b"},
        {"seed": 5},
    )
    assert found.usage is not None
    assert (found.usage.output_tokens, found.usage.total_tokens) == (7, found.usage.input_tokens + 7)


async def test_turns_keep_their_roles_and_a_whole_answer_is_completed() -> None:
    replica = Words()
    turns: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "two"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Three"}]},
        {"role": "user", "content": "Four"},
    ]
    async with packaged(replica) as client:
        found = await client.responses.create(model="default", input=turns, temperature=0.5, top_p=0.9)
    [asked] = replica.asked
    assert [(each.role, each.content) for each in asked.messages] == [
        ("system", "Be brief."),
        ("user", "One\ntwo"),
        ("assistant", "Three"),
        ("user", "Four"),
    ]
    assert (asked.sampling.temperature, asked.sampling.top_p) == (0.5, 0.9)
    assert (found.status, found.output_text) == ("completed", text_of(asked.sampling.seed))


async def test_a_stream_has_the_events_that_the_package_knows() -> None:
    replica = Words()
    async with packaged(replica) as client:
        stream = await client.responses.create(model="words", input="Hello", stream=True)
        events = [event async for event in stream]
        async with client.responses.stream(model="words", input="Hello") as again:
            final = await again.get_final_response()
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [*EVENTS, "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == text
    assert text == text_of(replica.asked[0].sampling.seed)
    assert final.output_text == text_of(replica.asked[1].sampling.seed)


async def test_errors_come_with_their_status_or_as_the_last_event() -> None:
    import openai

    async with packaged(Words(error=BusyError("full", 5.0))) as client:
        with pytest.raises(openai.RateLimitError, match="full"):
            await client.responses.create(model="words", input="Hello", stream=True)
        with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
            await client.responses.create(model="other", input="Hello")
    async with packaged(Words(error=RankError("rank 1 is gone"), after=2)) as client:
        events = [each async for each in await client.responses.create(model="words", input="Hello", stream=True)]
    failed = events[-1]
    assert failed.type == "response.failed" and failed.response.error is not None
    assert (failed.response.error.code, failed.response.error.message) == ("server_error", "rank 1 is gone")


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - ALL_REFUSED.keys() | {"guided_json"}))
async def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    replica = Words()
    async with served(replica) as http:
        response = await http.post(PATH, json={"input": "Hello", name: ["something"]})
        harmless = [
            await http.post(PATH, json={"input": "Hello", name: each}) for each in (*REFUSED[name].harmless, None)
        ]
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, name)
    assert error["message"].startswith(f"{name} is not supported: ")
    assert {each.status_code for each in harmless} == {200}


async def test_what_is_no_text_is_refused_and_what_changes_nothing_is_ignored() -> None:
    async with served(Words()) as http:
        picture = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
        refused = [await http.post(PATH, json={"input": each}) for each in ([picture], "", [], 3)]
        ignored = await http.post(PATH, json={"input": "Hello", "store": True, "user": "me", "service_tier": "auto"})
    assert {each.status_code for each in refused} == {400}
    assert all(each.json()["error"]["param"].startswith("input") for each in refused)
    assert ignored.status_code == 200 and ignored.json()["store"] is False


async def test_a_vote_is_told_as_a_response() -> None:
    async with packaged(Words()) as client:
        found = await client.responses.create(model="consensus/3", input="Hello")
        events = [each async for each in await client.responses.create(model="consensus/3", input="Hello", stream=True)]
    vote = found.model_extra["qubic"]["vote"]
    assert found.output_text and len(vote["voters"]) >= 2
    assert found.usage is not None and found.usage.output_tokens == sum(each["tokens"] for each in vote["voters"])
    assert list(dict.fromkeys(each.type for each in events)) == [*EVENTS, "response.completed"]
