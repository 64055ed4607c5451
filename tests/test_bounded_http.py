"""Hostile clients: what they send before a request is known is bounded, and foreign pages get nothing."""

import asyncio
import itertools
import logging
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn
from clusters import WITHIN_S, Cluster, Fragile, StartCluster, until
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from uvicorn.server import ServerState

from qubic_lab.api import bounded_http
from qubic_lab.api.http_server import Seldom, server_options
from qubic_lab.api.shedding import Backlog
from qubic_lab.wire.certificates import make_certificates

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]
REFUSES = Backlog.refuses
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
        line = await asyncio.wait_for(reader.readline(), WITHIN_S)
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
        monkeypatch.setattr(bounded_http, "HEAD_S", WITHIN_S)
        assert (await running.client.get("/health")).status_code == 200


async def test_more_bytes_behind_a_request_do_not_end_its_answer(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Fragile(held=True)
    post = b"POST /api/ai/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 15"
    async with (
        start_cluster(served=True, nodes={"a": node}) as running,
        connected(running) as (reader, writer),
    ):
        writer.write(post + b'\r\n\r\n{"prompt": "?"}')
        await until(lambda: node.running)
        monkeypatch.setattr(bounded_http, "HEAD_S", 0.1)
        writer.write(b"\r\n")
        await asyncio.sleep(0.3)
        node.held = False
        assert await status_of(reader) == 200


async def test_bodies_must_end_in_time_and_make_room_for_others(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = b"POST /api/ai/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    async with start_cluster(served=True) as running:
        monkeypatch.setattr(bounded_http, "BODY_S", 0.2)
        async with connected(running) as (reader, writer):
            writer.write(begun)
            assert await status_of(reader) == 408
        monkeypatch.setattr(bounded_http, "BODY_S", 60.0)
        monkeypatch.setattr(bounded_http, "MOST_CONNECTIONS", 1)
        async with connected(running) as (first, writer):
            writer.write(begun)
            assert (await running.client.get("/health")).status_code == 200
            assert await status_of(first) == 503


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


@asynccontextmanager
async def serving(
    app: FastAPI, refused: Callable[[], object] | None = None, **options: Any
) -> AsyncIterator[tuple[str, int]]:
    """Serve an application on loopback; yield where. At the end no connection is known any more."""
    server = uvicorn.Server(server_options(app, **options))
    [listening] = bounded_http.listen_at("127.0.0.1", 0, server.server_state, refused)
    task = asyncio.ensure_future(server.serve([listening]))
    await until(lambda: server.started)
    yield listening.getsockname()
    await until(lambda: not bounded_http._Connections.of(server.server_state).open)
    server.should_exit = True
    await task


@pytest.mark.parametrize("limit", ["MOST_CONNECTIONS", "MOST_HANDSHAKES"])
async def test_tls_handshakes_that_never_end_make_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(bounded_http, limit, 3)
    [certificate] = make_certificates(tmp_path, [["localhost", "127.0.0.1"]], datetime.now(UTC))
    app = FastAPI()
    app.get("/health")(lambda: "well")
    async with serving(app, ssl_certfile=certificate, ssl_keyfile=certificate.with_suffix(".key")) as address:
        silent = [await asyncio.open_connection(*address) for _ in range(5)]
        assert [await reader.read(1) for reader, _ in silent[:2]] == [b"", b""], "the first ones were ended"
        trusted = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        url = f"https://localhost:{address[1]}"
        async with httpx2.AsyncClient(base_url=url, verify=trusted, timeout=WITHIN_S, trust_env=False) as http:
            assert (await http.get("/health")).status_code == 200
        monkeypatch.setattr(bounded_http, "HEAD_S", 0.2)
        late, _ = await asyncio.open_connection(*address)
        assert await asyncio.wait_for(late.read(1), WITHIN_S) == b"", "handshakes have the time limit of headers"
        for _, writer in silent:
            writer.close()


async def test_a_client_that_reads_nothing_of_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("the system has no such limit")
    asked: list[bool] = []

    async def long() -> PlainTextResponse:
        asked.append(True)
        return PlainTextResponse("a" * 2**26)

    app = FastAPI()
    app.get("/long")(long)
    async with serving(app) as address:  # with the usual limit, as this process may stand still for a while
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /long HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        whole = await asyncio.wait_for(reader.read(-1), WITHIN_S)
        assert whole.count(b"a") > 2**26, "who reads gets all"
        writer.close()
    monkeypatch.setattr(bounded_http, "UNREAD_S", 0.5)
    with socket.socket() as deaf:
        async with serving(app) as address:
            deaf.connect(address)
            deaf.sendall(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: len(asked) == 2)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[bounded_http.Listener]:
    """A socket that nobody serves yet; all clients are elsewhere."""
    monkeypatch.setattr(bounded_http, "_origin", lambda address: address)
    [listening] = bounded_http.listen_at("127.0.0.1", 0, ServerState())
    with listening:
        listening.listen()
        listening.setblocking(False)
        yield listening


def accepted(listener: bounded_http.Listener) -> dict[Any, socket.socket]:
    """Return the connections that asyncio would accept in one turn, by address."""
    found = {}
    with suppress(BlockingIOError):
        while True:
            connection, address = listener.accept()
            found[address] = connection
    return found


def ended(connection: socket.socket) -> bool:
    connection.settimeout(WITHIN_S)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


async def test_without_room_the_newest_are_taken_and_the_others_end_at_once(
    listener: bounded_http.Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "AT_ONCE", 2)
    monkeypatch.setattr(bounded_http, "MOST_CONNECTIONS", 3)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    assert list(accepted(listener)) == [each.getsockname() for each in reversed(clients[2:])]
    assert all(ended(each) for each in clients[:2])
    monkeypatch.setattr(bounded_http, "MOST_CONNECTIONS", 0)
    clients += [socket.create_connection(listener.getsockname()) for _ in range(5)]
    taken = accepted(listener)
    assert list(taken) == [clients[9].getsockname(), clients[8].getsockname()]
    assert accepted(listener) == {}
    for each in (*clients, *taken.values()):
        each.close()


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[bounded_http.Listener, Counter[str]]]:
    """A socket that refuses what it does not let in, two in a turn; and how often it did."""
    counts: Counter[str] = Counter()
    monkeypatch.setattr(bounded_http, "PACE", 2)
    monkeypatch.setattr(Backlog, "refuses", lambda *_: True)
    [listening] = bounded_http.listen_at("127.0.0.1", 0, ServerState(), lambda: counts.update(["refused"]))
    with listening:
        listening.listen()
        listening.setblocking(False)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):  # who is silent does not wait for a second here
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        yield listening, counts
        bounded_http._close(listening._told)


