"""An HTTP connection that costs a measurement little, so that the server is what is measured."""

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit


class LeanReply(NamedTuple):
    """Status, or 0 if the connection ended before the answer had come; its body; and what Retry-After says."""

    status: int
    body: bytes
    retry_after: str = ""


class LeanConnection(asyncio.Protocol):
    """A kept-alive connection with very little CPU time for each request, to servers that send a Content-Length."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._came = b""
        self._reply: asyncio.Future[LeanReply] | None = None
        self._early: LeanReply | None = None
        """The answer of a server that refuses what has not been asked yet."""

    @classmethod
    async def open(cls, url: str) -> "LeanConnection":
        """Connect to the server of an http:// URL.

        Raises:
            OSError: nothing listens there.
        """
        place, loop = urlsplit(url), asyncio.get_running_loop()
        host, port = place.hostname or "", place.port or 80
        _, connection = await loop.create_connection(lambda: cls(place.netloc), host, port)
        return connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """End a request whose whole answer has come."""
        self._came += data
        head, ended, body = self._came.partition(b"\r\n\r\n")
        if not ended:
            return
        head = head.lower()
        try:
            length = int(_value(head, b"content-length"))
            reply = LeanReply(int(head[9:12]), body[:length], _value(head, b"retry-after").decode("ascii"))
        except ValueError:
            self.close()
            return
        if len(body) < length:
            return
        self._came = b""
        if _value(head, b"connection") == b"close":
            self.close()
        self._end(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(LeanReply(0, b""))

    def _end(self, reply: LeanReply) -> None:
        if self._reply is None:
            self._early = self._early or reply
        elif not self._reply.done():
            self._reply.set_result(reply)

    @property
    def is_open(self) -> bool:
        """Whether a further request may be sent."""
        return not self._transport.is_closing()

    async def get(self, path: str) -> LeanReply:
        """Request a path."""
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode("ascii"))

    async def post(self, path: str, body: bytes, header: str = "") -> LeanReply:
        """Send JSON to a path, with another header's line if there is one."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        head += f"{header}\r\n" if header else ""
        return await self._ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body)

    async def _ask(self, request: bytes) -> LeanReply:
        if self._early is not None:
            return self._early
        if not self.is_open:
            return LeanReply(0, b"")
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def _value(head: bytes, name: bytes) -> bytes:
    """Return the value of a header, by its name in lower case; empty: it is missing."""
    return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()
