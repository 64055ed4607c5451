"""The one way of prices into the database: validated by pandera, flagged, stored. Words and dates of texts, too.

Invalid rows are never stored; odd ones are flagged by `qubic_lab.oracle.model.records` and stay.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Price, Series, Text, context_of, flag_prices, with_flags
from qubic_lab.oracle.model.timestamps import DAY_US, from_us, iso, read_iso, to_us
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.transactions import Added

_BEGINNING_US = -50 * 365 * DAY_US
_NUMBERS = ("open", "high", "low", "close", "volume", "volume_24h", "market_cap")
_read_values = attrgetter("opened_us", "closed_us", *_NUMBERS)

EARLIEST_US = 1_230_940_800_000_000
"""2009-01-03, when the first coin began: no data is older."""
MOST_OUTSIDE = 0.1
"""How far, as a share, open and close may be outside low to high, as publishers round; more is a wrong column."""
LONGEST_ID = 512
LONGEST_MARKUP, LONGEST_LINE = 400_000, 10_000
"""Characters that are read of a text, and of a title or a name; the time of Python's HTML parser can grow with their
square."""
_INLINE = frozenset(("a", "abbr", "b", "cite", "code", "del", "em", "font", "i", "ins", "kbd", "mark", "q", "s"))
_INLINE |= frozenset(("small", "span", "strong", "sub", "sup", "u", "wbr"))
"""Tags within a word; all others end it."""
_UNSEEN = frozenset(("script", "style", "template", "noscript", "iframe"))
_CUT_TAG = re.compile(r"<[A-Za-z/!][^<>]*$")


def _price(what: str) -> pa.Column:
    number = pa.Check(lambda column: np.isfinite(column), error=f"{what} is no number")
    positive = pa.Check(lambda column: column > 0, error=f"{what} is not above 0")
    return pa.Column(float, [number, positive])


def _amount(what: str) -> pa.Column:
    good = pa.Check(lambda column: np.isfinite(column) & (column >= 0), error=f"{what} is below 0 or no number")
    return pa.Column(float, good, nullable=True)


def _words(what: str, most: int) -> pa.Column:
    short = pa.Check(lambda column: column.str.len() <= most, error=f"{what} is longer than {most} characters")
    clean = pa.Check(lambda column: ~column.str.contains("\x00", regex=False), error=f"{what} holds a NUL character")
    return pa.Column(str, [short, clean])


_OPENED = pa.Column("int64", pa.Check(lambda column: column >= EARLIEST_US, error="time is before the first coin's"))
_VOLUMES = {name: _amount(name.replace("_", " ")) for name in ("volume", "volume_24h", "market_cap")}
BARS = pa.DataFrameSchema(
    {
        "opened_us": _OPENED,
        "closed_us": pa.Column("int64"),
        **{name: _price(name) for name in ("open", "high", "low", "close")},
        **_VOLUMES,
    },
    checks=[
        pa.Check(lambda frame: frame["opened_us"] < frame["closed_us"], error="bar closes before it opens"),
        pa.Check(lambda frame: frame["high"] >= frame["low"], error="high is below low"),
        pa.Check(
            lambda frame: (
                (frame[["open", "close"]].max(axis=1) <= frame["high"] * (1 + MOST_OUTSIDE))
                & (frame[["open", "close"]].min(axis=1) >= frame["low"] * (1 - MOST_OUTSIDE))
            ),
            error="open or close is far outside low to high",
        ),
    ],
)
QUOTES = pa.DataFrameSchema(
    {"opened_us": _OPENED, "closed_us": pa.Column("int64"), "close": _price("price"), **_VOLUMES}
)
TEXTS = pa.DataFrameSchema(
    {
        "external_id": _words("id", 512),
        "title": _words("title", 10_000),
        "body": _words("body", 1_000_000),
        "publisher": _words("publisher", 256),
        "author": _words("author", 256),
        "language": _words("language", 16),
        "published_us": pa.Column(
            "Int64",
            pa.Check(lambda column: column >= EARLIEST_US, error="it appeared before the first coin"),
            nullable=True,
        ),
    },
    checks=pa.Check(
        lambda frame: (frame["title"] != "") | (frame["body"] != ""), error="it has neither title nor body"
    ),
)


def refusals(schema: pa.DataFrameSchema, frame: pd.DataFrame) -> dict[int, str]:
    """Return why rows are invalid, by their numbers from 0, in order."""
    try:
        schema.validate(frame.reset_index(drop=True), lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.sort_values(["index", "schema_context"], kind="stable")  # "Column" before the row
        first_cases = cases.drop_duplicates("index").to_dict("records")
        return {int(case["index"]): _reason(case, frame) for case in first_cases}
    return {}


def _reason(case: Mapping[Any, Any], frame: pd.DataFrame) -> str:
    why = f"{case['column']} is missing" if case["check"] == "not_nullable" else str(case["check"])
    row = frame.iloc[int(case["index"])]
    prices = " ".join(f"{name} {row[name]:.17g}" for name in ("open", "high", "low", "close") if name in frame)
    return f"{why}: {prices}" if prices else why


def check_frame(schema: pa.DataFrameSchema, frame: pd.DataFrame, places: Sequence[str]) -> None:
    """Refuse a frame with an InputError that names the place of its first invalid row, and why."""
    found = refusals(schema, frame)
    if found:
        number, why = next(iter(found.items()))
        others = f" (and so are {len(found) - 1:,} other rows)" if len(found) > 1 else ""
        raise InputError(f"{places[number]}: {why}{others}: correct the row or leave it out")


def refused_prices(prices: Sequence[Price], *, bars: bool) -> dict[int, str]:
    """Return why bars or quotes are invalid, by their numbers from 0."""
    if not prices:
        return {}
    names = ("opened_us", "closed_us", *_NUMBERS)
    frame = pd.DataFrame({name: [getattr(price, name) for price in prices] for name in names})
    return refusals(BARS if bars else QUOTES, frame.astype(dict.fromkeys(_NUMBERS, float)))


def check_texts(texts: Sequence[Text], places: Sequence[str], now_us: int) -> None:
    """Refuse an invalid text, or one published more than a day after `now_us`, with its place."""
    names = ("external_id", "title", "body", "publisher", "author", "language")
    columns: dict[str, Any] = {name: pd.array([getattr(text, name) for text in texts], "str") for name in names}
    columns["published_us"] = pd.array([text.published_us for text in texts], "Int64")
    check_frame(TEXTS, pd.DataFrame(columns), places)
    for text, place in zip(texts, places, strict=True):
        if (text.published_us or 0) > now_us + DAY_US:
            raise InputError(f"{place}: published {iso(text.published_us or 0)}, which is still to come: correct it")


@dataclass(frozen=True)
class Kept:
    """Prices with their flags, by time; the outcome in the database; and a line for each refused one."""

    prices: tuple[Price, ...]
    added: Added
    refused: tuple[str, ...] = ()


def keep_prices(store: PriceStore, series: Series, prices: Iterable[Price], *, fetch_id: int | None = None) -> Kept:
    """Flag prices of one series and store them; the last price of a time counts, and invalid ones are left out.

    Flags depend on earlier prices, of the batch and of the database: later ones change none. A price that is given
    again as it is stored keeps its flags, even if earlier prices were stored after it.
    """
    given = list(prices)
    wrong = refused_prices(given, bars=series.interval_s > 0)
    refused = tuple(f"{iso(given[number].closed_us)}: {why}" for number, why in wrong.items())
    latest = {price.closed_us: price for number, price in enumerate(given) if number not in wrong}
    ordered = [latest[at] for at in sorted(latest)]
    if not ordered:
        return Kept((), Added(len(given)), refused)
    history: list[Price] = []
    stored: dict[tuple[float | None, ...], tuple[str, ...]] = {}
    if series in store.series(series.coin):
        first_us, last_us = ordered[0].closed_us, ordered[-1].closed_us
        history.extend(reversed(store.page(series, _BEGINNING_US, first_us, limit=context_of()).prices))
        stored = {_version(each): each.flags for each in store.prices(series, first_us, last_us + 1)}
    flagged = flag_prices(ordered, history)
    if stored:
        flagged = tuple(with_flags(price, stored.get(_version(price), price.flags)) for price in flagged)
    added = store.add(series, flagged, fetch_id=fetch_id)
    return Kept(flagged, replace(added, given=len(given)), refused)


def _version(price: Price) -> tuple[float | None, ...]:
    """Return what distinguishes a version of a price from others, without its flags."""
    values: tuple[float | None, ...] = _read_values(price)
    return tuple(None if value is None or value != value else value for value in values)


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen += 1
        elif tag not in _INLINE:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag not in _INLINE:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)


def _closed(markup: str) -> str:
    """Return markup in which all tags and comments end: the parser would look for the end of each, up to the last sign.

    What stands in CDATA sections is text.
    """
    markup = markup.replace("<![CDATA[", "").replace("]]>", "").replace("<![", "<!")
    before, end, rest = markup.rpartition("-->")
    markup = before + end + rest.replace("<!--", "<!")
    before, end, rest = markup.rpartition(">")
    return before + end + _CUT_TAG.sub("", rest).replace("<", "&lt;")


def plain_text(markup: Any, most: int = LONGEST_MARKUP) -> str:
    """Return the words of HTML in one line: without tags, scripts and styles, entities as their characters.

    A tag that is cut off at the end is left out, and so is all behind the first `most` characters. What is not a text
    gives an empty one.
    """
    if not isinstance(markup, str):
        return ""
    words = _Words()
    words.feed(_closed(markup[:most]))
    words.close()
    return " ".join("".join(words.parts).replace("\x00", "").split())


def read_date(text: Any) -> int | None:
    """Return the instant of a date in the form of ISO 8601 or RFC 822; None if it names no zone or is no date.

    A date without a zone may be any of 26 hours: it is not guessed.
    """
    for read in (read_iso, _read_rfc_822):
        try:
            at_us = read(text)
            from_us(at_us)  # some dates lie beyond the calendar once they are in UTC
        except (InputError, ValueError, TypeError, AttributeError, OverflowError):
            continue
        return at_us
    return None


def _read_rfc_822(text: str) -> int:
    at = parsedate_to_datetime(text.strip())
    if at.tzinfo is None and text.strip().endswith("-0000"):  # UTC, and nothing about the writer's zone
        at = at.replace(tzinfo=UTC)
    return to_us(at)


def short_id(name: str, content: str = "") -> str:
    """Return a text's id at its source; its hash if the database takes no id that long; without one, the content's."""
    return name if 0 < len(name) <= LONGEST_ID else f"sha256:{hashlib.sha256((name or content).encode()).hexdigest()}"
