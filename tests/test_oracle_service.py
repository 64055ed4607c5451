"""The oracle's answers: bars that do not look ahead, changes, sources, texts, words, and what was known when."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import redis
from clocks import StandingClock
from databases import all_pages
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select

from qubic_lab.database import open_database
from qubic_lab.errors import InputError, NotFoundError
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import Frequency, Price, Series, Text, bars_of_prices
from qubic_lab.oracle.model.response import Missing, to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, age_text, iso, read_iso
from qubic_lab.oracle.sentiment.index import Weighting, choose_model
from qubic_lab.oracle.serving.overview import market_overview, money, sentiment, text_history
from qubic_lab.oracle.serving.prices import PriceHistory, price_analysis, price_history
from qubic_lab.oracle.serving.service import Oracle, Range, _version_of_code, keep_analysis, served
from qubic_lab.oracle.store import tables
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog
from qubic_lab.oracle.store.price_store import PricedSeries, PriceStore
from qubic_lab.oracle.store.snapshot import BarHistory, MarketStore
from qubic_lab.oracle.store.text_reader import ScoreColumns
from qubic_lab.oracle.store.text_store import Score
from qubic_lab.schema import metadata

NOON = read_iso("2026-11-24T12:00:00Z")
QUOTES = Series("bitcoin", "coingecko")
FIVE_US = 5 * MINUTE_US
BAR_FIELDS = [each.name for each in fields(Bars) if each.init and each.name != "assets"]


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            if table in vars(tables).values():  # the ledger's refuse
                connection.execute(delete(table))


def quote(at_us: int, price: float, **values: Any) -> Price:
    return Price(at_us, at_us, price, **values)


def quotes(count: int, end_us: int = NOON, price: Callable[[int], float] = lambda n: 100.0 + n) -> list[Price]:
    """Quotes each five minutes, the last one at `end_us`."""
    return [quote(end_us - (count - 1 - n) * FIVE_US, price(n)) for n in range(count)]


def hourly(count: int, end_us: int = NOON, drift: float = 0.0, seed: int = 0) -> list[Price]:
    """A random walk of bars of an hour, the last one at `end_us`."""
    steps = np.random.default_rng(seed).normal(drift, 0.01, count)
    walk = 100.0 * np.exp(steps.cumsum())
    return [quote(end_us - (count - 1 - n) * HOUR_US, float(price)) for n, price in enumerate(walk)]


def text(number: int, at_us: int | None, **values: Any) -> Text:
    body = f"Body {number}: " + " ".join(f"word{number}x{n}" for n in range(30))
    url, title = f"https://example.org/{number}", f"Title {number} of its own"
    made = Text("newsapi", str(number), "news", title, body, url, "Example", at_us, ("bitcoin",))
    return replace(made, **values)


def test_bars_of_quotes_are_as_by_hand() -> None:
    hour = 400_000 * HOUR_US
    given_prices = [
        quote(hour, 9.0),  # the close of the hour before
        quote(hour + 1, 10.0),
        quote(hour + 20 * MINUTE_US, 12.0, flags=("outlier",)),
        quote(hour + 20 * MINUTE_US + 1, 8.0),
        quote(hour + HOUR_US, 11.0),
        quote(hour + HOUR_US + 1, 50.0),  # of an hour that is still open
    ]
    found = bars_of_prices(given_prices).resample(HOUR_US, hour + 2 * HOUR_US - 1, 20 * MINUTE_US)
    assert found.opened_us.tolist() == [hour - HOUR_US, hour]
    assert found.closed_us.tolist() == [hour, hour + HOUR_US]
    rows = [getattr(found, name)[1] for name in ("open", "high", "low", "close", "points", "slots", "flagged")]
    assert rows == [10.0, 12.0, 8.0, 11.0, 4, 3, 1]
    assert np.isnan(found.volume).all()


def test_bars_of_bars_keep_their_extremes_and_add_volumes() -> None:
    hour = 400_000 * HOUR_US
    bars = [
        Price(hour, hour + 30 * MINUTE_US, 11.0, 10.0, 15.0, 9.0, 2.0),
        Price(hour + 30 * MINUTE_US, hour + HOUR_US, 12.0, 11.0, 13.0, 7.0, 3.0),
        Price(hour + HOUR_US, hour + 90 * MINUTE_US, 12.0, 12.0, 12.0, 12.0, None),
    ]
    found = bars_of_prices(bars).resample(HOUR_US, hour + 2 * HOUR_US, 30 * MINUTE_US)
    first = [getattr(found, name)[0] for name in ("open", "high", "low", "close", "volume", "slots")]
    assert first == [10.0, 15.0, 7.0, 12.0, 5.0, 2]
    assert np.isnan(found.volume[1])
    assert len(bars_of_prices([]).resample(HOUR_US, hour, 1)) == 0
    assert len(bars_of_prices(bars).resample(HOUR_US, hour, 1)) == 0


@settings(max_examples=60)
@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    values=st.lists(st.floats(0.5, 2.0), min_size=80, max_size=80),
    cut=st.integers(0, 80),
    scale=st.floats(0.1, 10.0),
)
def test_no_bar_depends_on_what_comes_after_it(steps: list[int], values: list[float], cut: int, scale: float) -> None:
    """Prefix invariance, and the future scrambled: closed bars stay bit-identical."""
    times = np.cumsum(steps) * MINUTE_US + 400_000 * HOUR_US
    prices = [quote(int(at), value) for at, value in zip(times, values, strict=False)]
    cut = min(cut, len(prices))
    until = int(times[cut - 1]) if cut else int(times[0]) - 1
    scrambled = [*prices[:cut], *(replace(each, close=each.close * scale) for each in prices[cut:])]
    found = [bars_of_prices(each).resample(HOUR_US, until, FIVE_US) for each in (prices[:cut], prices, scrambled)]
    for name in BAR_FIELDS:
        for other in found[1:]:
            np.testing.assert_array_equal(getattr(found[0], name), getattr(other, name))


def test_a_price_with_its_changes_range_and_bars(engine: Engine) -> None:
    store = MarketStore(engine, StandingClock(NOON + 100 * SECOND_US))
    week = 7 * 288 + 1
    prices = quotes(week, price=lambda n: 100.0 if n == 0 else 150.0 if n == week - 289 else 180.0)
    prices[-5] = replace(prices[-5], close=300.0, flags=("outlier",))
    prices[-1] = replace(prices[-1], close=200.0, volume_24h=5e9, market_cap=1e12)
    store.prices.add(QUOTES, prices)
    found = price_analysis(store.snapshot(), "BTC", "1h")
    assert (found.coin, found.symbol, found.frame) == ("bitcoin", "BTC", "1h")
    last = found.last
    assert (last.price, last.source, last.at_us, last.age_s, last.stale) == (200.0, "coingecko", NOON, 100.0, False)
    assert [(each.over, each.from_price) for each in found.changes] == [("1h", 180.0), ("24h", 150.0), ("7d", 100.0)]
    assert [each.change_pct for each in found.changes] == pytest.approx([100 / 9, 100 / 3, 100.0])
    day = found.day
    assert (day.high, day.low, day.volume, day.volume_unit) == (300.0, 180.0, 5e9, "currency")
    assert (day.completeness, day.flags, found.market_cap) == (1.0, {"outlier": 1}, 1e12)
    bar = found.bars.bars[-1]
    assert (bar.closed_us, bar.open, bar.high, bar.low, bar.close) == (NOON, 180.0, 300.0, 180.0, 200.0)
    assert (bar.prices, bar.completeness, bar.flagged, bar.volume) == (12, 1.0, 1, None)
    assert [each.prices for each in found.bars.bars] == [12] * 48


@pytest.mark.parametrize(("frame", "hours"), [("4h", 4), ("1d", 24)])
def test_bars_of_longer_frames_are_whole_and_closed(sqlite: Engine, frame: Any, hours: int) -> None:
    store = MarketStore(sqlite, StandingClock(NOON))
    store.prices.add(QUOTES, quotes(40 * 288))
    found = price_analysis(store.snapshot(), "bitcoin", frame)
    assert len(found.bars.bars) == {"4h": 42, "1d": 30}[frame]
    assert {each.prices for each in found.bars.bars} == {12 * hours}
    assert found.bars.bars[-1].closed_us <= found.as_of_us
    assert "1d" not in [each.over for each in found.changes]


def test_what_is_not_known_is_null_and_old_prices_are_called_stale(sqlite: Engine) -> None:
    store = MarketStore(sqlite, StandingClock(NOON))
    with pytest.raises(NotFoundError, match="there are no prices yet"):
        market_overview(store.snapshot())
    old = NOON - 900 * DAY_US  # and no price near 24 hours or 7 days before
    store.prices.add(QUOTES, [quote(old - 8 * DAY_US, 4e-7), quote(old, 5e-7)])
    found = price_analysis(store.snapshot(), "bitcoin", "1d")
    assert [each.change_pct for each in found.changes] == [None, None]
    assert (found.last.stale, found.last.age_s) == (True, 900 * 86_400.0)
    assert (found.day.high, found.day.volume, found.market_cap, found.day.completeness) == (5e-7, None, None, 1 / 288)
    assert "no source is on time" in found.fallback
    overview = market_overview(store.snapshot(), ["bitcoin", "ethereum"])
    assert list(overview.summary) == [
        "Bitcoin 0.0000005000 USD, change in the 24 h up to that not known; 0 texts in 24 h; price 900 days old from "
        "coingecko, which is stale.",
        "Ethereum: no price is known; 0 texts in 24 h.",
    ]
    assert isinstance(overview.coins[1].last, Missing)


@pytest.mark.parametrize(("hours", "stale"), [(1, False), (2, False), (4, True)])
def test_quotes_of_a_source_that_no_setting_names_are_late_by_their_own_pace(
    hours: int, stale: bool, sqlite: Engine
) -> None:
    store = MarketStore(sqlite, StandingClock(NOON), {})
    store.prices.add(Series("bitcoin", "archive"), hourly(50, NOON - hours * HOUR_US))
    assert store.snapshot().sources("bitcoin")[0].stale is stale


def test_the_freshest_source_that_is_not_late_is_used_and_named(sqlite: Engine) -> None:
    clock = StandingClock(NOON)
    store = MarketStore(sqlite, clock, {"coingecko": Frequency(300.0), "slow": Frequency(300.0, delay_s=7_200.0)})
    minute = Series("bitcoin", "exchange", 60)
    store.prices.add(QUOTES, quotes(300, NOON - HOUR_US))
    store.prices.add(Series("bitcoin", "slow"), quotes(300, NOON - 2 * HOUR_US))
    store.prices.add(Series("bitcoin", "euro", currency="eur"), quotes(3, NOON))
    last = price_analysis(store.snapshot(), "bitcoin").last
    assert (last.source, last.stale) == ("slow", False)
    ends = [NOON - n * MINUTE_US for n in reversed(range(1_500))]
    store.prices.add(minute, [Price(end - MINUTE_US, end, 1.0 + n, 1.0, 2e3, 0.5, 2.0) for n, end in enumerate(ends)])
    found = price_analysis(store.snapshot(), "bitcoin")
    assert (found.last.source, found.last.interval_s) == ("exchange", 60)
    assert found.fallback == "exchange in place of coingecko, which is late"
    assert [each.source for each in found.others] == ["slow", "coingecko"]
    assert (found.day.volume, found.day.volume_unit) == (2.0 * 1_440, "coin")
    assert {each.volume for each in found.bars.bars[1:]} == {120.0}
    for name, interval_s in (("slow", None), ("exchange", 60), (None, 60)):
        history = price_history(store.snapshot(), "bitcoin", source=name, interval_s=interval_s)
        assert history.source == (name or "exchange")
    with pytest.raises(NotFoundError, match=r"source exchange and interval_s 0: there are coingecko with 0, exchange"):
        price_history(store.snapshot(), "bitcoin", source="exchange", interval_s=0)


def test_bars_that_do_not_divide_a_frame_are_not_forced_into_it(sqlite: Engine) -> None:
    store = MarketStore(sqlite, StandingClock(NOON))
    day = NOON - NOON % DAY_US
    store.prices.add(Series("bitcoin", "daily", 86_400), [Price(day - DAY_US, day, 9.0, 8.0, 10.0, 7.0, 1.0)])
    assert isinstance(found := price_analysis(store.snapshot(), "bitcoin", "1h").bars, Missing)
    assert found.reason == "no bars of 1h can be made from bars of 86400 s"
    daily = price_analysis(store.snapshot(), "bitcoin", "1d").bars
    assert [(each.open, each.close, each.completeness) for each in daily.bars] == [(8.0, 9.0, 1.0)]


def test_texts_of_a_window_with_stored_scores(engine: Engine) -> None:
    store = MarketStore(engine, StandingClock(NOON))
    same = text(1, NOON - 3 * HOUR_US)
    store.texts.add(
        [
            same,
            replace(same, external_id="again", source="coindesk", published_us=NOON - 2 * HOUR_US),
            text(2, NOON - 2 * DAY_US),
            text(3, NOON - 30 * MINUTE_US, kind="social", source="hacker-news", coins=("bitcoin", "ethereum")),
            text(4, NOON - HOUR_US, coins=("ethereum",)),
        ]
    )
    found = sentiment(store.snapshot(), "bitcoin", "24h")
    assert (found.texts, found.duplicates, found.by_kind, found.stale) == (2, 1, {"news": 1, "social": 1}, False)
    assert [(each.source, each.texts, each.duplicates, each.newest_age_s) for each in found.by_source] == [
        ("coindesk", 0, 1, 7_200.0),
        ("hacker-news", 1, 0, 1_800.0),
        ("newsapi", 1, 0, 10_800.0),
    ]
    assert (found.newest.title, found.newest.age_s) == ("Title 3 of its own", 1_800.0)
    assert isinstance(found.scores, Missing)
    assert "qubic-lab oracle score" in found.index.reason
    ids = {each.title: each.id for each in store.texts.read("bitcoin", 0, NOON)}
    given_scores = ((1, "lexicon 1", -0.5), (3, "lexicon 1", 0.7), (3, "other 2", 0.1), (2, "old 1", 1.0))
    store.texts.add_scores([Score(ids[f"Title {n} of its own"], model, score) for n, model, score in given_scores])
    scores = sentiment(store.snapshot(), "bitcoin", "24h").scores
    assert [(each.model, each.texts) for each in scores] == [("lexicon 1", 2), ("other 2", 1)]
    assert [each.mean for each in scores] == pytest.approx([0.1, 0.1])
    assert (scores[0].volatility, scores[1].volatility) == (pytest.approx(0.6 * 2**0.5), None)
    quiet = sentiment(store.snapshot(), "solana", "1h")
    assert (quiet.texts, quiet.newest, quiet.stale, quiet.by_source) == (0, None, True, ())


def test_an_overview_in_plain_words_and_how_sources_do(engine: Engine) -> None:
    store = MarketStore(engine, StandingClock(NOON + 3 * MINUTE_US))
    for coin, start, end in (("bitcoin", 62_548.0, 61_234.0), ("solana", 100.0, 104.0)):
        prices = quotes(289, price=lambda n, start=start, end=end: end if n == 288 else start)  # type: ignore[misc]
        prices[-1] = replace(prices[-1], market_cap=1.21e12 if coin == "bitcoin" else None)
        store.prices.add(Series(coin, "coingecko"), prices)
    store.texts.add([text(1, NOON - HOUR_US)])
    log = FetchLog(engine)
    good = Fetch("coingecko", "prices", "/simple/price", NOON, 1.5, 1, 200, "ok")
    log.record(good)
    log.record(replace(good, source="newsapi", started_us=NOON - HOUR_US, outcome="not_modified"))
    log.record(replace(good, source="newsapi", outcome="failed", error="HTTP 429"))
    found = market_overview(store.snapshot())
    assert list(found.summary) == [
        "Of 2 coins with prices on time, 1 rose and 1 fell in 24 h: from −2.1 % (Bitcoin) to +4.0 % (Solana).",
        "Bitcoin 61,234.00 USD, −2.1 % in 24 h, market cap 1.21 trillion USD; 1 text in 24 h; price 3 minutes old from "
        "coingecko.",
        "Solana 104.00 USD, +4.0 % in 24 h; 0 texts in 24 h; price 3 minutes old from coingecko.",
    ]
    sources = [(each.source, each.state, each.failed, each.last_error) for each in found.sources]
    assert sources == [("coingecko", "ok", 0, None), ("newsapi", "failing", 1, "HTTP 429")]
    assert [each.last_success_age_s for each in found.sources] == [178.5, 3_778.5]
    assert isinstance(market_overview(store.snapshot(NOON)).sources, Missing)
    assert not found.rating.available


def test_histories_page_by_page_hold_each_once(engine: Engine) -> None:
    clock = StandingClock(NOON + HOUR_US)
    store = MarketStore(engine, clock)
    store.prices.add(QUOTES, quotes(10))
    store.texts.add([text(n, NOON - n * HOUR_US) for n in range(7)])
    clock.us += HOUR_US
    as_of = clock.us - 10 * SECOND_US

    def page(**options: Any) -> PriceHistory:
        found = price_history(store.snapshot(as_of), "bitcoin", **options)
        # a fresher source and a correction, which come between two pages, change nothing
        store.prices.add(Series("bitcoin", "other"), [quote(clock.us, 1.0)])
        store.prices.add(QUOTES, [quote(NOON - 7 * FIVE_US, 1.0)])
        return found

    assert [each.close for each in all_pages(page, "prices", 4)] == [109.0 - n for n in range(10)]
    texts = all_pages(partial(text_history, store.snapshot(), "bitcoin"), "texts", 3)
    assert [each.title for each in texts] == [f"Title {n} of its own" for n in range(7)]


@settings(
    max_examples=8,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink what fails would take minutes
)
@given(data=st.data())
def test_no_later_row_changes_an_earlier_answer(sqlite: Engine, data: st.DataObject) -> None:
    clock = StandingClock(NOON - DAY_US)
    empty(sqlite)
    store = MarketStore(sqlite, clock)
    hours = st.integers(-72, 1) | st.integers(-170, -166)  # a week before, too
    shares = st.fixed_dictionaries(dict.fromkeys(("negative", "neutral", "positive"), st.floats(0.1, 1.0)))
    numbers = st.integers(0, 4)
    store.prices.add(QUOTES, hourly(260, NOON - DAY_US))
    clock.us = NOON

    def write() -> None:
        ats = data.draw(st.lists(hours, max_size=6))
        source = data.draw(st.sampled_from(["coingecko", "other"]))
        prices = [quote(NOON + at * HOUR_US, data.draw(st.floats(1.0, 9.0))) for at in ats]
        store.prices.add(Series("bitcoin", source), prices)
        for at in ats:
            store.texts.add([text(data.draw(numbers), NOON + at * HOUR_US, title=f"Title {data.draw(numbers)} news")])
        ids = [each.id for each in store.texts.read("bitcoin", 0, 2 * NOON, duplicates=True)]
        chosen = data.draw(st.lists(st.sampled_from(ids), max_size=3)) if ids else []
        scores = [Score(id, "lexicon 1", data.draw(st.floats(-1, 1)), None, data.draw(shares)) for id in chosen]
        store.texts.add_scores(scores)

    def ask(as_of_us: int) -> list[Any]:
        found: list[Any] = [
            sentiment(store.snapshot(as_of_us), "bitcoin", "7d"),
            market_overview(store.snapshot(as_of_us), ["bitcoin"]),
            text_history(store.snapshot(as_of_us), "bitcoin", duplicates=True),
        ]
        for query in (price_analysis, price_history):
            try:
                found.append(query(store.snapshot(as_of_us), "bitcoin"))
            except NotFoundError as error:
                found.append(str(error))
        return found

    answers = []
    for _ in range(data.draw(st.integers(1, 3))):
        write()
        clock.us += data.draw(st.integers(3, 4_000)) * SECOND_US
        as_of = clock.us - data.draw(st.integers(2, 4_000)) * SECOND_US
        answers.append((as_of, ask(as_of)))
        write()
        clock.us += data.draw(st.sampled_from([-5, 0, 5])) * SECOND_US
    clock.us = max(clock.us, *(as_of for as_of, _ in answers)) + DAY_US
    again = [ask(as_of) for as_of, _ in answers]
    assert again == [answer for _, answer in answers]
    store = MarketStore(sqlite, clock)  # which has kept no bars
    assert [ask(as_of) for as_of, _ in answers] == again


@settings(max_examples=12)
@given(data=st.data())
def test_bars_that_are_kept_are_those_of_the_database(engine: Engine, data: st.DataObject) -> None:
    """Prices come late, are corrected, and are asked for as of any instant: what is kept changes no bit."""
    empty(engine)
    clock = StandingClock(NOON)
    store = PriceStore(engine, clock)
    kept = BarHistory(engine, store)
    series = Series("bitcoin", "exchange", 1_800)
    half_us = 30 * MINUTE_US
    ends = st.lists(st.integers(0, 6 * 48 - 1), min_size=1, max_size=30)
    for _ in range(data.draw(st.integers(1, 4))):
        rows = {NOON - place * half_us: data.draw(st.floats(1.0, 2.0)) for place in data.draw(ends)}
        bars = [Price(at - half_us, at, each, each, 3.0, 0.5, each / 3) for at, each in sorted(rows.items())]
        store.add(series, bars)
        clock.us += data.draw(st.integers(3, 100)) * SECOND_US
        as_of = data.draw(st.none() | st.integers(NOON, clock.us - 2 * SECOND_US))
        prices = store if as_of is None else store.as_of(as_of)
        last = prices.latest(series)
        if last is None:
            continue
        source = PricedSeries(series, last, Frequency(1_800.0), 0.0)
        frame_us, count = data.draw(st.sampled_from([HOUR_US, 4 * HOUR_US, DAY_US])), data.draw(st.integers(1, 150))
        found = kept.bars(prices, source, frame_us, count, clock.us)
        afresh = BarHistory(engine, store).bars(prices, source, frame_us, count, clock.us)
        plain = prices.read(series, 0, clock.us).resample(frame_us, clock.us, half_us)
        first = ((last.closed_us - 1) // frame_us - count) * frame_us
        plain = plain.slice(int(np.searchsorted(plain.opened_us, first)), len(plain)).tail(count)
        for name in BAR_FIELDS:
            np.testing.assert_array_equal(getattr(found, name), getattr(afresh, name))
            np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-12)


def test_the_last_closed_bars_are_analysed(sqlite: Engine) -> None:
    store = MarketStore(sqlite, StandingClock(NOON + MINUTE_US))
    prices = hourly(800)
    store.prices.add(QUOTES, prices)
    found = price_analysis(store.snapshot(), "bitcoin", "1h")
    assert (found.analysed.bars, found.analysed.missing, found.analysed.age_s) == (720, 0, 60.0)
    assert found.indicators["sma_200"].value == pytest.approx(np.mean([each.close for each in prices[-200:]]))
    assert isinstance(found.indicators["volume_balance"], Missing)
    assert found.forecasts["4h"].at_us == NOON + 4 * HOUR_US
    few = price_analysis(store.snapshot(), "bitcoin", "1d")
    assert few.indicators["sma_200"].reason == "200 bars are needed, 33 are known"


def test_an_analysis_of_the_same_bars_by_the_same_code_is_kept_once(engine: Engine) -> None:
    clock = StandingClock(NOON + 1)
    store = MarketStore(engine, clock)
    store.prices.add(Series("bitcoin", "daily", 86_400), [Price(NOON - DAY_US, NOON, 1.0, 1.0, 1.0, 1.0)])
    assert not keep_analysis(store, price_analysis(store.snapshot(), "bitcoin"), "code-1")  # there is no bar
    store.prices.add(QUOTES, hourly(401))
    first = price_analysis(store.snapshot(), "bitcoin")
    assert [keep_analysis(store, first, "code-1") for _ in range(2)] == [True, False]
    clock.us += HOUR_US
    store.prices.add(QUOTES, [quote(NOON + HOUR_US, 100.0)])
    later = price_analysis(store.snapshot(), "bitcoin")
    longer = price_analysis(store.snapshot(), "bitcoin", "4h")
    given_analyses = ((later, "code-1"), (longer, "code-1"), (later, "code-2"))
    assert all(keep_analysis(store, each, version) for each, version in given_analyses)
    with engine.connect() as connection:
        rows = connection.execute(select(tables.PRICE_ANALYSIS).order_by(tables.PRICE_ANALYSIS.c.known_us)).all()
    assert [(each.at_us, each.frame_s, each.version) for each in rows] == [
        (NOON, 3_600, "code-1"),
        (NOON + HOUR_US, 3_600, "code-1"),
        (NOON, 14_400, "code-1"),
        (NOON + HOUR_US, 3_600, "code-2"),
    ]
    assert rows[0].result["forecasts"] == to_plain(first)["forecasts"]
    assert rows[0].result["last"]["price"] == first.last.price


def test_the_overview_rates_coins_whose_prices_are_on_time(sqlite: Engine) -> None:
    clock = StandingClock(NOON + MINUTE_US)
    store = MarketStore(sqlite, clock, {"coingecko": Frequency(3_600.0)})
    for coin, drift in (("bitcoin", 0.004), ("ethereum", -0.004)):
        store.prices.add(Series(coin, "coingecko"), hourly(500, drift=drift))
    store.prices.add(Series("solana", "coingecko"), hourly(500, NOON - DAY_US))
    store.prices.add(Series("dogecoin", "coingecko"), hourly(20))
    found = market_overview(store.snapshot())
    by_coin = {each.coin: each.rating for each in found.coins}
    up, down = by_coin["bitcoin"], by_coin["ethereum"]
    assert up.score > 0 > down.score
    assert up.basis == (f"480 bars of 1h from coingecko up to {iso(NOON)}",)
    old, short = by_coin["solana"], by_coin["dogecoin"]
    assert old.reason == "no rating: the newest price is 1 day old"
    assert short.reason.startswith("no rating: 3 rules must have their numbers, 1 have")
    assert (found.rating.coins, found.rating.without) == (2, ("Solana", "Dogecoin"))
    assert found.summary[-1].startswith("By simple rules, which are no advice, the market is rated ")


def test_the_index_is_of_stored_scores_and_tells_what_moved_it(engine: Engine) -> None:
    clock = StandingClock(NOON)
    store = MarketStore(engine, clock)
    store.texts.add([text(n, NOON - n * 6 * HOUR_US) for n in range(8)])
    store.texts.add([text(9, NOON - HOUR_US, source="sample")])
    ids = {each.external_id: each.id for each in store.texts.read("bitcoin", 0, NOON + 1)}
    values = {"0": 0.8, "1": 0.4, "2": -0.6, "3": 0.2, "4": -1.0, "7": 1.0, "9": -1.0}
    details = {"negative": 0.1, "neutral": 0.2, "positive": 0.7}
    store.texts.add_scores([Score(ids[name], "default@1", value, 0.7, details) for name, value in values.items()])
    store.texts.add_scores([Score(ids["0"], "majority@1", 0.1), Score(ids["0"], "vader@2", -0.2)])
    clock.us += 10 * SECOND_US
    found = sentiment(store.snapshot(), "bitcoin", "24h")
    assert (found.texts, found.samples, found.by_source[0].source) == (4, 1, "newsapi")
    index = found.index
    weights = [2.0 ** -((n * 6 * 3_600 + 10) / 43_200) for n in range(4)]
    expected = np.average([0.8, 0.4, -0.6, 0.2], weights=weights)
    assert index.index == pytest.approx(expected)
    assert (index.model, index.texts, index.unscored, index.half_life_s) == ("default@1", 4, 0, 43_200.0)
    assert (index.shares.positive, index.shares.texts) == (pytest.approx(0.7), 4)
    moved = [each.title for each in index.factors]
    assert moved == [f"Title {n} of its own" for n in (0, 2, 1, 3)]  # the largest first
    assert index.factors[0].url == "https://example.org/0"
    assert len(index.history) == 25
    assert (index.history[-1].index, index.history[-1].at_us) == (index.index, found.as_of_us)
    assert (index.history[0].at_us, index.history[0].texts) == (clock.us - DAY_US, 2)  # those of 24 and 42 h ago
    assert {each.model: each.texts for each in found.scores} == {"default@1": 4, "majority@1": 1, "vader@2": 1}
    brief = market_overview(store.snapshot(), ["bitcoin"]).coins[0]
    assert brief.texts_24h == 4
    assert (brief.sentiment.index, brief.sentiment.confidence) == pytest.approx((expected, index.confidence))
    week = sentiment(store.snapshot(), "bitcoin", "7d").index
    assert (week.texts, week.unscored, len(week.history)) == (6, 2, 8)


def test_settings_weigh_texts_by_source_and_age(sqlite: Engine) -> None:
    clock = StandingClock(NOON)
    weighting = Weighting(half_life=0.25, source_weights={"blog": 3.0, "rumours": 0.0})
    store = MarketStore(sqlite, clock)
    given = {"newsapi": 0.6, "blog": -0.4, "rumours": 1.0}
    store.texts.add([text(n, NOON - n * 6 * HOUR_US, source=source) for n, source in enumerate(given)])
    stored = {each.source: each.id for each in store.texts.read("bitcoin", 0, NOON + 1)}
    details = {"negative": 0.5, "neutral": 0.0, "positive": 0.5}
    store.texts.add_scores([Score(stored[source], "default@1", score, 0.5, details) for source, score in given.items()])
    clock.us += SECOND_US
    weights = [2.0 ** -(1 / 21_600), 3.0 * 2.0 ** -((6 * 3_600 + 1) / 21_600)]
    expected = pytest.approx(np.average([0.6, -0.4], weights=weights))
    found = sentiment(store.snapshot(), "bitcoin", "24h", weighting).index
    assert (found.index, found.half_life_s) == (expected, 21_600.0)
    brief = market_overview(store.snapshot(), ["bitcoin"], weighting).coins[0].sentiment
    assert brief.index == expected


def test_texts_that_are_samples_or_baselines_make_no_index(sqlite: Engine) -> None:
    store = MarketStore(sqlite, StandingClock(NOON + SECOND_US))
    store.texts.add([text(1, NOON, source="sample")])
    [only] = store.texts.read("bitcoin", 0, NOON + 1)
    store.texts.add_scores([Score(only.id, "default@1", 1.0)])
    found = sentiment(store.snapshot(), "bitcoin")
    assert (found.texts, found.samples, found.newest, found.stale, found.by_kind) == (0, 1, None, True, {})
    assert found.index.reason == found.scores.reason == "there are no texts"
    store.texts.add([text(2, NOON - HOUR_US)])
    real = next(each for each in store.texts.read("bitcoin", 0, NOON) if each.source != "sample")
    store.texts.add_scores([Score(real.id, "majority@1", 0.3)])
    found = sentiment(store.snapshot(), "bitcoin")
    assert isinstance(found.index, Missing) and isinstance(found.scores, tuple)
    assert found.newest.title == "Title 2 of its own"
    assert isinstance(market_overview(store.snapshot(), ["bitcoin"]).coins[0].sentiment, Missing)


def test_models_are_chosen_by_preference_then_by_how_much_they_have_scored() -> None:
    def scores(texts: int = 1, known_us: int = 0) -> ScoreColumns:
        ids, ones = np.arange(texts), np.ones(texts)
        return ScoreColumns(ids, ids, np.full(texts, known_us), ones, ones)

    assert choose_model({"vader@1": scores(9), "default@1": scores(), "majority@1": scores(99)}) == "default@1"
    assert choose_model({"default@1": scores(3), "default@2": scores(2, 5)}) == "default@1"
    assert choose_model({"default@1": scores(3), "default@2": scores(3, 5)}) == "default@2"
    assert choose_model({"mine 1": scores(), "finbert:some/folder@3": scores()}) == "finbert:some/folder@3"
    assert choose_model({"majority@1": scores()}) is None


_WITHOUT = """
import sys
from qubic_lab.database import open_database
from qubic_lab.oracle.serving.service import Oracle, _version_of_code
from qubic_lab.oracle.serving.overview import market_overview, sentiment
from qubic_lab.oracle.serving.prices import price_analysis
from qubic_lab.oracle.store.snapshot import MarketStore
version = _version_of_code()
assert "talib" not in sys.modules and "torch" not in sys.modules, "imported for nothing"
sys.modules["talib"] = None
snapshot = MarketStore(open_database(sys.argv[1]), lambda: int(sys.argv[2])).snapshot()
found = price_analysis(snapshot, "bitcoin", "1h")
assert len(found.bars.bars) == 48 and found.changes[0].change_pct is not None
for name in ("analysed", "indicators", "patterns", "trend", "levels", "breakouts", "forecasts", "anomalies"):
    print(getattr(found, name).reason)