def sent(listener: bounded_http.Listener, request: bytes) -> socket.socket:
    client = socket.create_connection(listener.getsockname(), WITHIN_S)
    client.sendall(request)
    return client


async def test_so_many_are_let_in_each_turn_and_the_others_wait(
    monkeypatch: pytest.MonkeyPatch, crowded: tuple[bounded_http.Listener, Counter[str]]
) -> None:
    monkeypatch.setattr(Backlog, "refuses", lambda *_: False)
    clients = [sent(crowded[0], b"POST /v1/responses HTTP/1.1\r\n\r\n") for _ in range(5)]
    turns = [accepted(crowded[0]) for _ in range(4)]
    assert [len(turn) for turn in turns] == [2, 2, 1, 0] and not crowded[1]
    for each in (*clients, *(connection for turn in turns for connection in turn.values())):
        each.close()


async def test_who_comes_alone_has_not_waited(
    monkeypatch: pytest.MonkeyPatch, crowded: tuple[bounded_http.Listener, Counter[str]]
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(bounded_http, "PACE", 1)
    monkeypatch.setattr(bounded_http, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    monkeypatch.setattr(Backlog, "refuses", REFUSES)
    for _ in range(4):
        with sent(crowded[0], b"POST /v1/responses HTTP/1.1\r\n\r\n"):
            [connection] = accepted(crowded[0]).values()
            connection.close()
    clients = [sent(crowded[0], b"POST /v1/responses HTTP/1.1\r\n\r\n") for _ in range(2)]
    turns = [accepted(crowded[0]) for _ in range(2)]
    assert [len(turn) for turn in turns] == [1, 1] and not crowded[1]
    for each in (*clients, *(connection for turn in turns for connection in turn.values())):
        each.close()


async def test_who_has_waited_too_long_is_told_and_health_and_the_newest_are_let_in(
    crowded: tuple[bounded_http.Listener, Counter[str]],
) -> None:
    listener, counts = crowded
    requests = (
        *(b"GET /health HTTP/1.1\r\n\r\n", b"", b"POST /api/ai/query HTTP/1.1\r\n\r\n"),
        *(b"POST /v1/responses HTTP/1.1\r\n\r\n" for _ in range(3)),
    )
    clients = [sent(listener, request) for request in requests]
    taken = accepted(listener)
    assert set(taken) == {clients[place].getsockname() for place in (0, 4, 5)}
    told = [await asyncio.to_thread(received, clients[place]) for place in (1, 2, 3)]
    assert all(each.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 2\r\n" in each for each in told)
    assert b'"title":"Too busy"' in told[0] and b'"title":"Too busy"' in told[1] and b'"server_error"' in told[2]
    assert counts == {"refused": 3}
    for each in (*clients, *taken.values()):
        each.close()


class AtWork:
    """A connection whose request is being answered."""

    _waits = False


@pytest.mark.parametrize(("answered", "let_in"), [(0, 0), (100, 2)])
async def test_after_some_had_to_wait_as_many_are_at_work_as_are_answered_soon(
    answered: int,
    let_in: int,
    monkeypatch: pytest.MonkeyPatch,
    crowded: tuple[bounded_http.Listener, Counter[str]],
) -> None:
    listener, counts = crowded
    monkeypatch.setattr(Backlog, "refuses", lambda *_: False)
    connections = listener._connections
    connections.refused_s = time.perf_counter()
    for _ in range(answered):
        connections.end(AtWork())
    connections.open.update({AtWork(): None for _ in range(bounded_http.AT_ONCE)})
    clients = [sent(listener, b"POST /v1/responses HTTP/1.1\r\n\r\n") for _ in range(3)]
    taken = accepted(listener)
    assert (len(taken), counts["refused"]) == (let_in, 0 if let_in else 3)
    for each in (*clients, *taken.values()):
        each.close()


async def test_who_is_still_sending_gets_the_refusal(crowded: tuple[bounded_http.Listener, Counter[str]]) -> None:
    head = b"POST /api/ai/query HTTP/1.1\r\nContent-Length: 400000\r\n\r\n"
    clients = [sent(crowded[0], head + b"a" * 200_000) for _ in range(3)]
    taken = accepted(crowded[0])
    clients[0].sendall(b"a" * 200_000)
    assert (await asyncio.to_thread(received, clients[0])).startswith(b"HTTP/1.1 503 ")
    for each in (*clients, *taken.values()):
        each.close()


def received(client: socket.socket) -> bytes:
    with client.makefile("rb") as stream:
        return stream.read()


async def test_while_others_are_refused_no_connection_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    app.get("/health")(lambda: "well")
    url = "http://127.0.0.1:{}/health"
    async with serving(app) as address, httpx2.AsyncClient(trust_env=False) as client:
        assert "connection" not in (await client.get(url.format(address[1]))).headers
        monkeypatch.setattr(Backlog, "refuses", lambda *_: True)
        async with serving(app, refused=lambda: None) as other:
            assert (await client.get(url.format(other[1]))).headers["connection"] == "close"


async def test_an_address_elsewhere_may_hold_so_many_connections(
    listener: bounded_http.Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "MOST_FROM_ADDRESS", 2)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    first = accepted(listener)
    assert len(first) == 2 and ended(clients[2])
    first[clients[0].getsockname()].close()
    clients.append(socket.create_connection(listener.getsockname()))
    second = accepted(listener)
    assert list(second) == [clients[3].getsockname()]
    for each in (*clients, *first.values(), *second.values()):
        each.close()
    assert not listener.held


def test_where_connections_come_from() -> None:
    assert bounded_http._origin("127.0.0.1") == bounded_http._origin("::1") == ""
    assert bounded_http._origin("10.0.0.7") == "10.0.0.7"
    assert (
        bounded_http._origin("2001:db8::1") == bounded_http._origin("2001:db8::2:1") != bounded_http._origin("2001::1")
    )


async def test_the_same_message_is_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("seldom")
    log.addFilter(Seldom())
    for number in range(1_000):
        log.warning("socket.accept() out of system resource")
        log.warning("another: %d", number)
    assert len(caplog.messages) == 2


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
