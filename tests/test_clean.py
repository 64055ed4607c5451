"""What is odd is flagged from the past alone, what cannot be is refused, and all prices are kept in one way."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.validation import check_texts, keep_prices, refused_prices
from qubic_lab.oracle.model.records import OutlierRule, Price, Series, Text, context_of, flag_prices, outliers
from qubic_lab.oracle.model.timestamps import MINUTE_US, read_iso
from qubic_lab.oracle.store.price_store import PriceStore

START = read_iso("2026-01-01T00:00:00Z")
SMALL = OutlierRule(window=12, warm_up=6, threshold=8.0)
SERIES = Series("bitcoin", "test", 60)


def bars(closes: Sequence[float], skipped: Sequence[int] = ()) -> list[Price]:
    """Return bars of a minute that open where the one before closed."""
    found, before = [], closes[0]
    for number, close in enumerate(closes):
        at = START + number * MINUTE_US
        high, low = max(before, close), min(before, close)
        if number not in skipped:
            found.append(Price(at, at + MINUTE_US, close, before, high, low, 1.0))
        before = close
    return found


def walk(seed: int, length: int) -> list[float]:
    steps = np.random.default_rng(seed).normal(0.0, 0.001, length)
    return list((100.0 * np.exp(steps.cumsum())).tolist())


CALM = walk(3, 200)
calm_or_wild = st.one_of(*[st.floats(0.999, 1.001)] * 7, st.floats(0.5, 2.0))
prices_of_any_kind = st.lists(
    st.tuples(calm_or_wild, st.integers(1, 4), st.sampled_from([0.0, 1.0, None])), min_size=1, max_size=60
)


def series_of(drawn: list[tuple[float, int, float | None]]) -> list[Price]:
    at, found = START, []
    for close, wait, volume in drawn:
        at += wait * MINUTE_US
        found.append(Price(at - MINUTE_US, at, close, close, close * 1.01, close * 0.99, volume))
    return found


@settings(max_examples=100)
@given(prices_of_any_kind, st.data())
def test_no_flag_depends_on_later_prices(drawn: list[tuple[float, int, float | None]], data: st.DataObject) -> None:
    prices = series_of(drawn)
    whole = flag_prices(prices, rule=SMALL)
    cut = data.draw(st.integers(0, len(prices)))
    assert flag_prices(prices[:cut], rule=SMALL) == whole[:cut]
    scrambled = [
        replace(price, close=price.close * data.draw(st.floats(0.1, 10.0)), volume=0.0) for price in prices[cut:]
    ]
    assert flag_prices([*prices[:cut], *scrambled], rule=SMALL)[:cut] == whole[:cut]


@settings(max_examples=100)
@given(prices_of_any_kind, st.data())
def test_batches_get_the_flags_that_the_whole_gets(
    drawn: list[tuple[float, int, float | None]], data: st.DataObject
) -> None:
    prices = series_of(drawn)
    cut = data.draw(st.integers(0, len(prices)))
    later = flag_prices(prices[cut:], prices[:cut][-context_of(SMALL) :], SMALL)
    assert flag_prices(prices[:cut], rule=SMALL) + later == flag_prices(prices, rule=SMALL)


@pytest.mark.parametrize("length", [7, 12, 13, 14, 200])
def test_outliers_are_those_of_the_definition_written_out(length: int) -> None:
    closes = walk(length, length)
    closes[length // 2] *= 1.2
    times = np.cumsum([MINUTE_US * (1 + (number % 5 == 0)) for number in range(length)])
    found = outliers(times, closes, SMALL)
    returns = [math.log(b) - math.log(a) for a, b in pairwise(closes)]
    waits = np.diff(times)
    for number in range(length):
        past = returns[max(0, number - 1 - SMALL.window) : max(0, number - 1)]
        expected = False
        if len(past) >= SMALL.warm_up:
            middle = float(np.median(past))
            spread = max(1.4826 * float(np.median([abs(each - middle) for each in past])), SMALL.floor)
            usual = float(np.median(waits[max(0, number - 1 - SMALL.window) : number - 1]))
            steps = max(1.0, float(waits[number - 1]) / usual)
            expected = abs(returns[number - 1] - middle) > SMALL.threshold * spread * math.sqrt(steps)
        assert found[number] == expected, number
    assert found.any() == (length > 7)


def test_a_spike_is_flagged_and_stays_and_calm_prices_are_not_flagged() -> None:
    closes = walk(1, 400)
    calm = flag_prices(bars(closes))
    assert not any("outlier" in price.flags for price in calm)
    closes[300] *= 1.10
    flagged = flag_prices(bars(closes))
    assert [number for number, price in enumerate(flagged) if "outlier" in price.flags] == [300, 301]  # there and back
    assert [price.close for price in flagged] == closes
    closes[20] *= 1.10
    assert not any("outlier" in price.flags for price in flag_prices(bars(closes))[:32])  # the warm-up


@pytest.mark.parametrize(
    ("closes", "skipped", "odd"),
    [
        ([*[100.0] * 50, 100.1], (), False),  # a price that stood still may move a little
        ([*[100.0] * 50, 101.0], (), True),
        ([*CALM, CALM[-1] * 1.02], (), True),
        ([*CALM, *[CALM[-1] * 1.02] * 100], range(200, 299), False),  # over a gap it may move further
    ],
)
def test_the_move_that_is_odd_depends_on_the_moves_before_and_on_gaps(
    closes: list[float], skipped: Sequence[int], odd: bool
) -> None:
    flags = flag_prices(bars(closes, skipped))[-1].flags
    assert ("outlier" in flags, "gap-before" in flags) == (odd, bool(skipped))


def test_each_flag_has_its_reason() -> None:
    normal = Price(START, START + MINUTE_US, 10.0, 10.0, 11.0, 9.0, 1.0)
    second = replace(normal, opened_us=normal.closed_us, closed_us=normal.closed_us + MINUTE_US)
    cases: list[tuple[Price, tuple[str, ...]]] = [
        (second, ()),
        (replace(second, volume=0.0), ("zero-volume",)),
        (replace(second, volume=None), ()),
        (replace(second, open=10.0, high=10.0, low=10.0), ("flat",)),
        (replace(second, high=9.5), ("outside-range",)),
        (replace(second, opened_us=second.opened_us + 1), ("gap-before",)),
        (replace(second, flags=("mine",), volume=0.0), ("mine", "zero-volume")),
        (Price(second.closed_us, second.closed_us, 10.0), ()),
    ]
    for price, flags in cases:
        assert flag_prices([normal, price])[1].flags == flags
    with pytest.raises(InputError, match="sort them"):
        flag_prices([second, normal])


def test_prices_that_cannot_be_are_refused_by_schema() -> None:
    good = bars(walk(5, 30))
    assert refused_prices(good, bars=True) == {}
    assert refused_prices([Price(START, START, 1e-6, volume_24h=0.0, market_cap=None)], bars=False) == {}
    less_than_nothing = Price(START, START, 1.0, volume_24h=-1.0)
    assert refused_prices([less_than_nothing], bars=False)[0].startswith("volume 24h is below 0")
    for wrong, why in (
        ({"high": 1.0}, "high is below low"),
        ({"low": math.inf}, "low is no number"),
        ({"open": None}, "open is missing"),
        ({"volume": -1.0}, "volume is below 0"),
        ({"closed_us": good[3].opened_us}, "bar closes before it opens"),
        ({"opened_us": 0}, "time is before the first coin's"),
        ({"open": 500.0}, "open or close is far outside low to high"),
    ):
        changed: dict[str, Any] = dict(wrong)
        found = refused_prices([*good[:3], replace(good[3], **changed), *good[4:]], bars=True)
        assert list(found) == [3]
        assert found[3].startswith(why)
        assert "\n" not in found[3]


def test_a_price_that_cannot_be_does_not_keep_the_others_out(sqlite: Engine) -> None:
    store = PriceStore(sqlite)
    good = bars(walk(5, 10))
    kept = keep_prices(store, SERIES, [*good[:4], replace(good[4], high=1.0), *good[5:]])
    assert (kept.added.given, kept.added.added, len(kept.prices)) == (10, 9, 9)
    assert len(kept.refused) == 1
    assert kept.refused[0].startswith("2026-01-01T00:05:00Z: high is below low: open ")
    assert keep_prices(store, SERIES, [replace(good[4], high=1.0)]).prices == ()


def test_texts_that_no_database_takes_are_refused_by_schema() -> None:
    good = Text("t", "1", "news", "Title", "", "", "P", START, ())
    check_texts([good, replace(good, published_us=None)], ["1", "2"], START)
    for wrong, why in (
        ({"author": "x" * 257}, "author is longer than 256"),
        ({"body": "a\x00b"}, "NUL"),
        ({"published_us": 1}, "before the first coin"),
    ):
        changed: dict[str, Any] = dict(wrong)
        with pytest.raises(InputError, match=why) as caught:
            check_texts([good, replace(good, **changed)], ["texts.csv:2", "texts.csv:3"], START)
        assert "texts.csv:3: " in str(caught.value)


def test_prices_go_in_one_way_whatever_their_batches(tmp_path: Path) -> None:
    closes = walk(7, 300)
    closes[150] *= 1.1
    prices = bars(closes, skipped=[100])
    expected = flag_prices(prices)
    assert sum("outlier" in price.flags for price in expected) == 2
    for number, size in enumerate((7, 50, 400)):
        engine = open_database(f"sqlite:///{tmp_path / f'{number}.db'}")
        store = PriceStore(engine)
        for first in range(0, len(prices), size):
            batch = prices[first : first + size]
            assert keep_prices(store, SERIES, reversed(batch)).added.added == len(batch)
        kept = store.prices(SERIES, START, START + 1000 * MINUTE_US)
        assert [price.flags for price in kept] == [price.flags for price in expected]
        assert [price.close for price in kept] == [price.close for price in prices]
        engine.dispose()


def test_the_same_prices_again_add_nothing_even_when_earlier_ones_have_come(sqlite: Engine) -> None:
    store = PriceStore(sqlite)
    closes = walk(9, 300)
    closes[205] *= 1.1  # within the warm-up of the second half, and an outlier once the first is there
    prices = bars(closes)
    first = keep_prices(store, SERIES, prices[200:])
    assert not any("outlier" in price.flags for price in first.prices)
    keep_prices(store, SERIES, prices[:200])
    again = keep_prices(store, SERIES, prices[200:])
    assert again.added.added == 0
    assert again.prices == first.prices
    assert keep_prices(store, SERIES, []).added.given == 0
    corrected = keep_prices(store, SERIES, [replace(prices[205], close=closes[205] * 1.2, high=closes[205] * 1.2)])
    assert (corrected.added.added, corrected.added.corrected) == (1, 1)
    assert "outlier" in corrected.prices[0].flags
