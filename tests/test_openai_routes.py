"""The OpenAI routes over a replica without a model: forms, streams, samples, scores, refusals, errors, hang-ups."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clusters import serving, until
from prometheus_client.parser import text_string_to_metric_families
from words import MOST_TOKENS, Words, logprob, text_of

from qubic_lab.api.access import ApiToken, hash_token
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.schemas import ChatCompletion, TextCompletion
from qubic_lab.api.openai.serve import create_app
from qubic_lab.core import Request
from qubic_lab.errors import BusyError, DeadlineError, InputError, QubicLabError, RankError
from qubic_lab.pipeline.text import Tokenizer

pytestmark = pytest.mark.anyio
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "seed": 7}
KEY, READER = "a key of the test", "a token of the test"


@asynccontextmanager
async def served(replica: Words, key: str = "", real: bool = False) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve a replica, in this process or, if `real`, at a port."""
    metrics = PipelineMetrics()
    answerer = PipelineAnswerer(replica, metrics)
    known = [ApiToken("key", hash_token(key)), ApiToken("reader", hash_token(READER), read_only=True)]
    app = create_app(answerer, metrics, (lambda: known) if key else None)
    async with answerer.running():
        if real:
            async with serving(app) as client:
                yield client
            return
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def ask(path: str, body: dict[str, Any], replica: Words | None = None) -> httpx2.Response:
    async with served(replica or Words()) as client:
        return await client.post(path, json=body)


async def answered(path: str, body: dict[str, Any], replica: Words | None = None) -> dict[str, Any]:
    """Return a response that has the form which the OpenAPI document describes."""
    response = await ask(path, body, replica)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    form = ChatCompletion if path == CHAT else TextCompletion
    form.model_validate(found, strict=True)
    return found


def chunks_of(text: str) -> list[dict[str, Any]]:
    """Return the chunks of a stream that ended as it should."""
    *lines, done, empty = text.split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def streamed(path: str, body: dict[str, Any], replica: Words | None = None) -> list[dict[str, Any]]:
    response = await ask(path, body | {"stream": True}, replica)
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    return chunks_of(response.text)


