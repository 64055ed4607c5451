"""The quality report counts what is there, what is missing, late, repeated, corrected and odd."""

import json
from dataclasses import replace

import numpy as np
import pytest
from clocks import StandingClock
from sqlalchemy import Engine

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.quality import NOTHING, completeness, quality_report
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import HOUR_US, MINUTE_US, SECOND_US, read_iso
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.text_store import TextStore

START = read_iso("2026-01-01T00:00:00Z")
HOURS = Series("bitcoin", "exchange", 3600)
QUOTES = Series("qubic-network", "coingecko")
END = START + 12 * HOUR_US


def bar(number: int, flags: tuple[str, ...] = ()) -> Price:
    at = START + number * HOUR_US
    return Price(at, at + HOUR_US, 10.0, 10.0, 11.0, 9.0, 1.0, flags=flags)


def text(id: str, minute: int | None, title: str, source: str = "wire", coins: tuple[str, ...] = ("bitcoin",)) -> Text:
    published = None if minute is None else START + minute * MINUTE_US
    return Text(source, id, "news", title, "", "", "Wire", published, coins)


def test_an_empty_database_says_so(sqlite: Engine) -> None:
    shown = to_plain(quality_report(sqlite, at_us=END))
    assert shown == {"made": "2026-01-01T12:00:00Z", "prices": [], "texts": [], "fetches": [], "notes": [NOTHING]}
    assert quality_report(sqlite, "coingecko", at_us=END).notes == (NOTHING,)


def test_bars_are_counted_with_their_gaps_corrections_and_flags(sqlite: Engine) -> None:
    clock = StandingClock(END)
    store = PriceStore(sqlite, clock)
    store.add(HOURS, [bar(number, ("outlier",) if number in (1, 4) else ()) for number in (0, 1, 4, 5, 7, 8)])
    clock.us += HOUR_US
    store.add(HOURS, [replace(bar(4), close=10.5, flags=("flat",))])
    (found,) = quality_report(sqlite, at_us=END).prices
    assert (found.rows, found.prices, found.corrections) == (7, 6, 1)
    assert (found.first_us, found.last_us, found.age_s) == (START, START + 9 * HOUR_US, 3 * 3600)
    assert found.flags == {"flat": 1, "outlier": 1}  # of the newest versions
    assert found.outlier_share == pytest.approx(1 / 6)
    complete = found.completeness
    assert (complete.present, complete.expected, complete.gaps) == (6, 9, 2)
    assert complete.share == pytest.approx(6 / 9)
    assert (complete.longest_gap_s, complete.longest_gap_from_us) == (2 * 3600, START + 2 * HOUR_US)
    assert found.lateness.after == "happened"
    assert (found.lateness.most_s, found.lateness.median_s) == (11 * 3600, 6.5 * 3600)  # of first versions


def test_quotes_are_as_complete_as_their_usual_step(sqlite: Engine) -> None:
    clock = StandingClock(END)
    store = PriceStore(sqlite, clock)
    polls = [0, 5, 10, 15, 21, 25, 40, 45]
    for minute in polls:
        at = START + minute * MINUTE_US + 7 * SECOND_US
        clock.us = at + 30 * SECOND_US
        store.add(QUOTES, [Price(at, at, 1e-6, published_us=at - 10 * SECOND_US)])
    (found,) = quality_report(sqlite, at_us=END).prices
    assert (found.completeness.step_s, found.completeness.present, found.completeness.expected) == (300, 8, 10)
    assert found.completeness.longest_gap_s == 900
    assert (found.lateness.median_s, found.lateness.after) == (40, "published")


def test_one_bar_is_complete_and_clocks_ahead_of_ours_are_not_early(sqlite: Engine) -> None:
    one = np.array([START], np.int64)
    assert completeness(one, one + HOUR_US, HOUR_US).share == completeness(one, one, 0).share == 1.0
    PriceStore(sqlite, StandingClock(START)).add(QUOTES, [Price(END, END, 1e-6, published_us=END)])
    assert quality_report(sqlite, at_us=END).prices[0].lateness.most_s == 0.0


def test_texts_are_counted_with_duplicates_and_corrections(sqlite: Engine) -> None:
    clock = StandingClock(END)
    store = TextStore(sqlite, clock)
    long = "Bitcoin mine by the river is switched off after months of complaints about its noise by neighbours"
    store.add(
        [
            text("a", 0, long),
            text("b", 30, long),
            text("c", 60, "Something else entirely, about the weather on the coast", coins=()),
            text("d", None, "Ethereum fees are at their lowest in a year, say analysts of the network"),
        ]
    )
    clock.us += HOUR_US
    store.add([text("c", 60, "Something else entirely, about the weather in the hills", coins=())])
    store.add([text("s", 0, "Bitcoin sample", source="sample")])
    sample, wire = quality_report(sqlite, at_us=END).texts
    assert (sample.source, sample.sample, wire.sample) == ("sample", True, False)
    assert (wire.rows, wire.texts, wire.corrections, wire.duplicates) == (5, 4, 1, 1)
    assert (wire.duplicate_share, wire.without_coin, wire.without_time) == (0.25, 1, 1)
    assert (wire.lateness.most_s, wire.lateness.median_s, wire.lateness.after) == (12 * 3600, 11.5 * 3600, "published")
    assert wire.longest_gap_s == pytest.approx(11 * 3600, abs=1)
    assert wire.first_us == START


def test_fetches_are_counted_and_one_source_can_be_picked(sqlite: Engine) -> None:
    PriceStore(sqlite, StandingClock(END)).add(HOURS, [bar(0)])
    TextStore(sqlite, StandingClock(END)).add([text("a", 0, "Bitcoin")])
    log = FetchLog(sqlite)
    for number, outcome in enumerate(("ok", "failed", "not_modified", "ok")):
        log.record(Fetch("coingecko", "prices", "GET /", START + number, 0.1, 1, 200, outcome, rows_added=number))  # type: ignore[arg-type]
    report = quality_report(sqlite, at_us=END)
    (fetches,) = report.fetches
    assert (fetches.ok, fetches.failed, fetches.not_modified, fetches.rows_added) == (2, 1, 1, 6)
    only = quality_report(sqlite, "coingecko", at_us=END)
    assert (only.prices, only.texts, len(only.fetches), only.notes) == ((), (), 1, ())
    assert [each.source for each in quality_report(sqlite, "exchange", at_us=END).prices] == ["exchange"]
    with pytest.raises(InputError, match="nothing is there from source 'coingeko': did you mean 'coingecko'"):
        quality_report(sqlite, "coingeko")
    shown = json.loads(json.dumps(to_plain(report)))
    assert shown["prices"][0]["first"] == "2026-01-01T00:00:00Z"
    assert shown["fetches"][0]["last_ok"] == "2026-01-01T00:00:00.000003Z"
