"""The oracle over HTTP: answers with their ages, refusals that say what to do, pages, access, and no faults."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import redis
from clocks import StandingClock
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from qubic_lab.api.access import ApiToken, hash_token, make_limiter
from qubic_lab.api.serve import create_app
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.database import open_database
from qubic_lab.errors import QubicLabError
from qubic_lab.oracle.alerts.store import AlertStore, NewAlert
from qubic_lab.oracle.ingest.collector_state import Lease
from qubic_lab.oracle.ingest.http_rules import Quotas
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, read_iso
from qubic_lab.oracle.serving import overview
from qubic_lab.oracle.serving.overview import Sentiment
from qubic_lab.oracle.serving.service import Oracle
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog

NOON = read_iso("2026-11-24T12:00:00Z")
NOW = NOON + 2 * MINUTE_US
KNOWN = NOON - DAY_US
"""Prices and texts before this instant were known at it."""
Http = httpx2.AsyncClient
pytestmark = pytest.mark.anyio
WRONG = [
    # path, status, what is said; more such requests are among those of the golden file
    ("sentiment?coin=", 404, "unknown coin ''"),
    (f"sentiment?coin={'x' * 65}", 400, "at most 64 characters"),
    (f"sentiment?coin=bitcoin&as_of={iso(NOW - SECOND_US)}", 404, "too late: it must be 2 s or more before now"),
    (f"price_analysis?coin=bitcoin&as_of={iso(NOW + DAY_US)}", 404, "too late: it must be 2 s or more before now"),
    ("risk?coin=bitcoin&window=1h", 400, "unknown parameter 'window': known: as_of, assumed, coin, frame"),
    (f"risk?coin=bitcoin&as_of={iso(NOW)}", 404, "too late: it must be 2 s or more before now"),
    ("prices?coin=bitcoin&limit=1001", 400, "limit is '1001'"),
    ("prices?coin=bitcoin&cursor=coingecko:0:usd:x", 400, "cursor 'x' is none that a page gave"),
    ("texts?coin=bitcoin&end=0001-01-01T00:00:00%2B23:59", 404, "outside the years 1 to 9999 in UTC"),
    ("texts?coin=bitcoin&duplicates=perhaps", 400, "duplicates is 'perhaps'"),
    ("nothing", 404, "did you mean /api/oracle/sentiment?"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A database with quotes and texts of two days, half of which were known a day ago."""
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('oracle') / 'lab.db'}")
    for until in (KNOWN, NOON):
        oracle = Oracle(lambda: engine, redis.Redis(), StandingClock(until))
        ends = range(until - DAY_US + 5 * MINUTE_US, until + 1, 5 * MINUTE_US)
        prices = [Price(at, at, 100.0 + n, volume_24h=1e9, market_cap=1e12) for n, at in enumerate(ends)]
        oracle.store().prices.add(Series("bitcoin", "coingecko"), prices)
        oracle.store().texts.add([a_text(until, n) for n in range(6)])
    yield engine
    engine.dispose()


def a_text(until: int, number: int) -> Text:
    name = f"{until}-{number}"
    body, url = " ".join(f"word{name}x{n}" for n in range(30)), f"https://example.org/{name}"
    published_us = until - number * HOUR_US
    return Text("newsapi", name, "news", f"Title {name}", body, url, "Example", published_us, ("bitcoin",))


