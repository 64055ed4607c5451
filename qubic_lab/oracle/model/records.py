"""What sources give: prices, bars and texts, as plain values that every part of the oracle shares."""

import math
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
        source: who published it, such as coingecko.
        interval_s: a bar's length; 0: quotes.
        currency: what prices, market caps and quotes' volumes are in.
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
        """Whether it has quotes or bars."""
        return "bar" if self.interval_s else "quote"


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
    """A quote, or a bar that has closed. Times are microseconds since 1970 in UTC.

    Attributes:
        opened_us: a quote's instant, or a bar's first.
        closed_us: a quote's instant, or a bar's end, which is the next one's `opened_us`.
        close: the price; `open`, `high` and `low` are None for quotes.
        volume: traded within the bar, in units of the coin; None for quotes or where the source has none.
        volume_24h: of a quote: traded in the 24 hours before it, in the series' currency.
        published_us: when the source says that it published it; None where it does not say.
        flags: what cleaning found, such as "outlier"; nothing is dropped for it.
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
        source: who gave it to us, such as newsapi, hacker-news or a feed's name.
        external_id: what it is called there, the same for each later version of it.
        publisher: whose it is, such as a newspaper's name; the source's own name where there is no other.
        body: without markup; empty where there is none.
        cut_characters: how much of the body the source left out; 0: nothing.
        published_us: when its publisher says it appeared; None where it does not say.
        coins: those that it is about, by id.
        score: what readers gave it (points, likes), where the source tells.
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
