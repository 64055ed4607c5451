"""What the oracle's answers are made of: frozen dataclasses that become JSON once, at the edge.

Code works with microseconds and dataclasses. In JSON an instant is a text in ISO 8601 and loses the `_us` of its name;
a figure that is not a number is null.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainSerializer, TypeAdapter

from qubic_lab.oracle.model.timestamps import iso


class Part:
    """Base of every dataclass in an answer: names without `_us` in JSON, and no other fields than these."""

    __pydantic_config__ = ConfigDict(alias_generator=lambda name: name.removesuffix("_us"), extra="forbid")


Instant = Annotated[
    int,
    PlainSerializer(iso, return_type=str),
    Field(description="ISO 8601 in UTC, such as 2026-11-24T12:00:00Z"),
]
"""Microseconds since 1970 in UTC."""
Figure = Annotated[float, PlainSerializer(lambda value: None if math.isnan(value) else value, return_type=float | None)]
"""A float; NaN, where it is not known, is null in JSON."""


@dataclass(frozen=True)
class Missing(Part):
    """A part of an answer that cannot be computed from what is known; `reason` says why."""

    reason: str
    available: Literal[False] = False


def to_json(answer: Any) -> bytes:
    """Return an answer, a dataclass made of `Part`s, as JSON."""
    return _adapters[type(answer)].dump_json(answer, by_alias=True)


def to_plain(answer: Any) -> Any:
    """Return an answer, a dataclass made of `Part`s, as plain values that JSON has."""
    return _adapters[type(answer)].dump_python(answer, by_alias=True, mode="json")


class _Adapters(dict[type[Any], TypeAdapter[Any]]):
    """Makes the adapter of a class when it is first asked for: that takes milliseconds."""

    def __missing__(self, kind: type[Any]) -> TypeAdapter[Any]:
        return self.setdefault(kind, TypeAdapter(kind))


_adapters = _Adapters()
