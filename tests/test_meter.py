"""Links over plain sockets: pings and their loss, bandwidth, the secret, iperf3 beside them, and what is said of it."""

import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from clusters import Fragile, StartCluster, wait_until

from qubic_lab.cluster import meter
from qubic_lab.cluster.links import LinkLimits, NodeLink, trouble_of
from qubic_lab.cluster.meter import ECHO, PING, measure_plain, open_meter
from qubic_lab.errors import BusyError, QubicLabError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "BULK_S", 0.1)


def made(**figures: float) -> NodeLink:
    usual = {"rtt_min_ms": 0.1, "rtt_ms": 0.2, "rtt_p95_ms": 0.3, "loss": 0.0, "gbps": 9.0, "health_ms": 1.5}
    return NodeLink(**{**usual, "to": "b", "trouble": "", **figures})  # type: ignore[arg-type]


def test_loopback_is_measured_with_all_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LOST_S", 60.0)  # this machine may be busy
    found = measure_plain("127.0.0.1", open_meter("127.0.0.1"))
    assert 0 < found.rtt_min_ms <= found.rtt_ms and found.rtt_min_ms <= found.rtt_p95_ms
    assert found.loss == 0.0
    assert found.gbps > 0
    assert found.iperf3_gbps == 0.0


def test_lost_pings_count_and_their_late_answers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "PINGS", 20)
    monkeypatch.setattr(meter, "LOST_S", 0.1)
    real = meter._exactly

    def sometimes_late(connection: socket.socket, count: int) -> bytes:
        message = real(connection, count)
        if threading.current_thread().name == "meter" and message[:1] == ECHO and PING.unpack(message)[1] % 5 == 4:
            time.sleep(0.15)
        return message

    monkeypatch.setattr(meter, "_exactly", sometimes_late)
    found = measure_plain("127.0.0.1", open_meter("127.0.0.1"))
    assert 0.19 < found.loss < 1  # four of 20; a busy machine may lose others
    assert found.rtt_ms < 100


def test_without_the_secret_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_meter("127.0.0.1")
    with socket.create_connection(("127.0.0.1", opened.port), 60.0) as stranger:
        stranger.sendall(bytes(32) + PING.pack(ECHO, 1))
        with suppress(ConnectionResetError):
            assert stranger.recv(64) == b""
    assert measure_plain("127.0.0.1", opened).rtt_ms > 0  # it waits for the one who has it
    with pytest.raises(QubicLabError, match=rf"no plain connection to 127\.0\.0\.1:{opened.port} .*any TCP port"):
        measure_plain("127.0.0.1", opened)


def test_ports_are_closed_again_and_are_not_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_free", free := threading.BoundedSemaphore(2))
    monkeypatch.setattr(meter, "OPEN_S", 0.2)
    left = open_meter("127.0.0.1")
    wait_until(lambda: free._value == 2)
    with pytest.raises(QubicLabError, match="no plain connection"):
        measure_plain("127.0.0.1", left)
    monkeypatch.setattr(meter, "OPEN_S", 60.0)
    opened = [open_meter("127.0.0.1") for _ in range(2)]
    with pytest.raises(BusyError, match="measurements are under way"):
        open_meter("127.0.0.1")
    for each in opened:
        assert measure_plain("127.0.0.1", each).rtt_ms > 0
    wait_until(lambda: free._value == 2)


def test_iperf3_stands_beside_it_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert open_meter("127.0.0.1", iperf3=True).iperf3_port == 0
    fake = tmp_path / "iperf3"
    told = '{"end": {"sum_received": {"bits_per_second": 9.4e9}}}'
    fake.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked\n[ $1 = --server ] || echo '{told}'\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    opened = open_meter("127.0.0.1", iperf3=True)
    assert measure_plain("127.0.0.1", opened).iperf3_gbps == 9.4
    server, client = sorted((tmp_path / "asked").read_text().splitlines(), reverse=True)
    assert server == f"--server --one-off --bind 127.0.0.1 --port {opened.iperf3_port}"
    assert client == f"--client 127.0.0.1 --port {opened.iperf3_port} --time 2 --json"
    fake.write_text("#!/bin/sh\nexit 1\n")
    assert measure_plain("127.0.0.1", open_meter("127.0.0.1", iperf3=True)).iperf3_gbps == 0.0


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (made(), ""),
        (made(rtt_ms=5.0), "a round trip takes 5 ms or more: use hosts of one zone"),
        (made(gbps=1.0), "bandwidth is 1 Gbit/s or less: use the private interface, or larger machines"),
        (made(loss=0.03), "3% of 100 pings were lost: look for an overloaded machine or link"),
        (made(trouble="UNAVAILABLE"), "UNAVAILABLE: check firewall, address and certificates"),
    ],
)
def test_what_is_wrong_with_a_link_is_said_with_its_remedy(link: NodeLink, said: str) -> None:
    assert trouble_of(link, LinkLimits()) == said


def test_a_link_is_told_in_a_line() -> None:
    assert made().text() == "0.10 / 0.20 / 0.30 ms, 0% lost, HTTP 1.50 ms, 9.00 Gbit/s"
    beside = made(loss=0.01, iperf3_gbps=9.4, health_ms=0.0).text()
    assert beside == "0.10 / 0.20 / 0.30 ms, 1% lost, 9.00 (iperf3 9.40) Gbit/s"


@pytest.mark.anyio
@pytest.mark.usefixtures("hurried")
async def test_nodes_measure_their_links(start_cluster: StartCluster) -> None:
    async with start_cluster(served=True, nodes={"a": Fragile(), "b": Fragile()}) as running:
        found = (await running.client.get("/api/cluster/nodes/a/links", timeout=60.0)).json()
        assert found["serving"] and found["http_ms"] > 0 and found["trouble"] == ""
        [link] = [NodeLink(**each) for each in found["links"]]
        assert (link.to, link.trouble) == ("b", "")
        assert link.rtt_ms > 0 and link.gbps > 0 and link.health_ms > 0
        missing = await running.client.get("/api/cluster/nodes/c/links")
        assert missing.status_code == 404
