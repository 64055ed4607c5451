"""What the oracle's store keeps: every version, exactly, in order, and the same answer about the past for ever."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from multiprocessing import get_context
from typing import Any

import pytest
from clocks import StandingClock
from databases import all_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select

from qubic_lab.database import open_database
from qubic_lab.errors import InputError, NotFoundError, QubicLabError
from qubic_lab.oracle.ingest.collector_state import JobState, read_jobs, save_job
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.records import Text as Story
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US
from qubic_lab.oracle.store.clock_repair import repair_clock
from qubic_lab.oracle.store.fetch_log import Fetch, FetchCounts, FetchLog
from qubic_lab.oracle.store.price_store import PricePage, PriceReader, PriceStore
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES
from qubic_lab.oracle.store.text_store import Score, TextStore
from qubic_lab.oracle.store.transactions import SETTLE_US, Added, read_stamp, writing

START = 1_700_000_000 * SECOND_US
BARS = Series("qubic-network", "file", 60)
FAR = 1 << 60
COINS = count()
"""Each example of a property has coins of its own in the one database."""


def bar(minute: int, close: float = 1.0, **values: Any) -> Price:
    return Price(minute * 60, (minute + 1) * 60, close, **values)


def test_a_price_is_added_once_and_corrected_by_a_later_row(engine: Engine) -> None:
    clock = StandingClock(START)
    store = PriceStore(engine, clock)
    assert store.add(BARS, [bar(0), bar(1)]) == Added(given=2, added=2)
    first = store.stamp("qubic-network")
    assert store.add(BARS, [bar(1), bar(0)]) == Added(given=2)
    assert store.stamp("qubic-network") == first == START
    clock.us += SECOND_US
    assert store.add(BARS, [bar(1, 2.0, flags=("outlier", "thin")), bar(2)]) == Added(3 - 1, 2, 1)
    clock.us += 2 * SETTLE_US
    now, then = store.read(BARS, 0, FAR), store.as_of(START).read(BARS, 0, FAR)
    assert now.close.tolist() == [1.0, 2.0, 1.0] and then.close.tolist() == [1.0, 1.0]
    assert now.flagged.tolist() == [0, 1, 0] and then.flagged.tolist() == [0, 0]
    assert [price.flags for price in store.prices(BARS, 0, FAR)] == [(), ("outlier", "thin"), ()]
    assert now.known_us.tolist() == [START, START + SECOND_US, START + SECOND_US]
    assert store.add(BARS, [bar(1)]).corrected == 1  # back to what it was: that is a version too
    assert store.read(BARS, 0, FAR).close.tolist() == [1.0, 1.0, 1.0]
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(MARKET_DATA)).scalar() == 5


def test_of_two_prices_of_one_instant_in_a_batch_the_later_one_counts(engine: Engine) -> None:
    store = PriceStore(engine)
    others = [bar(minute) for minute in range(10, 1_200)]  # more than a query names
    given = [bar(3, 5.0), bar(2), bar(3, 6.0), bar(2), *reversed(others)]
    assert store.add(BARS, given) == Added(len(given), 2 + len(others))
    assert store.read(BARS, 0, 600).close.tolist() == [1.0, 6.0]
    assert store.add(BARS, [bar(3, 6.0), *others]).added == 0


def test_each_value_that_a_price_has_makes_a_version_and_comes_back(engine: Engine) -> None:
    store = PriceStore(engine)
    price = Price(0, 60, 1.5, 1.0, 2.0, 0.5, 7.0, 8.0, 9.0, 61, ("gap",))
    store.add(BARS, [price])
    changes: list[dict[str, Any]] = [{name: 0.25} for name in ("open", "high", "low", "close", "volume")]
    changes += [{"volume_24h": 1.0}, {"market_cap": None}, {"opened_us": 1}, {"flags": ()}]
    for number, change in enumerate(changes):
        price = replace(price, **change)
        assert store.add(BARS, [price]) == Added(1, 1, 1), change
        latest = store.latest(BARS)
        assert latest is not None and latest.known_us == store.stamp(BARS.coin)
        assert {name: getattr(latest, name) for name in price.__dataclass_fields__} == vars(price), number
    assert store.add(BARS, [replace(price, published_us=None)]).added == 0  # said again at another time
    assert store.add(BARS, [replace(price, market_cap=math.nan)]).added == 0
    bars, (row,) = store.read(BARS, 0, FAR), store.prices(BARS, 0, FAR)
    assert row == store.latest(BARS) and row.market_cap is None and bars.open.tolist() == [0.25]
    assert bars.frame().index[0] == datetime(1970, 1, 1, 0, 0, 0, 60, UTC)


@settings(max_examples=8)
@given(st.lists(st.floats(min_value=5e-324, allow_infinity=False), min_size=1, max_size=20))
def test_doubles_are_kept_to_the_last_bit(engine: Engine, numbers: list[float]) -> None:
    series = replace(BARS, coin=f"coin-{next(COINS)}")
    numbers += [1.1234567890123457e-06, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1e-6]
    store = PriceStore(engine)
    store.add(series, [bar(i, number, volume=number, market_cap=number) for i, number in enumerate(numbers)])
    columns = store.read(series, 0, FAR)
    assert columns.close.tolist() == columns.volume.tolist() == numbers
    assert [price.market_cap for price in store.prices(series, 0, FAR)] == numbers
    assert store.add(series, [bar(i, n, volume=n, market_cap=n) for i, n in enumerate(numbers)]).added == 0
    assert store.latest(series).close == numbers[-1]  # type: ignore[union-attr]


def test_pages_are_whole_and_stay_as_they_were_known(engine: Engine) -> None:
    clock = StandingClock(START)
    store = PriceStore(engine, clock)
    store.add(BARS, [bar(minute) for minute in range(10)])
    store.add(BARS, [bar(4, 4.0)])
    clock.us += 2 * SETTLE_US

    def page(reader: PriceReader, **options: Any) -> PricePage:
        return reader.page(BARS, 60, 600, **options)

    then = store.as_of(store.stamp(BARS.coin))
    first = page(then, limit=4)
    store.add(BARS, [bar(2, 2.0), bar(8, 8.0), *(bar(minute) for minute in range(10, 30))])
    rest = page(then, limit=50, cursor=first.next_cursor)
    assert [price.closed_us // 60 for price in (*first.prices, *rest.prices)] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert [price.close for price in (*first.prices, *rest.prices)] == [1, 1, 1, 1, 4, 1, 1, 1, 1]
    latest = [then.latest(BARS, us) for us in (180, 179, 59, FAR)]
    assert [price and price.closed_us for price in latest] == [180, 120, None, 600]
    for limit in (1, 3, 9, 10):
        assert [price.close for price in all_pages(page, "prices", limit, reader=store)] == [8, 1, 1, 1, 4, 1, 2, 1, 1]
        assert len(all_pages(page, "prices", limit, reader=then)) == 9


def test_what_cannot_be_read_is_told_in_one_line(engine: Engine) -> None:
    clock = StandingClock(START)
    store = PriceStore(engine, clock)
    with pytest.raises(NotFoundError, match="collect or load some first"):
        store.latest(BARS)
    store.add(BARS, [bar(0)])
    clock.us += SECOND_US
    wrong: list[tuple[str, Callable[[], object]]] = [
        (
            "qubic-network from x (bars of 60 s in usd)",
            lambda: store.read(replace(BARS, source="x"), 0, 1),
        ),
        ("is empty: give a later end", lambda: store.read(BARS, 5, 5)),
        ("after its end", lambda: store.page(BARS, 6, 5)),
        ("limit is 0", lambda: store.page(BARS, 0, 5, limit=0)),
        ("cursor '1_2'", lambda: store.page(BARS, 0, 5, cursor="1_2")),
        ("cursor ''", lambda: store.page(BARS, 0, 5, cursor="")),
        (f"cursor '{1 << 63}'", lambda: store.page(BARS, 0, 5, cursor=str(1 << 63))),
        ("too late: it must be 2 s or more before now", lambda: store.as_of(START)),
    ]
    for said, ask in wrong:
        with pytest.raises(InputError) as caught:
            ask()
        assert said in str(caught.value) and "\n" not in str(caught.value)
    assert len(store.read(BARS, 0, FAR)) == 1 and len(store.read(BARS, 61, FAR)) == 0


def test_series_are_listed_in_order_and_have_their_own_prices(engine: Engine) -> None:
    store = PriceStore(engine)
    others = [Series("qubic-network", "file", 300), Series("bitcoin", "coingecko"), replace(BARS, currency="eur")]
    for number, series in enumerate([BARS, *others]):
        store.add(series, [bar(0, number + 1.0)])
    assert store.series() == sorted([BARS, *others])
    assert store.series("bitcoin") == [others[1]]
    fresh = PriceStore(engine)
    assert [fresh.read(series, 0, FAR).close.tolist() for series in (BARS, *others)] == [[1.0], [2.0], [3.0], [4.0]]
    assert store.stamp("bitcoin") and store.stamp("bitcoin") < store.stamp("qubic-network")
    assert store.stamp("ethereum") == 0
    assert store.add(replace(BARS, coin="ethereum"), []) == Added()


def test_a_failed_batch_leaves_nothing_and_no_stamp(engine: Engine) -> None:
    store = PriceStore(engine)
    store.add(BARS, [bar(0)])
    before = read_stamp(engine)
    with pytest.raises(RuntimeError), writing(engine) as writer:
        writer.wrote("prices qubic-network")
        raise RuntimeError
    bad = bar(2)
    object.__setattr__(bad, "close", None)
    with pytest.raises(Exception, match=r"(?i)null"):
        store.add(BARS, [bar(1), bad])
    assert read_stamp(engine) == store.stamp(BARS.coin) == before
    assert len(store.read(BARS, 0, FAR)) == 1
    assert store.add(BARS, [bar(1)]).added == 1


def test_who_asks_what_was_known_waits_for_a_writer_who_has_its_stamp_already(engine: Engine) -> None:
    late = StandingClock(START + 3600 * SECOND_US)
    PriceStore(engine, StandingClock(START - SECOND_US)).add(BARS, [bar(0)])
    reader = PriceStore(engine, late)
    answers: list[Bars] = []
    asking = threading.Thread(target=lambda: answers.append(reader.as_of(START + 5).read(BARS, 0, FAR)))
    with writing(engine, StandingClock(START)) as writer:
        assert writer.known_us == START  # before the instant that is asked for, and not yet committed
        asking.start()
        asking.join(0.15)
        assert asking.is_alive()
        assert len(PriceStore(engine, late).as_of(START - SECOND_US).read(BARS, 0, FAR)) == 1  # need not wait
        values = {"series_id": 1, "closed_us": 120, "known_us": START, "opened_us": 60, "close": 1.0, "flags": ""}
        writer.connection.execute(MARKET_DATA.insert().values(values))
        writer.wrote()
    asking.join()
    assert answers[0].closed_us.tolist() == [60, 120]
    PriceStore(engine, StandingClock(START)).add(BARS, [bar(7)])  # its clock is before the instant that was asked for
    assert reader.as_of(START + 5).read(BARS, 0, FAR).closed_us.tolist() == [60, 120]
    assert len(reader.as_of(START + 6).read(BARS, 0, FAR)) == 3


Ask = Callable[[int], Any]


def reference_prices(engine: Engine, series: Series, as_of_us: int) -> list[tuple[int, int, float]]:
    """Return the prices that were known at an instant, worked out from all rows in the plainest way."""
    columns = MARKET_DATA.c.closed_us, MARKET_DATA.c.known_us, MARKET_DATA.c.close
    of_coin = select(*columns).join(MARKET_SERIES).where(MARKET_SERIES.c.coin == series.coin)
    with engine.connect() as connection:
        rows = connection.execute(of_coin.order_by(MARKET_DATA.c.known_us)).all()
    newest = {row.closed_us: tuple(row) for row in rows if row.known_us <= as_of_us}
    return sorted(newest.values())


TITLES = ("Qubic rises by 5 percent today", "Qubic rises by 6 percent today", "Miners leave for another network")
moves = st.integers(-5, 8)
price_steps = st.tuples(
    st.just("prices"), st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1.0, 2.0])), max_size=4)
)
text_steps = st.tuples(
    st.just("texts"),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("12"), st.sampled_from(TITLES)), max_size=3),
)
score_steps = st.tuples(st.just("scores"), st.lists(st.sampled_from([0.5, -0.5]), max_size=2))
steps = st.lists(st.tuples(moves, st.one_of(price_steps, text_steps, score_steps), st.integers(0, 12)), max_size=9)


class World:
    """A coin of its own, two processes' stores of it with clocks of their own, and what was answered about it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.coin = f"coin-{next(COINS)}"
        self.series = Series(self.coin, "file", 60)
        self.start = read_stamp(engine) + 60 * SECOND_US  # later than what other examples wrote or asked
        self.clocks = [StandingClock(self.start), StandingClock(self.start)]
        self.prices = [PriceStore(engine, clock) for clock in self.clocks]
        self.texts = [TextStore(engine, clock) for clock in self.clocks]
        late = StandingClock(FAR)
        self.readers = PriceStore(engine, late), TextStore(engine, late)
        self.prices[0].add(self.series, [bar(0)])
        self.answers: dict[int, Any] = {}

    def write(self, who: int, kind: str, values: Sequence[Any]) -> None:
        if kind == "prices":
            self.prices[who].add(self.series, [bar(minute, close) for minute, close in values])
        elif kind == "texts":
            self.texts[who].add(
                Story(source, f"{self.coin} {id}", "news", f"{self.coin}: {title}", "", "", source, 60, (self.coin,))
                for source, id, title in values
            )
        else:
            known = self.texts[who].read(self.coin, 0, 100, duplicates=True)
            self.texts[who].add_scores(Score(text.id, "m", value) for text, value in zip(known, values, strict=False))

    def ask(self, as_of_us: int) -> Any:
        """Return every kind of answer about what was known then."""
        prices, texts = (reader.as_of(as_of_us) for reader in self.readers)
        columns = prices.read(self.series, 0, FAR)
        rows = list(zip(columns.closed_us.tolist(), columns.known_us.tolist(), columns.close.tolist(), strict=True))
        paged = all_pages(lambda **o: prices.page(self.series, 0, FAR, **o), "prices", 2)
        stories = texts.read(self.coin, 0, 100)
        pages = all_pages(lambda **o: texts.page(self.coin, 0, 100, **o), "texts", 1)
        scores = texts.scores(self.coin, 0, 100, "m")
        assert [(price.closed_us, price.known_us, price.close) for price in reversed(paged)] == rows
        assert pages[::-1] == stories
        assert all(each.known_us <= as_of_us for each in (*paged, *stories))
        latest = prices.latest(self.series)
        assert latest == (paged[0] if paged else None)
        every = texts.read(self.coin, 0, 100, duplicates=True)
        return rows, latest, stories, every, scores.news_id.tolist(), scores.known_us.tolist(), scores.score.tolist()


