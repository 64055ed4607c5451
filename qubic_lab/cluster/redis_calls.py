"""Calls to Redis that are repeated while the connection is lost, and Lua scripts as atomic steps."""

import json
import logging
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from prometheus_client import Counter

from qubic_lab.errors import QubicLabError
from qubic_lab.metrics import NAMESPACE

PATIENCE_S = 60.0
"""How long a call waits for a lost connection."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5

ERRORS = Counter("redis_errors", "Calls to Redis that failed, by kind.", ["kind"], NAMESPACE, registry=None)

logger = logging.getLogger(__name__)


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

    def key(self, *parts: str) -> str:
        """Return the key that the scripts build from the same parts."""
        return ":".join((self.prefix, *parts))

    def run(self, script: str, settings: dict[str, Any], *arguments: str | bytes | int) -> Any:
        """Run a script with settings and arguments; errors as for `call`."""
        registered = self.redis.register_script(_source(self._folder, script))
        return self.call(lambda: registered([self.prefix], [json.dumps(settings), *arguments]))

    def call(self, call: Callable[[], Any]) -> Any:
        """Call a function, and repeat it while the connection is lost.

        Raises:
            QubicLabError: Redis cannot be reached in time, or refuses (out of memory, disk full).
        """
        deadline = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                ERRORS.labels("lost").inc()
                if time.monotonic() + pause_s > deadline:
                    raise QubicLabError(
                        f"Redis could not be reached for {self._patience_s:g} s ({error}): check that it is running"
                    ) from error
                logger.info("Redis cannot be reached (%s): retrying", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except redis.RedisError as error:
                ERRORS.labels("refused").inc()
                raise QubicLabError(f"Redis refuses: {error}") from error


@cache
def _source(folder: str, name: str) -> str:
    lua = files(__package__) / "lua"
    return "\n".join((lua / part).read_text() for part in ("base.lua", f"{folder}/common.lua", f"{folder}/{name}.lua"))
