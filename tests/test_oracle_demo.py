"""The demo fills a database from packaged prices and sample texts once, and says plainly what it holds."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from qubic_lab.database import open_database
from qubic_lab.oracle.ingest.packaged import DATASETS, overview, read_packaged, read_sample_texts, run_demo
from qubic_lab.oracle.ingest.quality import quality_report
from qubic_lab.oracle.model.records import SAMPLE, Price, Series, is_sample
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.store.price_store import PriceStore


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('demo') / 'lab.db'}")
    yield engine
    engine.dispose()


def test_the_overview_says_what_is_there_and_how_old_it_is(engine: Engine) -> None:
    first = run_demo(engine)
    assert first.rows_added == {"market_data": 8684 + 661, "news_data": 80, "total": 9425}
    second = run_demo(engine)
    assert second.rows_added["total"] == 0
    shown = json.loads(json.dumps(to_plain(second)))
    quarter, day = shown["overview"]["series"]
    times = quarter["from"], quarter["to"]
    assert (quarter["interval_s"], *times) == (900, "2021-09-27T13:45:00Z", "2021-12-29T13:45:00Z")
    assert (quarter["rows"], quarter["last_close"]) == (8684, 46934.81640625)
    assert "the newest bar closed 2021-12-29, " in quarter["age"]
    assert quarter["age"].endswith("packaged data, not live")
    at = {price.closed_us: price.close for price in read_packaged("bitcoin-15min", now_us()).prices}
    before = at[max(at) - DAY_US]
    assert quarter["change_24h_pct"] == pytest.approx((46934.81640625 / before - 1) * 100)
    assert (day["rows"], day["to"]) == (661, "2021-10-27T00:00:00Z")
    assert shown["overview"]["texts"] == [{"source": "sample", "texts": 80, "sample": True}]
    assert any("had not closed" in note for note in shown["notes"])
    report = quality_report(engine)
    assert [each.completeness.gaps for each in report.prices] == [9, 3]
    assert report.texts[0].duplicates == 2


def test_changes_are_against_a_price_of_that_time_or_there_is_none(sqlite: Engine) -> None:
    store, start = PriceStore(sqlite), now_us() - 30 * DAY_US
    prices = {
        start: 10.0,
        start + 6 * DAY_US - HOUR_US // 2: 20.0,
        start + 7 * DAY_US - HOUR_US - 1: 30.0,
        start + 8 * DAY_US - HOUR_US: 40.0,
        start + 8 * DAY_US: 50.0,
    }
    store.add(Series("bitcoin", "quotes"), [Price(at, at, price) for at, price in prices.items()])
    (found,) = overview(store, start + 8 * DAY_US + 90 * SECOND_US)
    assert (found.change_24h_pct, found.change_7d_pct) == (None, None)
    assert found.age == "the newest price is from 90 s ago"
    store.add(Series("bitcoin", "quotes"), [Price(start + DAY_US - 1, start + DAY_US - 1, 25.0)])
    assert overview(store, now_us())[0].change_7d_pct == pytest.approx(100.0)


def test_sample_texts_are_marked_and_far_from_every_packaged_price() -> None:
    texts = read_sample_texts()
    assert 60 <= len(texts) <= 100
    assert {text.source for text in texts} == {SAMPLE}
    assert is_sample(SAMPLE)
    assert not is_sample("packaged")
    times = [text.published_us or 0 for text in texts]
    for name in DATASETS:
        prices = read_packaged(name, now_us()).prices
        assert max(times) < prices[0].opened_us or min(times) > prices[-1].closed_us + 30 * DAY_US, name
    assert iso(min(times)) >= "2022-03"
    counts = Counter(coin for text in texts for coin in text.coins)
    assert min(counts["bitcoin"], counts["ethereum"], counts["qubic-network"]) >= 10
    assert len({(text.title, text.body) for text in texts}) == len(texts) - 2  # repetitions on purpose
    assert {text.kind for text in texts} == {"news", "social"}
    assert not any(text.url for text in texts)