@settings(max_examples=6)
@given(steps=steps)
def test_no_later_row_changes_an_earlier_answer(engine: Engine, steps: list[Any]) -> None:
    world = World(engine)
    for number, (move, (kind, values), back) in enumerate(steps):
        world.clocks[number % 2].us += move * SECOND_US
        world.write(number % 2, kind, values)
        as_of_us = world.start + (back - 4) * SECOND_US  # before and after what any writer's clock shows
        world.answers.setdefault(as_of_us, world.ask(as_of_us))
        newest = read_stamp(engine)
        world.answers.setdefault(newest, world.ask(newest))
    for as_of_us, answer in world.answers.items():
        assert world.ask(as_of_us) == answer
        assert answer[0] == reference_prices(engine, world.series, as_of_us)


SHARED = [bar(minute, 1e-6 * (minute + 1)) for minute in range(300)]
STORIES = [
    Story("feed", str(n), "news", f"Story {n} of what happened to Qubic", "", "", "feed", n, (BARS.coin,))
    for n in range(40)
]


def write_and_read(url: str, number: int) -> list[Added]:
    """Add prices and texts that others add too, and prices of one's own, and read all the while."""
    engine = open_database(url)
    prices, texts, log = PriceStore(engine), TextStore(engine), FetchLog(engine)
    both, alone, read = Added(), Added(), Added()
    for step in range(10):
        fetch = log.record(Fetch("file", "job", "x", START, 0.1, 1, 200, "ok"))
        both += prices.add(BARS, SHARED[step * 30 : step * 30 + 30], fetch_id=fetch)
        alone += prices.add(replace(BARS, coin=f"coin-{number}"), [bar(step, number + 1.0)])
        read += texts.add(STORIES[step * 4 : step * 4 + 4], fetch_id=fetch)
        assert len(prices.read(BARS, 0, FAR)) >= step * 30 + 30
        assert len(texts.read(BARS.coin, 0, FAR)) >= step * 4 + 4
        prices.as_of(START).page(BARS, 0, FAR)
    engine.dispose()
    return [both, alone, read]


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_writers_and_readers_at_once_lose_nothing(url: str, processes: bool) -> None:
    pool = ProcessPoolExecutor(8, get_context("spawn")) if processes else ThreadPoolExecutor(8)
    with pool:
        done = list(pool.map(write_and_read, [url] * 8, range(8)))
    assert [sum(each[kind].added for each in done) for kind in range(3)] == [300, 80, 40]
    assert all(added.corrected == 0 for each in done for added in each)
    engine = open_database(url)
    store = PriceStore(engine)
    assert store.read(BARS, 0, FAR).close.tolist() == [price.close for price in SHARED]
    for number in range(8):
        assert store.read(replace(BARS, coin=f"coin-{number}"), 0, FAR).close.tolist() == [number + 1.0] * 10
    assert len(TextStore(engine).read(BARS.coin, 0, FAR)) == 40
    assert FetchLog(engine).counts(0) == [FetchCounts("file", 80, 0, 0, 0, START)]
    engine.dispose()


