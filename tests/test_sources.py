"""The sources by HTTP: each one's shapes and quirks, and that slices and pages lose nothing and give nothing twice."""

import json
import random
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from virtual import run_virtually

from qubic_lab.oracle.ingest import coingecko, feeds, hacker_news, newsapi
from qubic_lab.oracle.ingest.collector_config import Feed, SourceConfig
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, SourceError
from qubic_lab.oracle.ingest.validation import plain_text, read_date
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, from_us, read_iso

NOON = read_iso("2026-11-24T12:00:00Z")
NOON_MS = NOON // 1000
FEED = Feed("blog", "https://blog.example/rss")
Respond = Callable[[httpx2.Request], httpx2.Response]


def client(engine: Engine, respond: Respond, name: str = "source", **values: Any) -> SourceClient:
    config = SourceConfig("https://source.example/v1", rate=1_000_000, attempts=1, **values)

    async def handle(request: httpx2.Request) -> httpx2.Response:
        return respond(request)

    return SourceClient(name, config, engine, transport=httpx2.MockTransport(handle))


def fetch(opened: SourceClient, ask: Callable[[SourceClient], Any]) -> Any:
    """Return what one request gives, or all batches of several."""

    async def asking() -> Any:
        async with opened as ready:
            asked = ask(ready)
            return [batch async for batch in asked] if isinstance(asked, AsyncIterator) else await asked

    return run_virtually(asking())


# CoinGecko


def test_present_prices_are_exact_and_each_has_its_instant() -> None:
    body = json.loads("""{
        "bitcoin": {"usd": 67187.3358936566, "usd_market_cap": 1317802988326.25, "usd_24h_vol": 31260929299.5,
                    "last_updated_at": 1795521598},
        "qubic-network": {"usd": 1.0234567890123456e-06, "usd_market_cap": null, "usd_24h_vol": 0.0,
                          "last_updated_at": 1795521600},
        "kaspa": {"usd": 0.1, "usd_market_cap": 0.0, "last_updated_at": 1795521600},
        "monero": {"usd": null, "usd_market_cap": null, "usd_24h_vol": null, "last_updated_at": null},
        "near": {"usd": 5.0},
        "solana": {"usd": 0, "last_updated_at": 1795521600}
    }""")
    wanted = ["bitcoin", "qubic-network", "kaspa", "monero", "near", "solana", "ethereum"]
    prices, faults = coingecko.parse_prices(body, wanted)
    stamp = 1795521598 * SECOND_US
    assert prices["bitcoin"] == Price(
        stamp, stamp, 67187.3358936566, volume_24h=31260929299.5, market_cap=1317802988326.25, published_us=stamp
    )
    assert prices["qubic-network"].close == 1.0234567890123456e-06
    assert (prices["qubic-network"].market_cap, prices["qubic-network"].volume_24h) == (None, 0.0)
    assert prices["kaspa"].market_cap is None  # 0: not known
    assert set(prices) == {"bitcoin", "qubic-network", "kaspa"}
    assert [fault.partition(":")[0] for fault in faults] == ["monero", "near", "solana", "ethereum"]


def test_all_coins_come_in_one_request(sqlite: Engine) -> None:
    asked: list[tuple[str, str]] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        asked.append((request.url.path, request.url.params["precision"]))
        ids = request.url.params["ids"].split(",")
        return httpx2.Response(200, json={id: {"usd": 2.5, "last_updated_at": 1795521600} for id in ids})

    batch = fetch(client(sqlite, respond, "coingecko"), lambda ready: coingecko.fetch_prices(ready, list(COINS)))
    assert asked == [("/v1/simple/price", "full")]
    assert [series for series, _ in batch.prices] == [Series(coin, "coingecko") for coin in COINS]


def chart(*rows: tuple[Any, Any, Any, Any]) -> dict[str, Any]:
    """Return a market chart of (ms, price, cap, volume)."""
    names = ("prices", "market_caps", "total_volumes")
    return {name: [[row[0], row[place]] for row in rows] for place, name in enumerate(names, 1)}


