"""Consensus as a model: votes over samples and over nodes, whole and streamed, what is refused, and who ends it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from clusters import cluster, until
from saying_node import Saying
from words import Words

from qubic_lab.api.openai.consensus import SIGN, SampleElector, voters_of
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.serve import create_app
from qubic_lab.api.serve import create_app as create_coordinator_app
from qubic_lab.core import ChatMessage, Request
from qubic_lab.database import open_database
from qubic_lab.errors import ContextError, InputError
from qubic_lab.votes.history import VoteHistory
from qubic_lab.votes.service import VoteService
from qubic_lab.votes.voters import question_of

pytestmark = pytest.mark.anyio
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = "What is 5 + 7?"
RIGHT, WRONG = "The answer is 12.", "The answer is 13."
TURNS = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": QUESTION},
]


@asynccontextmanager
async def served(replica: Saying) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve a replica that says things, with votes over its samples."""
    metrics = PipelineMetrics()
    answerer = PipelineAnswerer(replica, metrics)
    elector = SampleElector(answerer)
    transport = httpx2.ASGITransport(create_app(answerer, metrics, elector=elector))
    async with answerer.running(), httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http
    elector.end()


@asynccontextmanager
async def voting(
    client: redis.Redis, folder: Path, nodes: dict[str, Saying | Words]
) -> AsyncIterator[tuple[Any, httpx2.AsyncClient]]:
    """Run a cluster of nodes that say things."""
    async with cluster(client, folder, nodes=dict(nodes)) as running:
        engine = open_database(f"sqlite:///{folder / 'lab.db'}")
        votes = VoteService(running.coordinator, lambda: VoteHistory(engine))
        transport = httpx2.ASGITransport(create_coordinator_app(running.coordinator, votes=votes))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            yield running, http
        engine.dispose()


async def ask(http: httpx2.AsyncClient, path: str = CHAT, **body: Any) -> httpx2.Response:
    asked = {"messages": TURNS} if path == CHAT else {"prompt": QUESTION, "max_tokens": 20}
    return await http.post(path, json={"model": "consensus/5", "seed": 3, **asked, **body})


def test_a_models_name_says_how_many_vote() -> None:
    assert [voters_of(name) for name in ("consensus", "consensus/7", "smollm2", "consensus-like")] == [5, 7, None, None]
    for name in ("consensus/1", "consensus/33", "consensus/", "consensus/x", "consensus/5000", "consensus/-3"):
        with pytest.raises(InputError, match="ask for consensus, or consensus/5, with 2 to 32 voters"):
            voters_of(name)


def test_a_vote_is_about_the_last_turn_of_the_user() -> None:
    turns = tuple(ChatMessage(each["role"], each["content"]) for each in TURNS)
    assert question_of(Request(messages=turns)) == question_of(Request(QUESTION)) == QUESTION


async def test_samples_vote_and_the_answer_says_who_said_what() -> None:
    replica = Saying((RIGHT, WRONG, RIGHT, "5 + 7 = 12", RIGHT), slots=2)
    async with served(replica) as http:
        found = (await ask(http)).json()
    [choice] = found["choices"]
    assert choice["message"]["content"] in (RIGHT, "5 + 7 = 12") and choice["finish_reason"] == "stop"
    vote = found["qubic"]["vote"]
    assert (found["model"], vote["level"], vote["conflict"]) == ("consensus/5", "answer with a note", False)
    assert vote["confidence"] is None and "calibrat" in vote["confidence_note"]
    assert vote["certificate"].startswith("not certified after")
    said = {each["voter"]: each["text"] for each in vote["voters"]}
    assert list(said.values()) == list(replica.texts[: len(said)])
    assert {each["answer"] for each in vote["voters"] if each["text"] == WRONG} == {"13"}
    assert vote["standings"][0]["share"] > 0.5
    words = sum(len(text.split()) for text in said.values())
    assert found["usage"] == {
        "prompt_tokens": len(said),
        "completion_tokens": words,
        "total_tokens": words + len(said),
    }


