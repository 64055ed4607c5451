"""What every source of the stand-in is asked and answers, as plain values."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qubic_lab.oracle.standin.data import World
from qubic_lab.oracle.standin.ledger import Given


@dataclass(frozen=True)
class Ask:
    """One request to a source.

    Attributes:
        path: after the source's own prefix, without a slash at its end.
        headers: by lower-case name.
        number: of the request; faults in an answer's rows are drawn from it.
        now_s: the stand-in's time, since 1970.
    """

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    number: int
    now_s: int


@dataclass(frozen=True)
class Answer:
    """A status, a body and what it tells; `partial`: there is more than the source shows, so ask for less at once."""

    status: int
    body: bytes
    media: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    given: tuple[Given, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class Desk:
    """What answers know beside the request: the world, its rows' faults, and each source's key."""

    world: World
    spoil: Callable[[int, list[Any]], list[Any]]
    keys: Mapping[str, str]


def json_answer(
    status: int, content: Any, given: tuple[Given, ...] = (), headers: Mapping[str, str] | None = None
) -> Answer:
    """Return an answer in JSON, floats in full."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, body, headers=headers or {}, given=given)


def whole(query: Mapping[str, str], name: str, default: int) -> int | None:
    """Return a whole number of the query; None where it is none."""
    try:
        return int(float(query.get(name, default)))
    except ValueError:
        return None


def read_time(text: str, default: int | None = None) -> int | None:
    """Return seconds since 1970 of a number or an ISO date or time, in UTC where it names no zone; None: neither."""
    if not text:
        return default
    try:
        return int(float(text))
    except ValueError:
        pass
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp())


def utc_time(at_s: int) -> str:
    """Return an instant as most APIs write it."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