print(market_overview(snapshot).coins[0].rating.reason)
assert sentiment(snapshot, "bitcoin").index.model == "default@1"
assert "torch" not in sys.modules
"""


def test_without_ta_lib_all_else_is_answered_and_no_model_is_loaded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    engine = open_database(url)
    store = MarketStore(engine, StandingClock(NOON))
    store.prices.add(QUOTES, hourly(60))
    store.texts.add([text(1, NOON)])
    store.texts.add_scores([Score(1, "default@1", 0.5)])
    engine.dispose()
    command = [sys.executable, "-c", _WITHOUT, url, str(NOON + SECOND_US)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    reason = 'indicators need TA-Lib, which is not installed: pip install "qubic-lab[oracle]"'
    assert ended.stdout.splitlines() == [reason] * 8 + [f"no rating: {reason}"]


def test_answers_without_ta_lib_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = _version_of_code()
    monkeypatch.setattr("qubic_lab.oracle.serving.service.metadata.version", Mock(side_effect=PackageNotFoundError))
    assert _version_of_code() != here


def test_words_for_amounts_and_ages() -> None:
    amounts = [money(each) for each in (61_234.0, 0.5, 1.234e-6, 2.5e12, 1_000_000.0)]
    assert amounts == ["61,234.00", "0.5000", "0.000001234", "2.50 trillion", "1.00 million"]
    ages = [age_text(each) for each in (0.4, 1.0, 59.0, 7_200.0, 864_000.0)]
    assert ages == ["less than a second", "1 second", "59 seconds", "2 hours", "10 days"]


@pytest.mark.anyio
async def test_the_cache_ends_at_new_data(sqlite: Engine, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    client.flushall()
    monkeypatch.setattr("qubic_lab.oracle.serving.service.STAMP_S", 0.0)
    clock = StandingClock(NOON)
    oracle = Oracle(lambda: sqlite, client, clock)
    oracle.store().prices.add(QUOTES, quotes(300))
    answer: dict[str, Any] = {}

    async def ask(**options: Any) -> str:
        answer.update(json.loads(served(await oracle.price_analysis("BTC", **options))))
        return str(answer["cache"])

    assert await ask() == "miss"
    clock.us += 60 * SECOND_US
    assert await ask() == "hit"
    assert (answer["age_s"], answer["last"]["price"], answer["as_of"]) == (60.0, 399.0, iso(NOON))
    oracle.store().prices.add(QUOTES, [quote(clock.us, 500.0)])
    assert await ask() == "stale"
    assert (answer["age_s"], answer["last"]["price"]) == (60.0, 399.0)
    async with asyncio.timeout(60.0):
        while await ask() == "stale":
            await asyncio.sleep(0.01)
    assert (answer["age_s"], answer["last"]["price"]) == (0.0, 500.0)
    clock.us += 10 * SECOND_US
    past = clock.us - 5 * SECOND_US
    assert await ask(as_of_us=past) == "miss"
    oracle.store().prices.add(QUOTES, [quote(clock.us, 600.0)])
    assert await ask(as_of_us=past) == "hit"
    with pytest.raises(InputError, match="2 s or more before now"):
        await ask(as_of_us=clock.us)
    with pytest.raises(NotFoundError, match="unknown coin"):
        await oracle.sentiment("no coin")
    assert isinstance((await oracle.status()).cache, tuple)
    await oracle.close()


@pytest.mark.anyio
async def test_a_database_that_cannot_be_opened_does_not_hide_what_is_kept(sqlite: Engine, client: redis.Redis) -> None:
    client.flushall()
    good = Oracle(lambda: sqlite, client, StandingClock(NOON))
    good.store().prices.add(QUOTES, quotes(3))

    bad = Oracle(Mock(side_effect=InputError("no database")), client, StandingClock(NOON))
    await good.price_analysis("bitcoin")
    found = await bad.price_analysis("bitcoin")
    assert found.outcome == "hit"
    assert json.loads(found.body)["last"]["price"] == 102.0
    with pytest.raises(InputError, match="no database"):
        await bad.text_history("bitcoin", Range())
    await bad.close()
    await good.close()
