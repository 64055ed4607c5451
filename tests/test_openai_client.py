"""The `openai` package against our routes, over a socket: nothing but its base URL and key are set."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from test_openai_routes import KEY, served
from words import MOST_TOKENS, Words, logprob, text_of

from qubic_lab.errors import BusyError, ContextError, InputError, QubicLabError, RankError
from qubic_lab.wire import pipeline_pb2

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionUserMessageParam

pytestmark = pytest.mark.anyio
HELLO: list["ChatCompletionUserMessageParam"] = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def client_of(replica: Words, key: str = "", said: str = "none") -> AsyncIterator["AsyncOpenAI"]:
    from openai import AsyncOpenAI

    async with served(replica, key, real=True) as http, AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key=said) as ai:
        yield ai


async def test_a_chat_and_a_seed() -> None:
    async with client_of(Words()) as client:
        answers = [await client.chat.completions.create(model="words", messages=HELLO, seed=7) for _ in range(2)]
        assert {each.choices[0].message.content for each in answers} == {text_of(7)}
        assert answers[0].choices[0].finish_reason == "stop" and answers[0].usage
        assert answers[0].usage.completion_tokens == MOST_TOKENS
        assert answers[0]._request_id


async def test_a_stream_with_its_usage() -> None:
    async with client_of(Words()) as client:
        asked = {"model": "words", "messages": HELLO, "seed": 3, "max_completion_tokens": 4}
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == text_of(3, 4)
        assert [each.usage.completion_tokens for each in chunks if each.usage] == [4]
        async with client.chat.completions.stream(model="words", messages=HELLO, seed=3) as events:
            assert (await events.get_final_completion()).choices[0].message.content == text_of(3)


async def test_four_answers_stops_and_log_probabilities() -> None:
    replica = Words()
    async with client_of(replica) as client:
        answer = await client.chat.completions.create(
            model="words", messages=HELLO, seed=1, n=4, stop=["w9"], max_tokens=2, logprobs=True, top_logprobs=2
        )
        assert [each.message.content for each in answer.choices] == [text_of(seed, 2) for seed in range(1, 5)]
        [first, second] = answer.choices[0].logprobs.content  # type: ignore[union-attr]
        assert (first.token, first.logprob, bytes(first.bytes or ())) == ("seed", logprob(0, 0), b"seed")
        assert [each.token for each in second.top_logprobs] == [" 1", "�"]
    assert list(replica.asked[0].sampling.stop) == ["w9"]


async def test_a_text_is_scored() -> None:
    async with client_of(Words()) as client:
        answer = await client.completions.create(
            model="words", prompt=[[97, 98], [99]], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=0
        )
        scores = [each.logprobs.token_logprobs for each in answer.choices if each.logprobs]
        assert scores == [[None, -1.0, logprob(0, 0)], [None, logprob(0, 0)]]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InputError("no such thing"), "BadRequestError", None),
        (ContextError("the prompt is too long"), "BadRequestError", "context_length_exceeded"),
        (BusyError("4 requests run", 0.1), "RateLimitError", "rate_limit_exceeded"),
        (RankError("rank 1 is gone"), "InternalServerError", None),
        (QubicLabError("out of order"), "InternalServerError", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_errors_have_their_class(error: Exception, kind: str, code: str | None) -> None:
    import openai

    async with client_of(Words(error=error)) as client:
        with pytest.raises(getattr(openai, kind)) as caught:
            await client.with_options(max_retries=0).chat.completions.create(model="words", messages=HELLO)
    assert (caught.value.code, caught.value.param) == (code, None)
    assert caught.value.type


async def test_a_wrong_key_and_an_unknown_model_are_told_and_not_tried_again() -> None:
    import openai

    replica = Words()
    async with client_of(replica, KEY, said="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
        right = client.with_options(api_key=KEY)
        assert (await right.models.list()).data[0].id == "words"
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5' here") as unknown:
            await right.chat.completions.create(model="gpt-5", messages=HELLO)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert replica.asked == []


class Recovering(Words):
    """Fails once."""

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        if self.asked:
            self.error = None
        async for reply in super().generate(request):
            yield reply


@pytest.mark.parametrize("error", [BusyError("4 requests run", 0.1), QubicLabError("restarting")], ids=["429", "503"])
async def test_a_busy_server_is_asked_again(error: Exception) -> None:
    replica = Recovering(error=error)
    async with client_of(replica) as client:
        answer = await client.chat.completions.create(model="words", messages=HELLO, seed=2)
    assert answer.choices[0].message.content == text_of(2)
    assert len(replica.asked) == 2


async def test_an_error_in_a_stream_is_raised() -> None:
    import openai

    async with client_of(Words(error=RankError("rank 1 is gone"), after=2)) as client:
        stream = await client.chat.completions.create(model="words", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="rank 1 is gone"):
            [chunk async for chunk in stream]
