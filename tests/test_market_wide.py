"""What is said of the whole market, and by the names that other clients expect; keywords, and how texts speak."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clocks import StandingClock

from qubic_lab.database import open_database
from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.response import Missing, to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, read_iso
from qubic_lab.oracle.risk.report import read_risk
from qubic_lab.oracle.sentiment.index import IndexSettings, IndexValue, ScoredText, sentiment_index
from qubic_lab.oracle.sentiment.keywords import Keyword, find_keywords
from qubic_lab.oracle.serving.market import market_prices
from qubic_lab.oracle.serving.overview import market_overview, sentiment
from qubic_lab.oracle.serving.prices import price_analysis
from qubic_lab.oracle.store.snapshot import MarketStore
from qubic_lab.oracle.store.text_store import Score

NOON = read_iso("2026-11-24T12:00:00Z")
RISING, FALLING = 0.003, -0.003


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MarketStore]:
    engine = open_database(f"sqlite:///{tmp_path}/market.db")
    yield MarketStore(engine, StandingClock(NOON))
    engine.dispose()


def text(name: str, hours: float, coins: tuple[str, ...] = ("bitcoin",), title: str = "", body: str = "") -> Text:
    """A text of some hours before noon with words of its own."""
    words = title or " ".join(f"{name}w{n}" for n in range(8))
    return Text("wire", name, "news", words, body, "", "Wire", NOON - int(hours * HOUR_US), coins)


def scored(store: MarketStore, values: dict[str, float]) -> None:
    kept = {each.external_id: each.id for each in store.texts.read("market", 0, NOON + DAY_US)}
    store.texts.add_scores(Score(kept[name], "good@1", value) for name, value in values.items() if name in kept)


def hours(store: MarketStore, coin: str, drift: float, count: int = 640, end_us: int = NOON) -> None:
    """Bars of a coin that rise or fall by a share each hour, with a little noise."""
    noise = np.random.default_rng(len(coin)).normal(0.0, 0.002, count)
    close = 100.0 * np.exp(np.cumsum(noise + np.where(np.arange(count) > count - 60, drift, 0.0)))
    first_us = end_us - count * HOUR_US
    prices = [
        Price(first_us + n * HOUR_US, first_us + (n + 1) * HOUR_US, c, c, c * 1.001, c * 0.999, 5.0)
        for n, c in enumerate(close.tolist())
    ]
    store.prices.add(Series(coin, "exchange", 3_600), prices)


# Texts


def test_the_market_has_each_text_once(store: MarketStore) -> None:
    same = " ".join(f"same{n}" for n in range(30))
    store.texts.add([text("a", 1, ("bitcoin", "ethereum")), text("b", 2, ("solana",)), text("old", 30, ("solana",))])
    store.texts.add([text("c", 3, ("bitcoin",), body=same, title="One thing that happened today")])
    store.texts.add([text("d", 2.5, ("ethereum",), body=same, title="One thing that happened today")])
    found = sentiment(store.snapshot())
    assert (found.coin, found.texts, found.duplicates, found.symbol) == ("market", 3, 1, "")
    assert [sentiment(store.snapshot(), coin).texts for coin in ("bitcoin", "ethereum", "solana")] == [2, 2, 1]
    scored(store, {"a": 1.0, "b": 0.5, "c": 0.5})
    index = sentiment(store.snapshot()).index
    assert not isinstance(index, Missing) and index.texts == 3
    day = NOON - DAY_US, NOON
    assert store.texts.headlines("market", *day) == [each.title for each in store.texts.read("market", *day)]


def test_nothing_later_changes_what_the_market_said(store: MarketStore) -> None:
    store.texts.add([text(f"t{n}", n / 2, ("bitcoin",)) for n in range(20)])
    scored(store, {f"t{n}": 0.3 for n in range(20)})
    clock = StandingClock(NOON + DAY_US)
    later = MarketStore(store.engine, clock)
    at_us = NOON + HOUR_US
    before = repr(sentiment(later.snapshot(at_us))), repr(market_overview_of(later, at_us))
    crash = [text(f"late{n}", -0.5, ("bitcoin",), title=f"Crash of everything number {n} in markets") for n in range(9)]
    later.texts.add([*crash, text("t3", 1.5, ("bitcoin",), body="a correction of it")])
    assert (repr(sentiment(later.snapshot(at_us))), repr(market_overview_of(later, at_us))) == before
    assert any(each.word == "crash" for each in sentiment(later.snapshot()).keywords)


def market_overview_of(store: MarketStore, at_us: int) -> object:
    return market_overview(store.snapshot(at_us), ["bitcoin"])


def test_a_text_that_an_archive_told_later_hides_no_earlier_one(store: MarketStore) -> None:
    body = " ".join(f"same{n}" for n in range(30))
    for name, before_h in (("second", 1.0), ("first", 10.0)):  # the later one is imported first, and the original
        item = text(name, before_h, body=body, title="One thing that happened today")
        store.texts.add([item])
        store.texts.assume([item], 0)
    later = MarketStore(store.engine, StandingClock(NOON + DAY_US))
    for coin in ("bitcoin", None):
        assert sentiment(later.snapshot(NOON - 5 * HOUR_US, assumed=True), coin).texts == 1
        assert sentiment(later.snapshot(NOON - HOUR_US // 2, assumed=True), coin).texts == 1


def test_the_index_has_a_direction_only_beyond_chance_and_an_intensity(store: MarketStore) -> None:
    def index(scores: list[float]) -> IndexValue:
        texts = [ScoredText(n, NOON, NOON, score) for n, score in enumerate(scores)]
        found = sentiment_index(texts, NOON, IndexSettings())
        assert found is not None
        return found

    torn = index([0.8, -0.8] * 5)
    assert (torn.composite, torn.intensity, torn.direction) == (0.0, pytest.approx(0.8), "neutral")
    assert index([0.5, 0.6] * 5).direction == "bullish" and index([-0.5, -0.6] * 5).direction == "bearish"
    assert index([0.5, 0.6]).direction == "neutral" and index([0.0] * 9).direction == "neutral"
    assert index([-0.2] * 6).intensity == pytest.approx(0.2)


def test_keywords_count_texts_and_tell_what_rose() -> None:
    now = [f"Hackers drain bridge number {n}" for n in range(20)] + ["Bitcoin price and the ETF"] * 2
    before = ["Bitcoin price and the ETF"] * 20 + ["Miners move"] * 2
    found = {each.word: each for each in find_keywords(now, before, ("Bitcoin",))}
    hackers = Keyword(word="hackers", texts=20, share=20 / 22, before=0, share_before=0.0, trend="rising")
    assert found["hackers"] == hackers
    assert (found["etf"].texts, found["etf"].before, found["etf"].trend) == (2, 20, "falling")
    assert not {"bitcoin", "price", "and", "the", "miners"} & set(found)
    assert {each.trend for each in find_keywords(now, now)} == {"steady"}
    assert {each.trend for each in find_keywords(now, [])} == {None}
    assert find_keywords([], before) == () == find_keywords(["Only once"], [])


def test_a_window_has_keywords_against_the_one_before(store: MarketStore) -> None:
    store.texts.add(text(f"n{n}", n, title=f"Halving comes near block a{n} b{n}") for n in range(1, 12))
    store.texts.add(text(f"o{n}", 25 + n, title=f"Regulators meet in room a{n} b{n}") for n in range(1, 12))
    store.texts.add(text(f"x{n}", 49 + n, title=f"Halving long ago in a{n} b{n}") for n in range(1, 12))
    found = {each.word: each for each in sentiment(store.snapshot(), "bitcoin").keywords}
    assert (found["halving"].texts, found["halving"].before, found["halving"].trend) == (11, 0, "rising")
    assert "regulators" not in found


def test_answers_have_the_keys_that_other_clients_expect(store: MarketStore) -> None:
    hours(store, "bitcoin", RISING)
    store.texts.add([text(f"t{n}", n / 4, ("bitcoin",)) for n in range(12)])
    scored(store, {f"t{n}": 0.6 for n in range(12)})
    of_texts = to_plain(sentiment(store.snapshot(), "bitcoin"))
    assert of_texts["sentiment_score"] == of_texts["index"]["index"] == pytest.approx(0.6)
    assert of_texts["trend"] == of_texts["index"]["direction"] == "bullish"
    of_prices = to_plain(price_analysis(store.snapshot(), "bitcoin"))
    assert (of_prices["trend"], of_prices["trend_details"]["direction"]) == ("bullish", "rising")
    assert of_prices["predictions"] == {name: each["price"] for name, each in of_prices["forecasts"].items()}
    assert of_prices["sentiment_score"] == pytest.approx(0.6)
    overview = to_plain(market_overview(store.snapshot()))
    assert overview["sentiment_score"] == pytest.approx(0.6) and overview["trend"] in ("bullish", "bearish", "neutral")
    without = to_plain(sentiment(store.snapshot(), "solana"))
    assert (without["sentiment_score"], without["trend"], without["keywords"]) == (None, "neutral", [])


# Prices


def test_a_price_analysis_has_the_level_of_risk(store: MarketStore) -> None:
    hours(store, "bitcoin", FALLING * 3)
    found, report = price_analysis(store.snapshot(), "bitcoin"), read_risk(store.snapshot(), "bitcoin")
    assert not isinstance(found.risk, Missing) and found.risk == report.level
    assert found.risk.level != "calm" and found.risk.evidence


def test_the_market_is_told_of_all_coins(store: MarketStore) -> None:
    with pytest.raises(NotFoundError, match="no price of any coin is known"):
        market_prices(store.snapshot())
    for coin, drift in (("bitcoin", RISING), ("ethereum", RISING), ("solana", FALLING)):
        hours(store, coin, drift)
    hours(store, "cardano", FALLING, end_us=NOON - 9 * DAY_US)
    found = market_prices(store.snapshot())
    assert set(found.coins) == {"bitcoin", "ethereum", "solana", "cardano"} and found.coins["cardano"].last.stale
    alone = price_analysis(store.snapshot(), "solana")
    assert found.coins["solana"].changes == alone.changes and found.coins["solana"].predictions == alone.predictions
    assert [each.over for each in found.changes] == ["1h", "24h", "7d"]
    day = found.changes[1]
    assert (day.coins, day.rose, day.fell) == (3, 2, 1) and math.isfinite(day.median_pct)
    assert (found.trend, found.market_cap, found.sentiment_score, sum(found.risk.values())) == (
        "bullish",
        None,
        None,
        3,
    )


def test_later_prices_change_nothing_of_the_market(store: MarketStore) -> None:
    hours(store, "bitcoin", RISING)
    later = MarketStore(store.engine, StandingClock(NOON + DAY_US))
    before = repr(market_prices(later.snapshot(NOON + MINUTE_US)))
    hours(later, "bitcoin", FALLING, end_us=NOON + 20 * HOUR_US)
    hours(later, "ethereum", FALLING, end_us=NOON + 20 * HOUR_US)
    assert repr(market_prices(later.snapshot(NOON + MINUTE_US))) == before
