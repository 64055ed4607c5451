"""A rolling upgrade within one process: nodes end and return one by one, and a server ends between two requests."""

import asyncio

import httpx2
import pytest
import uvicorn
from clusters import Fragile, StartCluster, until
from fastapi import FastAPI

from qubic_lab.api import bounded_http
from qubic_lab.api.client import CoordinatorClient
from qubic_lab.api.http_server import server_options
from qubic_lab.api.schemas import NodeStatus
from qubic_lab.cli import upgrade
from qubic_lab.errors import InputError, QubicLabError

pytestmark = pytest.mark.anyio


async def test_nodes_are_upgraded_under_load_without_a_lost_request(start_cluster: StartCluster, hurried: None) -> None:
    replicas = {"a": Fragile(0.3), "b": Fragile(0.3)}
    async with start_cluster(served=True, nodes=dict(replicas)) as running:
        loop, ended, statuses = asyncio.get_running_loop(), asyncio.Event(), []
        running_at_restart: dict[str, int] = {}

        async def ask(number: int) -> None:
            body = {"prompt": "hi", "max_new_tokens": 3, "seed": number}
            while not ended.is_set():
                answer = await running.client.post("/api/ai/query", json=body)
                statuses.append((answer.status_code, answer.json().get("text", answer.text)))
                assert statuses[-1] == (200, f"{number} {number + 1} {number + 2} ")

        async def again(name: str) -> None:
            running_at_restart[name] = replicas[name].running
            await running.end_node(name)
            await running.start_node(name, Fragile(0.3), ready=False)

        def restart(node: NodeStatus) -> None:
            asyncio.run_coroutine_threadsafe(again(node.name), loop).result()

        def roll() -> None:
            with CoordinatorClient(str(running.client.base_url)) as client:
                for node in client.nodes():
                    upgrade._upgrade_node([client], node, restart, 60.0)

        asking = [asyncio.ensure_future(ask(number)) for number in (100, 200, 300, 400)]
        await until(lambda: len(statuses) > 4)
        await asyncio.to_thread(roll)
        ended.set()
        await asyncio.gather(*asking)
        assert running_at_restart == {"a": 0, "b": 0}, "each was drained first"
        assert running.gates("a") == running.gates("b") == {None}


async def test_a_node_alone_is_not_upgraded_and_one_that_is_lost_ends_it(
    start_cluster: StartCluster, hurried: None
) -> None:
    async with start_cluster(served=True, nodes={"a": Fragile()}) as running:
        with CoordinatorClient(str(running.client.base_url)) as client:
            [node] = await asyncio.to_thread(client.nodes)

            def roll(within_s: float) -> None:
                upgrade._upgrade_node([client], node, lambda node: None, within_s)

            with pytest.raises(InputError, match="no other node is open while a is upgraded"):
                await asyncio.to_thread(roll, 0.01)
            await running.start_node("b")
            with pytest.raises(QubicLabError, match=r"node a did not return within 0\.3 s"):
                await asyncio.to_thread(roll, 0.3)
            await until(lambda: running.gates("a") == {None})


async def test_a_server_that_ends_answers_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    app.get("/")(lambda: "here")
    server = uvicorn.Server(server_options(app))
    with bounded_http.listen_at("127.0.0.1", 0, server.server_state)[0] as listening:
        running = asyncio.ensure_future(server.serve([listening]))
        await until(lambda: server.started)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as busy, httpx2.AsyncClient(base_url=url) as idle:
            for client in (busy, idle):
                assert "connection" not in (await client.get("/")).headers
            before = bounded_http._Connections.of(server.server_state).open
            assert len(before) == 2
            server.should_exit = True
            await until(lambda: listening.fileno() < 0)
            last = await busy.get("/")
            assert (last.json(), last.headers["connection"]) == ("here", "close")
            await running
            assert not before
