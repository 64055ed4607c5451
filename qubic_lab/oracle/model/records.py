"""What sources provide as plain values: series, prices, bars and texts; and the flags of odd prices."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import COLUMNS, Bars, Flags, Floats, Integers
from qubic_lab.oracle.model.response import Instant, Money, Part, Publisher, TextSource, TextUrl, Title
from qubic_lab.oracle.model.timestamps import SECOND_US, iso

TextKind = Literal["news", "social"]
CURRENCY = "usd"
"""What prices are read in; series in other currencies are left out of answers."""


@dataclass(frozen=True, order=True)
class Series:
    """Prices of one coin from one source: spot quotes, or bars of one length.

    Attributes:
        interval_s: length of a bar; 0: quotes.
        currency: of prices, market caps and quotes' volumes.
    """

    coin: str
    source: str
    interval_s: int = 0
    currency: str = CURRENCY

    def __post_init__(self) -> None:
        if self.interval_s < 0:
            raise InputError(f"series of {self.coin} has bars of {self.interval_s} s: it must be 0 (quotes) or more")

    def makes(self, frame_us: int) -> bool:
        """Return whether bars of a frame can be made: from quotes, or from bars that divide the frame."""
        return self.interval_s == 0 or frame_us % (self.interval_s * SECOND_US) == 0


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
        published_us: when the source published it; None if the source does not say.
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
    flags: Annotated[
        tuple[str, ...], Field(description="what cleaning found, such as outlier; flagged prices are kept")
    ] = ()

    def __post_init__(self) -> None:
        if self.opened_us > self.closed_us:
            raise InputError(f"bar that opens at {iso(self.opened_us)} closes before, at {iso(self.closed_us)}")
        if not (math.isfinite(self.close) and self.close > 0.0):
            raise InputError(f"price at {iso(self.closed_us)} is {self.close}: it must be a number above 0")


@dataclass(frozen=True)
class Text(Part):
    """A news item or a post.

    Attributes:
        external_id: its id at the source, the same for all its versions.
        publisher: such as a newspaper's name; the name of the source if there is no other.
        body: without markup; may be empty.
        published_us: when it appeared, according to its publisher; None if the publisher does not say.
        coins: ids of the coins that it is about.
    """

    __pydantic_config__ = _ROW

    source: TextSource
    external_id: Annotated[str, Field(exclude=True)]
    kind: Annotated[TextKind, Field(description="news: an article; social: a post")]
    title: Title
    body: Annotated[str, Field(description="without markup; may be empty")]
    url: TextUrl
    publisher: Publisher
    published_us: Instant | None
    coins: Annotated[tuple[str, ...], Field(description="ids of the coins that it is about")]
    author: Annotated[str, Field(description="empty: not known")] = ""
    language: Annotated[str, Field(description="such as en; empty: not known")] = ""
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


_ROWS_AT_ONCE = 20_000
_MAD_TO_DEVIATION = 1.4826
"""The ratio of a normal distribution's standard deviation to its median absolute deviation."""


@dataclass(frozen=True)
class OutlierRule:
    """When a return is an outlier: Hampel's identifier over past returns only.

    A log return r at t, over n median steps of time, is an outlier if |r - m| > threshold × s × √n; m is the median and
    s the scaled median absolute deviation of the `window` returns before t (Hampel, The influence curve and its role in
    robust estimation, JASA 1974; Davies and Gather, JASA 1993).

    Attributes:
        warm_up: past returns that are needed; earlier prices are not judged.
        threshold: far above the 3 of a normal distribution, as returns of coins have heavy tails.
        floor: the least s, so that a price that stood still may move.
    """

    window: int = 96
    warm_up: int = 32
    threshold: float = 12.0
    floor: float = 2e-4


RULE = OutlierRule()


def context_of(rule: OutlierRule = RULE) -> int:
    """Return the number of earlier prices that a price's flags depend on."""
    return rule.window + 2


def flag_prices(prices: Sequence[Price], history: Sequence[Price] = (), rule: OutlierRule = RULE) -> tuple[Price, ...]:
    """Return the prices with their flags; none is dropped or changed, and later prices never change a flag.

    The flags are "outlier" (the return is far from those before it), "zero-volume", "flat" (open, high, low and close
    are one price), "gap-before" (bars are missing before it) and "outside-range" (of low to high).

    They are of one series, in order of time; of the earlier ones in `history` the last `context_of(rule)` matter.

    Raises:
        InputError: they are not in order of time.
    """
    past = history[-context_of(rule) :]
    everything = [*past, *prices]
    for earlier, later in pairwise(everything):
        if later.closed_us <= earlier.closed_us:
            raise InputError(f"price of {iso(later.closed_us)} follows that of {iso(earlier.closed_us)}: sort them")
    times = np.array([price.closed_us for price in everything], np.int64)
    odd = outliers(times, [price.close for price in everything], rule)
    flagged = []
    for number, price in enumerate(everything[len(past) :], len(past)):
        before = everything[number - 1] if number else None
        flags = ["outlier"] * bool(odd[number]) + _own_flags(price, before)
        flagged.append(with_flags(price, tuple(dict.fromkeys((*price.flags, *flags)))))
    return tuple(flagged)


def with_flags(price: Price, flags: tuple[str, ...]) -> Price:
    """Return a price with these flags."""
    return price if price.flags == flags else replace(price, flags=flags)


def _own_flags(price: Price, before: Price | None) -> list[str]:
    flags = ["zero-volume"] * (price.volume == 0.0)
    if price.open is None or price.high is None or price.low is None:
        return flags
    flags += ["flat"] * (price.open == price.high == price.low == price.close)
    flags += ["gap-before"] * (before is not None and price.opened_us > before.closed_us)
    outside = max(price.open, price.close) > price.high or min(price.open, price.close) < price.low
    return flags + ["outside-range"] * outside


def outliers(times_us: Integers, closes: Sequence[float], rule: OutlierRule = RULE) -> Flags:
    """Return which prices are outliers, [prices], each compared with earlier ones only."""
    odd = np.zeros(len(times_us), bool)
    logs = np.array([math.log(close) for close in closes])  # np.log may round differently at an array's end
    returns, waits = np.diff(logs), np.diff(times_us).astype(float)
    for number in range(rule.warm_up, min(rule.window, len(returns))):
        past, now = slice(number), slice(number, number + 1)
        odd[number + 1] = _judge(returns[None, past], waits[None, past], returns[now], waits[now], rule)[0]
    if len(returns) <= rule.window:
        return odd
    past_returns = np.lib.stride_tricks.sliding_window_view(returns[:-1], rule.window)
    past_waits = np.lib.stride_tricks.sliding_window_view(waits[:-1], rule.window)
    for first in range(0, len(past_returns), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        now = slice(first + rule.window, first + rule.window + len(past_returns[rows]))
        judged = _judge(past_returns[rows], past_waits[rows], returns[now], waits[now], rule)
        odd[first + rule.window + 1 : first + rule.window + 1 + len(judged)] = judged
    return odd


def _judge(past_returns: Floats, past_waits: Floats, returns: Floats, waits: Floats, rule: OutlierRule) -> Flags:
    """Return whether each return, [rows], is far from those before it, [rows, past]."""
    middle = np.median(past_returns, axis=1)
    spread = np.median(np.abs(past_returns - middle[:, None]), axis=1) * _MAD_TO_DEVIATION
    steps = np.maximum(1.0, waits / np.median(past_waits, axis=1))
    limit = rule.threshold * np.maximum(spread, rule.floor) * np.sqrt(steps)
    judged: Flags = np.abs(returns - middle) > limit
    return judged
