"""Real pipelines and real processes: ranks, nodes, coordinators and Redis are killed and stopped under requests."""

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from clusters import (
    WITHIN_S,
    Cluster,
    Fragile,
    Process,
    address_of,
    all_gone,
    cluster,
    family,
    processes,
    until,
    wait_until,
)

from qubic_lab.api.access import ApiToken, hash_token, new_token, write_tokens
from qubic_lab.bench.echo_node import echo_tokens
from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cluster.health import Gate
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.replica import PipelineReplica
from qubic_lab.cluster.tasks import QueueLimits, TaskQueue, count_lost_and_duplicated
from qubic_lab.errors import QubicLabError, RankError
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.settings import settings
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.certificates import make_certificates
from qubic_lab.wire.channel import TlsFiles

pytestmark = [pytest.mark.dist, pytest.mark.anyio]

ASK = "/api/ai/query"
NO_LIMITS = httpx2.Limits(max_connections=None)
Start = Callable[..., Process]
ECHO = "qubic_lab.bench.echo_node"
COMMAND = "qubic_lab.cli.main"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that end with the test."""
    with processes() as starting:
        yield starting


class Shared:
    """A pipeline that all tests share, as a node launches one."""

    def __init__(self, pipeline: Pipeline, slots: int | None = None) -> None:
        self._pipeline = pipeline
        self._slots = slots or pipeline.config.lanes * pipeline.config.slots
        self.address = pipeline.address
        self.ended = False

    def capabilities(self) -> pb.Capabilities:
        config = self._pipeline.config
        return pb.Capabilities(model=config.model, layers=config.layers, slots=self._slots)

    def loss(self) -> QubicLabError:
        raise AssertionError("it does not end")

    def close(self) -> None:
        pass


class LosesTen(PipelineReplica):
    """Takes ten requests, gives each another number of tokens, and loses all."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(lambda: Shared(pipeline, slots=10))
        self._requests = 0
        self._all_cut = asyncio.Barrier(10)

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        most = sys.maxsize
        if request.sampling.logprobs:  # else it shows its speed
            self._requests += 1
            most = 2 * self._requests
        async for reply in super().generate(request):
            if most == 0:
                await self._all_cut.wait()
                raise RankError("lost")
            most -= 1
            yield reply


def questions(count: int, tokens: int = 24) -> list[dict[str, Any]]:
    """Return different questions, every other one sampled."""
    shared = {"max_new_tokens": tokens, "ignore_eos": True, "raw": True, "logprobs": True}
    return [
        {"prompt": f"{n} " * (5 * n + 1), "temperature": float(n % 2), "top_k": 50, "seed": n, **shared}
        for n in range(count)
    ]


