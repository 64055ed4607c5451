"""An HTTP connection that costs a measurement little, so that the server is what is measured."""

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit


class LeanReply(NamedTuple):
    """Status, or 0 if the connection ended before the answer had come; its body; and what Retry-After says."""

    status: int
    body: bytes
    retry_after: str = ""


class LeanConnection:
    """A kept-alive connection with very little CPU time for each request, to servers that send a Content-Length."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    @classmethod
    async def open(cls, url: str) -> "LeanConnection":
        """Connect to the server of an http:// URL.

        Raises:
            OSError: nothing listens there.
        """
        place = urlsplit(url)
        return cls(place.netloc, *await asyncio.open_connection(place.hostname, place.port))

    @property
    def is_open(self) -> bool:
        """Whether a further request may be sent."""
        return not (self._writer.is_closing() or self._reader.at_eof())

    async def get(self, path: str) -> LeanReply:
        """Request a path."""
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode("ascii"))

    async def post(self, path: str, body: bytes, header: str = "") -> LeanReply:
        """Send JSON to a path, with another header's line if there is one."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        head += f"{header}\r\n" if header else ""
        return await self._ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body)

    async def _ask(self, request: bytes) -> LeanReply:
        if not self.is_open:
            return LeanReply(0, b"")
        self._writer.write(request)
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            reply = LeanReply(
                int(head[9:12]),
                await self._reader.readexactly(int(_value(head, b"content-length"))),
                _value(head, b"retry-after").decode("ascii"),
            )
        except (OSError, EOFError, ValueError):  # it has ended, or the length is missing
            self.close()
            return LeanReply(0, b"")
        if _value(head, b"connection") == b"close":
            self.close()
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


def _value(head: bytes, name: bytes) -> bytes:
    """Return the value of a header, by its name in lower case; empty: it is missing."""
    return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()
