"""Generates a market to measure the oracle's speed on: quotes every five minutes, texts, and their scores.

Prices are random walks and texts are random words, so analyses of them mean nothing.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Table, insert

from qubic_lab.core import Progress
from qubic_lab.database import open_database
from qubic_lab.errors import check_range
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.timestamps import DAY_US, MINUTE_US, SECOND_US
from qubic_lab.oracle.serving.cache import code_version
from qubic_lab.oracle.store import tables
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES, NEWS_COINS, NEWS_DATA, SENTIMENT_SCORES, STAMPS
from qubic_lab.oracle.store.transactions import insert_rows
from qubic_lab.settings import cache_folder

SOURCE = "coingecko"
MODELS = ("generated-a 1", "generated-b 1")
STEP_US = 5 * MINUTE_US
END_US = 1_790_812_800 * SECOND_US
"""Time of the last quote, 2026-10-01T00:00Z; it is fixed so that every run generates the same data."""
PRICES_KNOWN_US, TEXTS_KNOWN_US, SCORES_KNOWN_US = 2 * SECOND_US, 60 * SECOND_US, 90 * SECOND_US
"""Delay until a price, a text or a score is known."""
LEAST_ROWS, MOST_ROWS, MOST_TEXTS = 1_000, 20_000_000, 2_000_000
DUPLICATES = 0.05
"""Share of texts that repeat another one."""
BODY_WORDS = 60
_TEXTS = 20_000
"""Texts that are written at a time."""
_VOCABULARY = """
market price coin miners fund exchange traders wallet network upgrade holders yield report rally fall demand supply
ledger protocol bank court rule index volume week month record asset token stake fee block hash rate pool node
launch partner growth risk signal trend chart buyers sellers outflow inflow treasury reserve bridge update release
"""
_WORDS = np.array(_VOCABULARY.split())


@dataclass(frozen=True)
class GeneratedMarket:
    """A database at `url` with prices from `start_us` to `end_us`."""

    url: str
    coins: tuple[str, ...]
    start_us: int
    end_us: int
    price_rows: int
    texts: int
    scores: int
    bytes: int


def make_market(rows: int, texts: int, coins: int, progress: Progress) -> GeneratedMarket:
    """Return a generated database; it is generated once and kept in the cache folder.

    Each coin gets the same number of the `rows` prices. Texts are about these coins over the same time, each with
    scores of two models.

    Raises:
        InputError: a number is out of range, or the cache folder cannot be created.
    """
    check_range("--rows", rows, LEAST_ROWS, MOST_ROWS)
    check_range("--texts", texts, 1, MOST_TEXTS)
    check_range("coins", coins, 1, len(COINS))
    names = tuple(COINS)[:coins]
    here = code_version(Path(tables.__file__), Path(__file__))
    folder = cache_folder("oracle-bench")
    file = folder / f"{rows}-{texts}-{coins}-{here}.db"
    if not file.exists():
        for outdated in folder.glob("*.db*"):  # databases of other sizes and of earlier code
            with suppress(OSError):
                outdated.unlink()
        new = file.with_suffix(f".{os.getpid()}.new")
        try:
            _write(new, names, rows // coins, texts, progress)
            new.replace(file)
        finally:
            for left in folder.glob(f"{new.name}*"):
                left.unlink()
    per_coin = rows // coins
    start_us = END_US - (per_coin - 1) * STEP_US
    url = f"sqlite:///{file}"
    counts = (per_coin * coins, texts, texts * len(MODELS), file.stat().st_size)
    return GeneratedMarket(url, names, start_us, END_US, *counts)


def _write(file: Path, coins: Sequence[str], per_coin: int, texts: int, progress: Progress) -> None:
    engine = open_database(f"sqlite:///{file}")
    total = per_coin * len(coins) + texts
    times = END_US - np.arange(per_coin - 1, -1, -1, dtype=np.int64) * STEP_US
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA cache_size = -200000")
            for number, coin in enumerate(coins, start=1):
                values = {"id": number, "coin": coin, "source": SOURCE, "interval_s": 0, "currency": "usd"}
                connection.execute(insert(MARKET_SERIES).values(values))
                _append(connection, MARKET_DATA, _PRICE_COLUMNS, _prices(number, times))
                progress("prices", number * per_coin, total)
            draw = np.random.default_rng(1_000_003)
            written_at = np.sort(draw.integers(times[0], END_US, texts))
            for first in range(0, texts, _TEXTS):
                _write_texts(connection, coins, first + 1, written_at[first : first + _TEXTS], draw)
                progress("texts", total - texts + min(texts, first + _TEXTS), total)
            newest = END_US + SCORES_KNOWN_US
            names = ["all", *(f"{what} {coin}" for coin in coins for what in ("prices", "texts"))]
            connection.execute(insert(STAMPS), [{"name": name, "known_us": newest} for name in names])
        with engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")
            connection.commit()
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        engine.dispose()


def _append(connection: Connection, table: Table, names: Sequence[str], columns: Sequence[Any]) -> None:
    import pandas as pd

    rows = pd.DataFrame(dict(zip(names, columns, strict=True)))
    insert_rows(connection, table, names, list(rows.itertuples(index=False, name=None)))


_PRICE_COLUMNS = ("series_id", "closed_us", "opened_us", "known_us", "close", "volume_24h", "market_cap", "flags")


def _prices(number: int, times: NDArray[np.int64]) -> tuple[Any, ...]:
    """Return quotes of a random walk with a volatility of about 60 % a year."""
    draw = np.random.default_rng(number)
    steps = draw.standard_normal(len(times)) * 0.6 / np.sqrt(365 * DAY_US / STEP_US)
    close = 10.0 ** draw.uniform(-6, 5) * np.exp(np.cumsum(steps))
    market_cap = close * 10.0 ** draw.uniform(7, 12)
    volume = market_cap * draw.uniform(0.01, 0.1, len(times))
    return number, times, times, times + PRICES_KNOWN_US, close, volume, market_cap, ""


def _write_texts(
    connection: Connection, coins: Sequence[str], first_id: int, times: NDArray[np.int64], draw: np.random.Generator
) -> None:
    ids = np.arange(first_id, first_id + len(times))
    repeats = draw.random(len(ids)) < DUPLICATES
    repeats[0] = False
    original = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(ids))))
    words = _WORDS[draw.integers(0, len(_WORDS), (len(ids), BODY_WORDS))][original].tolist()
    about = draw.integers(0, len(coins), len(ids))[original]  # repeated texts are about the same coin
    bodies = [" ".join(each) for each in words]
    is_news = ids % 3 > 0
    digests = [hashlib.sha256(body.encode()).hexdigest() for body in bodies]
    repeated = [int(ids[of]) if repeat else None for of, repeat in zip(original, repeats, strict=True)]
    own = (
        *(ids, np.where(is_news, "newsapi", "hacker-news"), ids.astype(str), times + TEXTS_KNOWN_US, times),
        *(np.where(is_news, "news", "social"), times, [" ".join(each[:8]).capitalize() for each in words], bodies, 0),
        *([f"https://example.org/{id}" for id in ids.tolist()], "Example", "", "en", digests, repeated),
    )
    _append(connection, NEWS_DATA, _TEXT_COLUMNS, own)
    order = np.lexsort((ids, times, about))
    linked = (np.array(coins)[about[order]], times[order], ids[order])
    _append(connection, NEWS_COINS, ("coin", "at_us", "news_id"), linked)
    for model in MODELS:
        scores = (ids, model, times + SCORES_KNOWN_US, draw.uniform(-1.0, 1.0, len(ids)), "{}")
        _append(connection, SENTIMENT_SCORES, ("news_id", "model", "known_us", "score", "details"), scores)


_TEXT_COLUMNS = (
    *("id", "source", "external_id", "known_us", "at_us", "kind", "published_us", "title", "body", "cut_characters"),
    *("url", "publisher", "author", "language", "content_hash", "duplicate_of"),
)
