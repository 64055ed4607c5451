"""What sources provide: prices, bars and texts, as plain values that every part of the oracle shares."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import COLUMNS, Bars
from qubic_lab.oracle.model.response import Instant, Money, Part
from qubic_lab.oracle.model.timestamps import SECOND_US, iso

Kind = Literal["quote", "bar"]
TextKind = Literal["news", "social"]


@dataclass(frozen=True, order=True)
class Series:
    """Prices of one coin from one source: spot quotes, or bars of one length.

    Attributes:
        coin: its id, as `qubic_lab.oracle.model.coins` lists them.
        source: the publisher, such as coingecko.
        interval_s: length of a bar; 0: quotes.
        currency: of prices, market caps and quotes' volumes.
    """

    coin: str
    source: str
    interval_s: int = 0
    currency: str = "usd"

    def __post_init__(self) -> None:
        if self.interval_s < 0:
            raise InputError(f"series of {self.coin} has bars of {self.interval_s} s: it must be 0 (quotes) or more")

    def makes(self, frame_us: int) -> bool:
        """Return whether bars of a frame can be made: from quotes, or from bars that divide the frame."""
        return self.interval_s == 0 or frame_us % (self.interval_s * SECOND_US) == 0

    @property
    def kind(self) -> Kind:
        """Whether these are quotes or bars."""
        return "bar" if self.interval_s else "quote"


SAMPLE = "sample"
"""The source of sample texts, and of nothing else."""
_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
STALE_AFTER = 3.0
"""A source is stale when it is late by more than this many of its intervals."""


@dataclass(frozen=True)
class Frequency:
    """The seconds between two prices or texts of a source, and its usual delay in seconds."""

    every_s: float
    delay_s: float = 0.0

    def is_late(self, age_s: float) -> bool:
        """Return whether a newer price or text is overdue."""
        return age_s > self.delay_s + STALE_AFTER * self.every_s


QUOTES, TEXTS = Frequency(300.0), Frequency(3_600.0)
"""Defaults for sources that have no frequency of their own."""
_ROW = Part.__pydantic_config__ | ConfigDict(json_schema_serialization_defaults_required=True)
"""Optional values of a row are always in JSON, as null."""


@dataclass(frozen=True)
class Price(Part):
    """A quote, or a closed bar. Times are microseconds since 1970 in UTC.

    Attributes:
        opened_us: time of a quote, or start of a bar.
        closed_us: time of a quote, or end of a bar, which is the `opened_us` of the next one.
        close: the price; `open`, `high` and `low` are None for quotes.
        volume: of a bar, in units of the coin; None for quotes, or if it is not known.
        volume_24h: of a quote: the volume of the 24 hours before it, in the series' currency.
        published_us: when the source published it; None if the source does not say.
        flags: what cleaning found, such as "outlier"; flagged prices are kept.
    """

    __pydantic_config__ = _ROW

    opened_us: Instant
    closed_us: Instant
    close: Money
    open: Money | None = None
    high: Money | None = None
    low: Money | None = None
    volume: Annotated[float | None, Field(description="of a bar, in units of the coin")] = None
    volume_24h: Annotated[float | None, Field(description="of a quote: in the 24 hours before it, in the currency")] = (
        None
    )
    market_cap: Money | None = None
    published_us: Instant | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.opened_us > self.closed_us:
            raise InputError(f"bar that opens at {iso(self.opened_us)} closes before, at {iso(self.closed_us)}")
        if not (math.isfinite(self.close) and self.close > 0.0):
            raise InputError(f"price at {iso(self.closed_us)} is {self.close}: it must be a number above 0")


@dataclass(frozen=True)
class Text(Part):
    """A news item or a post.

    Attributes:
        source: where it was read, such as newsapi, hacker-news or a feed's name.
        external_id: its id there, the same for all its versions.
        publisher: such as a newspaper's name; the name of the source if there is no other.
        body: without markup; may be empty.
        cut_characters: number of characters of the body that the source left out.
        published_us: when it appeared, according to its publisher; None if the publisher does not say.
        coins: ids of the coins that it is about.
        score: points or likes from readers, if the source gives them.
    """

    __pydantic_config__ = _ROW

    source: str
    external_id: Annotated[str, Field(exclude=True)]
    kind: TextKind
    title: str
    body: str
    url: str
    publisher: str
    published_us: Instant | None
    coins: tuple[str, ...]
    author: str = ""
    language: str = ""
    cut_characters: Annotated[int, Field(description="characters of the body that the source left out")] = 0
    score: Annotated[int | None, Field(description="points or likes, if the source gives them")] = None

    def __post_init__(self) -> None:
        if not self.external_id:
            raise InputError(f"text of {self.source} without an id: {self.title[:60]!r}")
        if not (self.title or self.body):
            raise InputError(f"text {self.external_id!r} of {self.source} has neither title nor body")


def bars_of_prices(prices: Sequence[Price], asset: str = "asset", frame_us: int = 0) -> Bars:
    """Return the checked bars of one asset from prices as sources and files give them, in order of time.

    Raises:
        InputError: what `Bars.of` refuses.
    """
    columns: dict[str, Any] = {
        name: np.array([getattr(price, name) for price in prices], np.float64) for name in COLUMNS
    }
    return Bars.of(
        [price.closed_us for price in prices],
        **columns,
        opened_us=[price.opened_us for price in prices],
        frame_us=frame_us,
        assets=(asset,),
        flagged=[int(bool(price.flags)) for price in prices],
    )


def is_sample(source: str) -> bool:
    """Return whether the texts of a source are invented; they must never be joined with prices."""
    return source == SAMPLE


def check_source(name: str) -> str:
    """Return the name of a source if users may choose it.

    Raises:
        InputError: it is that of the sample texts, or not a valid name.
    """
    if is_sample(name.strip().lower()):
        raise InputError(f"source {name!r} is that of the invented sample texts: give another name")
    if not _SOURCE.fullmatch(name):
        raise InputError(f"source {name!r} is no name: give small letters, digits, '-', '.' or '_', at most 64")
    return name
