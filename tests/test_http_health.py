"""A node's health over HTTP: without a token for those who are near, nothing for others, bounded for all."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httpx2
import pytest
from clusters import Fragile, StartCluster, until

from qubic_lab.cluster import http_health
from qubic_lab.cluster.http_health import HealthPage, health_host, health_url, is_near, read_networks, time_health
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

pytestmark = pytest.mark.anyio
SetSettings = Callable[..., None]
STATE = {"status": "serving", "node": "a"}


@pytest.fixture
async def page(set_settings: SetSettings) -> AsyncIterator[int]:
    set_settings(cluster_network=None)
    serving = HealthPage(lambda: (True, STATE))
    yield await serving.start("127.0.0.1", 0)
    serving.stop()


async def sent(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    reply = b""
    with suppress(ConnectionResetError):  # where it did not read all
        async with asyncio.timeout(60.0):
            reply = await reader.read()
    writer.close()
    return reply


@pytest.mark.parametrize(
    ("network", "near", "far"),
    [
        ("", ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"), ("10.0.0.5", "192.168.1.1", "::ffff:10.0.0.5")),
        (
            "10.0.0.0/24, fd00::/64",
            ("10.0.0.5", "::ffff:10.0.0.5", "fd00::7", "127.0.0.1"),
            ("10.0.1.5", "8.8.8.8", "fe80::1%eth0", "fd00:0:0:1::7"),
        ),
    ],
)
def test_who_is_near(network: str, near: tuple[str, ...], far: tuple[str, ...], set_settings: SetSettings) -> None:
    set_settings(cluster_network=network)
    assert all(map(is_near, near)) and not any(map(is_near, far))


def test_a_network_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match=r"QUBIC_LAB_CLUSTER_NETWORK is '10.0.0.5/24' .*give networks such as"):
        read_networks("10.0.0.5/24")


def test_beyond_loopback_it_listens_only_where_a_network_is_set(set_settings: SetSettings) -> None:
    registration = pb.NodeRegistration(address="10.0.0.20:5002", health_port=5000)
    assert health_url(registration) == "http://10.0.0.20:5000/health"
    assert health_url(pb.NodeRegistration(address="[fd00::2]:7", health_port=5000)) == "http://[fd00::2]:5000/health"
    assert health_url(pb.NodeRegistration(address="unix:/a", health_port=5000)) == "http://127.0.0.1:5000/health"
    assert health_url(pb.NodeRegistration(address="10.0.0.20:5002")) == ""
    set_settings(cluster_network=None)
    assert [health_host(each) for each in ("10.0.0.20:5002", "127.0.0.1:0", "unix:/a")] == ["127.0.0.1"] * 3
    set_settings(cluster_network="10.0.0.0/24")
    assert health_host("10.0.0.20:5002") == "10.0.0.20"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /health?deep=1 HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"POST /health HTTP/1.1\r\n\r\n", b"405 "),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"404 "),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431 "),
        (b"\x16\x03\x01\r\n\r\n", b"404 "),
    ],
)
async def test_what_is_asked_gets_its_answer(page: int, request_: bytes, status: bytes) -> None:
    reply = await sent(page, request_)
    assert reply.startswith(b"HTTP/1.1 " + status) or (status == b"431 " and reply == b"")


async def test_others_are_refused_and_slow_ones_are_closed(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_health, "CALL_S", 0.2)
    assert await sent(page, b"GET /hea") == b""
    monkeypatch.setattr(http_health, "is_near", lambda client: False)
    reply = await sent(page, b"GET /health HTTP/1.1\r\n\r\n")
    assert b"serving" not in reply and (reply == b"" or reply.startswith(b"HTTP/1.1 403 "))


async def test_a_port_in_use_is_named(page: int) -> None:
    with pytest.raises(InputError, match=rf"no health page at 127\.0\.0\.1:{page} .*: give another --health-port"):
        await HealthPage(lambda: (True, STATE)).start("127.0.0.1", page)


@pytest.mark.usefixtures("hurried")
async def test_every_node_tells_whether_it_serves(start_cluster: StartCluster) -> None:
    replica = Fragile(held=True)
    async with start_cluster(served=True, nodes={"a": replica}) as running:
        [node] = (await running.client.get("/api/cluster/nodes")).json()
        async with httpx2.AsyncClient(timeout=60.0, trust_env=False) as monitor:
            answer = await monitor.get(node["health_url"])
            assert (answer.status_code, answer.json()) == (200, {"status": "serving", "node": "a"})
            assert await time_health(node["health_url"]) > 0
            await running.coordinator.submit(slow_request())
            await until(lambda: replica.running)
            ended = running.end_node("a")
            while (answer := await monitor.get(node["health_url"])).status_code == 200:
                await asyncio.sleep(0.01)
            assert (answer.status_code, answer.json()["status"]) == (503, "draining")
            replica.held = False
            await ended
        with pytest.raises(QubicLabError, match="does not answer"):
            await time_health(node["health_url"])


def slow_request() -> pipeline_pb2.GenerateRequest:
    return pipeline_pb2.GenerateRequest(prompt="hi", sampling=pipeline_pb2.Sampling(max_new_tokens=8, top_p=1.0))
