"""A Redis server in this process, in virtual time, and a client with the part of redis-py's interface that we use.

The server's data are Lua tables, so that it runs the scripts of `cluster/lua/` as they are (`redis.lua`). It keeps
after a crash what Redis's append-only file would hold by its fsync policy. What passes between client and server, and
when, is up to a `Link`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any, Literal, Protocol, cast

import redis
from lupa import luajit21

Fsync = Literal["always", "everysec", "no"]
Argument = str | bytes | int | float
_SYNC_S = {"always": 0.0, "everysec": 1.0, "no": 30.0}
"""Age at which a write is surely on disk, by fsync policy."""
_MOST_LOGGED = 50_000
_DISK_FULL = "MISCONF Errors writing to the AOF file: No space left on device"
_OUT_OF_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."


class Connection(Protocol):
    """A connection of a client to the server; all but `push` may raise redis.ConnectionError."""

    @property
    def is_open(self) -> bool:
        """Whether the server can still send over it."""

    def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` at the server, and return what it returns, or raise what it raises."""

    def push(self, message: Any) -> None:
        """Send a message from the server."""

    def receive(self, seconds: float) -> Any:
        """Return the next message from the server, or None if there is none within this time."""

    def close(self) -> None:
        """End it."""


class Link(Protocol):
    """The way from a client to the server."""

    def call(self, work: Callable[[], Any], block_s: float = 0.0) -> Any:
        """Run `work` at the server, and return what it returns, or raise what it raises, as the network allows.

        Where that is None it runs again after each change (`SimulatedRedis.changed`), for `block_s`.
        """

    def open(self) -> Connection:
        """Return a new connection."""