def test_a_wrong_clock_stops_all_writers_until_it_is_repaired(engine: Engine) -> None:
    clock = StandingClock(START)
    prices, texts = PriceStore(engine, clock), TextStore(engine, clock)
    prices.add(BARS, [bar(0)])
    clock.us = wrong = START + 5 * 365 * DAY_US
    prices.add(BARS, [bar(1)])
    undated = {"source": "blog", "external_id": "1", "kind": "news", "title": "A title", "body": "", "url": ""}
    texts.add([Story(**undated, publisher="blog", published_us=None, coins=("qubic-network",))])
    clock.us += SECOND_US
    prices.add(BARS, [bar(2)])
    clock.us = START + HOUR_US
    with pytest.raises(QubicLabError, match=r"newest entry .* 2028-11.* repair-clock"):
        prices.add(BARS, [bar(3)])
    assert repair_clock(engine, clock.us) == {"market_data": 2, "news_data": 1, "news_coins": 1, "stamps": 3}
    assert repair_clock(engine, clock.us) == {}
    clock.us += 2 * SETTLE_US
    prices.add(BARS, [bar(3)])
    known = prices.read(BARS, 0, FAR).known_us.tolist()
    repaired = START + HOUR_US
    assert known == [START, repaired - SECOND_US, repaired, clock.us] and wrong not in known
    assert len(prices.as_of(START + 1).read(BARS, 0, FAR).close) == 1, "nothing is known earlier than it was"


