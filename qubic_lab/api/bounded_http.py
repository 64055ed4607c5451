"""HTTP connections with limits that hold before a request is known: their number, and the size and time of headers."""

import asyncio
import ipaddress
import math
import os
import select
import socket
import time
from asyncio.events import TimerHandle
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from qubic_lab.api.shedding import REMEMBERED_S, Backlog, is_work, refusal_of
from qubic_lab.errors import InputError

MOST_CONNECTIONS = 2_000
"""Of a server, with those whose TLS handshake has not ended; each holds a file handle and some 30 KB."""
MOST_HANDSHAKES = 500
"""Of TLS that have not ended; each holds some 130 KB."""
MOST_FROM_ADDRESS = 256
"""Connections from an address of another machine; a /64 network of IPv6 is one address."""
UNREAD_S = 30.0
"""Time limit for a client to take some of an answer, where the system knows such a limit (Linux)."""
QUEUE = 1_024
"""Connections that wait to be accepted."""
PACE = 1
"""Connections without TLS that are accepted in each turn of the event loop; the others wait in the kernel's queue. A
busy turn takes long, so fewer are accepted a second while there is much to do."""
AT_ONCE = 32
"""Connections that are taken where there is no room, the newest of those that waited; the others end as they come."""
PEEKED_BYTES = 64
"""First bytes of a request, which name its path."""
CAUTIOUS_S = 1.0
"""After connections have waited too long, requests in flight are limited for this time."""
SERVED_S = 0.5
"""That limit: the requests that were answered in this time. So an answer takes about as long."""
TOLD_S = 1.0
"""A refused connection is closed after this time, so that its client can send the rest of its request."""
MOST_HEAD_BYTES = 2**16
"""Limit of what is not body: request line, headers, framing of chunks, trailers. The last read comes on top."""
MOST_HEADERS = 100
HEAD_S = 10.0
"""Time limit from a connection, or the first byte of a further request, to the end of the headers."""
BODY_S = 60.0
"""Time limit from there to the end of the body."""
LINGER_S = 1.0
"""How long a server that ends still answers on connections without a request: one may be on its way."""
_FIRST_GIVEN = 3
"""Number of the first listening socket that systemd hands over."""


class _Connections:
    """The open connections of a server, in the order in which they came; `handshakes` are those that only begin."""

    def __init__(self) -> None:
        self.open: dict[BoundedProtocol, None] = {}
        self.handshakes: dict[BoundedProtocol, None] = {}
        self.refused_s = -math.inf
        """When a connection had last waited too long."""
        self._ended_s: deque[float] = deque(maxlen=MOST_CONNECTIONS)
        self.ending = False
        """Whether the server ends: each connection is closed after its next answer."""

    def end(self, connection: "BoundedProtocol") -> None:
        """Note that a connection has ended."""
        self.open.pop(connection, None)
        self.handshakes.pop(connection, None)
        if self.refuses_of_late(now_s := time.perf_counter()):
            self._ended_s.append(now_s)

    def refuses_of_late(self, now_s: float) -> bool:
        """Return whether a connection had waited too long within REMEMBERED_S."""
        return now_s < self.refused_s + REMEMBERED_S

    def is_busy(self, now_s: float) -> bool:
        """Return whether more requests are in flight than were answered in the last SERVED_S."""
        while self._ended_s and self._ended_s[0] < now_s - SERVED_S:
            self._ended_s.popleft()
        return sum(not each._waits for each in self.open) >= max(AT_ONCE, len(self._ended_s))

    @classmethod
    def of(cls, state: ServerState) -> "_Connections":
        """Return those beside uvicorn's own set, which has no order."""
        found: _Connections = vars(state).setdefault("in_order", cls())
        return found

    @property
    def room(self) -> int:
        """How many more may come."""
        return min(MOST_CONNECTIONS - len(self.open), MOST_HANDSHAKES - len(self.handshakes))


