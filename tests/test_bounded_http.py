"""Hostile clients: what they send before a request is known is bounded, and foreign pages get nothing."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from clusters import Cluster, StartCluster

from qubic_lab.api import bounded_http

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
MOST_SENT = 16 * 2**20
"""What a client may get rid of before it is cut off: the limit, one read, and the buffers of both sockets."""


@asynccontextmanager
async def connected(running: Cluster) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = running.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def status_of(reader: asyncio.StreamReader) -> int:
    """Read the status of a response; 0: the connection was cut off."""
    try:
        line = await asyncio.wait_for(reader.readline(), 10)
    except ConnectionError:
        return 0
    return int(line.split()[1]) if line else 0


async def flood(running: Cluster, start: bytes, more: bytes) -> tuple[int, int]:
    """Send the same bytes again and again; return how many were taken, and the status of the response."""
    block = more * (2**16 // len(more))
    async with connected(running) as (reader, writer):
        writer.write(start)
        sent = 0
        try:
            while sent < 2 * MOST_SENT:
                writer.write(block)
                await writer.drain()
                sent += len(block)
        except ConnectionError:
            pass
        return sent, await status_of(reader)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (GET, b"X: a\r\n"),
        (GET + b"X: ", b"a"),
        (b"GET /", b"a"),
        (
            b"POST /api/ai/query HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
            b"X: a\r\n",
        ),
    ],
    ids=["headers", "one header", "address", "trailers"],
)
async def test_endless_headers_are_cut_off(start_cluster: StartCluster, start: bytes, more: bytes) -> None:
    async with start_cluster(served=True) as running:
        sent, status = await flood(running, start, more)
        assert sent < MOST_SENT
        assert status in (0, 400, 431)
        assert (await running.client.get("/health")).status_code == 200


@pytest.mark.parametrize(("headers", "status"), [(99, 200), (101, 431)])
async def test_only_so_many_headers_are_taken(start_cluster: StartCluster, headers: int, status: int) -> None:
    async with start_cluster(served=True) as running, connected(running) as (reader, writer):
        writer.write(GET + b"X: a\r\n" * (headers - 1) + b"\r\n")
        assert await status_of(reader) == status


async def test_a_connection_serves_many_requests_and_whole_bodies(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True) as running, connected(running) as (reader, writer):
        body = b'{"prompt": "' + b"a" * 2**17 + b'"'  # no JSON, so it is read to its end and refused
        post = b"POST /api/ai/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for _ in range(3):
            for request, status in (
                (post + b"Content-Length: %d\r\n\r\n" % len(body) + body, 400),
                (GET + b"\r\n", 200),
            ):
                writer.write(request)
                assert await status_of(reader) == status
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))


async def test_headers_must_end_in_time(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_S", 0.2)
    async with start_cluster(served=True) as running:
        async with connected(running) as (reader, _):
            assert await status_of(reader) == 408
        async with connected(running) as (reader, writer):
            writer.write(GET)
            assert await status_of(reader) == 408
        assert (await running.client.get("/health")).status_code == 200


async def test_of_too_many_connections_the_one_that_waited_longest_ends(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "MOST_CONNECTIONS", 2)
    async with (
        start_cluster(served=True) as running,
        connected(running) as (first, _),
        connected(running),
        connected(running) as (third, writer),
    ):
        assert await status_of(first) == 503
        writer.write(GET + b"\r\n")
        assert await status_of(third) == 200


async def test_a_length_of_thousands_of_digits_is_refused(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True) as running, connected(running) as (reader, writer):
        writer.write(b"POST /api/ai/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"0" * 5_001 + b"\r\n\r\n")
        assert await status_of(reader) in (400, 413)


async def drained(http: httpx2.AsyncClient, **headers: str) -> int:
    return (await http.post("/api/cluster/nodes/a/drain", headers=headers)).status_code


async def test_a_foreign_page_changes_nothing_and_reads_nothing(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True) as running:
        http = running.client
        own = f"http://127.0.0.1:{http.base_url.port}"
        assert await drained(http, Origin="https://evil.example") == 403
        assert await drained(http, Origin="null") == 403
        assert await drained(http, Origin=own) == await drained(http) == 404, "there is no such node"
        for host, status in (("evil.example", 403), ("localhost:80", 200), ("[::1]:80", 200), ("10.0.0.2", 403)):
            assert (await http.get("/health", headers={"Host": host})).status_code == status