def assert_error(response: httpx2.Response, status: int, message: str, **fields: str | None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"], error["message"]
    assert {name: error[name] for name in fields} == fields


async def test_a_chat_in_one_piece() -> None:
    replica = Words()
    found = await answered(CHAT, HELLO | {"max_tokens": 5}, replica)
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text_of(7, 5), "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert found["usage"] == {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    assert (found["model"], found["qubic"]["seed"]) == ("words", 7)
    assert found["system_fingerprint"] == "fp_abababababab"
    [asked] = replica.asked
    assert asked.whole and asked.sampling.temperature == 1.0 and not asked.raw
    assert [(each.role, each.content) for each in asked.messages] == [("user", "Hello")]


async def test_a_stream_is_the_whole_answer_in_pieces() -> None:
    for path, body in ((CHAT, HELLO), (TEXT, {"prompt": "Hello", "seed": 7, "max_tokens": 50})):
        whole = await answered(path, body)
        chunks = await streamed(path, body | {"stream_options": {"include_usage": True}})
        *parts, usage = chunks
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert usage["usage"] == whole["usage"] and usage["choices"] == []
        assert all(chunk["usage"] is None for chunk in parts)
        choices = [choice for chunk in parts for choice in chunk["choices"]]
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert parts[-1]["qubic"] == whole["qubic"]
        if path == CHAT:
            assert choices[0]["delta"] == {"role": "assistant", "content": ""}
            assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            assert text == whole["choices"][0]["message"]["content"] == text_of(7)
        else:
            assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"] == text_of(7)


async def test_without_a_seed_each_request_has_its_own_and_says_it() -> None:
    body = {"messages": HELLO["messages"]}
    found = [await answered(CHAT, body) for _ in range(3)]
    seeds = [each["qubic"]["seed"] for each in found]
    assert len(set(seeds)) == 3
    assert [each["choices"][0]["message"]["content"] for each in found] == [text_of(seed) for seed in seeds]


async def test_samples_have_seeds_in_a_row_also_if_there_are_more_than_slots() -> None:
    replica = Words(slots=4)
    found = await answered(CHAT, HELLO | {"n": 6}, replica)
    assert [choice["message"]["content"] for choice in found["choices"]] == [text_of(7 + n) for n in range(6)]
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    assert found["usage"]["prompt_tokens"] == 11
    assert found["usage"]["completion_tokens"] == 6 * MOST_TOKENS
    assert [(each.samples, each.sampling.seed) for each in replica.asked] == [(4, 7), (2, 11)]
    chunks = await streamed(CHAT, HELLO | {"n": 3})
    texts = ["", "", ""]
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [text_of(7 + n) for n in range(3)]


async def test_the_best_of_several_are_given() -> None:
    found = await answered(TEXT, {"prompt": "Hello", "n": 2, "best_of": 4, "seed": 0, "max_tokens": 3})
    assert [choice["text"] for choice in found["choices"]] == [text_of(3, 3), text_of(2, 3)]  # the likeliest
    assert [choice["logprobs"] for choice in found["choices"]] == [None, None]
    assert found["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97, 98], [99]], [b"ab", b"c"]),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
async def test_forms_of_prompts(prompt: Any, prompts: list[bytes]) -> None:
    replica = Words()
    found = await answered(TEXT, {"prompt": prompt, "echo": True, "n": 2, "seed": 1, "max_tokens": 2}, replica)
    expected = [text.decode() + text_of(seed, 2) for text in prompts for seed in (1, 2)]
    assert [choice["text"] for choice in found["choices"]] == expected
    assert found["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert all(asked.raw == bool(asked.prompt) for asked in replica.asked)


async def test_scores_of_a_prompt_come_with_its_echo() -> None:
    body = {"prompt": "a€", "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 0}
    [choice] = (await answered(TEXT, body))["choices"]
    scores = choice["logprobs"]
    assert choice["text"] == "a€seed"
    assert scores["tokens"] == ["a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "seed"]
    assert scores["token_logprobs"] == [None, -1.0, -2.0, -3.0, logprob(0, 0)]
    assert scores["text_offset"] == [0, 1, 1, 1, 2]
    assert scores["top_logprobs"][0] is None
    assert scores["top_logprobs"][1] == {r"bytes:\xe2": -1.0}
    assert scores["top_logprobs"][-1] == {"seed": logprob(0, 0), r"bytes:\xe2\x82": -9.0}
    only = {"prompt": [[97, 98], [99]], "echo": True, "logprobs": 0, "max_tokens": 0}
    found = await answered(TEXT, only)
    assert [choice["text"] for choice in found["choices"]] == ["ab", "c"]
    assert [choice["logprobs"]["token_logprobs"] for choice in found["choices"]] == [[None, -1.0], [None]]
    assert found["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    assert found["choices"][0]["logprobs"]["top_logprobs"] is None
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    [choice] = (await answered(TEXT, {"prompt": "ab", "max_tokens": 0}))["choices"]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("", None, "length")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a€", "echo": True, "logprobs": 1, "max_tokens": 2},
        {"prompt": [[97, 98], [99]], "echo": True, "n": 2},
        {"prompt": "ab", "best_of": 3, "n": 2},
        {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 0, "n": 3},
        {"prompt": "ab", "n": 2, "best_of": 1},
    ],
)
async def test_what_is_known_only_at_the_end_is_streamed_then(body: dict[str, Any]) -> None:
    body = body | {"seed": 3}
    whole = await answered(TEXT, body)
    assert len(whole["choices"]) == (len(body["prompt"]) if isinstance(body["prompt"], list) else 1) * body.get("n", 1)
    *parts, usage = await streamed(TEXT, body | {"stream_options": {"include_usage": True}})
    texts = [""] * len(whole["choices"])
    for part in parts:
        [choice] = part["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert usage["usage"] == whole["usage"]


async def test_numbers_that_json_does_not_have() -> None:
    body = {"prompt": "a" * 1_001, "echo": True, "logprobs": 1, "max_tokens": 1}
    [choice] = (await answered(TEXT, body))["choices"]
    assert choice["logprobs"]["token_logprobs"][1_000] == -9999.0


async def test_log_probabilities_of_a_chat() -> None:
    body = HELLO | {"logprobs": True, "top_logprobs": 2, "max_completion_tokens": 2}
    [choice] = (await answered(CHAT, body))["choices"]
    first, second = choice["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("seed", list(b"seed"), logprob(0, 0))
    assert second["top_logprobs"][0] == {"token": " 7", "logprob": logprob(1, 0), "bytes": list(b" 7")}
    assert second["top_logprobs"][1] == {"token": "�", "logprob": -9.0, "bytes": [0xE2, 0x82]}
    assert (await answered(CHAT, HELLO | {"top_logprobs": 2, "max_tokens": 2}))["choices"] == [choice]
    chunks = await streamed(CHAT, body)
    shown = [each["choices"][0]["logprobs"] for each in chunks]
    assert [each["content"][0] for each in shown if each] == [first, second]


async def test_texts_of_messages_and_stops_in_all_their_forms() -> None:
    replica = Words()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ignored"},
        {"role": "assistant", "content": "Yes.", "tool_calls": None},
        {"role": "user", "content": "Go on."},
    ]
    async with served(replica) as client:
        for stop in (None, "x", ["x", "y"]):
            body = {"messages": messages, "stop": stop, "top_p": 0.5, "top_k": 3, "ignore_eos": True, "temperature": 0}
            body |= {"min_p": 0.1, "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"5": -100, "0": 1.5}}
            assert (await client.post(CHAT, json=body)).status_code == 200
    assert [list(asked.sampling.stop) for asked in replica.asked] == [[], ["x"], ["x", "y"]]
    assert [(each.role, each.content) for each in replica.asked[0].messages] == [
        ("system", "Be brief."),
        ("user", "one\ntwo"),
        ("assistant", "Yes."),
        ("user", "Go on."),
    ]
    sampling = replica.asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.ignore_eos) == (0.0, 0.5, 3, True)
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -1.0, 2.0)
    assert dict(sampling.logit_bias) == {5: -100.0, 0: 1.5}


async def test_what_changes_nothing_is_accepted() -> None:
    harmless = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "user": "somebody",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "prompt_cache_key": "x",
        "max_tokens": None,
        "stop": None,
        "n": None,
        "seed": 7,
        "logprobs": None,
        "stream": None,
        "stream_options": None,
    }
    found = await answered(CHAT, HELLO | harmless)
    assert found["choices"][0]["message"]["content"] == text_of(7)


@pytest.mark.parametrize(
    ("path", "change", "param", "message"),
    [
        (CHAT, {"tools": [{"type": "function"}]}, "tools", "tools is not supported: this server calls no tools"),
        (CHAT, {"tool_choice": "required"}, "tool_choice", "calls no tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format", "describe the form in the prompt"),
        (CHAT, {"repetition_penalty": 1.1}, "repetition_penalty", "give presence_penalty or frequency_penalty"),
        (CHAT, {"presence_penalty": 2.5}, "presence_penalty", "presence_penalty is '2.5'"),
        (CHAT, {"logit_bias": {"5": 101}}, "logit_bias.5", "is '101'"),
        (CHAT, {"logit_bias": {"05": 1}}, "logit_bias.05.[key]", "pattern"),
        (CHAT, {"temperature": 2.5}, "temperature", "temperature is '2.5'"),
        (CHAT, {"n": 0}, "n", "n is '0'"),
        (CHAT, {"seed": -1}, "seed", "seed is '-1'"),
        (CHAT, {"messages": []}, "messages", "at least 1 item"),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0.role",
            "results of tools are not supported",
        ),
        (CHAT, {"guided_choice": ["a", "b"]}, "guided_choice", "describe the form in the prompt"),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "send the finished text"),
        (CHAT, {"logprobs": 3}, "logprobs", "the number of likeliest tokens is top_logprobs"),
        (TEXT, {"prompt": " "}, "prompt.text", "prompt.text is empty: give at least one visible character"),
        (TEXT, {"bad_words": ["x"]}, "bad_words", "a logit_bias of -100"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "give a text, or a list of parts"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.list.0.type",
            "image_url",
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]},
            "messages.0",
            "tool_calls is not supported",
        ),
        (TEXT, {"suffix": "x"}, "suffix", "put what comes after the gap into the prompt"),
        (TEXT, {"prompt": []}, "prompt", "give a text, a list of texts"),
        (TEXT, {"prompt": [1, "a"]}, "prompt.ids.1", "'a'"),
        (TEXT, {"prompt": ["a"] * 100, "n": 100}, "n", "at most 2048"),
        (TEXT, {"logprobs": 21}, "logprobs", "21"),
        (TEXT, {"stop": ""}, "stop.text", "at least 1 character"),
    ],
)
async def test_what_is_refused(path: str, change: dict[str, Any], param: str | None, message: str) -> None:
    replica = Words()
    body = (HELLO if path == CHAT else {"prompt": "Hello"}) | change
    assert_error(await ask(path, body, replica), 400, message, param=param, type="invalid_request_error", code=None)
    assert replica.asked == []