class SimulatedRedis:
    """A server with an append-only file by `fsync`; `wall_us` is its machine's clock, in µs since 1970.

    `memory_bytes` is what it says that it uses. With `out_of_memory` it refuses commands that need memory. With
    `disk_full` it refuses all writes, or, where each write is on disk before its answer, ends at the next write.
    """

    def __init__(self, wall_us: Callable[[], int], monotonic: Callable[[], float], fsync: Fsync = "always") -> None:
        self.memory_bytes, self.out_of_memory, self.disk_full = 2**20, False, False
        self.up = True
        self._wall_us, self._monotonic, self._fsync = wall_us, monotonic, fsync
        self.changed: Callable[[], None] = lambda: None
        """Called when a stream has a new entry for which somebody waits."""
        self.seen: Callable[[tuple[bytes, ...], Any, int], None] | None = None
        """Called with each command, its reply or error, and the time by `wall_us`."""
        self._listeners: dict[bytes, list[Connection]] = defaultdict(list)
        self._logged: list[tuple[float, int, tuple[bytes, ...]]] = []  # writes since `_disk`, with their times
        lua = luajit21.LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
        host = lua.table_from({b"decode": lambda text: _as_lua(lua, json.loads(text)), b"sha1": _sha1})
        self._lua = lua.execute(_source(), host)
        self._execute: Callable[..., tuple[Any, ...]] = self._lua[b"execute"]
        self._take_events: Callable[[], tuple[bytes, ...] | None] = self._lua[b"take_events"]
        self._live = self._lua[b"new_store"]()
        self._disk = self._lua[b"new_store"]()
        self._lua[b"use"](self._live)
        self.limit()

    def limit(self, memory_bytes: int | None = None, out_of_memory: bool = False, disk_full: bool = False) -> None:
        """Set what it uses and what it lacks from now on."""
        self.memory_bytes = self.memory_bytes if memory_bytes is None else memory_bytes
        self.out_of_memory, self.disk_full = out_of_memory, disk_full
        why = _DISK_FULL if disk_full else _OUT_OF_MEMORY if out_of_memory else ""
        self._lua[b"limit"](self.memory_bytes, why.encode() or None, disk_full)

    def execute(self, *command: Argument) -> Any:
        """Execute a command and return its reply, as Redis's protocol has it.

        Raises:
            redis.ResponseError: the command is refused.
            redis.ConnectionError: the server is down.
        """
        if not self.up:
            raise redis.ConnectionError("Connection refused")
        encoded = tuple(
            [
                part if type(part) is bytes else part.encode() if type(part) is str else _encoded(part)
                for part in command
            ]
        )
        time_us = self._wall_us()
        result = self._execute(time_us, *encoded)
        if self._fsync != "always" and self._lua[b"has_changed"]():
            self._log(time_us, encoded)
        try:
            reply = self._reply(result)
        except redis.ResponseError as error:
            if self.seen is not None:
                self.seen(encoded, error, time_us)
            raise
        if self.seen is not None:
            self.seen(encoded, reply, time_us)
        if result[0]:
            self._tell()
        return reply

    def transaction(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Execute commands at once; an error takes the place of its reply."""
        replies: list[Any] = []
        for command in commands:
            try:
                replies.append(self.execute(*command))
            except redis.ResponseError as error:
                replies.append(error)
        return replies

    def read_stream(self, key: bytes, after: bytes, count: int, blocks: bool) -> Any:
        """Read a stream's entries; where there are none and the client `blocks`, the next one counts as a change."""
        found = self.execute("XREAD", "COUNT", count, "STREAMS", key, after)
        if found is None and blocks:
            self._lua[b"watch"](key)
        return found

    def subscribe(self, channel: bytes, connection: Connection) -> None:
        """Push each message of a channel to a connection from now on."""
        if not self.up:
            raise redis.ConnectionError("Connection refused")
        self._listeners[channel].append(connection)
        self._count_listeners(channel)

    def crash(self, lost_writes: int = 0) -> int:
        """End at once; return how many of the last writes are lost: at most so many, and only what may be by `fsync`.

        None are lost where only the process ends: `lost_writes` is for a machine that loses its power.
        """
        self.up = False
        since_s = self._monotonic() - _SYNC_S[self._fsync]
        unsure = sum(1 for written_s, *_ in self._logged if written_s > since_s)
        lost = min(lost_writes, unsure)
        if lost:
            self._lua[b"use"](self._disk)
            for _, time_us, command in self._logged[:-lost]:
                self._execute(time_us, *command)
            self._take_events()
            self._live = self._disk
            self._save()
        self._listeners.clear()
        return lost

    def restart(self) -> None:
        """Answer again, with the data that are on disk, but without scripts and connections."""
        self._lua[b"start"]()
        self.up = True

    def _log(self, time_us: int, command: tuple[bytes, ...]) -> None:
        self._logged.append((self._monotonic(), time_us, command))
        if len(self._logged) > _MOST_LOGGED:
            self._save()

    def _save(self) -> None:
        """Put all on disk, which may be done at any time."""
        self._disk = self._lua[b"copy"](self._live)
        self._logged.clear()

    def _tell(self) -> None:
        events = self._take_events() or ()  # none: what looked at this command has told of them
        for kind, name, text in zip(events[::3], events[1::3], events[2::3], strict=True):
            if kind != b"message":
                self.changed()
                continue
            listeners = self._listeners[name]
            if not all(each.is_open for each in listeners):
                self._count_listeners(name)
                listeners = self._listeners[name]
            for connection in listeners:
                connection.push((name, text))

    def _count_listeners(self, channel: bytes) -> None:
        self._listeners[channel] = [each for each in self._listeners[channel] if each.is_open]
        self._lua[b"listen"](channel, len(self._listeners[channel]))

    def _reply(self, result: tuple[Any, ...]) -> Any:
        first = result[1]
        if first is True:
            return _built(iter(result[1:]))
        if len(result) == 2:
            return first
        if first is False:
            parts, size = result[2:]
            return _built(parts[place] for place in range(1, size + 1))
        text = result[2].decode()
        if text == _DISK_FULL and self._fsync == "always":
            self.crash()
            raise redis.ConnectionError("Connection closed by server.")
        raise _error_of(text)


class SimulatedClient:
    """What `redis_server.connect` returns, for the simulated server; replies are those of redis-py."""

    def __init__(self, server: SimulatedRedis, link: Link) -> None:
        self._server, self._link = server, link

    def execute_command(self, *command: Argument) -> Any:
        """Send a command and return its reply as it is."""
        return self._link.call(partial(self._server.execute, *command))

    def register_script(self, source: str) -> "SimulatedScript":
        """Return a function that runs a script."""
        return SimulatedScript(self, source)

    def ping(self) -> bool:
        """Ask for a sign of life."""
        return bool(self.execute_command("PING"))

    def info(self, section: str) -> dict[str, str]:
        """Return facts on the server."""
        lines = self.execute_command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def get(self, key: str) -> bytes | None:
        """Read a text."""
        return cast("bytes | None", self.execute_command("GET", key))

    def set(self, key: str, value: Argument, ex: int | None = None) -> bool:
        """Write a text, for `ex` seconds."""
        return bool(self.execute_command("SET", key, value, *(() if ex is None else ("EX", ex))))

    def delete(self, *keys: Argument) -> int:
        """Delete keys."""
        return int(self.execute_command("DEL", *keys))

    def scan_iter(self, match: str, count: int) -> Iterator[bytes]:
        """Yield the keys of a pattern."""
        yield from self.execute_command("SCAN", 0, "MATCH", match, "COUNT", count)[1]

    def hget(self, key: str, name: str) -> bytes | None:
        """Read a field."""
        return cast("bytes | None", self.execute_command("HGET", key, name))

    def hmget(self, key: str, names: Sequence[str]) -> list[bytes | None]:
        """Read fields."""
        return list(self.execute_command("HMGET", key, *names))

    def xread(self, streams: Mapping[str, Argument], count: int, block: int) -> list[Any]:
        """Read entries of one stream, and wait up to `block` ms for the first."""
        ((key, after),) = streams.items()
        name, start = _encoded(key), _encoded(after)
        read = partial(self._server.read_stream, name, start, count, block > 0)
        found = self._link.call(read, block / 1_000)
        return [[name, _entries(entries)] for name, entries in found or []]

    def xrange(self, key: str, start: str, stop: str, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Read entries of a stream."""
        return _entries(self.execute_command("XRANGE", key, start, stop, "COUNT", count))

    def pipeline(self, transaction: bool = True) -> "SimulatedPipeline":
        """Return a list of commands that are executed at once."""
        return SimulatedPipeline(self._server, self._link)

    def pubsub(self, ignore_subscribe_messages: bool = True) -> "SimulatedSubscription":
        """Return a subscription to channels."""
        return SimulatedSubscription(self._server, self._link)

    def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True)
class SimulatedScript:
    """A script on the server, which is given to it when it does not know it."""

    client: SimulatedClient
    source: str

    def __call__(self, keys: Sequence[Argument], args: Sequence[Argument]) -> Any:
        """Run it."""
        command = ("EVALSHA", sha_of(self.source), len(keys), *keys, *args)
        try:
            return self.client.execute_command(*command)
        except redis.exceptions.NoScriptError:
            self.client.execute_command("SCRIPT", "LOAD", self.source)
            return self.client.execute_command(*command)


class SimulatedPipeline:
    """A transaction."""

    def __init__(self, server: SimulatedRedis, link: Link) -> None:
        self._server, self._link = server, link
        self._commands: list[tuple[Argument, ...]] = []

    def __enter__(self) -> "SimulatedPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.clear()

    def __getattr__(self, name: str) -> Callable[..., "SimulatedPipeline"]:
        def add(*arguments: Any) -> "SimulatedPipeline":
            flat = [part for each in arguments for part in (each if isinstance(each, (list, tuple)) else [each])]
            self._commands.append(({"delete": "DEL"}.get(name, name.upper()), *flat))
            return self

        return add

    def execute(self) -> list[Any]:
        """Execute the commands; raise the first error."""
        commands, self._commands = self._commands, []
        replies = self._link.call(partial(self._server.transaction, commands))
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return [
            dict(zip(reply[::2], reply[1::2], strict=True)) if command[0] == "HGETALL" else reply
            for command, reply in zip(commands, replies, strict=True)
        ]


class SimulatedSubscription:
    """A subscription, whose messages are lost with its connection."""

    def __init__(self, server: SimulatedRedis, link: Link) -> None:
        self._server, self._link = server, link
        self._connection: Connection | None = None

    def subscribe(self, channel: str) -> None:
        """Receive the messages of a channel from now on."""
        if self._connection is None:
            self._connection = self._link.open()
        self._connection.call(partial(self._server.subscribe, channel.encode(), self._connection))

    def get_message(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message, or None if there is none within `timeout` seconds."""
        found = None if self._connection is None else self._connection.receive(timeout)
        if found is None:
            return None
        channel, data = found
        return {"type": "message", "pattern": None, "channel": channel, "data": data}

    def close(self) -> None:
        """Receive nothing any more."""
        if self._connection is not None:
            self._connection.close()


@cache
def _source() -> str:
    return (files(__package__) / "redis.lua").read_text()


@cache
def sha_of(source: str) -> bytes:
    """Return the name of a script."""
    return _sha1(source.encode())


def _sha1(text: bytes) -> bytes:
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def _encoded(value: Argument) -> bytes:
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else repr(value)).encode()


def _as_lua(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({name.encode(): _as_lua(lua, part) for name, part in value.items()})
    if isinstance(value, list):
        return lua.table_from([_as_lua(lua, part) for part in value])
    return value.encode() if isinstance(value, str) else value


def _built(parts: Iterator[Any]) -> Any:
    part = next(parts)
    if part is True:
        return [_built(parts) for _ in range(next(parts))]
    return None if part is False else part


def _entries(entries: Sequence[Any]) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return [(name, dict(zip(fields[::2], fields[1::2], strict=True))) for name, fields in entries]


def _error_of(text: str) -> redis.ResponseError:
    kind, _, rest = text.partition(" ")
    if kind == "NOSCRIPT":
        return redis.exceptions.NoScriptError(rest)
    if kind == "OOM":
        return redis.exceptions.OutOfMemoryError(rest)
    return redis.ResponseError(rest if kind == "ERR" else text)
