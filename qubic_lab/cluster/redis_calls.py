"""Calls to Redis that are repeated while the connection is lost, and Lua scripts as atomic steps."""

import hashlib
import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import redis
from prometheus_client import Counter

from qubic_lab.cluster.redis_server import disk_is_full
from qubic_lab.errors import FullError, QubicLabError
from qubic_lab.metrics import NAMESPACE

PATIENCE_S = 60.0
"""How long a call waits for a lost connection."""
FULL_RETRY_S = 10.0
"""When a caller may ask again after Redis was full."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_FULL_S = 3.0
"""How long a call waits for a lost server whose disk is full."""

ERRORS = Counter("redis_errors", "Calls to Redis that failed, by kind.", ["kind"], NAMESPACE, registry=None)

logger = logging.getLogger(__name__)
S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")
Word = str | bytes | int


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it is sent, and the same as a blocking call, which repeats and explains; some wait at the server."""

    words: tuple[Word, ...]
    run: Callable[[], Any]
    waits: bool = False


Steps = Generator[Command, Any, T]
"""Commands one after the other, each of which gets its reply; the end has the result. Who drives them sends them."""


class ScriptedMethod(Generic[P, T]):
    """A method that is made of commands: called, it makes them here; `steps` are for an event loop."""

    def __init__(self, steps: Callable[P, Steps[T]]) -> None:
        self.steps = steps

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> T:
        """Make the commands one after the other, blocking."""
        steps, reply = self.steps(*arguments, **options), None
        try:
            while True:
                reply = steps.send(reply).run()
        except StopIteration as end:
            return cast(T, end.value)


class scripted(Generic[S, P, T]):
    """Makes a method of commands (`Steps`) an ordinary one, which an event loop can also drive."""

    def __init__(self, steps: Callable[Concatenate[S, P], Steps[T]]) -> None:
        self._steps: Callable[..., Steps[T]] = steps
        self.__doc__ = steps.__doc__

    def __get__(self, owner: S | None, kind: type[S] | None = None) -> ScriptedMethod[P, T]:
        """Return the method of an object; of the class, which takes the object first."""
        return ScriptedMethod(self._steps if owner is None else partial(self._steps, owner))


class Scripts:
    """The scripts of one folder of `lua/`, run on a connection from `redis_server.connect`.

    `base.lua` and the folder's `common.lua` are prepended to a script. KEYS[1] is the prefix of every key, in braces,
    so that all keys are in one slot; ARGV[1] is a JSON object with settings. All calls must be repeatable, because an
    answer may be lost with the connection.
    """

    def __init__(self, client: "redis.Redis", folder: str, name: str, patience_s: float = PATIENCE_S) -> None:
        self.redis = client
        self.prefix = f"{{{name}}}"
        self._folder = folder
        self._patience_s = patience_s
        self._registered: dict[str, Any] = {}

    def key(self, *parts: str) -> str:
        """Return the key that the scripts build from the same parts."""
        return ":".join((self.prefix, *parts))

    def run(self, script: str, settings: str, *arguments: Word) -> Any:
        """Run a script with settings, a JSON object, and arguments; errors as for `call`."""
        registered = self._registered.get(script)
        if registered is None:
            registered = self._registered[script] = self.redis.register_script(_source(self._folder, script))
        return self.call(partial(registered, [self.prefix], [settings, *arguments]))

    def command(self, script: str, settings: str, *arguments: Word) -> Command:
        """Return the command that runs a script, as `run` does."""
        words = ("EVALSHA", _digest(self._folder, script), 1, self.prefix, settings, *arguments)
        return Command(words, partial(self.run, script, settings, *arguments))

    def call(self, call: Callable[[], Any]) -> Any:
        """Call a function, and repeat it while the connection is lost.

        Raises:
            FullError: Redis's memory or disk is full; nothing was changed.
            QubicLabError: Redis cannot be reached in time, or refuses for another reason.
        """
        deadline = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                ERRORS.labels("lost").inc()
                if time.monotonic() > deadline - self._patience_s + _FULL_S and disk_is_full(self.redis):
                    raise _disk_full() from error  # the embedded server ends when it cannot write
                if time.monotonic() + pause_s > deadline:
                    raise QubicLabError(
                        f"Redis could not be reached for {self._patience_s:g} s ({error}): check that it is running"
                    ) from error
                logger.info("Redis cannot be reached (%s): retrying", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except redis.RedisError as error:
                ERRORS.labels("refused").inc()
                raise _refusal(error) from error


def _refusal(error: redis.RedisError) -> QubicLabError:
    """Return what a refusal means, with the remedy if Redis only lacks room."""
    text = str(error)
    if isinstance(error, redis.exceptions.OutOfMemoryError) or text.startswith("OOM "):
        logger.error("Redis: %s", text)
        what = (
            "Redis's memory is full: raise its maxmemory, or wait until kept answers run out. What was accepted is kept"
        )
        return FullError(what, FULL_RETRY_S)
    if "MISCONF" in text or "No space left" in text:
        logger.error("Redis: %s", text)
        return _disk_full()
    return QubicLabError(f"Redis refuses: {error}")


def _disk_full() -> FullError:
    return FullError(
        "the disk of Redis is full: free space there. What was accepted is kept, and no restart is needed",
        FULL_RETRY_S,
    )


@cache
def _source(folder: str, name: str) -> str:
    lua = files(__package__) / "lua"
    return "\n".join((lua / part).read_text() for part in ("base.lua", f"{folder}/common.lua", f"{folder}/{name}.lua"))


@cache
def _digest(folder: str, name: str) -> str:
    return hashlib.sha1(_source(folder, name).encode(), usedforsecurity=False).hexdigest()
