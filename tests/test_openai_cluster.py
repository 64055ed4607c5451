"""The OpenAI routes over a cluster: nodes answer, a lost one is not seen, who hangs up leaves no task behind."""

import asyncio
from typing import Any

import httpx2
import pytest
import redis
from clusters import Fragile, StartCluster, text_of, until
from test_openai_routes import CHAT, HELLO, TEXT, assert_error, chunks_of
from words import Words, end_of
from words import text_of as words_of

from qubic_lab.api.openai.schemas import ChatCompletion
from qubic_lab.cluster.admission import FEWEST
from qubic_lab.errors import ContextError, InputError, RankError
from qubic_lab.wire import pipeline_pb2

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]


async def test_nodes_answer_whole_and_as_a_stream(start_cluster: StartCluster) -> None:
    async with start_cluster(nodes={"a": Fragile(), "b": Fragile()}, served=True) as running:
        listed = (await running.client.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["counting", "default"]
        body = HELLO | {"n": 3, "max_tokens": 4}
        found = (await running.client.post(CHAT, json=body)).json()
        ChatCompletion.model_validate(found, strict=True)
        expected = [text_of(list(range(seed, seed + 4))) for seed in (7, 8, 9)]
        assert [choice["message"]["content"] for choice in found["choices"]] == expected
        assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13}
        texts = ["", "", ""]
        for chunk in chunks_of((await running.client.post(CHAT, json=body | {"stream": True})).text):
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
        assert texts == expected


@pytest.mark.parametrize("header", ["x-stainless-read-timeout", "x-stainless-timeout"])
async def test_who_says_how_long_it_waits_is_refused_what_comes_later(start_cluster: StartCluster, header: str) -> None:
    async with start_cluster(nodes={"a": Fragile(seconds=5.0)}, served=True) as running:
        for _ in range(FEWEST):
            running.coordinator.admission.note(0, 5.0, cut=False)
        occupied = [asyncio.ensure_future(running.client.post(CHAT, json=HELLO)) for _ in range(20)]
        await until(lambda: running.coordinator.queue.counts().pending > 0)
        refused = await running.client.post(CHAT, json=HELLO, headers={header: "0.1"})
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
        for each in occupied:
            each.cancel()
        await asyncio.gather(*occupied, return_exceptions=True)


async def test_scores_and_log_probabilities_pass_the_queue(start_cluster: StartCluster) -> None:
    async with start_cluster(nodes={"a": Words()}, served=True) as running:
        body = {"prompt": [[97, 0xE2], [99]], "echo": True, "logprobs": 1, "max_tokens": 1, "seed": 3}
        found = (await running.client.post(TEXT, json=body)).json()
        first, second = (choice["logprobs"] for choice in found["choices"])
        assert first["tokens"] == ["a", r"bytes:\xe2", "seed"]
        assert first["token_logprobs"] == [None, -1.0, -1.0]
        assert first["top_logprobs"][2] == {"seed": -1.0, r"bytes:\xe2\x82": -9.0}
        assert second["tokens"] == ["c", "seed"]
        chat = HELLO | {"messages": [{"role": "system", "content": "Be brief."}, *HELLO["messages"]]}
        answer = (await running.client.post(CHAT, json=chat)).json()
        assert answer["choices"][0]["message"]["content"] == words_of(7)
        assert answer["usage"]["prompt_tokens"] == len("<system>Be brief.<user>Hello")


