"""Analyses are kept as they were made, once for the same bars and code, and can be read back."""

import numpy as np
import pytest
from sqlalchemy import Engine

from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import HOUR_US, read_iso
from qubic_lab.oracle.serving.analysis_log import AnalysisLog, analysis_version
from qubic_lab.oracle.serving.queries import (
    price_analysis,
)
from qubic_lab.oracle.store.snapshot import MarketStore

NOON = read_iso("2026-11-24T12:00:00Z")
SERIES = Series("bitcoin", "exchange", 3_600)


class Time:
    us = NOON + 1

    def __call__(self) -> int:
        return self.us


def bars(first: int, count: int) -> list[Price]:
    """Hourly bars of a random walk, the same ones at each call; number 400 closes at noon."""
    closes = 100.0 * np.exp(np.random.default_rng(0).normal(0.0, 0.01, 500).cumsum())
    return [
        Price(NOON + (n - 401) * HOUR_US, NOON + (n - 400) * HOUR_US, *(float(closes[n]),) * 4, 1.0)
        for n in range(first, first + count)
    ]


def test_what_was_said_of_the_same_bars_is_kept_once(engine: Engine) -> None:
    clock = Time()
    store, log = MarketStore(engine, clock), AnalysisLog(engine, clock, "code-1")
    store.prices.add(SERIES, bars(0, 401))
    first = price_analysis(store.snapshot(), "bitcoin", "1h")
    assert [log.keep(first), log.keep(first)] == [True, False]
    clock.us += HOUR_US
    store.prices.add(SERIES, bars(401, 1))
    assert log.keep(price_analysis(store.snapshot(), "bitcoin", "1h"))
    assert log.keep(price_analysis(store.snapshot(), "bitcoin", "4h"))
    newest, oldest = log.read("bitcoin", "1h")
    assert (newest.at_us, oldest.at_us) == (NOON + HOUR_US, NOON)
    assert (oldest.source, oldest.interval_s, oldest.frame_s, oldest.version) == ("exchange", 3_600, 3_600, "code-1")
    assert oldest.known_us < newest.known_us
    assert oldest.result["forecasts"] == first.model_dump(mode="json", by_alias=True)["forecasts"]
    assert oldest.result["last"]["price"] == first.last.price
    assert len(log.read("bitcoin", "1h", limit=1)) == 1 and log.read("ethereum", "1h") == []
    again = price_analysis(store.snapshot(), "bitcoin", "1h")
    assert AnalysisLog(engine, clock, "code-2").keep(again), "other code says it anew"


def test_nothing_is_kept_of_too_few_bars(engine: Engine) -> None:
    clock = Time()
    store = MarketStore(engine, clock)
    store.prices.add(Series("bitcoin", "exchange", 86_400), [Price(NOON - 24 * HOUR_US, NOON, 1.0, 1.0, 1.0, 1.0)])
    assert not AnalysisLog(engine, clock, "code").keep(price_analysis(store.snapshot(), "bitcoin", "1h"))
    assert len(analysis_version()) == 12


@pytest.mark.parametrize("frame", ["1h", "4h", "1d"])
def test_no_analysis_is_no_row(engine: Engine, frame: str) -> None:
    assert AnalysisLog(engine, Time(), "code").read("bitcoin", frame) == []  # type: ignore[arg-type]
