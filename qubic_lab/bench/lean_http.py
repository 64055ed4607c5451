"""A minimal HTTP client for measurements, with kept-alive connections and very little CPU time per request.

It reads what our own servers send: responses with a Content-Length. Anything else ends the connection.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit


@dataclass(frozen=True)
class LeanResponse:
    """A response; status 0 means that the connection ended before it came."""

    status: int
    body: bytes


LOST = LeanResponse(0, b"")


class LeanConnection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[LeanResponse] | None = None

    @classmethod
    async def open(cls, url: str) -> "LeanConnection":
        """Connect to the server of an http:// URL.

        Raises:
            OSError: nothing listens there.
        """
        place = urlsplit(url)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(place.netloc), place.hostname or "", place.port or 80
        )
        return connection

    async def get(self, path: str) -> LeanResponse:
        """Request a path with its query."""
        if self._transport is None or self._transport.is_closing():
            return LOST
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode("ascii"))
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect data until the response is complete (called by asyncio)."""
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = _content_length(head)
        if length is None:
            self.close()
        elif len(rest) >= length:
            self._received = rest[length:]
            self._settle(LeanResponse(int(head[9:12]), rest[:length]))

    def connection_lost(self, error: Exception | None) -> None:
        """End a waiting request (called by asyncio)."""
        self._settle(LOST)

    def _settle(self, response: LeanResponse) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(response)


def path_with(path: str, **parameters: str | int) -> str:
    """Return a path with a query string."""
    return f"{path}?{urlencode(parameters)}"


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return None
