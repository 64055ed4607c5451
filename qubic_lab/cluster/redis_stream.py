"""Commands to Redis from an event loop over one connection: those of one turn are written together, without a thread.

It is only the fast way. Whatever goes wrong (a lost connection, a late answer, a script that the server does not know,
a refusal) ends in `NotSent`, and the caller makes the same command in a thread, which waits, repeats and explains.
Commands of the cluster may be repeated. Over TLS there is no such connection.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import redis

from qubic_lab.cluster.redis_calls import Steps, T, Word
from qubic_lab.cluster.redis_server import ANSWER_S

RETRY_S = 1.0
"""After a loss the connection is opened again with the first command after this time."""
INCOMPLETE = object()

logger = logging.getLogger(__name__)


class NotSent(Exception):
    """A command got no good answer this way: it is to be made in another one."""


def packed(words: tuple[Word, ...]) -> bytes:
    """Return a command as Redis reads it."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join((b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)))


def read_reply(data: bytes, place: int = 0) -> tuple[Any, int]:
    """Return the reply that begins at a place, and the place behind it; INCOMPLETE if not all of it is there.

    An error is returned, not raised: it may be a part of a reply.

    Raises:
        ValueError: this is no reply.
    """
    end = data.find(b"\r\n", place)
    if end < 0:
        return INCOMPLETE, place
    kind, head, after = data[place : place + 1], data[place + 1 : end], end + 2
    match kind:
        case b":":
            return int(head), after
        case b"+":
            return head, after
        case b"-":
            return redis.ResponseError(head.decode(errors="replace")), after
        case b"$":
            if (size := int(head)) < 0:
                return None, after
            if len(data) < after + size + 2:
                return INCOMPLETE, place
            return data[after : after + size], after + size + 2
        case b"*":
            found: list[Any] | None = None if int(head) < 0 else []
            for _ in range(int(head)):
                part, after = read_reply(data, after)
                if part is INCOMPLETE:
                    return INCOMPLETE, place
                assert found is not None
                found.append(part)
            return found, after
    raise ValueError(f"{data[place : place + 20]!r} is no reply of Redis")


class _Connection(asyncio.Protocol):
    """An open connection; `sent` are the commands without an answer, by when they were sent."""

    def __init__(self) -> None:
        self.sent = deque[tuple[float, asyncio.Future[Any]]]()
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._arrived = b""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def send(self, command: bytes) -> "asyncio.Future[Any]":
        """Send a command with others of this turn; its reply comes, or NotSent."""
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting.append(command)
        answered: asyncio.Future[Any] = self._loop.create_future()
        self.sent.append((self._loop.time(), answered))
        if self._timer is None:
            self._timer = self._loop.call_later(ANSWER_S, self._look)
        return answered

    def _write(self) -> None:
        commands, self._waiting = self._waiting, []
        if self._transport is not None and self.is_open:
            self._transport.write(b"".join(commands))

    def data_received(self, data: bytes) -> None:
        self._arrived, place = self._arrived + data, 0
        try:
            while self.sent and place < len(self._arrived):
                reply, place = read_reply(self._arrived, place)
                if reply is INCOMPLETE:
                    break
                _, answered = self.sent.popleft()
                if answered.done():  # nobody waits any more
                    continue
                if isinstance(reply, redis.ResponseError):
                    answered.set_exception(NotSent(str(reply)))
                else:
                    answered.set_result(reply)
        except ValueError as error:
            logger.warning("%s", error)
            self.close()
        self._arrived = self._arrived[place:]

    def connection_lost(self, error: Exception | None) -> None:
        self.close()

    def _look(self) -> None:
        """Give up if the oldest command has waited for long."""
        self._timer = None
        if not self.sent:
            return
        late_s = self.sent[0][0] + ANSWER_S - self._loop.time()
        if late_s <= 0:
            self.close()
        else:
            self._timer = self._loop.call_later(late_s, self._look)

    def close(self) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        sent, self.sent = self.sent, deque()
        for _, answered in sent:
            if not answered.done():
                answered.set_exception(NotSent("the connection was lost"))


class _Line:
    """A connection that is opened with the first command, and again after a loss."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._connection: _Connection | None = None
        self._opening: asyncio.Future[None] | None = None
        self._again_s = 0.0

    def send(self, words: tuple[Word, ...]) -> "asyncio.Future[Any]":
        """Send a command; its reply comes, or NotSent, which is raised at once while there is no connection."""
        if self._connection is None or not self._connection.is_open:
            if self._opening is None and time.monotonic() >= self._again_s:
                self._opening = asyncio.ensure_future(self._open())
            raise NotSent("not connected")
        return self._connection.send(packed(words))

    async def close(self) -> None:
        """Close it for good."""
        self._again_s = math.inf
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()

    async def _open(self) -> None:
        options, loop = self._options, asyncio.get_running_loop()
        self._again_s = time.monotonic() + RETRY_S
        try:
            async with asyncio.timeout(ANSWER_S):
                if "path" in options:
                    _, connection = await loop.create_unix_connection(_Connection, options["path"])
                else:
                    place = options.get("host", "localhost"), options.get("port", 6379)
                    _, connection = await loop.create_connection(_Connection, *place)
                try:
                    for words in _greeting(options):
                        await connection.send(packed(words))
                except BaseException:
                    connection.close()
                    raise
            self._connection = connection
        except (OSError, TimeoutError, NotSent) as error:
            logger.debug("no connection of the event loop to Redis: %s", error)
        finally:
            self._opening = None


class RedisStream:
    """Makes commands in an event loop, those that wait at the server over a connection of their own.

    `client` is one from `redis_server.connect`; `in_thread` runs a blocking function in a thread.
    """

    def __init__(self, client: "redis.Redis", in_thread: Callable[..., Awaitable[Any]]) -> None:
        options: dict[str, Any] = client.connection_pool.connection_kwargs
        self._in_thread, self._quick, self._waiting = in_thread, _Line(options), _Line(options)

    async def make(self, steps: Steps[T]) -> T:
        """Make all commands of some steps and return what they return; errors as if they were made in a thread."""
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = await (self._waiting if command.waits else self._quick).send(command.words)
                except NotSent as error:
                    logger.debug("%s: %s", command.words[0], error)
                    reply = await self._in_thread(command.run)
        except StopIteration as end:
            result: T = end.value
            return result

    async def close(self) -> None:
        """Close both connections; commands without an answer are made in threads."""
        await asyncio.gather(self._quick.close(), self._waiting.close())


def stream_for(client: Any, in_thread: Callable[..., Awaitable[Any]]) -> RedisStream | None:
    """Return a stream to the server of a client; None over TLS, and for a server that is none."""
    pool = getattr(client, "connection_pool", None)
    plain = (redis.Connection, redis.UnixDomainSocketConnection)
    return RedisStream(client, in_thread) if pool is not None and pool.connection_class in plain else None


def _greeting(options: dict[str, Any]) -> list[tuple[Word, ...]]:
    """Return what is said first: who we are, and which database is meant."""
    found: list[tuple[Word, ...]] = []
    if password := options.get("password"):
        found.append(("AUTH", options.get("username") or "default", password))
    if database := options.get("db"):
        found.append(("SELECT", database))
    return found
