"""Calls of Redis that wait out a lost connection, and the Lua scripts that make a transition one step."""

import json
import logging
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import redis

from qubic_lab.errors import QubicLabError

PATIENCE_S = 60.0
"""A lost connection is waited out for so long."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5

logger = logging.getLogger(__name__)


class Scripts:
    """The scripts of one folder of `lua/`, run on a connection made by `redis_server.connect`.

    A script is run behind `base.lua` and the folder's `common.lua`. KEYS[1] is the prefix that every key is made from,
    in braces, so that all keys are of one slot; ARGV[1] is a JSON object of settings. What is called must be such that
    it may be repeated: the answer of a call may be lost with the connection.
    """

    def __init__(self, client: "redis.Redis", folder: str, name: str, patience_s: float = PATIENCE_S) -> None:
        self.redis = client
        self.prefix = f"{{{name}}}"
        self._folder = folder
        self._patience_s = patience_s

    def key(self, *parts: str) -> str:
        """Return the key that the scripts make from the same parts."""
        return ":".join((self.prefix, *parts))

    def run(self, script: str, settings: dict[str, Any], *arguments: str | bytes | int) -> Any:
        """Run a script with these settings and arguments; errors as of `call`."""
        registered = self.redis.register_script(_source(self._folder, script))
        return self.call(lambda: registered([self.prefix], [json.dumps(settings), *arguments]))

    def call(self, call: Callable[[], Any]) -> Any:
        """Call, and again while the connection is lost.

        Raises:
            QubicLabError: Redis cannot be reached for long, or refuses (out of memory, disk full).
        """
        deadline = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if time.monotonic() + pause_s > deadline:
                    raise QubicLabError(
                        f"Redis could not be reached for {self._patience_s:g} s ({error}): see that it runs"
                    ) from error
                logger.info("Redis cannot be reached (%s): trying again", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except redis.RedisError as error:
                raise QubicLabError(f"Redis refuses: {error}") from error


@cache
def _source(folder: str, name: str) -> str:
    lua = files(__package__) / "lua"
    return "\n".join((lua / part).read_text() for part in ("base.lua", f"{folder}/common.lua", f"{folder}/{name}.lua"))