async def test_usage_tells_which_tokens_were_known(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(*asked: Any) -> pipeline_pb2.End:
        end = end_of(*asked)
        end.cached_tokens = 6
        return end

    monkeypatch.setattr("words.end_of", known)
    async with start_cluster(nodes={"a": Words()}, served=True) as running:
        found = (await running.client.post(CHAT, json=HELLO)).json()
        assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": 6}


async def test_only_nodes_with_the_model_answer(start_cluster: StartCluster) -> None:
    nodes = {"a": Fragile(), "b": Words(), "c": Words()}
    async with start_cluster(nodes=nodes, served=True) as running:
        listed = (await running.client.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["words", "counting", "default"]
        body = HELLO | {"max_tokens": 3}
        for name, model, text in (
            ("counting", "counting", text_of([7, 8, 9])),
            ("words", "words", words_of(7, 3)),
            ("default", "words", words_of(7, 3)),
        ):
            for _ in range(4):
                found = (await running.client.post(CHAT, json=body | {"model": name})).json()
                assert (found["model"], found["choices"][0]["message"]["content"]) == (model, text)


async def test_a_task_that_waits_for_its_model_does_not_hold_up_others(start_cluster: StartCluster) -> None:
    busy = Fragile(held=True, slots=1)
    async with start_cluster(nodes={"a": busy, "b": Words()}, served=True) as running:
        asked = [
            asyncio.ensure_future(running.client.post(CHAT, json=HELLO | {"model": "counting", "max_tokens": 3}))
            for _ in range(3)
        ]
        await until(lambda: busy.running)
        for _ in range(5):
            answer = await running.client.post(CHAT, json=HELLO | {"model": "words"})
            assert answer.json()["choices"][0]["message"]["content"] == words_of(7)
        busy.held = False
        assert [(await each).status_code for each in asked] == [200, 200, 200]


async def test_a_lost_node_is_not_seen(start_cluster: StartCluster) -> None:
    lost = Fragile(error=RankError("gone"), tokens=3)
    async with start_cluster(nodes={"a": lost}, served=True) as running:
        body = HELLO | {"max_tokens": 8, "stream": True}
        asking = asyncio.ensure_future(running.client.post(CHAT, json=body))
        await until(lambda: lost.asked)
        await running.start_node("b", Fragile())
        chunks = chunks_of((await asking).text)
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        assert text == text_of(list(range(7, 15)))


async def test_without_nodes_clients_are_told_to_come_back(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True) as running:
        for response in (await running.client.get("/v1/models"), await running.client.post(CHAT, json=HELLO)):
            assert_error(response, 503, "no node is registered", type="server_error")
            assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize(("kind", "code"), [(InputError, None), (ContextError, "context_length_exceeded")])
async def test_what_a_node_refuses_is_the_clients_error(
    start_cluster: StartCluster, kind: type[InputError], code: str | None
) -> None:
    node = Fragile(error=kind("the prompt has 9 tokens, the model's context is 8: give a shorter one"))
    async with start_cluster(nodes={"a": node}, served=True) as running:
        for stream in (False, True):
            response = await running.client.post(CHAT, json=HELLO | {"stream": stream})
            assert_error(response, 400, "context is 8", code=code)


async def test_long_prompts_have_their_scores_which_are_not_kept(
    start_cluster: StartCluster, client: redis.Redis
) -> None:
    prompt = "x" * 20_000
    async with start_cluster(nodes={"a": Words()}, served=True) as running:
        body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0}
        for headers, kept in (({}, 0), ({"Idempotency-Key": "mine"}, 1)):
            found = (await running.client.post(TEXT, json=body, headers=headers)).json()
            [choice] = found["choices"]
            assert (choice["text"], len(choice["logprobs"]["token_logprobs"])) == (prompt, len(prompt))
            assert len(list(client.scan_iter("*:task:*"))) == kept


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}], ids=["whole", "stream", "samples"])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k", "X-Qubic-Hang-Up": "cancel"}], ids=["", "key"])
async def test_whoever_hangs_up_leaves_no_task_behind(
    start_cluster: StartCluster, body: dict[str, Any], headers: dict[str, str]
) -> None:
    node = Fragile(seconds=600.0, slots=8)
    async with start_cluster(nodes={"a": node}, served=True) as running:
        asking = asyncio.ensure_future(running.client.post(CHAT, json=HELLO | body, headers=headers))
        await until(lambda: node.running == body.get("n", 1))
        asking.cancel()
        await until(lambda: not node.running)

        async def is_over() -> bool:
            counts = await running.coordinator.counts()
            return (counts.cancelled, counts.processing, counts.pending) == (body.get("n", 1), 0, 0)

        await until(is_over)


async def test_whoever_hangs_up_at_once_leaves_no_task_behind(start_cluster: StartCluster) -> None:
    async with start_cluster(nodes={"a": Fragile(seconds=600.0, slots=1)}, served=True) as running:
        for delay_s in (0.0, 0.001, 0.003, 0.01):
            with pytest.raises(httpx2.TimeoutException):
                await running.client.post(CHAT, json=HELLO | {"n": 2}, timeout=0.01 + delay_s)

        async def is_over() -> bool:
            counts = await running.coordinator.counts()
            return counts.processing == counts.pending == 0

        await until(is_over)


async def test_a_repeated_request_with_its_key_gets_the_first_answer(start_cluster: StartCluster) -> None:
    node = Words()
    body = {"messages": HELLO["messages"], "n": 2, "max_tokens": 5}
    async with start_cluster(nodes={"a": node}, served=True) as running:

        async def ask(path: str, body: dict[str, Any], key: str = "k") -> httpx2.Response:
            return await running.client.post(path, json=body, headers={"Idempotency-Key": key})

        first, again = (await ask(CHAT, body)).json(), (await ask(CHAT, body)).json()
        assert (first["id"], first["choices"], first["usage"]) == (again["id"], again["choices"], again["usage"])
        assert len(node.asked) == 2, "a task for each sample, and none for the repetition"
        for other in (body | {"n": 1}, body | {"temperature": 0.5}, body | {"stream": True}):
            assert_error(await ask(CHAT, other), 409, "was used with another payload: give a new key")
        texts = {"prompt": ["one", "two"], "max_tokens": 3}
        found = [(await ask(TEXT, texts, "t")).json()["choices"] for _ in range(2)]
        assert found[0] == found[1] and len(found[0]) == 2
        response = [(await ask("/v1/responses", {"input": "one"}, "r")).json() for _ in range(2)]
        assert response[0]["output"][0]["content"] == response[1]["output"][0]["content"]
        assert len(node.asked) == 5


async def test_with_a_key_the_work_goes_on_when_the_client_hangs_up(start_cluster: StartCluster) -> None:
    node = Fragile(held=True)
    async with start_cluster(nodes={"a": node}, served=True) as running:

        async def ask() -> httpx2.Response:
            return await running.client.post(CHAT, json=HELLO | {"max_tokens": 3}, headers={"Idempotency-Key": "k"})

        asking = asyncio.ensure_future(ask())
        await until(lambda: node.running)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        repeated = asyncio.ensure_future(ask())
        await asyncio.sleep(0.05)
        node.held = False
        assert (await repeated).json()["choices"][0]["message"]["content"] == text_of([7, 8, 9])
        assert node.asked == 1