class Listener(socket.socket):
    """A listening socket of a server, for asyncio, which ends connections beyond limits as they come.

    That costs a tenth of serving them for a moment. It empties the queue at once: nobody waits behind a flood.
    Where `refused` is given, which is called at each refusal, connections are accepted at the event loop's `PACE`. Once
    some have waited too long, the newest are accepted and the others get 503, unless they ask for no work (`is_work`).
    """

    def __init__(self, state: ServerState, refused: Callable[[], object] | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections, self._refused = _Connections.of(state), refused
        self._backlog = Backlog()
        self._waiting_since_s: float | None = None
        """Since when the kernel's queue has not been empty; None: it was empty after the last look."""
        self._others = select.poll()
        self._others.register(self, select.POLLIN)
        self._told: deque[_Accepted] = deque(maxlen=QUEUE)
        """Refused connections, which are closed later."""
        self.held: Counter[str] = Counter()
        """Open connections by origin."""
        self._arrived: list[tuple[_Accepted, Any]] | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection, the newest first, and its address.

        Raises:
            BlockingIOError: those that waited at the first call after the last error have been returned.
            OSError: no connection can be opened.
        """
        if self._arrived is None:
            self._arrived = self._take()
        if not self._arrived:
            self._arrived = None
            raise BlockingIOError
        return self._arrived.pop()

    def _gate(self) -> tuple[int, bool]:
        """Return how many are accepted now, and whether the others are refused or wait."""
        if self._refused is None:
            return QUEUE, False
        now_s = time.perf_counter()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        self._backlog.note(now_s - self._waiting_since_s, now_s)
        refuses = self._backlog.refuses(now_s)
        if refuses:
            self._connections.refused_s = now_s
        if now_s < self._connections.refused_s + CAUTIOUS_S and self._connections.is_busy(now_s):
            return 0, True
        return PACE, refuses

    def _take(self) -> "list[tuple[_Accepted, Any]]":
        accepts, refuses = self._gate()
        room = self._connections.room
        most = QUEUE if refuses or room < accepts else accepts
        arrived: list[tuple[_Accepted, Any]] = []
        while len(arrived) < most:
            try:
                number, address = self._accept()  # type: ignore[attr-defined]
            except OSError:
                if not arrived:
                    self._waiting_since_s = None
                    raise
                break
            accepted = _Accepted(self, origin := _origin(address[0]), number)
            if origin and self.held[origin] > MOST_FROM_ADDRESS:
                accepted.close()
            else:
                arrived.append((accepted, address))
        if not self._others.poll(0):
            self._waiting_since_s = None
        taken = max(AT_ONCE, room)
        for accepted, _ in arrived[:-taken]:
            accepted.close()
        arrived = arrived[-taken:]
        if refuses and len(arrived) > accepts:
            refused = {each for each, _ in arrived[: len(arrived) - accepts] if self._refuse(each)}
            asyncio.get_running_loop().call_later(TOLD_S, _close, refused)
            arrived = [each for each in arrived if each[0] not in refused]
        return arrived

    def _refuse(self, accepted: "_Accepted") -> bool:
        """Refuse a request for work that has come; return whether there was one.

        The connection must be closed later: while bytes are on their way, that takes the answer away, too.
        """
        try:
            asked = b""
            with suppress(BlockingIOError):  # nothing has come yet
                asked = accepted.recv(PEEKED_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK)
                if not is_work(asked):
                    return False
                accepted.recv(MOST_HEAD_BYTES, socket.MSG_DONTWAIT)
            accepted.send(refusal_of(asked), socket.MSG_DONTWAIT)
            accepted.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            return False
        accepted.release()
        if len(self._told) == QUEUE:
            _close([self._told[0]])
        self._told.append(accepted)
        assert self._refused is not None
        self._refused()
        return True


def _close(connections: "Iterable[_Accepted]") -> None:
    for each in connections:
        with suppress(OSError):  # what is left unread would take away an answer that the client has not read yet
            each.recv(MOST_HEAD_BYTES, socket.MSG_DONTWAIT)
        each.close()


class _Accepted(socket.socket):
    """A connection that counts for its origin until it is closed or refused."""

    def __init__(self, listener: Listener, origin: str, number: int) -> None:
        super().__init__(listener.family, listener.type, listener.proto, number)
        self.origin, self._held, self._counts = origin, listener.held, True
        self._held[origin] += 1

    def release(self) -> None:
        """Let it count no longer."""
        if self._counts:
            self._counts = False
            self._held[self.origin] -= 1
            if not self._held[self.origin]:
                del self._held[self.origin]

    def close(self) -> None:
        self.release()
        super().close()


def _origin(address: str) -> str:
    """Return what counts as one address; "" on this machine."""
    found = ipaddress.ip_address(address)
    if found.is_loopback:
        return ""
    return address if found.version == 4 else found.exploded[:19]


def say_ending(state: ServerState) -> None:
    """Let connections that come from now on be closed after their first answer."""
    _Connections.of(state).ending = True


def given_sockets() -> dict[Any, int]:
    """Return the numbers of the listening sockets that whoever started this process holds for it, by address.

    It gives them as systemd does to a service with a socket unit (sd_listen_fds): clients are not refused while the
    process is started again.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    found = {}
    for number in range(_FIRST_GIVEN, _FIRST_GIVEN + int(os.environ.get("LISTEN_FDS", "0"))):
        held = socket.socket(fileno=number)
        address = held.getsockname()[:2]
        found[address] = held.detach()
    return found


def listen_at(host: str, port: int, state: ServerState, refused: Callable[[], object] | None = None) -> list[Listener]:
    """Return bound sockets of a server for all addresses of a host: those that were given, or new ones.

    For `refused`, which is for servers without TLS, see Listener.

    Raises:
        InputError: sockets were given, of other addresses only.
        OSError: there is no such host, or the port is in use.
    """
    given = given_sockets()
    listeners = []
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        if (number := given.get(address[:2])) is not None:
            listeners.append(Listener(state, refused, family, kind, protocol, number))
            continue
        if given:
            names = ", ".join(f"{host}:{port}" for host, port in given)
            raise InputError(f"the socket unit listens at {names}, not at {host}:{port} (--listen): make both the same")
        listeners.append(listener := Listener(state, refused, family, kind, protocol))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # its connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_S * 1_000))
        if refused is not None and hasattr(socket, "TCP_DEFER_ACCEPT"):  # without data it is accepted after a second
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    return listeners


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed, with a reason, once a request exceeds a limit.

    It begins before its TLS handshake, of which uvicorn knows nothing: a client that never ends it counts as one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0  # of this request, all that is not body
        self._too_much = self._turned_away = False
        self._timer: TimerHandle | None = None
        self._arriving = asyncio.current_task(self.loop)
        """asyncio's task of accepting this connection, which ends with the handshake."""
        if self._arriving is not None:
            self._arriving.add_done_callback(lambda _: self._arrived())
        self._start_timer(HEAD_S)
        self._connections = _Connections.of(self.server_state)
        self._connections.open[self] = self._connections.handshakes[self] = None
        if len(self._connections.open) > MOST_CONNECTIONS:
            self._make_room()
        elif len(self._connections.handshakes) > MOST_HANDSHAKES:
            next(iter(self._connections.handshakes))._turn_away()

    def _make_room(self) -> None:
        """End the connection that has waited longest for a request; this one, if all others are being answered."""
        oldest = next(each for each in self._connections.open if each._waits)
        if oldest is self:
            self._turned_away = True
        else:
            oldest._turn_away()

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered: none has come, or only a part of one."""
        if self.transport is None:
            return True
        answering = self._in_head and self.cycle is not None and not self.cycle.response_complete
        return not answering and not self.transport.is_closing()

    def _turn_away(self) -> None:
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CONNECTIONS:,} clients are connected: try again later")

    def _arrived(self) -> None:
        """Forget a connection whose handshake has failed."""
        if self.transport is None:
            self._forget()

    def _forget(self) -> None:
        self._stop_timer()
        self._connections.end(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connections.handshakes.pop(self, None)
        if self._turned_away:
            self._turn_away()
        elif self._connections.ending:
            self.shutdown()

    def shutdown(self) -> None:
        """End after the answer that is being given; without one, after that to a request that is on its way."""
        self._connections.ending = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LINGER_S, self._end_idle)

    def _end_idle(self) -> None:
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a request with too many bytes that are not body."""
        if self.transport.is_closing():
            return
        if self._head_bytes > MOST_HEAD_BYTES:
            self._refuse_head()
            return
        self._head_bytes += len(data)
        if self._in_head:
            self._start_timer(HEAD_S)
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header.

        Raises:
            ValueError: there are too many; the parser ends the request.
        """
        if len(self.headers) >= MOST_HEADERS:
            self._too_much = True
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._start_timer(BODY_S)
        self._in_head = False
        super().on_headers_complete()
        if self._connections.ending or self._connections.refuses_of_late(time.perf_counter()):
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say why the parser has ended the request."""
        if self._too_much:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        detail = f"more than {MOST_HEADERS} headers or {MOST_HEAD_BYTES:,} bytes of them: send fewer"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self._forget()
        if self.transport is None:  # nothing can be said before the handshake
            if self._arriving is not None:
                self._arriving.cancel()
            return
        body = detail.encode("ascii")
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _start_timer(self, within_s: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(within_s, self._too_slow, within_s)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, within_s: float) -> None:
        self._timer = None
        if not self._waits:  # more came while a request is being answered
            self._start_timer(within_s)
            return
        what = "headers" if self._in_head else "body"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the {what} did not end within {within_s:g} s")
