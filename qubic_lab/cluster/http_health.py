"""A node's `/health` over HTTP, for load balancers and monitors: its name, and whether it serves.

Callers of this host and of the cluster's network (`QUBIC_LAB_CLUSTER_NETWORK`) need no token. All others are refused
before anything is read from them. A connection is for one request, of bounded size and time.
"""

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable
from functools import cache

import httpx2

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.settings import settings
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.channel import is_loopback, read_host

LOOPBACK = "127.0.0.1"
MOST_BYTES = 8_192
MOST_CONNECTIONS = 64
CALL_S = 5.0
"""Time limit for reading a request and for sending its answer."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@cache
def read_networks(text: str) -> tuple[Network, ...]:
    """Return networks separated by commas, such as 10.0.0.0/24; an InputError if one of them is none."""
    try:
        return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise InputError(
            f"QUBIC_LAB_CLUSTER_NETWORK is {text!r} ({error}): give networks such as 10.0.0.0/24"
        ) from error


def is_near(client: str) -> bool:
    """Return whether a client's address is of this host or of the cluster's network."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or any(address in network for network in read_networks(settings().cluster_network))


def health_host(address: str) -> str:
    """Return where the health of a node that listens at `address` is served.

    It is the same host, or loopback for a unix socket and where no cluster's network is set.
    """
    if address.startswith("unix:"):
        return LOOPBACK
    host = read_host(address)
    return host if is_loopback(host) or read_networks(settings().cluster_network) else LOOPBACK


def health_url(registration: pb.NodeRegistration) -> str:
    """Return the address of a node's health page; empty if others cannot reach it."""
    if not registration.health_port:
        return ""
    host = LOOPBACK if registration.address.startswith("unix:") else read_host(registration.address)
    return f"http://{f'[{host}]' if ':' in host else host}:{registration.health_port}/health"


class HealthPage:
    """Answers GET /health with `state`, a JSON object, and its status by the first of the pair: whether it serves."""

    def __init__(self, state: Callable[[], tuple[bool, dict[str, str]]]) -> None:
        self._state = state
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 takes a free one.

        Raises:
            InputError: the port is in use, or the network setting is not understood.
        """
        read_networks(settings().cluster_network)
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=MOST_BYTES)
        except OSError as error:
            raise InputError(
                f"no health page at {host}:{port} ({error.strerror}): give another --health-port"
            ) from None
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(CALL_S):
                peer = writer.get_extra_info("peername") or ("",)  # it may have left already
                status, content = await self._reply(reader, peer[0])
                body = json.dumps(content).encode()
                head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the caller has left, or sends too slowly
        finally:
            self._open -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, client: str) -> tuple[str, dict[str, str]]:
        if not is_near(client):
            return "403 Forbidden", {"detail": "this address is not of the cluster's network"}
        if self._open > MOST_CONNECTIONS:
            return "503 Service Unavailable", {"detail": "too many connections"}
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return "431 Request Header Fields Too Large", {"detail": f"a request has at most {MOST_BYTES:,} bytes"}
        method, _, rest = head.partition(b" ")
        if rest.split(b" ")[0].partition(b"?")[0] != b"/health":
            return "404 Not Found", {"detail": "only /health is here"}
        if method != b"GET":
            return "405 Method Not Allowed", {"detail": "use GET"}
        serving, content = self._state()
        return ("200 OK" if serving else "503 Service Unavailable"), content


async def time_health(url: str) -> float:
    """Ask a health page and return how long that took, in ms.

    Raises:
        QubicLabError: it does not answer, or the node does not serve; the message has its answer.
    """
    try:
        async with asyncio.timeout(CALL_S), httpx2.AsyncClient(trust_env=False) as client:  # no proxy in the cluster
            started = time.perf_counter()  # to make a client takes longer than to ask
            async with client.stream("GET", url) as reply:  # the body is not read
                status = f"{reply.status_code} {reply.reason_phrase}"
    except (httpx2.HTTPError, TimeoutError) as error:
        raise QubicLabError(f"{url} does not answer ({error or 'too late'})") from None
    if reply.status_code != 200:
        raise QubicLabError(f"{url} says {status[:100]!r}")
    return (time.perf_counter() - started) * 1e3
