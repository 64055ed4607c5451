"""The way from a simulated process to the simulated Redis: what `simulation.redis`'s client sends goes through here.

For a client: `RedisLink.call(work, block_s)` runs `work` at the server when the request has arrived there, and returns
its result when the answer has come back; both take the network's time. What `work` raises there is raised here. With
`block_s` a result of None is not answered: `work` runs again after each change (`changed`), and None is the answer
when the time has passed. `RedisLink.open` is a connection of its own, for subscriptions: the server sends over it by
`push`, the client takes by `receive`.

Faults look as redis-py shows them: `redis.ConnectionError` where nobody listens or the connection breaks (then `work`
may have run, or not), `redis.TimeoutError` after `ANSWER_S` without an answer (then it may still run later).
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import redis
from greenlet import getcurrent, greenlet

from qubic_lab.cluster.redis_server import ANSWER_S
from qubic_lab.simulation.loop import Process, Signal
from qubic_lab.simulation.network import Connection, Network

ADDRESS = "127.0.0.1:6379"


class RedisSide:
    """The server's side of all links: a process that accepts, and the requests that wait for a change.

    `seen` gets the name of each client whose request has arrived; `failed` is called when a request has ended the
    server.
    """

    def __init__(
        self, network: Network, process: Process, seen: Callable[[str], None], failed: Callable[[], None]
    ) -> None:
        self.process, self._scheduler, self._seen, self._failed = process, network.scheduler, seen, failed
        self._blocked: list[_Blocked] = []
        network.listen(process, ADDRESS, self._accept)

    def _accept(self, connection: Connection) -> None:
        connection.accepted_by, connection.pings = self, False

    def arrive(
        self, client: "RedisConnection", connection: Connection, work: Callable[[], Any], block_s: float
    ) -> None:
        """Run a request, and answer."""
        self._seen(connection.client.name)
        try:
            found = work()
        except redis.ConnectionError:
            self._failed()
            return
        except redis.RedisError as error:
            found = _Raised(error)
        if found is None and block_s:
            blocked = _Blocked(self, client, connection, work)
            self._blocked.append(blocked)
            self._scheduler.later(self.process, self._scheduler.now + block_s, blocked.end)
        else:
            connection.send(self.process, client.answered, connection, found)

    def changed(self) -> None:
        """Run the blocked requests again, after the command that runs now."""
        if self._blocked:
            self._scheduler.soon(self.process, self._try_again)

    def _try_again(self) -> None:
        waiting, self._blocked = self._blocked, []
        self._blocked += [each for each in waiting if not each.try_again()]


class _Raised:
    """An error that an answer carries."""

    def __init__(self, error: redis.RedisError) -> None:
        self.error = error


class _Blocked:
    """A request that waits for a change."""

    def __init__(
        self, side: RedisSide, client: "RedisConnection", connection: Connection, work: Callable[[], Any]
    ) -> None:
        self._side, self._client, self._connection, self._work = side, client, connection, work
        self._answered = False

    def try_again(self) -> bool:
        """Answer if there is a result; return whether it has been answered."""
        if not self._answered and (found := self._work()) is not None:
            self._answer(found)
        return self._answered

    def end(self) -> None:
        """Answer that nothing has come."""
        if not self._answered:
            self._answer(None)
            self._side._blocked.remove(self)

    def _answer(self, found: Any) -> None:
        self._answered = True
        self._connection.send(self._side.process, self._client.answered, self._connection, found)


class RedisConnection:
    """One connection of a process; a call at a time."""

    def __init__(self, network: Network, process: Process) -> None:
        self.lost = False
        self._process, self._scheduler = process, network.scheduler
        self._waiting: greenlet | None = None
        self._late_s = 0.0  # when the call that waits is given up
        self._timer_s = math.inf  # when the next timer comes: one is set again only when it has come
        self._found: tuple[Any] | None = None
        self._pushed: deque[Any] = deque()
        self._news = Signal(network.scheduler, process)
        self._connection: Connection | None = None
        network.connect(process, ADDRESS, self._connected)
        self._wait()
        if self._connection is None:
            raise redis.ConnectionError("Error 111 connecting to Redis. Connection refused.")

    def call(self, work: Callable[[], Any], block_s: float = 0.0) -> Any:
        """Run `work` at the server; see the module."""
        connection = self._connection
        if self.lost or connection is None:
            raise _lost()
        self._found = None
        connection.send(self._process, connection.accepted_by.arrive, self, connection, work, block_s)
        self._wait()
        if self._found is None:
            raise _lost()
        (found,) = self._found
        if isinstance(found, _Raised):
            raise found.error
        return found

    def push(self, message: Any) -> None:
        """Send a message from the server."""
        if self._connection is not None:
            self._connection.send(self._connection.server, self._take, message)

    def receive(self, seconds: float) -> Any:
        """Return the next message of the server; None if there is none in this time; ConnectionError if it is lost."""
        if not self._pushed and not self.lost:
            self._news.clear()
            self._news.wait(seconds)
        if self._pushed:
            return self._pushed.popleft()
        if self.lost:
            raise _lost()
        return None

    def close(self) -> None:
        """End it."""
        self.lost = True
        if self._connection is not None:
            self._connection.close(self._process)

    @property
    def is_open(self) -> bool:
        """Whether the server can still send over it."""
        connection = self._connection
        return connection is not None and connection.client.alive and connection.server in connection.open

    def answered(self, connection: Connection, found: Any) -> None:
        """Give an answer to who waits for it."""
        if connection is self._connection and self._waiting is not None:
            self._found = (found,)
            self._wake()

    def _connected(self, connection: Connection | None) -> None:
        if self._waiting is None:  # too late
            if connection is not None:
                connection.close(self._process)
            return
        self._connection = connection
        if connection is not None:
            connection.on_lost[self._process] = self._lose
        self._wake()

    def _take(self, message: Any) -> None:
        self._pushed.append(message)
        self._news.set()

    def _lose(self) -> None:
        self.lost = True
        self._news.set()
        if self._waiting is not None:
            self._wake()

    def _wait(self) -> None:
        """Block until `_wake`; TimeoutError after a time."""
        self._waiting = getcurrent()
        self._late_s = self._scheduler.now + ANSWER_S
        if self._timer_s == math.inf:
            self._set_timer()
        self._scheduler.block()
        if self._waiting is not None:  # by the timer
            self._waiting = None
            self.close()
            raise redis.TimeoutError("Timeout reading from socket")

    def _set_timer(self) -> None:
        self._timer_s = self._late_s
        self._scheduler.later(self._process, self._late_s, self._too_late)

    def _too_late(self) -> None:
        if self._waiting is None:
            self._timer_s = math.inf
        elif self._timer_s < self._late_s:
            self._set_timer()
        else:
            self._timer_s = math.inf
            self._waiting.switch()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        waiting.switch()


class RedisLink:
    """The connections of one process to Redis; threads may share it."""

    def __init__(self, network: Network, process: Process) -> None:
        self.process, self._network = process, network
        self._idle: list[RedisConnection] = []

    def open(self) -> RedisConnection:
        """Return a new connection; errors as for `call`."""
        return RedisConnection(self._network, self.process)

    def call(self, work: Callable[[], Any], block_s: float = 0.0) -> Any:
        """Run `work` at the server; see the module."""
        connection = self._take()
        try:
            return connection.call(work, block_s)
        finally:
            if not connection.lost:
                self._idle.append(connection)

    def _take(self) -> RedisConnection:
        while self._idle:
            if not (connection := self._idle.pop()).lost:
                return connection
        return self.open()


def _lost() -> redis.ConnectionError:
    return redis.ConnectionError("Connection closed by server.")
