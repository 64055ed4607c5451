"""Round trips and bandwidth of a link over a plain socket, as `ping` and `iperf3` show them, without gRPC and TLS.

The measured node opens a port of its own for each measurement (`open_meter`) and tells it, with a secret, to the node
that asked for it over gRPC. Whoever connects without the secret is dropped; the port closes with the measurement.
"""

import hmac
import json
import secrets
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean

from qubic_lab.errors import BusyError, QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.channel import read_host

PINGS = 100
PING = struct.Struct("!cQ55x")
"""A message of 64 bytes, as `ping` sends: its kind and its number, or the number of bytes that follow."""
ECHO, TAKE = b"E", b"T"
LOST_S = 0.2
"""A ping without an answer within this time counts as lost: TCP does not send a lost packet again any sooner."""
BULK_S = 1.0
"""About how long the bulk takes that bandwidth is measured with."""
TRIAL_BYTES, MOST_BYTES = 8 * 2**20, 4 * 2**30
CHUNK_BYTES = 2**20
SECRET_BYTES = 32
OPEN_S = 10.0
"""Time limit for the other node to connect, and for each step after that."""
IPERF3_S = 2
MOST_METERS = 8

_free = threading.BoundedSemaphore(MOST_METERS)


@dataclass(frozen=True)
class PlainLink:
    """Round trips of `PINGS` small messages, the share of them that was lost, and bandwidth in 10⁹ bits/s."""

    rtt_min_ms: float
    rtt_ms: float
    rtt_p95_ms: float
    loss: float
    gbps: float
    iperf3_gbps: float = 0.0


def meter_host(address: str) -> str:
    """Return the host of a node's address, at which its meter listens; loopback for a unix socket."""
    return "127.0.0.1" if address.startswith("unix:") else read_host(address)


def open_meter(host: str, iperf3: bool = False) -> pb.Meter:
    """Open a port for one measurement, answered in a thread, and iperf3's server if it is asked for and installed.

    Raises:
        BusyError: too many measurements are under way.
        QubicLabError: the port cannot be opened.
    """
    if not _free.acquire(blocking=False):
        raise BusyError(f"{MOST_METERS} measurements are under way here: repeat it later")
    try:
        listening = _listen(host)
    except OSError as error:
        _free.release()
        raise QubicLabError(f"no port for a measurement at {host} ({error.strerror})") from None
    secret = secrets.token_bytes(SECRET_BYTES)
    threading.Thread(target=_serve, args=(listening, secret, _free), name="meter", daemon=True).start()
    port = listening.getsockname()[1]
    return pb.Meter(port=port, secret=secret, iperf3_port=_start_iperf3(host) if iperf3 else 0)


def measure_plain(host: str, meter: pb.Meter) -> PlainLink:
    """Measure the link to an open meter; it takes a few seconds.

    Raises:
        QubicLabError: the port cannot be reached, or the connection broke.
    """
    try:
        with socket.create_connection((host, meter.port), OPEN_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(meter.secret)
            times_s = _ping(connection)
            bulk_s = _bulk_s(connection, TRIAL_BYTES)
            count = max(TRIAL_BYTES, min(MOST_BYTES, int(TRIAL_BYTES * BULK_S / bulk_s)))
            bulk_s = _bulk_s(connection, count)
    except OSError as error:
        raise QubicLabError(
            f"no plain connection to {host}:{meter.port} ({error.strerror or error}): let the cluster's hosts "
            "reach each other at any TCP port"
        ) from None
    answered = sorted(times_s)
    if not answered:
        raise QubicLabError(f"{host} answered no ping within {LOST_S:g} s")
    return PlainLink(
        rtt_min_ms=answered[0] * 1e3,
        rtt_ms=fmean(answered) * 1e3,
        rtt_p95_ms=answered[-(-len(answered) * 95 // 100) - 1] * 1e3,
        loss=1 - len(answered) / PINGS,
        gbps=count * 8 / max(1e-9, bulk_s - answered[0]) / 1e9,
        iperf3_gbps=_run_iperf3(host, meter.iperf3_port) if meter.iperf3_port else 0.0,
    )


def _ping(connection: socket.socket) -> list[float]:
    """Return the round-trip times in seconds of those pings that were answered in time; the first is the warm-up."""
    times_s = []
    unread = b""
    for number in range(PINGS + 1):
        started = time.perf_counter()
        connection.sendall(PING.pack(ECHO, number))
        with suppress(TimeoutError):
            while True:
                connection.settimeout(max(1e-3, started + LOST_S - time.perf_counter()))
                if not (read := connection.recv(CHUNK_BYTES)):
                    raise ConnectionError("the other side has closed it")
                unread += read
                whole = len(unread) - len(unread) % PING.size
                answered = {PING.unpack_from(unread, place)[1] for place in range(0, whole, PING.size)}
                unread = unread[whole:]
                if number in answered:  # the others come too late
                    times_s += [time.perf_counter() - started] if number else []
                    break
    connection.settimeout(OPEN_S)
    return times_s


def _bulk_s(connection: socket.socket, count: int) -> float:
    """Return how long so many bytes take to the other side, and its confirmation back."""
    chunk = memoryview(bytes(CHUNK_BYTES))
    started = time.perf_counter()
    connection.sendall(PING.pack(TAKE, count))
    for left in range(count, 0, -CHUNK_BYTES):
        connection.sendall(chunk[:left])
    while PING.unpack(_exactly(connection, PING.size))[0] != TAKE:
        pass  # late answers to pings
    return time.perf_counter() - started


def _listen(host: str) -> socket.socket:
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    listening = socket.create_server((host, 0), family=family)
    listening.settimeout(OPEN_S)
    return listening


def _serve(listening: socket.socket, secret: bytes, free: threading.BoundedSemaphore) -> None:
    """Answer the one caller who knows the secret, until it leaves."""
    deadline = time.monotonic() + OPEN_S
    try:
        with listening, suppress(OSError):
            while time.monotonic() < deadline:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.settimeout(OPEN_S)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if hmac.compare_digest(_exactly(connection, SECRET_BYTES), secret):
                        deadline = 0.0  # it closes with this measurement
                        _answer(connection)
    finally:
        free.release()


def _answer(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while True:
        message = _exactly(connection, PING.size)
        kind, left = PING.unpack(message)
        while kind == TAKE and left:
            if not (count := connection.recv_into(buffer, min(left, CHUNK_BYTES))):
                return
            left -= count
        connection.sendall(message)


def _exactly(connection: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        if not (more := connection.recv(count - len(read))):
            raise ConnectionError("the other side has closed it")
        read += more
    return read


def _start_iperf3(host: str) -> int:
    """Start iperf3's server for one test, and return its port; 0 if it is not installed."""
    if (program := shutil.which("iperf3")) is None:
        return 0
    with _listen(host) as probe:
        port: int = probe.getsockname()[1]
    command = [program, "--server", "--one-off", "--bind", host, "--port", str(port)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        with suppress(subprocess.TimeoutExpired):
            server.wait(3 * OPEN_S)
        server.kill()
        server.wait()

    threading.Thread(target=end, name="iperf3", daemon=True).start()
    return port


def _run_iperf3(host: str, port: int) -> float:
    """Return the bandwidth that iperf3 measures in 10⁹ bits/s; 0 if it is not installed here, or fails."""
    if (program := shutil.which("iperf3")) is None:
        return 0.0
    command = [program, "--client", host, "--port", str(port), "--time", str(IPERF3_S), "--json"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=OPEN_S + IPERF3_S)
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        return 0.0
