"""Which column of a file holds what: by common spellings of its name, or as the user maps it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.file_tables import FileTable

PRICE_TARGETS: dict[str, tuple[str, ...]] = {
    "opened": ("open time", "opentime", "time open", "timeopen", "candle begin time", "start time", "start"),
    "closed": ("close time", "closetime", "time close", "timeclose", "candle end time", "end time", "end"),
    "time": (
        *("timestamp", "unix", "unix timestamp", "unix time", "unixtime", "epoch", "time stamp"),
        *("datetime", "date time", "date utc", "time utc", "timestamp utc", "datetime utc", "utc", "utc time"),
        *("gmt time", "time gmt", "snapped at", "date", "day", "local time", "time", "ts", "t"),
        *("index level 0", "index", "unnamed 0", ""),
    ),
    "clock": ("clock", "hour"),
    "open": ("open", "o", "open price", "opening price", "price open", "first"),
    "high": ("high", "h", "high price", "price high", "max", "highest"),
    "low": ("low", "l", "low price", "price low", "min", "lowest"),
    "close": ("close", "c", "close price", "closing price", "price close", "close last", "last", "price", "last price"),
    "volume": ("volume", "v", "vol", "base volume", "volume base", "base asset volume"),
    "volume_currency": (
        *("quote volume", "quote asset volume", "volume quote", "quotevolume", "turnover", "volume currency"),
        *("total volume", "total volumes"),
    ),
    "market_cap": ("market cap", "marketcap", "market capitalization", "market caps"),
}
"""What a file of prices may have, and names of its columns; the first one found counts. `clock` goes with a date."""
TEXT_TARGETS: dict[str, tuple[str, ...]] = {
    "id": ("id", "external id", "guid", "object id", "objectid", "tweet id", "post id"),
    "title": ("title", "headline", "subject", "name"),
    "body": ("body", "text", "content", "summary", "description", "selftext", "message", "article"),
    "url": ("url", "link", "permalink"),
    "publisher": ("publisher", "site", "outlet", "source", "domain", "newspaper", "source name"),
    "published": (
        *("published", "published at", "publishedat", "published utc", "publish date", "pubdate", "pub date"),
        *("created at", "createdat", "created utc", "datetime", "date time", "timestamp", "date", "time"),
    ),
    "author": ("author", "user", "username", "by"),
    "language": ("language", "lang"),
    "score": ("score", "points", "likes", "upvotes"),
    "coins": ("coins", "coin", "currencies", "tickers", "symbols"),
    "kind": ("kind", "type"),
}
"""What a file of texts may have, and names of its columns; the first one found counts."""


BINANCE = (
    *("open time", "open", "high", "low", "close", "volume", "close time", "quote volume", "trades"),
    *("taker base volume", "taker quote volume", "ignore"),
)
"""The columns of Binance's dumps, which have no header before 2025; some omit the last one."""
COINGECKO_OHLC = ("close time", "open", "high", "low", "close")
"""The columns of CoinGecko's JSON: times are those of closes."""


def normalise(name: str) -> str:
    """Return a column's name in small letters with single spaces, without punctuation and a number before it."""
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()).strip()
    return re.sub(r"^\d+[a-z]? (?=[a-z])", "", words)


def check_targets(columns: Mapping[str, str], targets: Mapping[str, Sequence[str]]) -> None:
    """Check the names on the left of a mapping.

    Raises:
        InputError: one is not known.
    """
    for target in columns:
        if target not in targets:
            raise InputError(f"unknown column {target!r} in the mapping: {did_you_mean(target, targets)}")


def find_columns(table: FileTable, mapping: Mapping[str, str], targets: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the number, from 0, of each target's column; targets that the table does not have are left out.

    Raises:
        InputError: a mapped column is not in the header, or a name comes twice.
    """
    found: dict[str, int] = {}
    for target, wanted in mapping.items():
        places = [number for number, name in enumerate(table.header) if name.strip().lower() == wanted.strip().lower()]
        if not places:
            raise InputError(f"{table.file}: no column {wanted!r} for {target}: {did_you_mean(wanted, table.header)}")
        found[target] = places[0]
    for target, spellings in targets.items():
        for spelling in () if target in found else spellings:
            places = [number for number, name in enumerate(table.header) if normalise(name) == spelling]
            places = [number for number in places if number not in found.values()]
            if len(places) > 1:
                raise InputError(
                    f"{table.file}: column {table.header[places[0]]!r} comes twice: map {target} to one of them after "
                    "renaming the other"
                )
            if places:
                found[target] = places[0]
                break
    return found


def is_header(
    names: Sequence[str],
    mapping: Mapping[str, str],
    targets: Mapping[str, Sequence[str]],
    needed: Sequence[Sequence[str]],
) -> bool:
    """Return whether a row names a column for one of each `needed`, by common spellings or as they are mapped."""
    shown, spelled = {name.strip().lower() for name in names}, {normalise(name) for name in names}
    known = {target for target, spellings in targets.items() if spelled & set(spellings)}
    known |= {target for target, name in mapping.items() if name.strip().lower() in shown}
    return all(known & set(each) for each in needed)


def find_volumes(header: Sequence[str], symbol: str, currency: str) -> dict[str, int]:
    """Return the numbers of columns such as "Volume BTC" (coins) and "Volume USD" or "Volume USDT" (currency)."""
    units = {symbol.lower(): "volume", currency.lower(): "volume_currency", f"{currency.lower()}t": "volume_currency"}
    found: dict[str, int] = {}
    for number, name in enumerate(header):
        words = normalise(name).split()
        if len(words) == 2 and "volume" in words:
            target = units.get(words[1 - words.index("volume")])
            if target is not None:
                found.setdefault(target, number)
    return found


def name_header(table: FileTable, mapping: Mapping[str, str]) -> FileTable:
    """Return a table without a header with the names of Binance's dumps, or of CoinGecko's bars if it is JSON.

    Raises:
        InputError: it has other columns, whose order differs between exchanges, and no mapping by their numbers.
    """
    if table.named or mapping:
        return table
    width = len(table.header)
    if width in (len(BINANCE) - 1, len(BINANCE)):
        return replace(table, header=BINANCE[:width], named=True)
    if width == len(COINGECKO_OHLC) and ".json" in table.file.lower():
        return replace(table, header=COINGECKO_OHLC, named=True)
    raise InputError(
        f"{table.file}:{table.lines[0]}: {width} columns without names: map their numbers, such as close=5"
    )