async def test_nodes_vote_on_a_coordinator(client: redis.Redis, tmp_path: Path, hurried: None) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((WRONG,)), "c": Saying((RIGHT,))}
    async with voting(client, tmp_path, nodes) as (_, http):
        found = (await ask(http, model="consensus/3")).json()
        trail = (await http.get(found["qubic"]["vote"]["page"].removesuffix("/page"))).json()
        text = (await ask(http, TEXT, model="consensus")).json()
        models = [each["id"] for each in (await http.get("/v1/models")).json()["data"]]
        one = (await http.get("/v1/models/consensus/3")).json()
    assert found["choices"][0]["message"]["content"] == text["choices"][0]["text"] == RIGHT
    assert {each["voter"] for each in found["qubic"]["vote"]["voters"]} >= {"a", "b"}
    assert (trail["question"], models, one["id"]) == (QUESTION, ["saying", "default", "consensus"], "consensus/3")
    assert all(each["prompt_tokens"] == 1 for each in trail["voters"])


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_shows_life_and_then_the_answer_in_words(path: str) -> None:
    async with served(Saying((RIGHT,))) as http:
        whole = (await ask(http, path)).json()
        text = (await ask(http, path, stream=True, stream_options={"include_usage": True})).text
    assert text.startswith(SIGN) and text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    *parts, usage = chunks
    choices = [choice for chunk in parts for choice in chunk["choices"]]
    words = [each["delta"].get("content", "") if path == CHAT else each["text"] for each in choices]
    assert [word for word in words if word] == ["The ", "answer ", "is ", "12."]
    assert [each["finish_reason"] for each in choices][-2:] == [None, "stop"]
    assert parts[-1]["qubic"]["vote"]["voters"] == whole["qubic"]["vote"]["voters"]
    assert usage["usage"] == whole["usage"]


async def test_the_openai_package_reads_a_vote_and_its_stream() -> None:
    import openai

    async with served(Saying((RIGHT,))) as http:
        http.base_url = "http://localhost"
        async with openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http) as client:
            whole = await client.chat.completions.create(model="consensus/5", messages=TURNS)  # type: ignore[arg-type]
            stream = await client.chat.completions.create(model="consensus", messages=TURNS, stream=True)  # type: ignore[call-overload]
            words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].message.content == "".join(words) == RIGHT
    assert whole.model_extra is not None and whole.model_extra["qubic"]["vote"]["level"] == "answer with a note"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"n": 2}, "n"),
        (CHAT, {"logprobs": True}, "logprobs"),
        (TEXT, {"echo": True}, "echo"),
        (TEXT, {"best_of": 3}, "best_of"),
        (TEXT, {"max_tokens": 0}, "max_tokens"),
        (TEXT, {"prompt": ["a", "b"]}, "prompt"),
        (TEXT, {"prompt": [1, 2]}, "prompt"),
    ],
)
async def test_what_a_vote_does_not_have_is_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    replica = Saying((RIGHT,))
    async with served(replica) as http:
        response = await ask(http, path, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], replica.asked) == (param, 0)
    assert f"{param} is not supported by the model consensus" in error["message"]


async def test_copies_and_repeated_keys_are_refused() -> None:
    async with served(Saying((RIGHT,))) as http:
        greedy = await ask(http, temperature=0)
        keyed = await http.post(CHAT, json={"model": "consensus", "messages": TURNS}, headers={"Idempotency-Key": "k"})
        unknown = await ask(http, model="consensus/99")
        streamed = await ask(http, temperature=0, stream=True)
    assert "temperature is 0: all samples would be copies" in greedy.json()["error"]["message"]
    assert "each vote is held anew" in keyed.json()["error"]["message"]
    assert "ask for consensus" in unknown.json()["error"]["message"]
    assert {each.status_code for each in (greedy, keyed, unknown)} == {400}
    assert "temperature is 0" in streamed.text and streamed.text.endswith("data: [DONE]\n\n")


async def test_a_client_that_goes_ends_the_vote(client: redis.Redis, tmp_path: Path, hurried: None) -> None:
    nodes = {name: Saying((RIGHT,), waits=600.0) for name in "abc"}
    async with voting(client, tmp_path, nodes) as (running, http):
        asking = asyncio.ensure_future(ask(http, model="consensus/3"))
        await until(lambda: all(running.view(name).outstanding_requests for name in "abc"))
        asking.cancel()
        await until(lambda: not any(running.view(name).outstanding_requests for name in "abc"))


async def test_a_question_that_is_too_long_for_all_is_an_error(
    client: redis.Redis, tmp_path: Path, hurried: None
) -> None:
    too_long = Words(error=ContextError("the prompt has 9 tokens, the model's context is 8"))
    async with voting(client, tmp_path, {"a": too_long, "b": too_long}) as (_, http):
        error = (await ask(http)).json()["error"]
        assert (error["code"], error["message"]) == ("context_length_exceeded", str(too_long.error))
    async with voting(client, tmp_path, {"a": too_long, "b": Saying(RIGHT)}) as (_, http):
        assert (await ask(http)).json()["qubic"]["vote"]["absences"]