@asynccontextmanager
async def asking(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost/api/oracle/") as connection:
        yield connection


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(NOW)


@pytest.fixture
async def oracle(client: redis.Redis, engine: Engine, clock: StandingClock) -> AsyncIterator[Oracle]:
    client.flushall()
    oracle = Oracle(lambda: engine, client, clock)
    yield oracle
    await oracle.close()


@pytest.fixture
async def connection(client: redis.Redis, oracle: Oracle) -> AsyncIterator[httpx2.AsyncClient]:
    """A connection to routes whose coordinator does not run: nothing is asked of nodes."""
    async with asking(create_app(Coordinator(client, "unix:/nowhere"), oracle=oracle)) as connection:
        yield connection


async def test_answers_fit_their_descriptions_and_say_how_old_they_are(connection: Http, clock: StandingClock) -> None:
    found = await connection.get("price_analysis", params={"coin": "BTC", "frame": "4h"})
    assert found.headers["age"] == "0"
    assert found.headers["cache-control"] == "private, max-age=60"
    price = found.json()
    last = price["last"]
    assert (price["coin"], last["price"], last["age_s"], last["stale"]) == ("bitcoin", 387.0, 120.0, False)
    assert [each["over"] for each in price["changes"]] == ["4h", "24h", "7d"]
    clock.us += 90 * SECOND_US
    again = await connection.get("price_analysis", params={"coin": "bitcoin", "frame": "4h"})
    assert (again.headers["age"], again.headers["cache-control"]) == ("90", "private, max-age=150")
    assert again.json() == {**found.json(), "age_s": 90.0, "cache": "hit"}
    clock.us += 300 * SECOND_US
    stale = await connection.get("price_analysis", params={"coin": "bitcoin", "frame": "4h"})
    assert (stale.headers["age"], stale.headers["cache-control"]) == ("390", "private, no-cache")
    assert stale.json()["cache"] == "stale"


async def test_risk_is_kept_like_other_answers_and_alerts_are_read_afresh(
    connection: Http, engine: Engine, clock: StandingClock
) -> None:
    content = {"text": "Bitcoin: risk rose to alarm", "evidence": ["fall: much"], "price": 1.5}
    alert = NewAlert("raised", "alarm", NOON - HOUR_US, NOON, content)
    risk = (await connection.get("risk?coin=BTC")).json()
    assert (risk["coin"], risk["frame"], risk["analysed"]["bars"], risk["cache"]) == ("bitcoin", "1h", 48, "miss")
    assert (await connection.get("risk?coin=bitcoin&frame=1h")).json()["cache"] == "hit"
    as_of = iso(KNOWN + MINUTE_US)
    past = (await connection.get("risk", params={"coin": "bitcoin", "as_of": as_of})).json()
    assert (past["analysed"]["bars"], past["analysed"]["last"]) == (24, iso(KNOWN))
    assert (await connection.get("alerts")).json() == {"as_of": iso(NOW), "alerts": []}
    AlertStore(engine, clock).emit("bitcoin", "1h", lambda *before: [alert])
    (found,) = (await connection.get("alerts?coin=BTC")).json()["alerts"]
    assert (found["at"], found["state"], found["text"]) == (iso(NOON), "pending", content["text"])
    assert (await connection.get("alerts", params={"as_of": as_of})).json()["alerts"] == []
    assert (await connection.get("alerts?coin=qubic")).json()["alerts"] == []


async def test_as_of_an_earlier_instant_in_any_zone_nothing_later_is_seen(connection: Http) -> None:
    as_of = iso(KNOWN + MINUTE_US)
    price = (await connection.get("price_analysis", params={"coin": "bitcoin", "as_of": as_of})).json()
    assert (price["as_of"], price["last"]["at"], price["last"]["price"]) == (as_of, iso(KNOWN), 387.0)
    shifted = iso(read_iso(as_of) + HOUR_US).replace("Z", "+01:00")
    same = (await connection.get("price_analysis", params={"coin": "bitcoin", "as_of": shifted})).json()
    assert same == {**price, "age_s": same["age_s"], "cache": "hit"}


async def test_histories_page_by_page(connection: Http) -> None:
    async def all_of(name: str, **params: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next_cursor": {}}
        while (cursor := page["next_cursor"]) is not None:
            wanted = {"coin": "bitcoin", **params} | ({"cursor": cursor} if cursor else {})
            response = await connection.get(name, params=wanted)
            assert response.status_code == 200, response.text
            page = response.json()
            assert len(page[name]) <= params["limit"]
            found += page[name]
        return found

    whole = {"start": iso(NOON - 3 * DAY_US), "end": iso(NOON + 1)}
    prices = await all_of("prices", limit=100, **whole)
    assert [each["close"] for each in prices] == [387.0 - n for n in range(288)] * 2
    assert {each["known"] >= each["closed"] for each in prices} == {True}
    assert len(await all_of("prices", limit=100, as_of=iso(KNOWN + MINUTE_US), **whole)) == 288
    assert len(await all_of("prices", limit=1_000)) == 288  # the last day
    texts = await all_of("texts", limit=5)
    assert [each["published"] for each in texts] == sorted((each["published"] for each in texts), reverse=True)
    assert len(texts) == 12
    assert (await connection.get("prices?coin=bitcoin")).headers["cache-control"] == "private, no-cache"
    assert (await connection.get("texts?coin=bitcoin&limit=5")).json()["cache"] == "hit"


async def test_without_a_coin_the_market_is_told(connection: Http) -> None:
    for path in ("sentiment", "price_analysis?frame=1d", f"sentiment?as_of={iso(NOON)}&assumed=true"):
        found = await connection.get(path)
        assert (found.status_code, found.json()["coin"]) == (200, "market"), found.text


async def test_who_asks_wrongly_is_told_in_one_line(connection: Http) -> None:
    for path, status, said in WRONG:
        found = await connection.get(path)
        assert found.status_code == status, (path, found.text)
        assert found.headers["content-type"] == "application/problem+json"
        assert said in found.json()["detail"], path
        assert "\n" not in found.json()["detail"]


async def test_the_status_tells_of_sources_quotas_leases_and_the_cache(
    connection: Http, engine: Engine, clock: StandingClock
) -> None:
    FetchLog(engine).record(Fetch("coingecko", "prices", "/simple/price", NOON, 1.0, 1, 200, "ok"))
    Quotas(engine, StandingClock(NOW)).use("coingecko", {"month": 10_000})
    assert Lease(engine, "collector", "host:1:2:3", clock=StandingClock(NOW)).acquire() is None
    for _ in range(3):
        await connection.get("sentiment?coin=bitcoin")
    status = (await connection.get("status")).json()
    assert [(each["source"], each["state"]) for each in status["sources"]] == [("coingecko", "ok")]
    [lease] = status["leases"]
    assert (lease["name"], lease["holder"], lease["held"]) == ("collector", "host:1:2:3", True)
    assert {(each["source"], each["used"]) for each in status["quotas"]} <= {("coingecko", 1)}
    counts = next(each for each in status["cache"] if each["kind"] == "sentiment")
    assert (counts["hits"], counts["misses"], counts["fresh_s"]) == (2, 1, 600.0)
    assert counts["hit_rate"] == pytest.approx(2 / 3)


async def test_a_database_that_is_away_is_no_fault_of_the_client(client: redis.Redis) -> None:
    def refuse() -> Engine:
        raise QubicLabError("the disk is full")

    client.flushall()
    oracle = Oracle(refuse, client)
    async with asking(create_app(Coordinator(client, "unix:/nowhere"), oracle=oracle)) as connection:
        for path in ("sentiment?coin=bitcoin", "prices?coin=bitcoin", "status"):
            found = await connection.get(path)
            assert found.status_code == 503
            assert "disk" not in found.text
        await oracle.close()


async def test_only_those_with_a_token_are_answered(client: redis.Redis, oracle: Oracle) -> None:
    tokens = [ApiToken("me", hash_token("secret"))]
    app = create_app(
        Coordinator(client, "unix:/nowhere"), oracle=oracle, accesses=lambda: tokens, limiter=make_limiter(client)
    )
    async with asking(app) as connection:
        assert (await connection.get("sentiment?coin=bitcoin")).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert (await connection.get("sentiment?coin=bitcoin", headers=headers)).status_code == 200


async def test_without_an_oracle_there_are_no_routes(client: redis.Redis) -> None:
    async with asking(create_app(Coordinator(client, "unix:/nowhere"))) as connection:
        assert (await connection.get("sentiment?coin=bitcoin")).status_code == 404


async def test_other_requests_go_on_while_an_answer_is_computed(
    connection: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, opens = threading.Event(), threading.Event()
    real = overview.sentiment

    def slow(*arguments: Any, **options: Any) -> Sentiment:
        begun.set()
        assert opens.wait(60.0)
        return real(*arguments, **options)

    monkeypatch.setattr(overview, "sentiment", slow)
    waiting = asyncio.ensure_future(connection.get("sentiment?coin=bitcoin"))
    async with asyncio.timeout(60.0):
        while not begun.is_set():
            await asyncio.sleep(0.01)
        assert (await connection.get("price_analysis?coin=bitcoin")).status_code == 200
        assert not waiting.done()
        opens.set()
        assert (await waiting).status_code == 200


_instants = st.one_of(
    st.text(max_size=30),
    st.datetimes().map(lambda at: at.isoformat() + "Z"),
    st.sampled_from(
        ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", iso(KNOWN), "2026-11-24", "NaN", "\x00"]
    ),
)
_values: dict[str, st.SearchStrategy[str]] = {
    "coin": st.one_of(st.sampled_from(["bitcoin", "BTC", "ethereum"]), st.text(max_size=70)),
    "coins": st.one_of(st.sampled_from(["bitcoin", "", ",", "bitcoin,bitcoin"]), st.text(max_size=70)),
    "window": st.sampled_from(["1h", "24h", "7d", "", "1H", "7 d"]),
    "frame": st.sampled_from(["1h", "4h", "1d", "", "0"]),
    "as_of": _instants,
    "start": _instants,
    "end": _instants,
    "limit": st.one_of(st.integers().map(str), st.text(max_size=5)),
    "cursor": st.one_of(
        st.text(max_size=30),
        st.lists(st.integers().map(str), max_size=4).map("_".join),
        st.integers().map(lambda number: f"coingecko:0:usd:{number}"),
    ),
    "source": st.text(max_size=10),
    "interval_s": st.one_of(st.integers().map(str), st.text(max_size=5)),
    "duplicates": st.sampled_from(["true", "false", "2"]),
}
_parameters = st.fixed_dictionaries({}, optional=_values)
_requests = st.lists(
    st.tuples(
        st.sampled_from(["sentiment", "price_analysis", "risk", "market_overview", "prices", "texts", "alerts"]),
        _parameters.map(lambda found: {"coin": "bitcoin", **found}) | _parameters,
    ),
    min_size=8,
    max_size=8,
)


@settings(max_examples=30)
@given(requests=_requests)
async def test_nothing_that_is_asked_is_a_fault(connection: Http, requests: list[tuple[str, dict[str, str]]]) -> None:
    for path, params in requests:
        wanted = {name: value for name, value in params.items() if name in _PARAMETERS[path]} or params
        found = await connection.get(path, params=wanted)
        assert found.status_code in (200, 400, 404), (path, wanted, found.text)


_PARAMETERS = {
    "sentiment": ("coin", "window", "as_of"),
    "price_analysis": ("coin", "frame", "as_of"),
    "risk": ("coin", "frame", "as_of"),
    "alerts": ("coin", "as_of", "limit"),
    "market_overview": ("coins", "as_of"),
    "prices": ("coin", "start", "end", "as_of", "limit", "cursor", "source", "interval_s"),
    "texts": ("coin", "start", "end", "as_of", "limit", "cursor", "duplicates"),
}