def test_history_is_sorted_each_instant_once_joined_by_stamp_and_off_the_grid() -> None:
    body = chart(
        (NOON_MS + 3_604_117, 3.0, None, 30.0),
        (NOON_MS + 12_345, 1.0, 100.0, 10.0),
        (NOON_MS + 12_345, 1.5, 150.0, 15.0),  # a correction within the answer
        (NOON_MS + 1_800_000, 2.0, 0, None),
        (NOON_MS + 2_000_000, None, 1.0, 1.0),
        (NOON_MS + 2_100_000, -1.0, 1.0, 1.0),
    )
    body["market_caps"].reverse()  # lists need not go together
    body["total_volumes"] += [[None, 5], "x", [NOON_MS]]
    quotes, faults = coingecko.parse_history(body)
    assert [quote.closed_us - NOON for quote in quotes] == [12_345_000, 1_800_000_000, 3_604_117_000]
    assert [quote.close for quote in quotes] == [1.5, 2.0, 3.0]
    assert [quote.market_cap for quote in quotes] == [100.0, None, None]  # reversed: the last one given is the first
    assert [quote.volume_24h for quote in quotes] == [15.0, None, 30.0]
    assert all(quote.volume is None and quote.opened_us == quote.closed_us for quote in quotes)
    assert len(faults) == 5
    assert coingecko.parse_history({"prices": []}) == ((), ())


def test_points_are_as_close_as_the_range_is_short() -> None:
    for hours, days_ago, step_s in ((24, 0, 300), (12, 0, 300), (24, 1, 3600), (48, 0, 3600), (2160, 0, 3600)):
        end = NOON - days_ago * DAY_US
        assert coingecko.step_s(end - hours * HOUR_US, end, NOON) == step_s


