"""HTTP connections with limits that hold before a request is known: their number, and the size and time of headers."""

import asyncio
from asyncio.events import TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_CONNECTIONS = 2_000
"""Of a server, with those whose TLS handshake has not ended; each holds a file handle and some 30 KB."""
MOST_HEAD_BYTES = 2**16
"""Limit of what is not body: request line, headers, framing of chunks, trailers. The last read comes on top."""
MOST_HEADERS = 100
HEAD_S = 10.0
"""Time limit from a connection, or the first byte of a further request, to the end of the headers."""
BODY_S = 60.0
"""Time limit from there to the end of the body."""


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
        # With uvicorn's own set of connections, but in the order in which they came.
        self._open: dict[BoundedProtocol, None] = vars(self.server_state).setdefault("in_order", {})
        self._open[self] = None
        if len(self._open) > MOST_CONNECTIONS:
            self._make_room()

    def _make_room(self) -> None:
        """End the connection that has waited longest for a request; this one, if all others are being answered."""
        oldest = next(each for each in self._open if each._waits)
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
        self._open.pop(self, None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to serve the connection."""
        super().connection_made(transport)
        if self._turned_away:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
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
        """Start the request."""
        self._stop_timer()
        self._start_timer(BODY_S)
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the head of the next request."""
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