def test_jobs_that_wait_for_a_wrong_clock_go_on_now(engine: Engine) -> None:
    late, now = START + 5 * 365 * DAY_US, START + HOUR_US
    PriceStore(engine, StandingClock(late)).add(BARS, [bar(0)])
    save_job(
        engine, JobState("feed", late + DAY_US, {"until_us": {"bitcoin": late}, "left": ["bitcoin"], "seen_us": 5})
    )
    assert repair_clock(engine, now)["collector_jobs"] == 1
    found = read_jobs(engine)["feed"]
    assert found.due_us == now
    assert found.position == {"until_us": {"bitcoin": now}, "left": ["bitcoin"], "seen_us": 5}


def test_the_log_of_fetches_counts_what_came_of_them(engine: Engine) -> None:
    log = FetchLog(engine)
    fetches = [
        Fetch("feed", "poll", "GET /rss", START, 0.5, 1, 200, "ok", rows_given=5, rows_added=3),
        Fetch("feed", "poll", "GET /rss", START + 1, 0.1, 1, 304, "not_modified"),
        Fetch("feed", "poll", "GET /rss", START + 2, 9.0, 4, None, "failed", "no answer within 3 s"),
        Fetch("coingecko", "quotes", "GET /simple/price", START + 1, 0.2, 1, 429, "failed", "too many requests"),
    ]
    ids = [log.record(fetch) for fetch in fetches]
    assert log.recent() == [fetches[number] for number in (2, 3, 1, 0)]
    assert log.recent("feed", limit=2) == [fetches[2], fetches[1]]
    assert log.counts(START) == [
        FetchCounts("coingecko", 0, 0, 1, 0, None),
        FetchCounts("feed", 1, 1, 1, 3, START + 1),
    ]
    assert log.counts(START + 2) == [FetchCounts("feed", 0, 0, 1, 0, None)]
    log.brought(ids[1], 7, 2)
    assert log.recent("feed", 2)[1].rows_added == 2