def test_the_present_at_a_historys_end_is_left_for_later(sqlite: Engine) -> None:
    hours = [(NOON_MS - hour * 3_600_000 + 4_000, 1.0 + hour, 1.0, 1.0) for hour in range(6, 0, -1)]
    present = (NOON_MS - 1_000, 9.0, 1.0, 1.0)
    start, last = NOON - 2 * DAY_US, NOON - HOUR_US + 4 * SECOND_US

    def history(*rows: tuple[Any, Any, Any, Any], now_us: int = NOON, end_us: int = NOON) -> Any:
        opened = client(sqlite, lambda _: httpx2.Response(200, json=chart(*rows)), "coingecko")
        return fetch(opened, lambda ready: coingecko.fetch_history(ready, "bitcoin", start, end_us, now_us=now_us))

    # 59 minutes and 55 seconds after the point before it: by its stamp it is a whole point.
    assert len(history(*hours, present).prices[0][1]) == 7
    batch = history(*hours, (NOON_MS - 1_800_000, 9.0, 1.0, 1.0), now_us=NOON - HOUR_US // 2)
    assert [quote.closed_us for quote in batch.prices[0][1]][-1] == last
    assert batch.until_us == last + 1
    # The same point once more than an hour has passed is history.
    assert len(history(*hours, (NOON_MS - 1_800_000, 9.0, 1.0, 1.0), now_us=NOON + HOUR_US).prices[0][1]) == 7
    # A range that is over is given whole.
    batch = history(*hours, end_us=NOON - HOUR_US, now_us=NOON + DAY_US)
    assert (len(batch.prices[0][1]), batch.until_us) == (5, NOON - HOUR_US)
    assert (history(now_us=NOON + DAY_US).prices, history(now_us=NOON + DAY_US).until_us) == ((), NOON)
    # Where it reaches the present, points may still come: it is asked for again from the last one on.
    assert history(*hours[:3]).until_us == hours[2][0] * 1000 + 1
    assert history().until_us == start


def test_a_history_in_another_shape_is_malformed(sqlite: Engine) -> None:
    opened = client(sqlite, lambda _: httpx2.Response(200, json={"price": []}), "coingecko")
    with pytest.raises(SourceError, match="another shape") as caught:
        fetch(opened, lambda ready: coingecko.fetch_history(ready, "bitcoin", NOON - DAY_US, NOON, now_us=NOON))
    assert (caught.value.kind, caught.value.fetch.attempts) == ("malformed", 1)
    assert caught.value.fetch.request.endswith("from=1795435200&to=1795521600&precision=full")


def bar(closed_us: int, *prices: float) -> list[Any]:
    return [closed_us // 1000, *(prices or (1.0, 3.0, 0.5, 2.0))]


def test_bars_are_stamped_with_their_close_and_the_forming_one_is_left_out() -> None:
    half = 30 * MINUTE_US
    body = [
        bar(NOON - half, 1.0, 4.0, 0.25, 3.0),
        bar(NOON - 2 * half),
        bar(NOON - 2 * half, 2.0, 2.0, 2.0, 2.0),
        bar(NOON, 3.0, 3.0, 3.0, 3.0),
        bar(NOON + 5 * MINUTE_US),  # less than half an hour long until now
        [1, 2, 3],
        [NOON_MS, 1.0, None, 1.0, 1.0],
    ]
    bars, faults = coingecko.parse_bars(body, NOON + 6 * MINUTE_US)
    assert [each.closed_us for each in bars] == [NOON - 2 * half, NOON - half, NOON]
    assert {each.closed_us - each.opened_us for each in bars} == {half}
    assert (bars[0].open, bars[0].close) == (2.0, 2.0)
    assert (bars[1].open, bars[1].high, bars[1].low, bars[1].close) == (1.0, 4.0, 0.25, 3.0)
    assert all(each.volume is None for each in bars)
    assert len(faults) == 2
    later, _ = coingecko.parse_bars([bar(NOON), bar(NOON + half)], NOON + half - 1)
    assert [each.closed_us for each in later] == [NOON]


def test_bars_go_to_a_series_of_their_length_and_those_that_would_overlap_are_left_out(sqlite: Engine) -> None:
    body = [bar(NOON), bar(NOON + MINUTE_US), bar(NOON + HOUR_US)]
    opened = client(sqlite, lambda _: httpx2.Response(200, json=body), "coingecko")
    batch = fetch(opened, lambda ready: coingecko.fetch_bars(ready, "bitcoin", now_us=NOON + DAY_US))
    ((series, bars),) = batch.prices
    assert series == Series("bitcoin", "coingecko", 1800)
    assert [each.closed_us for each in bars] == [NOON, NOON + HOUR_US]
    assert batch.faults == ("bar that closes at 2026-11-24T12:01:00Z follows the one before by less than 1800 s",)


# NewsAPI

ARTICLE = {
    "source": {"id": None, "name": "Coin Paper"},
    "author": "Ann <b>Other</b>",
    "title": "Bitcoin &amp; Ethereum climb",
    "description": "<p>The two largest coins rose.</p><script>track()</script>",
    "url": "https://paper.example/a",
    "publishedAt": "2026-11-24T11:30:00Z",
    "content": "<ul><li>Both rose by a tenth</li></ul>and more\r\n is expected… [+4321 chars]",
}


def test_an_article_is_read_without_markup_and_says_how_much_was_cut() -> None:
    (text,), faults = newsapi.parse_articles([ARTICLE], "newsapi")
    assert (text.source, text.kind, text.publisher, text.author) == ("newsapi", "news", "Coin Paper", "Ann Other")
    assert text.external_id == text.url == "https://paper.example/a"
    assert text.title == "Bitcoin & Ethereum climb"
    assert text.body == "The two largest coins rose.\nBoth rose by a tenth and more is expected"
    assert (text.published_us, text.coins) == (NOON - 30 * MINUTE_US, ("bitcoin", "ethereum"))
    assert (text.cut_characters, faults) == (4321, ())


def test_odd_articles_are_read_as_far_as_they_go() -> None:
    removed = ARTICLE | {"title": "[Removed]", "description": "[Removed]", "url": "https://removed.com"}
    long = "https://paper.example/" + "x" * 600
    articles = [
        removed,
        ARTICLE | {"publishedAt": "2026-11-24T11:30:00"},
        ARTICLE | {"publishedAt": None, "content": None, "source": None, "author": None},
        ARTICLE | {"description": "Both rose by", "publishedAt": "2026-11-24T12:30:00+01:00"},
        ARTICLE | {"url": long, "content": "Both rose <a href='https://x… [+99 chars]"},
        ARTICLE | {"url": None},
        {"url": "https://x.example"},
        "x",
    ]
    texts, faults = newsapi.parse_articles(articles, "newsapi")
    naive, bare, zoned, distant = texts
    assert (naive.published_us, bare.published_us, zoned.published_us) == (None, None, NOON - 30 * MINUTE_US)
    assert (bare.body, bare.cut_characters) == ("The two largest coins rose.", 0)
    assert (bare.publisher, bare.author) == ("newsapi", "")
    assert zoned.body == "Both rose by a tenth and more is expected"
    assert distant.external_id.startswith("sha256:") and distant.url == long
    assert (distant.body.splitlines()[1], distant.cut_characters) == ("Both rose", 99)
    assert len(faults) == 3


@given(st.lists(st.sampled_from(list(COINS)), min_size=1, unique=True))
def test_searches_are_few_short_and_name_every_term(coins: list[str]) -> None:
    searches = newsapi.queries(coins)
    assert all(len(quote_plus(search)) <= newsapi.LONGEST_QUERY for search in searches)
    terms = [f'"{term}"' for coin in coins for term in COINS[coin].terms]
    assert [term for search in searches for term in search.split(" OR ")] == terms
    least = -(-len(quote_plus(" OR ".join(terms))) // newsapi.LONGEST_QUERY)
    assert least <= len(searches) <= 2 * least
    if len(coins) <= 8:
        assert len(searches) <= 4  # an hour's share of a hundred a day


class News:
    """NewsAPI with some articles, at whole seconds after a start; a search shows its newest hundred."""

    def __init__(self, seconds: list[int]) -> None:
        self.articles = [
            ARTICLE | {"url": f"https://paper.example/{number}", "publishedAt": stamp(second), "second": second}
            for number, second in enumerate(seconds)
        ]
        self.asked = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked += 1
        assert request.url.path == "/v1/everything"
        params = request.url.params
        first, last = (read_iso(f"{params[name]}Z") for name in ("from", "to"))
        found = [each for each in self.articles if first <= read_iso(each["publishedAt"]) <= last]
        found.sort(key=lambda each: -each["second"])
        size = int(params["pageSize"])
        assert size <= 100 and params["sortBy"] == "publishedAt"
        return httpx2.Response(200, json={"status": "ok", "totalResults": len(found), "articles": found[:size]})


def stamp(second: int) -> str:
    return from_us(NOON + second * SECOND_US).strftime("%Y-%m-%dT%H:%M:%SZ")


def search(engine: Engine, news: News, coins: list[str]) -> list[Batch]:
    opened = client(engine, news, "newsapi")
    found: list[Batch] = fetch(opened, lambda ready: newsapi.fetch_texts(ready, coins, NOON, NOON + HOUR_US))
    return found


@given(count=st.integers(0, 450), seed=st.integers(0, 999), last=st.sampled_from([60, 3660]))
@settings(max_examples=25)
def test_a_search_finds_each_article_of_its_range_once(sqlite: Engine, count: int, seed: int, last: int) -> None:
    chance = random.Random(seed)  # lists that hypothesis draws itself are seldom long
    seconds = [chance.randint(-60, last) for _ in range(count)]
    news = News(seconds)
    batches = search(sqlite, news, ["bitcoin"])
    ids = [text.external_id for batch in batches for text in batch.texts]
    wanted = {f"https://paper.example/{number}" for number, second in enumerate(seconds) if 0 <= second < 3600}
    assert sorted(ids) == sorted(wanted)
    assert len(batches) == news.asked <= 1 + len(wanted) // 80


def test_more_articles_in_one_second_than_are_shown_leave_a_line_and_older_ones_are_found(sqlite: Engine) -> None:
    batches = search(sqlite, News([100] * 150 + [50]), ["bitcoin"])
    assert sum(len(batch.texts) for batch in batches) == 101
    (fault,) = [fault for batch in batches for fault in batch.faults]
    assert fault == "more texts at 2026-11-24T12:01:40Z than the source shows: others are left out"


def test_a_text_that_several_searches_find_comes_once(sqlite: Engine) -> None:
    batches = search(sqlite, News([5]), list(COINS))
    assert len(batches) == len(newsapi.queries(list(COINS))) > 1
    assert [len(batch.texts) for batch in batches] == [1] + [0] * (len(batches) - 1)


# Hacker News


def hit(id: str, second: int, **values: Any) -> dict[str, Any]:
    times = {"created_at": stamp(second), "created_at_i": NOON // SECOND_US + second}
    return {"objectID": id, **times, "author": "ann", "title": None, "url": None, "points": None} | values


def test_stories_and_comments_are_read_and_only_their_own_words_count() -> None:
    hits = [
        hit("1", 0, title="Show HN: Qubic in Rust", points=42, story_text="<p>It&#x27;s fast", url="https://q.example"),
        hit("2", 1, comment_text="I sold my <i>Bitcoin</i><p>and bought ETH.", story_title="Solana"),
        hit("3", 2, comment_text="What a day.", story_title="Bitcoin falls"),
        hit("4", 3, title="Ask HN: Ethereum?", points=0, url=""),
        hit("5", 4, title="Bitcoin", created_at_i=None),
        hit("6", 5, title="Bitcoin", created_at_i=None, created_at="2026-11-24T12:00:00"),
        hit("", 6, title="Bitcoin"),
        "x",
    ]
    texts, faults = hacker_news.parse_hits(hits, "hacker-news")
    story, comment, question, by_text, naive = texts
    assert (story.source, story.kind, story.publisher) == ("hacker-news", "social", "Hacker News")
    assert (story.external_id, story.url) == ("1", "https://q.example")
    assert (story.title, story.body, story.author) == ("Show HN: Qubic in Rust", "It's fast", "ann")
    assert (story.published_us, story.coins, story.score) == (NOON, ("qubic-network",), 42)
    assert (comment.title, comment.body) == ("", "I sold my Bitcoin and bought ETH.")
    assert (comment.coins, comment.score) == (("bitcoin", "ethereum"), None)
    assert comment.url == "https://news.ycombinator.com/item?id=2"
    assert (question.score, question.url) == (0, "https://news.ycombinator.com/item?id=4")
    assert (by_text.published_us, naive.published_us) == (NOON + 4 * SECOND_US, None)
    assert len(faults) == 2


def test_posts_of_several_coins_come_once_however_few_a_search_shows(
    sqlite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hacker_news, "MOST_HITS", 8)
    titles = ("Bitcoin!", "Ethereum!", "Bitcoin, Ethereum!")
    hits = [hit(str(number), number // 2, title=titles[number % 3]) for number in range(60)]
    asked: set[str] = set()

    def respond(request: httpx2.Request) -> httpx2.Response:
        params = request.url.params
        name = params["query"].strip('"')
        asked.add(name)
        first, end = map(int, re.findall(r"\d+", params["numericFilters"]))
        found = [each for each in hits if first <= each["created_at_i"] < end and name in each["title"]]
        shown = found[::-1][: int(params["hitsPerPage"])]
        return httpx2.Response(200, json={"hits": shown, "nbHits": len(found)})

    end_us = NOON + 25 * SECOND_US
    opened = client(sqlite, respond, "hacker-news")
    batches = fetch(opened, lambda ready: hacker_news.fetch_texts(ready, ["bitcoin", "ethereum"], NOON, end_us))
    ids = [int(text.external_id) for batch in batches for text in batch.texts]
    assert sorted(ids) == list(range(50)) and asked == {"Bitcoin", "Ethereum"}
    assert not any(batch.faults for batch in batches)


# Feeds

RSS = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:content="http://purl.org/rss/1.0/modules/content/">
<channel><title>The <![CDATA[<b>Coin</b>]]> Blog</title><language>en-GB</language>
<item><title>Bitcoin &amp;amp; gold</title><link>/posts/1</link><guid isPermaLink="false">id-1</guid>
 <pubDate>Tue, 24 Nov 2026 13:00:00 +0100</pubDate><dc:creator>Ann</dc:creator>
 <description>&lt;p&gt;Short.&lt;/p&gt;</description>
 <content:encoded><![CDATA[<p>The whole <em>story</em>.</p><script>x()</script>
 <p>On <b>Qubic</b>.</p>]]></content:encoded></item>
<item><title>No zone</title><link>https://blog.example/2</link><pubDate>Tue, 24 Nov 2026 13:00:00</pubDate></item>
<item><title>No date</title><link>https://blog.example/3</link></item>
<item><title>Twice</title><guid isPermaLink="false">id-1</guid></item>
<item><link>https://blog.example/4</link></item>
<item><description>Neither link nor id</description></item>
</channel></rss>"""


def test_a_feed_is_read_from_bytes_without_markup_or_guesses() -> None:
    headers = {"content-type": "application/rss+xml", "content-location": "https://blog.example/rss"}
    texts = feeds.parse_feed(RSS.encode(), FEED, headers)
    assert texts is not None
    first, no_zone, no_date, bare = texts
    assert (first.source, first.kind, first.publisher, first.author) == ("blog", "news", "The Coin Blog", "Ann")
    assert (first.external_id, first.url) == ("id-1", "https://blog.example/posts/1")
    assert (first.title, first.body) == ("Bitcoin & gold", "The whole story. On Qubic.")
    assert (first.published_us, first.coins) == (NOON, ("qubic-network", "bitcoin"))
    assert first.language == "en-GB"
    assert (no_zone.published_us, no_date.published_us) == (None, None)
    assert no_date.external_id == "https://blog.example/3"
    assert bare.external_id.startswith("sha256:") and bare.body == "Neither link nor id"
    assert feeds.parse_feed(RSS.encode(), FEED, headers) == texts  # ids are the same each time


def test_atom_and_rdf_and_other_encodings_are_read() -> None:
    atom = """<feed xmlns="http://www.w3.org/2005/Atom"><title>A</title>
    <entry><id>tag:a,1</id><title type="html">&lt;i&gt;Ethereum&lt;/i&gt; news</title><link href="https://a.example/1"/>
    <published>2026-11-24T12:00:00.5Z</published><updated>2026-11-24T15:00:00Z</updated><summary>Well.</summary></entry>
    <entry><id>tag:a,2</id><title>Only changed</title><updated>2026-11-24T13:00:00+01:00</updated></entry></feed>"""
    first, second = feeds.parse_feed(atom.encode(), FEED) or ()
    assert (first.title, first.published_us, first.coins) == ("Ethereum news", NOON + SECOND_US // 2, ("ethereum",))
    assert second.published_us == NOON
    rdf = """<?xml version="1.0" encoding="ISO-8859-1"?><rdf:RDF xmlns="http://purl.org/rss/1.0/"
    xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/">
    <channel><title>Börse</title></channel><item rdf:about="https://b.example/1"><title>Über Monero</title>
    <link>https://b.example/1</link><dc:date>2026-11-24T12:00:00Z</dc:date></item></rdf:RDF>"""
    (only,) = feeds.parse_feed(rdf.encode("latin-1"), FEED) or ()
    assert (only.title, only.published_us, only.publisher) == ("Über Monero", NOON, "Börse")


def test_a_broken_feed_is_read_as_far_as_it_goes_and_of_a_long_text_what_was_left_out_is_told() -> None:
    cut = RSS[: RSS.index("<item><title>No date")]
    texts = feeds.parse_feed(cut.encode(), FEED)
    assert texts is not None and [text.title for text in texts] == ["Bitcoin & gold", "No zone"]
    loose = RSS.replace("No zone", "No & zone <br>")
    assert len(feeds.parse_feed(loose.encode(), FEED) or ()) == 4
    long = RSS.replace("Neither link nor id", "x" * 100_007)
    *_, text = feeds.parse_feed(long.encode(), FEED) or ()
    assert (len(text.body), text.cut_characters) == (100_000, 7)


def test_what_is_no_feed_is_told(sqlite: Engine) -> None:
    for content in (b'{"a": 1}', b"<note>hello</note>"):
        assert feeds.parse_feed(content, FEED) is None
    assert feeds.parse_feed(b'<rss version="2.0"><channel><title>Nothing yet</title></channel></rss>', FEED) == ()
    opened = client(sqlite, lambda _: httpx2.Response(200, content=b"Not found"), "blog")
    with pytest.raises(SourceError, match="blog sent content of another shape"):
        fetch(opened, lambda ready: feeds.fetch_feed(ready, FEED))


def test_a_feed_that_holds_its_parser_is_given_up_and_the_next_one_is_read(
    sqlite: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = feeds.read_feed(RSS.encode(), FEED, {})
    assert read == feeds.parse_feed(RSS.encode(), FEED)
    assert feeds.read_feed(b"no feed", FEED, {}) is None
    [worker] = feeds._READER._workers
    worker.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(feeds, "READ_SECONDS", 0.3)
    opened = client(sqlite, lambda _: httpx2.Response(200, content=RSS.encode()), "blog")
    with pytest.raises(SourceError, match=r"blog was not read: it took longer than 0\.3 s"):
        fetch(opened, lambda ready: feeds.fetch_feed(ready, FEED))
    monkeypatch.setattr(feeds, "READ_SECONDS", 20.0)
    assert feeds.read_feed(RSS.encode(), FEED, {}) == read


def test_titles_of_unfinished_markup_keep_nobody_busy() -> None:
    parts = ("<!--", "<a", "</")
    hostile = "".join(f"<item><title>{escape(100_000 // len(part) * part)}</title></item>" for part in parts)
    for end in ("</channel></rss>", "<b></channel></rss>"):  # by its strict and by its loose parser
        content = RSS.replace("</channel></rss>", hostile + end).encode()
        texts = feeds.read_feed(content, FEED, {})  # within READ_SECONDS
        assert texts is not None and len(texts) >= 5


def test_a_feed_reaches_neither_files_nor_addresses(tmp_path: Path) -> None:
    secret = tmp_path / "secret.xml"
    secret.write_text(RSS)
    assert feeds.parse_feed(str(secret).encode(), FEED) is None
    assert feeds.parse_feed(f"file://{secret}".encode(), FEED) is None
    entity = f"""<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY x SYSTEM "file://{secret}">]>
    <rss version="2.0"><channel><item><title>Entity &x;</title><guid>1</guid></item></channel></rss>"""
    (text,) = feeds.parse_feed(entity.encode(), FEED) or ()
    assert "Bitcoin" not in f"{text}"
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 7))
    bomb = f"""<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY l0 "lol">{entities}]>
    <rss version="2.0"><channel><item><title>&l6;</title><guid>1</guid></item></channel></rss>"""
    assert all(len(text.title) <= feeds.LONGEST_TITLE for text in feeds.parse_feed(bomb.encode(), FEED) or ())


def test_a_feed_that_has_not_changed_gives_nothing_and_moves_are_followed(sqlite: Engine) -> None:
    asked: list[httpx2.Request] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        if request.url.path == "/v1":
            return httpx2.Response(301, headers={"Location": "https://moved.example/feed"})
        if request.headers.get("if-none-match") == '"1"':
            return httpx2.Response(304)
        return httpx2.Response(200, content=RSS.encode(), headers={"ETag": '"1"'})

    async def twice() -> None:
        async with client(sqlite, respond, "blog") as ready:
            batch = await feeds.fetch_feed(ready, FEED)
            assert batch.texts[0].url == "https://moved.example/posts/1"
            await ready.keep(batch.fetched)
            again = await feeds.fetch_feed(ready, FEED)
            assert (again.fetched.not_modified, again.texts) == (True, ())

    run_virtually(twice())
    assert [request.url.host for request in asked] == ["source.example", "moved.example"] * 2


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Tue, 24 Nov 2026 12:00:00 GMT", NOON),
        ("24 Nov 2026 07:00 EST", NOON),
        ("Tue, 24 Nov 2026 12:00:00 -0000", NOON),
        ("2026-11-24T13:00:00+01:00", NOON),
        ("Tue, 24 Nov 2026 12:00:00", None),
        ("Tue, 24 Nov 2026 12:00:00 CEST", None),  # which 2 hours is in no standard
        ("2026-11-24T12:00:00", None),
        ("Tue, 99 Nov 2026 12:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -1200", None),
        ("9999-12-31T23:59:59-12:00", None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_a_date_is_read_only_with_its_zone(text: str | None, at: int | None) -> None:
    assert read_date(text) == at


# Markup


@pytest.mark.parametrize(
    ("markup", "words"),
    [
        ("a  b\n c", "a b c"),
        ("<p>One</p><p>two</p>", "One two"),
        ("re<b>al</b> <i>words</i>", "real words"),
        ("line<br>break<br/>again", "line break again"),
        ("&lt;b&gt; &amp; &#x27;&nbsp;&copy;", "<b> & ' ©"),
        ("<script>var a = '<p>';</script>seen<style>p {}</style>", "seen"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
        ("cut <a href='x", "cut"),
        ("<!-- hidden -->shown", "shown"),
        ("nul\x00l", "null"),
    ],
)
def test_words_come_without_their_markup(markup: str, words: str) -> None:
    assert plain_text(markup) == words


@given(st.text(max_size=300))
def test_any_markup_can_be_read(markup: str) -> None:
    words = plain_text(markup)
    assert words == " ".join(words.split()) and "\x00" not in words
