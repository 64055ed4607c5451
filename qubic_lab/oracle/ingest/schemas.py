"""What bars, quotes and texts must be: schemas of data frames by pandera. What they refuse is never stored.

What is only odd is flagged by `qubic_lab.oracle.ingest.cleaning` and stays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Price, Text
from qubic_lab.oracle.model.timestamps import DAY_US, iso

EARLIEST_US = 1_230_940_800_000_000
"""2009-01-03, when the first coin began: nothing about coins is older."""
MOST_OUTSIDE = 0.1
"""So far, as a share, may open and close be outside low to high: publishers round and mend; more is a wrong column."""


def _price(what: str, *, nullable: bool = False) -> pa.Column:
    number = pa.Check(lambda column: np.isfinite(column), error=f"{what} is no number")
    positive = pa.Check(lambda column: column > 0, error=f"{what} is not above 0")
    return pa.Column(float, [number, positive], nullable=nullable)


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
"""Bars: whole microseconds; prices finite and above 0, the high no lower than the low; volumes 0 or more, or NaN."""
QUOTES = pa.DataFrameSchema(
    {"opened_us": _OPENED, "closed_us": pa.Column("int64"), "close": _price("price"), **_VOLUMES}
)
"""Quotes: an instant, a price above 0, and volume and market cap of 0 or more, or NaN."""
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
"""Texts: with an id and words, no longer than the database takes; published since there are coins, or nobody knows."""


def refusals(schema: pa.DataFrameSchema, frame: pd.DataFrame) -> dict[int, str]:
    """Return why rows do not fit, by their numbers from 0, in order.

    Raises:
        InputError: it is not the rows: a column is missing or of another type.
    """
    try:
        schema.validate(frame.reset_index(drop=True), lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        if cases["index"].isna().any():
            first = cases[cases["index"].isna()].iloc[0]
            raise InputError(f"{first['check']} of {first['column']}: {first['failure_case']}") from error
        ordered = cases.sort_values(["index", "schema_context"], kind="stable")  # "Column" before the whole row
        rows = ordered.drop_duplicates("index")
        return {int(row["index"]): _why(row) + _prices_in(frame, int(row["index"])) for _, row in rows.iterrows()}
    return {}


def _prices_in(frame: pd.DataFrame, number: int) -> str:
    row = frame.iloc[number]
    shown = " ".join(f"{name} {row[name]:.17g}" for name in ("open", "high", "low", "close") if name in frame)
    return f": {shown}" if shown else ""


def check_frame(schema: pa.DataFrameSchema, frame: pd.DataFrame, places: Sequence[str]) -> None:
    """Check a frame; `places` says where each row is from, for the error.

    Raises:
        InputError: the first row that does not fit, and why.
    """
    found = refusals(schema, frame)
    if found:
        number, why = next(iter(found.items()))
        others = f" (and so are {len(found) - 1:,} other rows)" if len(found) > 1 else ""
        raise InputError(f"{places[number]}: {why}{others}: correct the row or leave it out")


def _why(case: Any) -> str:
    if case["check"] == "not_nullable":
        return f"{case['column']} is missing"
    return str(case["check"])


def price_frame(prices: Sequence[Price]) -> pd.DataFrame:
    """Return prices as a frame, NaN where there is no number."""
    names = ("open", "high", "low", "close", "volume", "volume_24h", "market_cap")
    columns: dict[str, Any] = {
        name: np.array([getattr(price, name) for price in prices], np.int64) for name in ("opened_us", "closed_us")
    }
    for name in names:
        columns[name] = np.array([getattr(price, name) for price in prices], float)
    return pd.DataFrame(columns)


def refused_prices(prices: Sequence[Price], *, bars: bool) -> dict[int, str]:
    """Return why bars or quotes cannot be, by their numbers from 0."""
    return refusals(BARS if bars else QUOTES, price_frame(prices)) if prices else {}


def check_texts(texts: Sequence[Text], places: Sequence[str] | None = None, now_us: int | None = None) -> None:
    """Check texts; with `now_us` also that none is from more than a day later.

    Raises:
        InputError: one does not fit; names its place, or else its id.
    """
    names = ("external_id", "title", "body", "publisher", "author", "language")
    columns: dict[str, Any] = {name: pd.array([getattr(text, name) for text in texts], "str") for name in names}
    columns["published_us"] = pd.array([text.published_us for text in texts], "Int64")
    named = places or [f"text {text.external_id!r} of {text.source}" for text in texts]
    check_frame(TEXTS, pd.DataFrame(columns), named)
    for text, place in zip(texts, named, strict=True):
        if now_us is not None and (text.published_us or 0) > now_us + DAY_US:
            raise InputError(f"{place}: published {iso(text.published_us or 0)}, which is still to come: correct it")