async def ask(connection: httpx2.AsyncClient, question: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = await connection.post(ASK, json=question, headers=headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


class SlowStart(PipelineReplica):
    """Measures a third of its speed when it starts, as beside others that load."""

    async def _speed(self) -> float:
        return await super()._speed() / 3


async def test_two_equal_nodes_share_evenly_one_request_at_a_time(
    one_rank: Pipeline, client: redis.Redis, tmp_path: Path
) -> None:
    replicas = {"a": PipelineReplica(lambda: Shared(one_rank)), "b": SlowStart(lambda: Shared(one_rank))}
    async with cluster(client, tmp_path, nodes=dict(replicas), served=True) as running:
        nodes = [(await ask(running.client, question))["node"] for question in questions(20)]
    assert min(nodes.count("a"), nodes.count("b")) >= 5, nodes  # measured speeds differ on a busy machine


def said(answer: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(answer[name] for name in ("token_ids", "text", "finish_reason", "prompt_tokens", "logprobs"))


def assert_each_once(client: redis.Redis, tasks: list[str]) -> None:
    log = list(TaskQueue(client).log())
    assert count_lost_and_duplicated(tasks, log) == (0, 0)
    assert {entry.state for entry in log} == {"completed"}


async def test_answers_are_the_same_at_once_in_a_row_and_across_losses(
    client: redis.Redis,
    hurried: None,
    tiny: Path,
    one_rank: Pipeline,
    two_ranks: Pipeline,
    tmp_path: Path,
) -> None:
    for ranks, pipeline in ((1, one_rank), (2, two_ranks)):
        pipeline.configure(PipelineConfig(model=str(tiny), ranks=ranks, dtype="fp32", slots=2, threads=1))
    asked = questions(10)
    nodes = {"one": PipelineReplica(lambda: Shared(one_rank)), "two": PipelineReplica(lambda: Shared(two_ranks))}
    async with cluster(client, tmp_path, nodes=dict(nodes), served=True) as running:
        in_a_row = [said(await ask(running.client, question)) for question in asked]
        assert len(set(map(str, in_a_row))) == len(asked), "answers all alike would prove nothing"
        at_once = await asyncio.gather(*(ask(running.client, question) for question in asked))
        assert [said(answer) for answer in at_once] == in_a_row
        assert {answer["node"] for answer in at_once} == {"one", "two"}
        assert all(answer["attempts"] == 1 and answer["ttft_ms"] > 0 for answer in at_once)

        # The same from a pipeline that loses all in mid-answer, and another one that goes on.
        await running.start_node("losing", LosesTen(one_rank))
        for name in nodes:
            await running.coordinator.drain(name, True)
        going_on = [asyncio.ensure_future(ask(running.client, question)) for question in asked]
        await until(lambda: running.gates("losing") == {Gate.LOST})
        await running.coordinator.drain("two", False)
        replayed = await asyncio.gather(*going_on)
        assert [said(answer) for answer in replayed] == in_a_row
        assert {(answer["node"], answer["attempts"]) for answer in replayed} == {("two", 2)}


def echo_node(start: Start, folder: Path, name: str, seconds: float = 1.0, coordinators: int = 1) -> Process:
    """Start a process that answers with numbers that count up from the seed."""
    registries = [part for n in range(coordinators) for part in ("--coordinator", address_of(folder, n))]
    listen = ("--listen", f"unix:{folder}/{name}.sock")
    return start(folder, name, ECHO, *registries, "--name", name, *listen, "--seconds", str(seconds))


def counting(count: int, tokens: int = 16) -> list[dict[str, Any]]:
    return [{"prompt": "count", "max_new_tokens": tokens, "seed": 1000 * n} for n in range(count)]


def assert_counted(answers: list[dict[str, Any]], asked: list[dict[str, Any]]) -> None:
    expected = [list(echo_tokens(question["seed"], question["max_new_tokens"])) for question in asked]
    assert [answer["token_ids"] for answer in answers] == expected


async def ask_all(
    connection: httpx2.AsyncClient, asked: list[dict[str, Any]]
) -> "asyncio.Future[list[dict[str, Any]]]":
    """Ask beside one another; the answers are the future's result."""
    return asyncio.gather(*(ask(connection, question) for question in asked))


async def all_under_way(running: Cluster, count: int) -> None:
    """Wait until so many tasks are with nodes, and have given a few tokens."""
    await until(lambda: running.coordinator.working == count)
    await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_nodes_that_are_stopped_ended_and_killed(
    client: redis.Redis, hurried: None, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qubic_lab.cluster.dispatcher.SILENT_S", 1.5)
    asked = counting(8)
    async with cluster(client, tmp_path, served=True) as running:
        nodes = {name: echo_node(start, tmp_path, name) for name in ("stopped", "ended", "killed")}
        await until(lambda: all(running.gates(name) == {None} for name in nodes))

        # Stopped: what it has goes on elsewhere; what it says when it is woken changes nothing.
        asking = await ask_all(running.client, asked)
        await all_under_way(running, 8)
        nodes["stopped"].send(signal.SIGSTOP)
        answers = await asking
        assert_counted(answers, asked)
        assert "stopped" not in {answer["node"] for answer in answers}
        assert {answer["attempts"] for answer in answers} == {1, 2}
        before = client.xlen("{tasks}:log")
        nodes["stopped"].send(signal.SIGCONT)

        # Ended by SIGTERM: it ends what it has.
        asking = await ask_all(running.client, asked)
        await all_under_way(running, 8)
        nodes["ended"].send(signal.SIGTERM)
        answers = await asking
        assert_counted(answers, asked)
        assert {answer["attempts"] for answer in answers} == {1}
        assert "ended" in {answer["node"] for answer in answers}
        assert await nodes["ended"].status() == 0
        await until(lambda: running.gates("ended") == {"gone"})

        # Killed.
        asking = await ask_all(running.client, asked)
        await all_under_way(running, 8)
        nodes["killed"].send(signal.SIGKILL)
        await running.start_node("another", Fragile(slots=8))
        answers = await asking
        assert_counted(answers, asked)
        assert "killed" not in {answer["node"] for answer in answers}
        assert max(answer["attempts"] for answer in answers) == 2, "a try that ends its node is counted"
        assert client.xlen("{tasks}:log") == before + 16
        assert_each_once(client, [answer["task_id"] for answer in answers])


@pytest.mark.slow
async def test_ctrl_c_ends_a_coordinator_and_a_node_while_they_answer(start: Start, tmp_path: Path) -> None:
    http, nodes = free_ports(2)
    environment = {"QUBIC_LAB_CACHE": str(tmp_path / "cache")}
    listen = ("--listen", f"127.0.0.1:{http}", "--nodes", f"127.0.0.1:{nodes}")
    coordinator = start(tmp_path, "coordinator", COMMAND, "coordinator", *listen, **environment)
    node = start(
        tmp_path,
        "node",
        ECHO,
        *("--coordinator", f"127.0.0.1:{nodes}", "--name", "a", "--seconds", "600"),
        **environment,
    )
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{http}", trust_env=False, timeout=None) as client:

        async def outstanding() -> list[int]:
            with suppress(httpx2.TransportError):
                return [each["outstanding"]["requests"] for each in (await client.get("/api/cluster/nodes")).json()]
            return []

        async def under_way() -> bool:
            return await outstanding() == [1]

        async def joined() -> bool:
            return await outstanding() == [0]

        await until(joined, 60.0)
        asking = asyncio.ensure_future(client.post(ASK, json=counting(1)[0]))
        await until(under_way)
        for each in (node, coordinator):
            each.send(signal.SIGINT)
            assert await each.status() == 0
        with suppress(httpx2.TransportError):
            await asking


async def ask_until_answered(
    connections: list[httpx2.AsyncClient], question: dict[str, Any], key: str
) -> dict[str, Any]:
    """Ask one coordinator after the other, as a client with an idempotency key does, until one answers."""
    async with asyncio.timeout(60.0):
        while True:
            for connection in connections:
                try:
                    return await ask(connection, question, **{"Idempotency-Key": key})
                except httpx2.TransportError:
                    await asyncio.sleep(0.1)


async def is_ready(connection: httpx2.AsyncClient) -> bool:
    try:
        return (await connection.get("/ready")).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, 200])
async def test_a_coordinator_is_killed_and_the_other_answers(count: int, start: Start, tmp_path: Path) -> None:
    """The same keys at another coordinator get all answers, once each."""
    [port] = free_ports(1)
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as client:
        killed = start(
            *(tmp_path, "killed", COMMAND, "coordinator", "--listen", f"127.0.0.1:{port}"),
            *("--nodes", address_of(tmp_path, 1), "--redis", server.url),
        )
        limits = QueueLimits(silent_s=2.0, gone_s=2.5)
        async with cluster(client, tmp_path, served=True, limits=limits) as running:
            for name in "ab":
                await running.start_node(name, Fragile(seconds=2.0, slots=count))
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None, limits=NO_LIMITS) as dying:
                await until(lambda: is_ready(dying))
                asked = counting(count)
                asking = [
                    asyncio.ensure_future(ask_until_answered([dying, running.client], question, f"key {n}"))
                    for n, question in enumerate(asked)
                ]

                async def under_way() -> bool:
                    counts = await running.coordinator.counts()
                    return counts.processing - running.coordinator.working > count // 20

                await until(under_way)
                killed.send(signal.SIGKILL)
                answers = await asyncio.gather(*asking)
                assert_counted(answers, asked)
                assert {answer["attempts"] for answer in answers} >= {2}
                assert_each_once(client, [answer["task_id"] for answer in answers])


@pytest.mark.slow
async def test_redis_stands_still_for_longer_than_nodes_wait(tmp_path: Path) -> None:
    """Nodes ask again and again meanwhile; when all of it is carried out at last, each is still itself."""
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as client:
        async with cluster(client, tmp_path, coordinators=2, served=True) as running:
            for name in ("a", "b"):
                await running.start_node(name, Fragile(seconds=30.0, slots=4))
            asked = counting(8)
            asking = await ask_all(running.clients[1], asked)
            await until(lambda: sum(each.working for each in running.coordinators) == 8)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            await asyncio.sleep(20.0)
            os.kill(server.pid, signal.SIGCONT)
            answers = await asking
            assert_counted(answers, asked)
            assert_each_once(client, [answer["task_id"] for answer in answers])
            await until(lambda: running.gates("a") == running.gates("b") == {None})
            assert not any(node.done() for node in running.nodes.values())


def real_node(start: Start, folder: Path, name: str, model: Path | str, ranks: int) -> Process:
    """Start a process with a pipeline of so many ranks."""
    return start(
        *(folder, name, COMMAND, "node", "--coordinator", address_of(folder, 0), "--name", name),
        *("--listen", f"unix:{folder}/{name}.sock", "--model", str(model), "--ranks", str(ranks)),
        *("--dtype", "fp32", "--threads", "1", "--slots", "2"),
        QUBIC_LAB_CACHE=str(settings().cache),
    )


@pytest.mark.slow
async def test_ranks_and_nodes_are_killed_in_mid_answer(
    client: redis.Redis, start: Start, tiny: Path, tmp_path: Path
) -> None:
    asked = questions(6, tokens=300)
    async with cluster(client, tmp_path, served=True) as running:
        nodes = {name: real_node(start, tmp_path, name, tiny, ranks) for name, ranks in (("a", 2), ("b", 1))}
        await until(lambda: all(running.gates(name) == {None} for name in nodes), 100.0)
        undisturbed = [said(answer) for answer in await (await ask_all(running.client, asked))]

        asking = await ask_all(running.client, asked)
        await until(lambda: (view := running.view("a")) and view.outstanding_requests >= 2)
        await asyncio.sleep(0.2)
        ranks = [each for each in family(nodes["a"].pid) if "qubic_lab.pipeline.rank" in each.cmdline()]
        ranks[-1].kill()
        answers = await asking
        assert [said(answer) for answer in answers] == undisturbed
        assert {answer["attempts"] for answer in answers} >= {2}
        await until(lambda: (view := running.view("a")) and view.record.state.restarts == 1)
        await until(lambda: running.gates("a") == {None})
        assert not nodes["a"].ended

        asking = await ask_all(running.client, asked)
        await until(lambda: (view := running.view("b")) and view.outstanding_requests >= 1)
        await asyncio.sleep(0.2)
        ranks = family(nodes["b"].pid)
        nodes["b"].send(signal.SIGKILL)
        assert [said(answer) for answer in await asking] == undisturbed
        await asyncio.to_thread(wait_until, lambda: all_gone(ranks), WITHIN_S)

        nodes["a"].send(signal.SIGTERM)
        assert await nodes["a"].status() == 0


@pytest.mark.slow
async def test_a_coordinator_beyond_loopback_serves_those_it_knows(start: Start, tmp_path: Path) -> None:
    """All interfaces of this host, with certificates and tokens, through the commands."""
    roles = ("coordinator", "node")
    [certificate] = make_certificates(tmp_path / "tls", [["localhost", "127.0.0.1"]], datetime.now(UTC), roles=roles)
    tls = TlsFiles(certificate, certificate.with_suffix(".key"), tmp_path / "tls" / "authority.pem")
    token = new_token()
    write_tokens(tmp_path / "tokens.yaml", [ApiToken("notebook", hash_token(token))])
    http, nodes = free_ports(2)
    environment = {
        "QUBIC_LAB_CACHE": str(tmp_path / "cache"),
        "QUBIC_LAB_API_TOKENS": str(tmp_path / "tokens.yaml"),
        **{f"QUBIC_LAB_TLS_{name.upper()}": str(getattr(tls, name)) for name in ("certificate", "key", "authority")},
    }
    listen = ("--listen", f"0.0.0.0:{http}", "--nodes", f"0.0.0.0:{nodes}")
    coordinator = start(tmp_path, "coordinator", COMMAND, "coordinator", *listen, **environment)
    registry = f"localhost:{nodes}"
    start(
        *(tmp_path, "node", ECHO, "--coordinator", registry, "--name", "a@localhost", "--seconds", "0.2"), **environment
    )
    trusted = ssl.create_default_context(cafile=tls.authority)
    url = f"https://localhost:{http}"
    async with (
        httpx2.AsyncClient(base_url=url, verify=trusted, timeout=WITHIN_S, trust_env=False) as stranger,
        httpx2.AsyncClient(base_url=url, timeout=WITHIN_S, trust_env=False) as distrustful,
    ):
        known = {"Authorization": f"Bearer {token}"}

        async def ready() -> bool:
            with suppress(httpx2.TransportError):
                return (await stranger.get("/ready", headers=known)).status_code == 200
            assert not coordinator.ended, coordinator.log
            return False

        await until(ready)
        response = await stranger.post(ASK, json=counting(1)[0], headers=known)
        assert response.status_code == 200
        assert (await stranger.post(ASK, json=counting(1)[0])).status_code == 401
        with pytest.raises(httpx2.ConnectError):
            await distrustful.get("/health")
    redis_servers = [each for each in family(coordinator.pid) if "valkey" in each.name() or "redis" in each.name()]
    assert len(redis_servers) == 1
    coordinator.send(signal.SIGTERM)
    assert await coordinator.status() == 0
    assert all_gone(redis_servers)
