"""Clients that read a little of a stream and vanish: memory, sockets and slots return to where they were."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
from clusters import Process, processes, until
from forked_python import PYTHON
from prometheus_client.parser import text_string_to_metric_families

from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cluster.redis_server import RedisServer

pytestmark = [pytest.mark.dist, pytest.mark.anyio, pytest.mark.timeout(600)]
TESTS = Path(__file__).resolve().parents[1]
CHAT = {
    "messages": [{"role": "user", "content": "?"}],
    "stream": True,
    "ignore_eos": True,
    "max_completion_tokens": 400,
}
QUERY = {"prompt": "?", "stream": True, "max_new_tokens": 400}
AT_ONCE = 100
"""Connections that are being opened."""
MOST_BYTES_MORE = 20 * 2**20
"""That a second crowd may leave behind; 1,000 answers with a buffer of 64 KiB each would be three times as much."""
MOST_FILES_MORE = 10
"""Of connections to Redis, of which there are as many as calls at once."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: the connection ends at once, without what TCP says at an end."""


@dataclass
class Server:
    """A server under test: its process, where it listens, the routes that stream, and what it works on."""

    process: Process
    port: int
    streams: tuple[tuple[str, object], ...]
    working: Callable[[httpx2.AsyncClient], Awaitable[float]]

    @property
    def sockets(self) -> int:
        """Connections of clients that are not closed here."""
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(each.laddr.port == self.port and each.status != psutil.CONN_LISTEN for each in found)

    @property
    def files(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


async def cluster_work(client: httpx2.AsyncClient) -> float:
    """Return what a coordinator and its nodes have to do: tasks, and requests at nodes."""
    tasks = (await client.get("/api/cluster/tasks")).json()
    nodes = (await client.get("/api/cluster/nodes")).json()
    return float(tasks["pending"] + tasks["processing"] + sum(each["outstanding"]["requests"] for each in nodes))


async def pipeline_work(client: httpx2.AsyncClient) -> float:
    """Return the answers that run or wait at a served pipeline."""
    families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    found = [each for family in families for each in family.samples]
    return sum(each.value for each in found if each.name in ("qubic_lab_answers_running", "qubic_lab_answers_waiting"))


@asynccontextmanager
async def coordinator(folder: Path, count: int, tiny: Path) -> AsyncIterator[Server]:
    """A coordinator with one node that says a number every quarter of a second to all who ask."""
    http, nodes = free_ports(2)
    environment = {"QUBIC_LAB_DATA": str(folder / "data"), "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    with RedisServer(folder / "redis") as server, processes(PYTHON) as start:
        process = start(
            *(folder, "coordinator", "qubic_lab.cli.main", "coordinator", "--listen", f"127.0.0.1:{http}"),
            *("--nodes", f"127.0.0.1:{nodes}"),
            QUBIC_LAB_REDIS_URL=server.url,
            **environment,
        )
        start(
            *(folder, "node", "qubic_lab.bench.echo_node", "--name", "a", "--coordinator", f"127.0.0.1:{nodes}"),
            *("--slots", str(count), "--seconds", "4", "--new-tokens", "16"),
            **environment,
        )
        yield Server(process, http, (("/v1/chat/completions", CHAT), ("/api/ai/query", QUERY)), cluster_work)


@asynccontextmanager
async def pipeline(folder: Path, count: int, tiny: Path) -> AsyncIterator[Server]:
    """A served pipeline of a tiny model, whose few slots most clients wait for."""
    [http] = free_ports(1)
    arguments = ("serve", "--model", str(tiny), "--threads", "1", "--listen", f"127.0.0.1:{http}")
    with processes(PYTHON) as start:
        process = start(folder, "serve", "qubic_lab.cli.main", *arguments, PYTHONPATH=str(TESTS.parent))
        yield Server(process, http, (("/v1/chat/completions", CHAT),), pipeline_work)


async def vanish(server: Server, number: int, opening: asyncio.Semaphore) -> bytes:
    """Ask for a stream, read nothing, its head or its first event, and vanish; return what was read."""
    path, asked = server.streams[number % len(server.streams)]
    body = json.dumps(asked).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    async with opening:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + b"\r\n" + body)
    read = b"" if number % 3 == 0 else await reader.read(4_096)
    while number % 3 == 1 and b" 200 OK" in read and b"data:" not in read and (more := await reader.read(4_096)):
        read += more
    if number % 2:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
    return read


async def crowd(server: Server, client: httpx2.AsyncClient, count: int) -> list[bytes]:
    """Let so many clients vanish, wait until nothing of them is left, and return what they had read."""
    opening = asyncio.Semaphore(AT_ONCE)
    read = await asyncio.gather(*(vanish(server, n, opening) for n in range(count)), return_exceptions=True)
    assert {each.__class__ for each in read} <= {bytes, ConnectionResetError}  # it may turn some of a crowd away

    async def is_idle() -> bool:
        return await server.working(client) == 0 and server.sockets == 0

    await until(is_idle, 120.0)
    return [each for each in read if isinstance(each, bytes)]


@pytest.mark.parametrize("count", [50, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("serve", [pytest.param(coordinator, marks=pytest.mark.slow), pipeline])
async def test_nothing_is_left_of_clients_that_vanish(
    serve: Callable[[Path, int, Path], AbstractAsyncContextManager[Server]], count: int, tmp_path: Path, tiny: Path
) -> None:
    async with (
        serve(tmp_path, count, tiny) as server,
        httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}",
            headers={"Connection": "close"},
            timeout=100.0,
            trust_env=False,
        ) as client,
    ):

        async def is_up() -> bool:
            assert not server.process.ended, server.process.log
            try:
                return (await client.get("/v1/models")).status_code == 200
            except httpx2.TransportError:
                return False

        await until(is_up)
        await client.post("/v1/chat/completions", json=CHAT | {"stream": False, "max_completion_tokens": 2})
        await crowd(server, client, count)  # connections to Redis, and memory that is kept for the next ones, stay
        memory, files = server.memory, server.files
        read = await crowd(server, client, count)
        more = server.memory - memory
        print(f"{count} clients: {more:,} bytes more than {memory:,}; {files} files, then {server.files}")
        assert sum(b"data:" in each for each in read) >= count // 10
        assert more < MOST_BYTES_MORE
        assert server.files <= files + MOST_FILES_MORE
        answer = await client.post("/v1/chat/completions", json=CHAT | {"stream": False, "max_completion_tokens": 2})
        assert answer.status_code == 200