async def test_who_asks_for_no_scores_gets_none() -> None:
    for path, body in ((TEXT, {"prompt": "Hello"}), (CHAT, HELLO)):
        assert (await answered(path, body | {"logprobs": False}))["choices"][0]["logprobs"] is None


async def test_models_and_names_that_are_none() -> None:
    async with served(Words()) as client:
        listed = (await client.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["words", "default"]
        assert {each["object"] for each in listed["data"]} == {"model"}
        for name in ("words", "default"):
            assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
            response = await client.post(CHAT, json=HELLO | {"model": name})
            assert response.json()["model"] == "words"
        unknown = "there is no model 'org/other' here: ask one of words, default"
        for response in (
            await client.get("/v1/models/org/other"),
            await client.post(CHAT, json=HELLO | {"model": "org/other"}),
            await client.post(TEXT, json={"prompt": "x", "model": "org/other"}),
        ):
            assert_error(response, 404, unknown, param="model", code="model_not_found")


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InputError("the prompt is too long"), 400, "invalid_request_error", None),
        (BusyError("4 requests run", 2.5), 429, "rate_limit_error", "rate_limit_exceeded"),
        (RankError("rank 1 is gone"), 502, "server_error", None),
        (DeadlineError("no progress for 30 s"), 504, "server_error", None),
        (QubicLabError("a secret"), 503, "server_error", None),
        (KeyError("a secret"), 500, "server_error", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_errors(error: Exception, status: int, kind: str, code: str | None) -> None:
    for stream in (False, True):  # before the first token a stream has no other status than a whole answer
        response = await ask(CHAT, HELLO | {"stream": stream, "logprobs": True}, Words(error=error))
        assert_error(response, status, "", type=kind, code=code)
        assert "secret" not in response.text
        assert response.headers.get("retry-after") == ("3" if status == 429 else None)


async def test_an_error_after_the_first_token_ends_the_stream() -> None:
    *tokens, error = await streamed(CHAT, HELLO, Words(error=RankError("rank 1 is gone"), after=2))
    assert len(tokens) == 3
    assert error["error"] == {"message": "rank 1 is gone", "type": "server_error", "param": None, "code": None}
    response = await ask(TEXT, {"prompt": ["a", "b"], "logprobs": 0}, Words(error=BusyError("full"), after=1))
    assert_error(response, 429, "full")


async def test_one_who_has_no_key_gets_nothing() -> None:
    async with served(Words(), KEY) as client:
        for headers in ({}, {"Authorization": "Bearer other"}):
            response = await client.post(CHAT, json=HELLO, headers=headers)
            assert_error(response, 401, "Authorization: Bearer", code="invalid_api_key")
        assert (await client.get("/health")).json()["title"] == "No access"
        headers = {"Authorization": f"Bearer {KEY}"}
        for _ in range(3):
            assert (await client.post(CHAT, json=HELLO, headers=headers)).status_code == 200


async def test_a_token_that_only_reads_sees_metrics_and_cannot_ask() -> None:
    async with served(Words(), KEY) as client:
        headers = {"Authorization": f"Bearer {READER}"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        assert_error(await client.post(CHAT, json=HELLO, headers=headers), 403, "the token of reader only reads")


async def test_limits_speak_as_the_routes_do() -> None:
    async with served(Words()) as client:
        assert_error(await client.post(CHAT, content=b"x" * 2**21), 413, "more than 1,048,576 bytes")
        assert_error(await client.get("/v1/other"), 404, "there is no /v1/other: /docs lists the routes")
        assert_error(await client.post(f"/v1{CHAT}"), 404, f"did you mean {CHAT}? The base URL of OpenAI's clients")
        for path in ("/chat/completions", "/completions", "/models", "/responses"):
            assert f"did you mean /v1{path}? The base URL" in (await client.get(path)).json()["detail"]
        assert_error(await client.get(CHAT), 405, f"GET is not for {CHAT}: send POST")
        json_header = {"Content-Type": "application/json"}
        for content, said in ((b"{", "is not JSON"), (b"", "the body is empty"), (b"\x1f\x8b", "is not UTF-8")):
            assert_error(await client.post(CHAT, content=content, headers=json_header), 400, said, param=None)
        foreign = {"Origin": "http://elsewhere.example"}
        assert_error(await client.post(CHAT, json=HELLO, headers=foreign), 403, "may not change anything")


async def test_pages_of_an_admitted_origin_may_ask(set_settings: Callable[..., None]) -> None:
    set_settings(browser_origins="http://localhost:3000, https://chat.example")
    ours = {"Origin": "https://chat.example"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with served(Words(), KEY) as client:
        allowed = await client.options(CHAT, headers=ours | asking)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ours["Origin"])
        without = await client.post(CHAT, json=HELLO, headers=ours)
        assert (without.status_code, without.headers["access-control-allow-origin"]) == (401, ours["Origin"])
        found = await client.post(CHAT, json=HELLO, headers=ours | {"Authorization": f"Bearer {KEY}"})
        assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, ours["Origin"])
        other = {"Origin": "https://other.example", "Authorization": f"Bearer {KEY}"}
        assert_error(await client.post(CHAT, json=HELLO, headers=other), 403, "QUBIC_LAB_BROWSER_ORIGINS can admit it")
    for wrong in ("*", "chat.example"):
        set_settings(browser_origins=wrong)
        with pytest.raises(InputError, match="give origins"):
            async with served(Words()):
                pass


async def test_a_head_is_a_get_without_its_body() -> None:
    async with served(Words(), real=True) as client:
        for path in ("/health", "/v1/models", "/"):
            head, whole = await client.head(path), await client.get(path)
            assert (head.status_code, head.content, head.headers["content-type"]) == (
                200,
                b"",
                whole.headers["content-type"],
            )


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3, "stream": True}], ids=["whole", "stream", "samples"])
async def test_whoever_hangs_up_ends_the_work(body: dict[str, Any]) -> None:
    replica = Words(held=True)
    async with served(replica, real=True) as client:
        for path, question in ((CHAT, HELLO), (TEXT, {"prompt": ["a", "b", "c"]})):
            asking = asyncio.ensure_future(client.post(path, json=question | body))
            await until(lambda: replica.running)
            asking.cancel()
            await until(lambda: not replica.running)
        replica.held = False
        assert (await client.post(CHAT, json=HELLO)).status_code == 200


