"""A coordinator under thousands of connections: its memory, its log, how soon it answers, and what it has accepted."""

import asyncio
import os
import resource
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import psutil
import pytest
from clusters import Process, processes, until

from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cluster.redis_server import RedisServer
from qubic_lab.wire.certificates import ROLES, make_certificates

pytestmark = [pytest.mark.dist, pytest.mark.anyio]
TESTS = Path(__file__).resolve().parents[1]
MOST_BYTES_MORE = 100 * 10**6
"""Above twice the idle memory."""
MOST_LOG_BYTES = 10**6
MOST_HEALTH_S = 10.0
"""Of 95 % of the requests: no speed, but a flood must not hold up all else."""
ANSWER = "The answer is 12."
PER_PROCESS = 10_000


@contextmanager
def flooded(port: int, count: int) -> Iterator[None]:
    """Hold so many connections to a port."""
    with ExitStack() as stack:
        flooding = []
        for first in range(0, count, PER_PROCESS):
            command = [
                sys.executable,
                str(TESTS / "flood.py"),
                "127.0.0.1",
                str(port),
                str(min(PER_PROCESS, count - first)),
            ]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            flooding.append(process)
        yield
        for process in flooding:
            assert process.stdout is not None and process.stdout.readline() == "held\n"


@asynccontextmanager
async def coordinator(folder: Path, encrypted: bool) -> AsyncIterator[tuple[Process, httpx2.AsyncClient, int]]:
    """A coordinator with a node that answers slowly, a client that connects anew for each request, and the port."""
    http, nodes = free_ports(2)
    environment = {"QUBIC_LAB_DATA": str(folder / "data"), "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    trusted: ssl.SSLContext | bool = True
    if encrypted:
        [certificate] = make_certificates(folder / "tls", [["localhost", "127.0.0.1"]], datetime.now(UTC), roles=ROLES)
        authority = folder / "tls" / "authority.pem"
        files = {"certificate": certificate, "key": certificate.with_suffix(".key"), "authority": authority}
        environment |= {f"QUBIC_LAB_TLS_{name.upper()}": str(file) for name, file in files.items()}
        trusted = ssl.create_default_context(cafile=authority)
    with RedisServer(folder / "redis") as server, processes() as start:
        serving = start(
            *(folder, "coordinator", "qubic_lab.cli.main", "coordinator", "--listen", f"127.0.0.1:{http}"),
            *("--nodes", f"localhost:{nodes}"),
            QUBIC_LAB_REDIS_URL=server.url,
            **environment,
        )
        start(
            *(folder, "node", "saying_node", "--name", "a@localhost", "--text", ANSWER, "--pause-s", "0.5"),
            *("--coordinator", f"localhost:{nodes}", "--listen", f"localhost:{free_ports(1)[0]}"),
            **environment,
        )
        async with httpx2.AsyncClient(
            base_url=f"{'https' if encrypted else 'http'}://localhost:{http}",
            headers={"Connection": "close"},
            timeout=100.0,
            trust_env=False,
            verify=trusted,
        ) as client:

            async def is_up() -> bool:
                try:
                    return (await client.get("/ready")).status_code == 200
                except httpx2.TransportError:
                    return False

            await until(is_up)
            yield serving, client, http


async def asked(client: httpx2.AsyncClient, number: int) -> str:
    """Return the answer to a question; asked again until it is accepted."""
    while True:
        try:
            response = await client.post(
                "/api/ai/query", json={"prompt": "?"}, headers={"Idempotency-Key": f"q{number}"}
            )
        except httpx2.TransportError:  # its connection was ended before the request came
            continue
        if response.status_code != 503:
            return str(response.json()["text"])


async def health_s(client: httpx2.AsyncClient) -> float:
    """Return how long a request took that was answered."""
    started_s = time.perf_counter()
    while True:
        try:
            if (await client.get("/health")).status_code == 200:
                return time.perf_counter() - started_s
        except httpx2.TransportError:
            pass


@pytest.mark.parametrize(
    ("count", "encrypted"),
    [
        pytest.param(3_000, False, id="plain", marks=pytest.mark.slow),
        pytest.param(3_000, True, id="encrypted"),
        pytest.param(20_000, False, id="many", marks=pytest.mark.slow),
        pytest.param(20_000, True, id="many-encrypted", marks=pytest.mark.slow),
    ],
)
async def test_a_flood_of_connections(tmp_path: Path, count: int, encrypted: bool) -> None:
    if min(count, PER_PROCESS) + 100 > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        pytest.skip("so many files cannot be open here")
    async with coordinator(tmp_path, encrypted) as (process, client, port):
        memory = psutil.Process(process.pid).memory_info
        await health_s(client)
        idle = peak = memory().rss
        answers = [asyncio.ensure_future(asked(client, number)) for number in range(4)]
        with flooded(port, count):
            answers += [asyncio.ensure_future(asked(client, number)) for number in range(4, 12)]
            took_s = []
            while not all(each.done() for each in answers) or len(took_s) < 60:
                took_s.append(await health_s(client))
                peak = max(peak, memory().rss)
                await asyncio.sleep(0.02)
        assert {each.result() for each in answers} == {ANSWER}
        print(f"{idle=:,} {peak=:,} {len(took_s)=} p95 {sorted(took_s)[int(0.95 * len(took_s))]:.3f} s")
        assert peak < 2 * idle + MOST_BYTES_MORE
        assert sorted(took_s)[int(0.95 * len(took_s))] < MOST_HEALTH_S
        assert len(process.log) < MOST_LOG_BYTES
