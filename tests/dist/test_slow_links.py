"""Ranks whose messages pass a relay: it delays them, and no answer changes."""

import socket
import struct
import time
from pathlib import Path
from threading import Thread

import pytest
from commands import Run

from qubic_lab.bench.slow_link import break_even
from qubic_lab.errors import RankError
from qubic_lab.pipeline.relay import order, port_of, seen_address, serve


@pytest.mark.slow
@pytest.mark.dist
def test_answers_over_slow_links_are_the_same_and_take_the_delay(
    tiny: Path, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qubic_lab.bench.slow_link.TEXTS", {"code": ("1, 2", "1, 2"), "free": ("Say.", "No.")})
    ask = f"bench link --model {tiny} --delays 0,30 --mbps 50 --requests 2 --new-tokens 3 --dtype fp32 --threads 1"
    found = here(f"{ask} --json").json
    assert found["equal_tokens"]
    points = {(each["delay_ms"], each["mbps"], each["kind"], each["requests"]): each for each in found["points"]}
    assert len(points) == 3 * 2 * 2
    for count in (1, 2):  # a step passes two hops
        assert points[30, 0, "free", count]["tokens_per_s"] < count / 0.06
    packed = {place for place, each in points.items() if each["packed"]}
    assert {place[:2] for place in packed} == {(0, 50)}, "packed where the bandwidth is limited"
    assert len(found["break_even"]) == 8
    predicted = {place for place, each in points.items() if each["predicted"] is not None}
    assert {(place[0], place[3]) for place in predicted} == {(30, 1)}


@pytest.mark.parametrize(
    ("speeds", "delay_ms", "found"),
    [
        ([(0, 0.9), (5, 0.5)], None, True),
        ([(5, 0.5), (0, 1.5)], 2.5, True),
        ([(0, 2.0), (1, 1.2), (5, 1.1)], 5, False),
    ],
)
def test_the_break_even_lies_between_two_delays(
    speeds: list[tuple[float, float]], delay_ms: float | None, found: bool
) -> None:
    assert break_even(speeds) == (delay_ms, found)


def told(address: str, port: int) -> bytes:
    """Return what gloo tells of a rank on a host of this name."""
    place = struct.pack("!H", port) + socket.inet_aton(address)
    return struct.pack("=Q", 2) + b"vm" + struct.pack("=Q", 136) + struct.pack("=H", socket.AF_INET) + place + bytes(8)


def test_a_ranks_address_is_replaced_and_the_rest_stays() -> None:
    assert port_of(told("127.0.0.1", 34000)) == 34000
    assert seen_address(told("127.0.0.1", 34000), socket.inet_aton("0.0.0.0"), 77) == told("0.0.0.0", 77)
    with pytest.raises(RankError, match="another form"):
        port_of(told("10.0.0.1", 34000))


def test_a_relay_delays_and_keeps_the_order(tmp_path: Path) -> None:
    orders, far = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))
    orders.bind(str(tmp_path / "orders"))
    orders.listen()
    Thread(target=serve, args=(orders,), daemon=True).start()  # it waits at its socket to the end of the tests
    with far:
        order(tmp_path / "orders", "shape 0.02 1000000")
        port = int(order(tmp_path / "orders", f"to {far.getsockname()[1]}"))
        with socket.create_connection(("127.0.0.1", port)) as near:
            started_s = time.monotonic()
            for letter in b"abc":
                near.sendall(bytes([letter]) * 10_000)
            near.shutdown(socket.SHUT_WR)
            other, _ = far.accept()
            with other, other.makefile("rb") as received:
                assert received.read() == b"a" * 10_000 + b"b" * 10_000 + b"c" * 10_000
            assert time.monotonic() - started_s > 0.05, "20 ms, and 30 ms for 30,000 bytes"