async def test_a_long_list_of_prompts_leaves_room_for_others() -> None:
    replica = Words(held=True)
    async with served(replica, real=True) as client:
        asking = asyncio.ensure_future(client.post(TEXT, json={"prompt": ["x"] * 100, "max_tokens": 2}))
        await until(lambda: replica.running == 16)
        replica.held = False
        assert len((await asking).json()["choices"]) == 100


async def test_a_lost_pipeline_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.cluster.replica.FIRST_PAUSE_S", 0.3)
    replica = Words(held=True)
    async with served(replica, real=True) as client:
        assert (await client.get("/health")).json() == {"status": "serving", "model": "words"}
        asking = asyncio.ensure_future(client.post(CHAT, json=HELLO))
        await until(lambda: replica.running)
        replica.fails_to_start = 1
        replica.lose()
        assert_error(await asking, 502, "rank 1 is gone")

        async def health() -> int:
            return (await client.get("/health")).status_code

        async def is_out() -> bool:
            return await health() == 503

        await until(is_out)
        response = await client.post(CHAT, json=HELLO)
        assert_error(response, 503, "the pipeline is restarting (rank")
        assert int(response.headers["retry-after"]) > 0
        replica.held = False

        async def is_back() -> bool:
            return await health() == 200

        await until(is_back)
        assert (await client.post(CHAT, json=HELLO)).status_code == 200


