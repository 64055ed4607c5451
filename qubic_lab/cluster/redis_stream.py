"""Commands to Redis from an event loop over redis.asyncio: those of one turn are sent together, without a thread.

It is only the fast way. Whatever goes wrong (a lost connection, a late answer, a script that the server does not know,
a refusal) makes the caller repeat the command in a thread, which waits, repeats and explains. Commands of the cluster
may be repeated.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
from redis.client import NEVER_DECODE

from qubic_lab.cluster.redis_calls import Command, Steps, T

RETRY_S = 1.0
"""After a loss the connection is opened again with the first command after this time."""
_KINDS = {
    redis.Connection: redis.asyncio.Connection,
    redis.SSLConnection: redis.asyncio.SSLConnection,
    redis.UnixDomainSocketConnection: redis.asyncio.UnixDomainSocketConnection,
}
_SHARED = ("host", "port", "path", "db", "username", "password", "socket_", "ssl_")
"""Beginnings of a connection's options that say where the server is and how it is reached."""

logger = logging.getLogger(__name__)


class RedisStream:
    """Makes commands in an event loop, those that wait at the server over connections of their own.

    `client` is one from `redis_server.connect`; `in_thread` runs a blocking function in a thread.
    """

    def __init__(self, client: "redis.Redis", in_thread: Callable[..., Awaitable[Any]]) -> None:
        pool = client.connection_pool
        options = {name: it for name, it in pool.connection_kwargs.items() if name.startswith(_SHARED)}
        connections: Any = redis.asyncio.ConnectionPool(_KINDS[pool.connection_class], **options, protocol=2)
        self._redis: Any = redis.asyncio.Redis.from_pool(connections)
        self._redis.response_callbacks.clear()  # replies stay as they are
        self._in_thread, self._is_open, self._again_s = in_thread, False, 0.0
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None  # opens the connection, or sends what waits

    async def make(self, steps: Steps[T]) -> T:
        """Make all commands of some steps and return what they return; errors as if they were made in a thread."""
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = await self._reply(command)
                except (redis.RedisError, OSError) as error:
                    logger.debug("%s: %s", command.words[0], error)
                    reply = await self._in_thread(command.run)
        except StopIteration as end:
            result: T = end.value
            return result

    async def close(self) -> None:
        """Close all connections; commands without an answer are made in threads."""
        self._is_open, self._again_s = False, math.inf
        await self._redis.aclose()
        if self._task is not None:
            await self._task

    async def _reply(self, command: Command) -> Any:
        idle = self._task is None or self._task.done()
        if not self._is_open:
            if idle and time.monotonic() >= self._again_s:
                self._task = asyncio.create_task(self._open())
            raise redis.ConnectionError("not connected")
        if command.waits:
            return await self._redis.execute_command(*command.words, **{NEVER_DECODE: True})
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answered))
        if idle:
            self._task = asyncio.create_task(self._send())
        return await answered

    async def _open(self) -> None:
        self._again_s = time.monotonic() + RETRY_S
        try:
            await self._redis.ping()
            self._is_open = self._again_s < math.inf
        except (redis.RedisError, OSError) as error:
            logger.debug("no connection of the event loop to Redis: %s", error)

    async def _send(self) -> None:
        """Send what waits, and then what came meanwhile; after a loss nothing waits for another try."""
        while self._waiting:
            sent, self._waiting = self._waiting, []
            pipeline = self._redis.pipeline(transaction=False)
            for command, _ in sent:
                pipeline.execute_command(*command.words, **{NEVER_DECODE: True})
            try:
                replies = await pipeline.execute(raise_on_error=False)
            except Exception as error:  # whatever it is, those who wait get it
                self._is_open, sent, self._waiting = False, sent + self._waiting, []
                replies = [error] * len(sent)
            for (_, answered), reply in zip(sent, replies, strict=True):
                if answered.done():  # nobody waits any more
                    continue
                if isinstance(reply, Exception):
                    answered.set_exception(reply)
                else:
                    answered.set_result(reply)


def stream_for(client: Any, in_thread: Callable[..., Awaitable[Any]]) -> RedisStream | None:
    """Return a stream to the server of a client; None for a server that is none."""
    return RedisStream(client, in_thread) if hasattr(client, "connection_pool") else None
