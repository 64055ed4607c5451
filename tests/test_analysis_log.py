"""Analyses are kept as they were made, once for the same bars and code, and can be read back."""

from typing import Any

import numpy as np
from clocks import StandingClock
from sqlalchemy import Engine, select

from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import HOUR_US, read_iso
from qubic_lab.oracle.serving.prices import price_analysis
from qubic_lab.oracle.serving.service import analysis_version, keep_analysis
from qubic_lab.oracle.store.snapshot import MarketStore
from qubic_lab.oracle.store.tables import PRICE_ANALYSIS

NOON = read_iso("2026-11-24T12:00:00Z")
SERIES = Series("bitcoin", "exchange", 3_600)
CLOSES = 100.0 * np.exp(np.random.default_rng(0).normal(0.0, 0.01, 402).cumsum())
BARS = [
    Price(NOON + (n - 401) * HOUR_US, NOON + (n - 400) * HOUR_US, *(close,) * 4, 1.0)
    for n, close in enumerate(CLOSES.tolist())
]
"""Hourly bars of a random walk; the last but one closes at noon."""


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(PRICE_ANALYSIS).order_by(PRICE_ANALYSIS.c.known_us)))


def test_an_analysis_of_the_same_bars_by_the_same_code_is_kept_once(engine: Engine) -> None:
    clock = StandingClock(NOON + 1)
    store = MarketStore(engine, clock)
    store.prices.add(SERIES, BARS[:-1])
    first = price_analysis(store.snapshot(), "bitcoin", "1h")
    assert [keep_analysis(store, first, "code-1") for _ in range(2)] == [True, False]
    clock.us += HOUR_US
    store.prices.add(SERIES, BARS[-1:])
    later = price_analysis(store.snapshot(), "bitcoin", "1h")
    assert keep_analysis(store, later, "code-1")
    assert keep_analysis(store, price_analysis(store.snapshot(), "bitcoin", "4h"), "code-1")
    assert keep_analysis(store, later, "code-2")
    oldest, *others = rows(engine)
    assert (oldest.at_us, oldest.frame_s, oldest.version) == (NOON, 3_600, "code-1")
    assert [(each.at_us, each.frame_s, each.version) for each in others] == [
        (NOON + HOUR_US, 3_600, "code-1"),
        (NOON, 14_400, "code-1"),
        (NOON + HOUR_US, 3_600, "code-2"),
    ]
    assert all(oldest.known_us < each.known_us for each in others)
    assert oldest.result["forecasts"] == to_plain(first)["forecasts"]
    assert oldest.result["last"]["price"] == first.last.price


def test_nothing_is_kept_of_too_few_bars(engine: Engine) -> None:
    store = MarketStore(engine, StandingClock(NOON + 1))
    store.prices.add(Series("bitcoin", "exchange", 86_400), [Price(NOON - 24 * HOUR_US, NOON, 1.0, 1.0, 1.0, 1.0)])
    assert not keep_analysis(store, price_analysis(store.snapshot(), "bitcoin", "1h"), "code")
    assert rows(engine) == []
    assert len(analysis_version()) == 12