async def test_metrics_count_what_was_answered() -> None:
    replica = Words(held=True)
    async with served(replica, real=True) as client:

        async def read() -> dict[str, float]:
            text = (await client.get("/metrics")).text
            families = text_string_to_metric_families(text)
            return {sample.name: sample.value for family in families for sample in family.samples}

        asking = asyncio.ensure_future(client.post(CHAT, json=HELLO | {"n": 4}))
        more = asyncio.ensure_future(client.post(CHAT, json=HELLO | {"stream": True, "max_tokens": 5}))
        await until(lambda: replica.running == 2)
        now = await read()
        assert (now["qubic_lab_answers_running"], now["qubic_lab_answers_waiting"]) == (4, 1)
        replica.held = False
        await asyncio.gather(asking, more)
        now = await read()
        assert now["qubic_lab_tokens_total"] == 4 * MOST_TOKENS + 5
        assert now["qubic_lab_prompt_tokens_total"] == 2 * 11
        assert now["qubic_lab_first_token_seconds_count"] == 5
        assert (now["qubic_lab_answers_running"], now["qubic_lab_answers_waiting"]) == (0, 0)


async def test_each_answer_names_its_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qubic_lab.api.request_id")
    async with served(Words(error=ValueError("a fault"))) as client:
        given = await client.get("/v1/models", headers={"X-Request-Id": "mine-1"})
        made = [await client.get("/health") for _ in range(2)]
        odd = await client.get("/nowhere", headers={"X-Request-Id": "two words"})
        fault = await client.post(CHAT, json=HELLO, headers={"X-Request-Id": "mine-2"})
    names = [each.headers["x-request-id"] for each in (given, *made, odd, fault)]
    assert (names[0], names[4], fault.status_code) == ("mine-1", "mine-2", 500)
    assert len(set(names)) == 5 and all(name.startswith("req_") for name in names[1:4])
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("mine-1: GET '/v1/models': 200 after ") for line in said)
    assert any(line.startswith("request mine-2: an unexpected error") for line in said)


