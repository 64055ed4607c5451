"""The HTTP interface: answers and streams, hang-ups and repeats, refusals that say what to do, and what is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx2
import pytest
from clusters import Cluster, Fragile, StartCluster, cluster, counted, text_of, until
from prometheus_client.parser import text_string_to_metric_families
from words import Words

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.api.schemas import Query, QueryResponse, Token
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import QueueLimits
from qubic_lab.errors import BusyError, InputError, NotFoundError, QubicLabError, RankError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]
ASK = "/api/ai/query"
QUESTION: dict[str, Any] = {"prompt": "hi", "max_new_tokens": 8}
STREAM = {**QUESTION, "stream": True}
KEY = {"Idempotency-Key": "key"}
HANG_UP = {"X-Qubic-Hang-Up": "cancel"}
Event = tuple[str, int, dict[str, Any]]


def assert_problem(response: httpx2.Response, status: int, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert detail in problem["detail"], problem["detail"]


async def events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Yield the events of a stream."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            yield fields["event"], int(fields.get("id", -1)), json.loads(fields["data"])
            fields = {}


async def read_stream(
    connection: httpx2.AsyncClient, body: dict[str, Any], most: int = 99, **headers: str
) -> list[Event]:
    """Ask for a stream and return its first events; hang up when there are so many."""
    found = []
    async with connection.stream("POST", ASK, json=body, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        async for event in events(response.aiter_lines()):
            found.append(event)
            if len(found) == most:
                break
    return found


async def state_of(running: Cluster, task_id: str) -> dict[str, Any]:
    response = await running.client.get(f"/api/cluster/tasks/{task_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def counted_as(running: Cluster, **expected: int) -> bool:
    counts = await running.coordinator.counts()
    return all(getattr(counts, name) == count for name, count in expected.items())


async def test_an_answer_in_one_piece_and_as_a_stream(start_cluster: StartCluster) -> None:
    async with start_cluster(nodes={"a": Fragile()}, served=True) as running:
        for path in (ASK, "/api/ai/single_query"):
            response = await running.client.post(path, json=QUESTION)
            answer = QueryResponse(**response.json())
            assert response.status_code == 200
            assert (answer.text, answer.token_ids) == (text_of(counted(0, 8)), counted(0, 8))
            assert (answer.node, answer.model, answer.attempts, answer.logprobs) == ("a", "counting", 1, None)
            assert answer.total_ms > answer.node_ms > 0
            state = await state_of(running, answer.task_id)
            assert (state["state"], state["tokens"], state["attempts"]) == ("completed", 8, 1)
        *tokens, (name, number, end) = await read_stream(running.client, STREAM)
        assert [(name, number) for name, number, _ in tokens] == [("token", n) for n in range(1, 9)]
        assert [data for *_, data in tokens] == [{"index": n, "id": n, "text": f"{n} "} for n in range(8)]
        assert (name, number, QueryResponse(**end).token_ids) == ("end", 8, counted(0, 8))


@pytest.mark.parametrize("body", [QUESTION, STREAM], ids=["json", "stream"])
@pytest.mark.parametrize("headers", [{}, KEY | HANG_UP], ids=["no key", "a key that says so"])
async def test_whoever_hangs_up_without_a_key_ends_the_work(
    start_cluster: StartCluster, body: dict[str, Any], headers: dict[str, str]
) -> None:
    node = Fragile(seconds=600.0, slots=1)
    async with start_cluster(nodes={"a": node}, served=True) as running:
        asking = asyncio.ensure_future(running.client.post(ASK, json=body, headers=headers))
        await until(lambda: node.running)
        asking.cancel()
        await until(lambda: not node.running)
        assert await until(lambda: counted_as(running, cancelled=1, processing=0, submitted=1))
        node.seconds = 0.1
        assert (await running.client.post(ASK, json=QUESTION)).status_code == 200


@pytest.mark.parametrize("body", [QUESTION, STREAM], ids=["json", "stream"])
async def test_who_hangs_up_at_once_leaves_nothing_behind(start_cluster: StartCluster, body: dict[str, Any]) -> None:
    """Before a slot is free, or anything was sent."""
    async with start_cluster(nodes={"a": Fragile(seconds=600.0, slots=1)}, served=True) as running:
        url = running.client.base_url
        text = json.dumps(body)
        lines = (
            f"POST {ASK} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(text)}",
        )
        for _ in range(4):
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write("\r\n".join((*lines, "", text)).encode())
            await writer.drain()
            writer.close()
        assert await until(lambda: counted_as(running, submitted=4, cancelled=4))


async def test_a_client_that_lost_its_connection_finds_its_work_going_on(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Fragile(held=True)
    async with start_cluster(nodes={"a": node}, served=True) as running:
        asking = asyncio.ensure_future(running.client.post(ASK, json=QUESTION, headers=KEY | HANG_UP))
        await until(lambda: node.running)
        left: list[tuple[str, str]] = []  # it is called when the time is up
        monkeypatch.setattr(running.coordinator, "_cancel_left", lambda task_id, asker: left.append((task_id, asker)))
        asking.cancel()
        again = asyncio.ensure_future(running.client.post(ASK, json=QUESTION, headers=KEY | HANG_UP))
        await until(lambda: left and running.coordinator._followed)
        type(running.coordinator)._cancel_left(running.coordinator, *left[0])
        node.held = False
        assert QueryResponse(**(await again).json()).token_ids == counted(0, 8)
        assert node.asked == 1


async def test_with_a_key_the_work_goes_on_and_a_repeat_gets_its_answer(start_cluster: StartCluster) -> None:
    node = Fragile(held=True)
    async with start_cluster(coordinators=2, nodes={"a": node}, served=True) as running:
        asking = asyncio.ensure_future(running.client.post(ASK, json=QUESTION, headers=KEY))
        await until(lambda: node.running)
        asking.cancel()
        node.held = False
        answers = [
            QueryResponse(**(await each.post(ASK, json=QUESTION, headers=KEY)).json()) for each in running.clients
        ]
        assert answers[0].token_ids == counted(0, 8)
        assert answers[0].task_id == answers[1].task_id
        assert node.asked == 1
        other = {**QUESTION, "max_new_tokens": 9}
        response = await running.clients[1].post(ASK, json=other, headers=KEY)
        assert_problem(response, 409, "the idempotency key was used with another payload: give a new key")


async def test_a_stream_goes_on_after_the_last_event_that_was_seen(start_cluster: StartCluster) -> None:
    node = Fragile(seconds=0.4)
    async with start_cluster(coordinators=2, nodes={"a": node}, served=True) as running:
        seen = await read_stream(running.client, STREAM, 3, **KEY)
        going_on = await read_stream(running.clients[1], STREAM, **KEY, **{"Last-Event-ID": str(seen[-1][1])})
        assert [data["id"] for name, _, data in seen + going_on if name == "token"] == counted(0, 8)
        assert going_on[-1][0] == "end"
        at_the_end = await read_stream(running.clients[0], STREAM, **KEY, **{"Last-Event-ID": "8"})
        assert [name for name, *_ in at_the_end] == ["end"]
        assert node.asked == 1
        response = await running.client.post(ASK, json=STREAM, headers={"Last-Event-ID": "3"})
        assert_problem(response, 404, "send the Idempotency-Key")


async def test_a_stream_does_not_show_that_a_replica_was_lost(start_cluster: StartCluster) -> None:
    lost = Fragile(error=RankError("gone"), tokens=3)
    async with start_cluster(nodes={"a": lost}, served=True) as running:
        reading = asyncio.ensure_future(read_stream(running.client, STREAM))
        await until(lambda: lost.asked)
        await running.start_node("b", Fragile())
        *tokens, (_, _, end) = await reading
        assert [data["id"] for *_, data in tokens] == counted(0, 8) == end["token_ids"]
        assert (end["attempts"], end["node"]) == (2, "b")


async def test_answers_that_do_not_come(start_cluster: StartCluster) -> None:
    node = Fragile(seconds=600.0)
    async with start_cluster(nodes={"a": node}, served=True) as running:
        response = await running.client.post(ASK, json={**QUESTION, "deadline_s": 0.2})
        assert_problem(response, 504, "its deadline of 0.2 s")
        await until(lambda: not node.running)
        [(name, _, problem)] = await read_stream(running.client, {**STREAM, "deadline_s": 0.2})
        assert (name, problem["status"], problem["title"]) == ("error", 504, "Too late")
        await until(lambda: not node.running)
        assert (await running.coordinator.counts()).cancelled == 2

        asking = asyncio.ensure_future(running.client.post(ASK, json=QUESTION, headers=KEY))
        await until(lambda: node.running)
        task_id = await running.coordinator.submit(Query(**QUESTION).to_message(), "normal", "key")  # the same task
        ended = await running.client.delete(f"/api/cluster/tasks/{task_id}")
        assert ended.json()["state"] == "cancelled"
        assert_problem(await asking, 409, "cancelled")

        node.error = InputError("the prompt has 9 tokens, the model's context is 8: give a shorter one")
        assert_problem(await running.client.post(ASK, json=QUESTION), 400, "the model's context is 8")
        [(name, _, problem)] = await read_stream(running.client, STREAM)
        assert (name, problem["status"]) == ("error", 400)

        node.error = KeyError("/a/secret")
        response = await running.client.post(ASK, json=QUESTION)
        assert_problem(response, 502, "all 3 attempts were lost: /api/cluster/tasks/")
        assert "secret" not in response.text
        story = (await state_of(running, response.json()["detail"].split("/")[4].split()[0]))["story"]
        assert len(story) == 3 and "secret" not in str(story)


async def test_without_a_node_or_a_place_in_the_queue(start_cluster: StartCluster) -> None:
    limits = QueueLimits(most_waiting=1, retry_after_s=7.2)
    async with start_cluster(limits=limits, served=True) as running:
        response = await running.client.post(ASK, json=QUESTION)
        assert_problem(response, 503, "no node is registered: start one with qubic-lab node")
        assert int(response.headers["retry-after"]) > 0
        await running.start_node("a")
        await running.coordinator.drain("a", True)
        await until(lambda: not running.coordinator.fleet.has_room(0.0))
        await until(lambda: not running.coordinator._dispatcher._taking)  # no look for a task is under way
        waiting = asyncio.ensure_future(running.client.post(ASK, json=QUESTION, headers=KEY))
        await until(lambda: counted_as(running, pending=1))
        response = await running.client.post(ASK, json=QUESTION)
        assert_problem(response, 429, "1 tasks are waiting: try again after 7.2 s")
        assert response.headers["retry-after"] == "8"
        await running.coordinator.drain("a", False)
        assert (await waiting).status_code == 200


BAD_BODIES: list[tuple[Any, str]] = [
    ({"prompt": "hi", "max_token": 5}, "unknown field 'max_token': did you mean 'max_new_tokens'?"),
    ({}, "prompt: Field required"),
    ({"prompt": ""}, "prompt is '': String should have at least 1 character"),
    ({"prompt": "hi", "max_new_tokens": 0}, "max_new_tokens is '0'"),
    ({"prompt": "hi", "seed": 2**64}, "seed is"),
    ({"prompt": "hi", "stop": [""]}, "stop"),
    ({"prompt": "hi", "top_logprobs": 21}, "top_logprobs"),
    ([1], "the body is not a JSON object"),
    (b'{"prompt": ', "the body is not JSON (Expecting value at character 11)"),
    (b"\xff", "the body is not UTF-8 text"),
    (b'{"prompt": "\\ud800"}', "prompt is"),
    (b'{"prompt": "hi", "temperature": NaN}', "temperature is 'nan'"),
    (b"", "the body is empty"),
]


async def blanks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 2**16


async def test_requests_that_cannot_be(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True) as running:
        ask = running.client.post
        for body, detail in BAD_BODIES:
            content = body if isinstance(body, bytes) else json.dumps(body)
            response = await ask(ASK, content=content, headers={"Content-Type": "application/json"})
            assert_problem(response, 400, detail)
        for headers, detail in (
            ({"Idempotency-Key": ""}, "idempotency-key is '': String should have at least 1"),
            ({"Idempotency-Key": "x" * 201}, "at most 200 characters"),
            ({"Last-Event-ID": "x"}, "last-event-id is 'x'"),
            ({"Last-Event-ID": "-1"}, "last-event-id is '-1'"),
        ):
            assert_problem(await ask(ASK, json=QUESTION, headers=headers), 400, detail)
        too_large = "the body has more than 1,048,576 bytes: send a shorter prompt"
        for content in (b" " * (2**20 + 1), blanks(17)):
            assert_problem(await ask(ASK, content=content), 413, too_large)
        assert_problem(await ask(ASK, content=blanks(16)), 400, "with the header Content-Type")
        assert_problem(await running.client.get(ASK), 405, "send POST")
        assert_problem(await running.client.get("/api/nothing"), 404, "there is no /api/nothing: ")
        assert (await running.coordinator.counts()).submitted == 0


async def test_nothing_of_the_inside_is_told(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start_cluster(served=True) as running:
        for error, status in ((QubicLabError("Redis at /secret"), 503), (KeyError("/secret"), 500)):
            monkeypatch.setattr(running.coordinator, "counts", AsyncMock(side_effect=error))
            response = await running.client.get("/api/cluster/status")
            assert_problem(response, status, "the server")
            assert "secret" not in response.text and "Traceback" not in response.text


async def test_the_cluster_is_told_and_nodes_are_drained(start_cluster: StartCluster) -> None:
    async with start_cluster(nodes={"a": Fragile(), "gpu/0@b": Fragile(slots=7)}, served=True) as running:
        ask = running.client
        status = (await ask.get("/api/cluster/status")).json()
        assert (status["ready"], status["nodes"]) == (True, {"open": 2})
        assert status["coordinator"] == running.coordinator.name
        a, b = (await ask.get("/api/cluster/nodes")).json()
        assert (a["name"], a["gate"], a["model"], a["slots"]) == ("a", None, "counting", 4)
        assert (b["name"], b["slots"], b["outstanding"]) == ("gpu/0@b", 7, {"requests": 0, "tokens": 0})
        assert 0 <= a["score"] <= 100

        drain = "/api/cluster/nodes/gpu%2F0%40b/drain"
        assert (await ask.post(drain)).status_code == 204
        assert (await ask.get("/api/cluster/status")).json()["nodes"] == {"open": 1, "draining": 1}
        assert (await ask.delete(drain)).status_code == 204
        assert (await ask.get("/api/cluster/status")).json()["nodes"] == {"open": 2}
        assert_problem(await ask.post("/api/cluster/nodes/c/drain"), 404, "node 'c' is not registered")

        done = (await ask.post(ASK, json=QUESTION)).json()
        state = await state_of(running, done["task_id"])
        assert (state["state"], state["result"]["text"]) == ("completed", done["text"])
        for call in (ask.get, ask.delete):
            assert_problem(await call("/api/cluster/tasks/none"), 404, "no task 'none' is known")
        ended = await ask.delete(f"/api/cluster/tasks/{done['task_id']}")
        assert ended.json()["state"] == "completed"
        tasks = (await ask.get("/api/cluster/tasks")).json()
        assert (tasks["completed"], tasks["pending"], tasks["dead_letters"]) == (1, 0, [])


async def test_health_readiness_metrics_and_description(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True) as running:
        ask = running.client.get
        assert (await ask("/health")).json()["status"] == "alive"
        assert_problem(await ask("/ready"), 503, "no node is available")
        await running.start_node("a")
        ready = (await ask("/ready")).json()
        assert (ready["ready"], ready["nodes_open"]) == (True, 1)
        assert ready["redis_ping_ms"] > 0
        await running.client.post(ASK, json=QUESTION)
        await ask("/made/up")

        for path in ("/metrics", "/api/cluster/metrics"):
            families = text_string_to_metric_families((await ask(path)).text)
            samples = {(each.name, *each.labels.values()): each.value for one in families for each in one.samples}
            for sample in (
                ("qubic_lab_tasks_ended_total", "completed"),
                ("qubic_lab_node_up", "a"),
                ("qubic_lab_node_calls_total", "answered"),
                ("qubic_lab_dispatch_seconds_count",),
                ("qubic_lab_mode_answers_total", "single"),
                ("qubic_lab_nodes", "open"),
                ("qubic_lab_http_requests_total", ASK, "200"),
                ("qubic_lab_http_requests_total", "none", "404"),
                ("qubic_lab_http_seconds_count", ASK),
            ):
                assert samples[sample] == 1
            assert 0 <= samples["qubic_lab_node_health_score", "a"] <= 100

        assert f'<summary><span class="method">POST</span> <code>{ASK}</code>' in (await ask("/docs")).text
        described = (await ask("/openapi.json")).json()
        responses = described["paths"][ASK]["post"]["responses"]
        assert set(responses) == {"200", "4XX", "5XX"}
        assert "application/problem+json" in responses["4XX"]["content"]


async def test_readiness_without_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.cluster.registry.PATIENCE_S", 0.1)
    with ExitStack() as up:
        connection = connect(up.enter_context(RedisServer(tmp_path / "redis")).url)
        limits = QueueLimits(patience_s=0.2)
        async with cluster(connection, tmp_path, nodes={"a": Fragile()}, limits=limits, served=True) as running:
            assert (await running.client.get("/ready")).status_code == 200
            up.close()
            response = await running.client.get("/ready")
            assert_problem(response, 503, "the server cannot do this now: see its log")
            assert str(tmp_path) not in response.text
            assert_problem(await running.client.post(ASK, json=QUESTION), 503, "cannot do this now")
            assert (await running.client.get("/health")).status_code == 200


async def test_a_node_gets_all_that_says_how_to_sample(start_cluster: StartCluster) -> None:
    given = {"top_k": 3, "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": -1.0, "logit_bias": {"4": 2.0}}
    node = Words()
    async with start_cluster(nodes={"a": node}, served=True) as running:
        assert (await running.client.post(ASK, json=QUESTION | given)).status_code == 200
        assert_problem(await running.client.post(ASK, json=QUESTION | {"logit_bias": {"x": 1}}), 400, "logit_bias.x")
    [asked] = node.asked
    found = {name: getattr(asked.sampling, name) for name in given}
    assert found | {"logit_bias": dict(asked.sampling.logit_bias)} == given | {"logit_bias": {4: 2.0}}


async def test_from_python(start_cluster: StartCluster) -> None:
    node = Fragile()
    async with start_cluster(served=True) as running:
        with CoordinatorClient(str(running.client.base_url)) as lab:
            with pytest.raises(BusyError, match="no node") as busy:
                await asyncio.to_thread(lab.ask, "hi")
            assert busy.value.retry_after_s == 5
            await running.start_node("a", node)
            answer = await asyncio.to_thread(lab.ask, "hi", key="key", max_new_tokens=8)
            assert answer.token_ids == counted(0, 8)
            told = await asyncio.to_thread(lambda: list(lab.stream("hi", key="key", max_new_tokens=8)))
            assert [each.id for each in told if isinstance(each, Token)] == counted(0, 8)
            assert isinstance(told[-1], QueryResponse) and told[-1].task_id == answer.task_id
            with pytest.raises(InputError, match="did you mean 'top_k'"):
                await asyncio.to_thread(lab.ask, "hi", topk=3)
            node.held = True
            left = lab.stream("hi", max_new_tokens=8)
            await asyncio.to_thread(next, left)
            left.close()  # its own key does not keep the work
            assert await until(lambda: counted_as(running, cancelled=1))
            node.held = False
            node.error = KeyError("a fault")
            with pytest.raises(RankError, match="all 3 attempts"):
                await asyncio.to_thread(lambda: list(lab.stream("hi")))
            assert [each.name for each in await asyncio.to_thread(lab.nodes)] == ["a"]
            with pytest.raises(NotFoundError, match="no task"):
                await asyncio.to_thread(lab.call, "DELETE", "/api/cluster/tasks/none")


def test_a_token_never_leaves_this_host_in_clear_text() -> None:
    for url in ("http://10.0.0.2:5000", "http://lab.example:5000"):
        with pytest.raises(InputError, match="in clear text: give https://"):
            CoordinatorClient(url, token="secret")
    for url, token in (("http://127.0.0.1:5000", "secret"), ("http://10.0.0.2:5000", None)):
        CoordinatorClient(url, token=token).close()


@pytest.mark.parametrize("url", ["localhost", "localhost:5000", "ftp://lab.example", "http://"])
def test_an_address_that_is_no_coordinators_is_refused_at_once(url: str) -> None:
    with pytest.raises(InputError, match=r"is not a coordinator's URL.*: give http://HOST:PORT"):
        CoordinatorClient(url)
