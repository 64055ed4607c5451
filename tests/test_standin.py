"""The stand-in tells what real sources tell, as they tell it: shapes, limits, keys, faults; and its ledger is right."""

import json
import socket
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from standins import running_standin

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.clock import Clock
from qubic_lab.oracle.standin import coingecko, feeds, hacker_news, newsapi
from qubic_lab.oracle.standin.answer import Answer, Ask, Desk
from qubic_lab.oracle.standin.app import KEYS, PREFIXES, StandinConfig
from qubic_lab.oracle.standin.data import CELL_S, World
from qubic_lab.oracle.standin.faults import ALL, TRANSPORT, FaultPlan, read_faults
from qubic_lab.oracle.standin.ledger import Gate, Ledger, read_ledger

NOW_S = 1_790_000_000
DAY_S = 86_400
CG_KEY = {"x-cg-demo-api-key": KEYS["coingecko"]}
NEWS_KEY = {"x-api-key": KEYS["newsapi"]}
ALL_CELLS = np.arange(NOW_S // CELL_S - 2_000, NOW_S // CELL_S)


def desk(world: World | None = None, plan: FaultPlan | None = None) -> Desk:
    return Desk(world or World(), (plan or FaultPlan()).spoil, KEYS)


def ask(path: str, headers: Mapping[str, str] | None = None, now_s: int = NOW_S, number: int = 1, **query: str) -> Ask:
    return Ask(path, query, headers or {}, number, now_s)


def content(answer: Answer) -> Any:
    return json.loads(answer.body)


def chart(at: Desk, path: str = "coins/bitcoin/market_chart", now_s: int = NOW_S, **query: str) -> Answer:
    return coingecko.answer(ask(path, CG_KEY, now_s, vs_currency="usd", precision="full", **query), at)


# the world


def test_the_same_question_has_the_same_answer_whatever_was_asked_before() -> None:
    whole = World(7).quotes("bitcoin", ALL_CELLS, NOW_S)
    some = World(7).quotes("bitcoin", ALL_CELLS[100:200], NOW_S)
    assert np.array_equal(whole.price[100:200], some.price)
    assert not np.array_equal(whole.price, World(8).quotes("bitcoin", ALL_CELLS, NOW_S).price)


def test_prices_walk_and_their_stamps_are_off_the_grid_and_in_order() -> None:
    quotes = World().quotes("qubic-network", ALL_CELLS, NOW_S)
    moves = np.diff(np.log(quotes.price))
    assert 0 < np.abs(moves).max() < 0.1
    assert np.all(np.diff(quotes.stamp_s) > 0)
    assert len(set((quotes.stamp_s % CELL_S).tolist())) > 100
    assert 1e-7 < quotes.price.min() < quotes.price.max() < 1e-5


def test_a_correction_changes_some_quotes_half_an_hour_later_and_no_others() -> None:
    world = World(corrections=True)
    cells = ALL_CELLS[:400]
    at = int(world.stamps("bitcoin", cells)[-1])
    early, later = world.quotes("bitcoin", cells[-5:], at), world.quotes("bitcoin", cells, at + 2 * DAY_S)
    plain = World().quotes("bitcoin", cells, at + 2 * DAY_S)
    changed = later.price != plain.price
    assert 1 <= changed.sum() < 40
    assert np.array_equal(early.price, plain.price[-5:])


def test_texts_are_the_same_in_any_range_and_none_is_of_the_future() -> None:
    world = World()
    whole = world.items("hacker-news", 600, NOW_S - DAY_S, NOW_S, NOW_S)
    halves = [
        item
        for start in (NOW_S - DAY_S, NOW_S - DAY_S // 2)
        for item in world.items("hacker-news", 600, start, start + DAY_S // 2, NOW_S)
    ]
    assert whole == halves
    assert 140 <= len(whole) <= 145
    assert all(item.published_s <= NOW_S for item in world.items("x", 600, NOW_S - 600, NOW_S + DAY_S, NOW_S))
    assert len({item.title for item in whole}) < len(whole)  # some repeat their neighbour


# CoinGecko


def test_one_call_gives_all_coins_in_full_precision() -> None:
    asked = {"vs_currencies": "usd", "ids": "bitcoin,qubic-network,nonsense", "include_last_updated_at": "true"}
    answer = coingecko.answer(ask("simple/price", CG_KEY, precision="full", include_market_cap="true", **asked), desk())
    told = content(answer)
    assert set(told) == {"bitcoin", "qubic-network"}
    newest = World().latest("qubic-network", NOW_S)
    assert told["qubic-network"]["usd"] == newest.price[0]
    assert told["qubic-network"]["last_updated_at"] == newest.stamp_s[0] <= NOW_S
    assert [(each.of, each.value) for each in answer.given] == [(coin, told[coin]["usd"]) for coin in told]
    rounded = content(coingecko.answer(ask("simple/price", CG_KEY, **asked), desk()))
    assert rounded["bitcoin"]["usd"] == round(told["bitcoin"]["usd"], 2)


@pytest.mark.parametrize(
    ("days", "step_s"), [("1", CELL_S), ("2", 3_600), ("90", 3_600), ("91", DAY_S), ("max", DAY_S)]
)
def test_a_chart_is_the_coarser_the_longer_it_is(days: str, step_s: int) -> None:
    told = content(chart(desk(), days=days))
    stamps = [stamp for stamp, _ in told["prices"]]
    steps = [later - earlier for earlier, later in pairwise(stamps)]
    assert abs(np.median(steps) / 1000 - step_s) < 60
    assert [stamp for stamp, _ in told["market_caps"]] == [stamp for stamp, _ in told["total_volumes"]] == stamps


def test_a_range_gives_what_the_same_chart_gives_and_only_that() -> None:
    day = chart(desk(), days="1")
    start, end = NOW_S - DAY_S, NOW_S - DAY_S // 2
    half = chart(desk(), "coins/bitcoin/market_chart/range", **{"from": str(start), "to": str(end)})
    inside = [row for row in content(day)["prices"] if start * 1000 <= row[0] <= end * 1000]
    assert content(half)["prices"] == inside
    assert [(each.at_us // 1000, each.value) for each in half.given] == [tuple(row) for row in inside]


def test_bars_have_closed_and_are_stamped_with_their_close() -> None:
    told = content(chart(desk(), "coins/bitcoin/ohlc", days="1"))
    assert len(told) == 48
    assert all(row[0] % 1_800_000 == 0 and row[0] <= NOW_S * 1000 for row in told)
    assert all(low <= min(open, close) and high >= max(open, close) for _, open, high, low, close in told)
    assert all(before[4] == after[1] for before, after in pairwise(told))


def test_errors_have_coingeckos_two_shapes() -> None:
    missing = coingecko.answer(ask("ping"), desk())
    assert (missing.status, content(missing)["error"]["status"]["error_code"]) == (401, 10002)
    wrong = coingecko.answer(ask("ping", {"x-cg-demo-api-key": "x"}), desk())
    assert (wrong.status, content(wrong)["status"]["error_code"]) == (401, 10002)
    far = chart(desk(), "coins/bitcoin/market_chart/range", **{"from": "1600000000", "to": str(NOW_S)})
    assert (far.status, content(far)["error"]["status"]["error_code"]) == (401, 10012)
    often = coingecko.rate_limited(ask("ping"), 7)
    assert (often.status, often.headers["retry-after"], content(often)["status"]["error_code"]) == (429, "7", 429)
    assert chart(desk(), "coins/nonsense/market_chart", days="1").status == 404
    assert chart(desk(), days="soon").status == 422


def test_content_faults_change_order_and_number_but_no_value() -> None:
    plan = FaultPlan(ALL, 0.99, seed=3)
    plain = {tuple(row) for row in content(chart(desk(), days="1"))["prices"]}
    spoiled = content(chart(desk(World(null_caps=True), plan), days="1"))
    rows = [tuple(row) for row in spoiled["prices"]]
    assert len(rows) > len(set(rows))
    assert rows != sorted(rows)
    assert set(rows) == plain
    assert any(cap is None for _, cap in spoiled["market_caps"])


# NewsAPI


def news(**query: str) -> Answer:
    return newsapi.answer(ask("everything", NEWS_KEY, **query), desk())


def test_news_is_a_day_late_newest_first_and_only_what_matches() -> None:
    told = content(news(q='"Qubic" OR Solana', pageSize="20"))
    assert told["status"] == "ok"
    times = [article["publishedAt"] for article in told["articles"]]
    assert times == sorted(times, reverse=True)
    assert times[0] <= "2026-09-20T14:13:20Z"  # a day before NOW_S
    assert all("Qubic" in each["title"] or "Solana" in each["title"] for each in told["articles"])
    assert all("chars]" in each["content"] for each in told["articles"])


def test_past_a_hundred_results_is_426_and_a_long_query_400() -> None:
    assert content(news(q="synthetic"))["totalResults"] > 100
    page = news(q="synthetic", page="2")
    assert (page.status, content(page)["code"]) == (426, "maximumResultsReached")
    assert news(q="synthetic", pageSize="50", page="2").status == 200
    assert content(news(q="a" * 501))["code"] == "queryTooLong"
    assert news(q="synthetic", pageSize="101").status == 400
    old = news(q="synthetic", **{"from": "2026-01-01"})
    assert (old.status, content(old)["code"]) == (426, "parameterInvalid")
    assert content(newsapi.answer(ask("everything", q="x"), desk()))["code"] == "apiKeyMissing"
    assert content(newsapi.answer(ask("everything", {"x-api-key": "x"}, q="x"), desk()))["code"] == "apiKeyInvalid"


# Hacker News and feeds


def test_hacker_news_slices_by_time_and_cuts_at_a_thousand() -> None:
    def search(**query: str) -> Any:
        return content(hacker_news.answer(ask("search_by_date", **query), desk()))

    year = search(query='"Synthetic"', hitsPerPage="1000")
    assert year["nbHits"] > 1_000 == len(year["hits"])
    assert search(query="Synthetic", hitsPerPage="1000", page="1")["hits"] == []
    bounds = f"created_at_i>={NOW_S - DAY_S},created_at_i<{NOW_S}"
    day = search(query="Synthetic", hitsPerPage="1000", numericFilters=bounds)
    times = [hit["created_at_i"] for hit in day["hits"]]
    assert times == sorted(times, reverse=True)
    assert NOW_S - DAY_S <= times[-1] < times[0] < NOW_S
    assert hacker_news.answer(ask("search_by_date", numericFilters="points>1"), desk()).status == 400


@pytest.mark.parametrize(("name", "form"), [("standin-rss", "rss"), ("standin-atom", "atom")])
def test_an_unchanged_feed_is_304_and_a_changed_one_is_not(name: str, form: str) -> None:
    first = feeds.answer(ask(f"{name}.{form}"), desk())
    shown = {"if-none-match": first.headers["etag"]}
    again = feeds.answer(ask(f"{name}.{form}", shown, NOW_S + 1), desk())
    later = feeds.answer(ask(f"{name}.{form}", shown, NOW_S + 2 * feeds.EVERY_S), desk())
    assert (first.status, again.status, again.given, later.status) == (200, 304, (), 200)
    assert first.body.count(b"Synthetic: ") == len(first.given) == feeds.ITEMS


# limits, keys and faults


def test_the_gate_counts_arrivals_in_any_second_and_knows_who_does_not_wait() -> None:
    gate = Gate(2)
    assert [gate.arrive(at) and gate.arrive(at)[0] for at in (0.0, 0.5)] == [None, None]  # type: ignore[index]
    assert (gate.arrive(0.99) or ("",))[0] == "limit"
    assert gate.arrive(2.0) is None
    gate.wait_until_s = 5.0
    assert (gate.arrive(4.0) or ("",))[0] == "retry-after"
    assert gate.arrive(5.0) is None


def test_faults_are_drawn_by_seed_and_number_and_each_occurs() -> None:
    plan = FaultPlan(ALL, 0.2, seed=1)
    drawn = [plan.draw(number) for number in range(2_000)]
    assert drawn == [FaultPlan(ALL, 0.2, seed=1).draw(number) for number in range(2_000)]
    assert set(drawn) == {None, *TRANSPORT}
    assert 0.15 < sum(each is not None for each in drawn) / 2_000 < 0.25
    assert FaultPlan((), 0.2).draw(1) is None
    assert read_faults("all") == ALL
    assert read_faults("none") == ()
    assert read_faults("cut, hang") == ("cut", "hang")
    with pytest.raises(InputError, match="did you mean 'hang'"):
        read_faults("hung")


def one_fault(fault: str) -> StandinConfig:
    return StandinConfig(faults=(fault,), fault_rate=0.999, slow_s=0.05, hang_s=0.3, clock=Clock(0, 1.0))


def test_each_fault_reaches_a_client_as_what_it_is(tmp_path: Path) -> None:
    expected: dict[str, Any] = {
        "rate-limit": 429,
        "html": 200,
        "cut": httpx2.RemoteProtocolError,
        "slow": 200,
        "hang": httpx2.ReadTimeout,
        "error-500": 500,
        "error-502": 502,
        "reset": httpx2.NetworkError,
    }
    assert set(expected) == set(TRANSPORT)
    for fault, outcome in expected.items():
        file = tmp_path / f"{fault}.jsonl"
        with running_standin(one_fault(fault), file) as standin, httpx2.Client(timeout=0.2) as client:
            url = f"{standin.url}/feeds/standin-rss.rss"
            if isinstance(outcome, int):
                answer = client.get(url)
                assert answer.status_code == outcome, fault
                assert answer.text.startswith("<?xml") == (fault == "slow")
                assert ("retry-after" in answer.headers) == (fault == "rate-limit")
            else:
                with pytest.raises(outcome):
                    client.get(url)
        (entry,), violations = read_ledger(file)
        assert (entry.fault, bool(entry.given), violations) == (fault, fault == "slow", []), fault
        assert entry == standin.ledger.entries[0]


def test_limits_keys_in_urls_and_early_returns_are_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.oracle.standin.ledger.WINDOW_S", 60.0)  # longer than a busy machine needs for five
    with running_standin(StandinConfig(per_s=3)) as standin, httpx2.Client() as client:
        url = f"{standin.url}/{PREFIXES['newsapi']}/everything"
        statuses = [client.get(url, params={"q": "x", "apiKey": KEYS["newsapi"]}).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert client.get(url, params={"q": "x"}, headers=NEWS_KEY).status_code == 429
        told = client.get(f"{standin.url}/summary").json()
        lines = client.get(f"{standin.url}/ledger", params={"from": "3"}).text.splitlines()
    assert [each["rule"] for each in told["violations"]].count("key") == 4
    assert {each["rule"] for each in told["violations"]} == {"key", "limit"}
    assert told["by_status"] == {"200": 3, "429": 2}
    assert [json.loads(line)["number"] for line in lines] == [4, 5]


def test_a_client_that_leaves_is_not_given_what_it_did_not_wait_for() -> None:
    with running_standin(StandinConfig(faults=("slow",), fault_rate=0.999, slow_s=0.3)) as standin:
        host, port = standin.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /feeds/standin-rss.rss HTTP/1.1\r\nHost: x\r\n\r\n")
        until = time.monotonic() + 10
        while not standin.ledger.entries and time.monotonic() < until:
            time.sleep(0.01)
    (entry,) = standin.ledger.entries
    assert (entry.status, entry.complete, entry.given) == (0, False, ())


def test_a_line_of_the_ledger_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file)
    ledger.close()
    file.write_text('{"number": 1')
    assert read_ledger(file) == ([], [])
