"""What each source of the fake is asked and replies, as plain values."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fake_source.ledger import Given
from fake_source.world import World

KEYS = {"coingecko": "fake-coingecko-key", "newsapi": "fake-newsapi-key"}


@dataclass(frozen=True)
class Ask:
    """One request to a source; `path` is behind the source's own prefix, `now_s` the fake's time since 1970."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    number: int
    now_s: int


@dataclass(frozen=True)
class Reply:
    """A status, a body and the items in it."""

    status: int
    body: bytes
    media: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    given: tuple[Given, ...] = ()


@dataclass(frozen=True)
class Desk:
    """What replies depend on beside the request: the world, and the faults in its rows."""

    world: World
    spoil: Callable[[int, list[Any]], list[Any]]


def json_reply(
    status: int, content: Any, given: tuple[Given, ...] = (), headers: Mapping[str, str] | None = None
) -> Reply:
    """Return a reply in JSON, floats in full precision."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Reply(status, body, headers=headers or {}, given=given)


def utc_time(at_s: int) -> str:
    """Return an instant as most APIs write it."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
