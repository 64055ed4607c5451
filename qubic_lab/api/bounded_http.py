"""HTTP connections with limits that hold before a request is known: their number, and the size and time of headers."""

import asyncio
from asyncio.events import TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_CONNECTIONS = 2_000
"""Each holds a file handle and some 30 KB."""
MOST_HEAD_BYTES = 2**16
"""Limit of what is not body: request line, headers, framing of chunks, trailers. The last read comes on top."""
MOST_HEADERS = 100
HEAD_S = 10.0
"""Time limit from a connection, or the first byte of a further request, to the end of the headers."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed, with a reason, once a request exceeds a limit."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0  # of this request, all that is not body
        self._too_much = False
        self._made_s = 0.0
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """End the connection that has waited longest for a request, if this is one too many."""
        super().connection_made(transport)
        self._made_s = self.loop.time()
        self._start_timer()
        if len(self.connections) > MOST_CONNECTIONS:
            others = (each for each in self.connections if isinstance(each, BoundedProtocol) and each is not self)
            oldest = min((each for each in others if each._waits), key=lambda each: each._made_s, default=self)
            oldest._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CONNECTIONS:,} clients are connected: try again later"
            )

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return (
            self._in_head and not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
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
            self._start_timer()
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
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the head of the next request."""
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
        self._stop_timer()
        body = detail.encode("ascii")
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the headers did not end within {HEAD_S:g} s")
