"""What the oracle's answers are made of: frozen dataclasses that become JSON once, at the edge.

Code works with microseconds and dataclasses. In JSON an instant is a text in ISO 8601 and loses the `_us` of its name;
a figure that is not a number is null.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainSerializer, TypeAdapter

from qubic_lab.oracle.model.timestamps import SECOND_US, iso

Window = Literal["1h", "24h", "7d"]
"""The time before `as_of` whose texts are read."""
WINDOW_S: dict[Window, int] = {"1h": 3_600, "24h": 86_400, "7d": 604_800}
Frame = Literal["1h", "4h", "1d"]
"""The length of bars."""
FRAME_S: dict[Frame, int] = {"1h": 3_600, "4h": 14_400, "1d": 86_400}


class Part:
    """Base of every dataclass in an answer: names without `_us` in JSON, and no other fields than these."""

    __pydantic_config__ = ConfigDict(alias_generator=lambda name: name.removesuffix("_us"), extra="forbid")


Instant = Annotated[
    int, PlainSerializer(iso, return_type=str), Field(description="ISO 8601 in UTC, such as 2026-11-24T12:00:00Z")
]
"""Microseconds since 1970 in UTC."""
AgeS = Annotated[float, Field(description="seconds before as_of")]
Share = Annotated[float, Field(description="between 0 and 1")]
Percent = Annotated[float | None, Field(description="percent; null where the earlier price is not known")]
Money = Annotated[float, Field(description="in the answer's currency")]
Currency = Annotated[str, Field(description="what prices are in, such as usd")]
CoinId = Annotated[str, Field(description="the coin's id, such as bitcoin")]
CoinName = Annotated[str, Field(description="the coin's name, such as Bitcoin")]
FrameName = Annotated[Frame, Field(description="length of the bars")]
TextSource = Annotated[str, Field(description="the source's name, such as hacker-news")]
Title = Annotated[str, Field(description="headline of the text")]
Publisher = Annotated[str, Field(description="such as a newspaper's name; the source's name if there is no other")]
TextUrl = Annotated[str, Field(description="address of the text")]
VolumeUnit = Literal["coin", "currency"]
Direction = Literal["bullish", "bearish", "neutral"]
"""Which way prices or texts point, in one word."""
Figure = Annotated[float, PlainSerializer(lambda value: None if math.isnan(value) else value, return_type=float | None)]
"""A float; NaN, where it is not known, is null in JSON."""


@dataclass(frozen=True)
class Missing(Part):
    """A part of an answer that cannot be computed from what is known; `reason` says why."""

    reason: Annotated[str, Field(description="why")]
    available: Annotated[Literal[False], Field(description="always false")] = False


@dataclass(frozen=True, kw_only=True)
class OracleResponse(Part):
    """A whole response, and how the cache served it."""

    age_s: Annotated[float, Field(description="seconds since it was computed")] = 0.0
    cache: Annotated[
        Literal["hit", "stale", "miss", "wait", "direct"],
        Field(
            description="hit: it was fresh; stale: a newer one is being computed; miss: computed for this request; "
            "wait: for an earlier one; direct: for this one, without Redis"
        ),
    ] = "miss"


@dataclass(frozen=True, kw_only=True)
class AboutCoin(Part):
    """Base of what is about one coin; `Coin.identity` has these fields."""

    coin: CoinId
    symbol: Annotated[str, Field(description="the coin's symbol, such as BTC")]
    name: CoinName


@dataclass(frozen=True, kw_only=True)
class PriceOrigin(Part):
    """The source of prices, and the length of its bars."""

    source: Annotated[str, Field(description="the source's name, such as coingecko")]
    interval_s: Annotated[int, Field(description="seconds of a bar; 0: quotes")]


def age_s(then_us: int, at_us: int) -> float:
    """Return how old something was at an instant, in seconds; 0 if it came later."""
    return max(0.0, (at_us - then_us) / SECOND_US)


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # takes milliseconds


def to_json(answer: Any, exclude: set[str] | None = None) -> bytes:
    """Return an answer, a dataclass made of `Part`s, as JSON without the excluded fields."""
    return _adapter(answer.__class__).dump_json(answer, by_alias=True, exclude=exclude)


def to_plain(answer: Any, exclude: set[str] | None = None) -> Any:
    """Return an answer, a dataclass made of `Part`s, as plain values that JSON has, without the excluded fields."""
    return _adapter(answer.__class__).dump_python(answer, by_alias=True, mode="json", exclude=exclude)