async def test_a_key_decides_on_the_seed() -> None:
    body = {"messages": HELLO["messages"]}
    async with served(Words()) as client:
        asked = [await client.post(CHAT, json=body, headers={"Idempotency-Key": key}) for key in ("a", "a", "b")]
        empty = await client.post(CHAT, json=body, headers={"Idempotency-Key": ""})
    first, again, other = (each.json() for each in asked)
    assert (first["id"], first["choices"]) == (again["id"], again["choices"])
    assert first["id"] != other["id"] and first["qubic"] != other["qubic"]
    assert_error(empty, 400, "at least 1 character")


async def test_on_demand_an_answer_says_where_its_time_went() -> None:
    async with served(Words()) as client:
        traced = {"X-Qubic-Trace": "1"}
        whole = (await client.post(CHAT, json=HELLO | {"n": 2, "max_tokens": 5}, headers=traced)).json()
        stream = chunks_of((await client.post(CHAT, json=HELLO | {"stream": True}, headers=traced)).text)
        response = (await client.post("/v1/responses", json={"input": "Hello"}, headers=traced)).json()
        plain = (await client.post(CHAT, json=HELLO, headers={"X-Qubic-Trace": "0"})).json()
        odd = await client.post(CHAT, json=HELLO, headers={"X-Qubic-Trace": "yes"})
    # Of 5 ms to the first token 2 were spent in the queue; then come 4 tokens at 100 tokens/s.
    times = {"queue_ms": 2.0, "prefill_ms": 3.0, "decode_ms": 40.0, "prompt_tokens": 11, "new_tokens": 5}
    assert whole["qubic"]["trace"]["answers"] == [times, times]
    assert whole["qubic"]["trace"]["total_ms"] > 0
    [answer] = stream[-1]["qubic"]["trace"]["answers"]
    assert (answer["new_tokens"], answer["decode_ms"]) == (MOST_TOKENS, pytest.approx(10.0 * (MOST_TOKENS - 1)))
    assert response["qubic"]["trace"]["answers"][0]["queue_ms"] == 2.0
    assert "trace" not in plain["qubic"]
    assert_error(odd, 400, "x-qubic-trace")


async def test_harnesses_without_files_of_the_model_use_its_tokenizer(tiny: Path) -> None:
    metrics, (answerer, tokenizer) = PipelineMetrics(), (PipelineAnswerer(Words()), Tokenizer(tiny))
    app = create_app(answerer, metrics, load_tokenizer=lambda: Tokenizer(tiny))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def tokens(**body: Any) -> list[int]:
            found = (await client.post("/tokenize", json=body)).json()
            assert found["count"] == len(found["tokens"])
            return list(found["tokens"])

        text = "Is 2 + 3 five? ¿Sí? \n"
        assert await tokens(prompt=text, add_special_tokens=False) == tokenizer.encode_text(text, special=False)
        assert tuple(await tokens(prompt=text)) == tokenizer.encode(Request(text, raw=True))
        assert tuple(await tokens(messages=HELLO["messages"])) == tokenizer.encode(Request("Hello"))
        ids = tokenizer.encode_text(text, special=False)
        assert (await client.post("/detokenize", json={"tokens": ids})).json() == {"prompt": text}
        about = (await client.get("/tokenizer_info")).json()
        assert about["eos_token"] and "messages" in about["chat_template"]
        for path, body, message in (
            ("/tokenize", {}, "prompt and messages: give one of them"),
            ("/tokenize", {"prompt": "\ud800"}, "prompt"),
            ("/detokenize", {"tokens": [10**6]}, "is not in the vocabulary"),
        ):
            response = await client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert (response.status_code, message in response.json()["detail"]) == (400, True), response.text
