"""The fake source answers as real sources do: shapes, limits, keys and faults; and its ledger is right."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from clusters import wait_until
from fake_source import coingecko
from fake_source.app import FakeConfig
from fake_source.faults import ALL, TRANSPORT, FaultPlan
from fake_source.ledger import Gate, read_ledger
from fake_source.reply import KEYS, Ask, Desk, Reply
from fake_source.server import collector_settings, running_source
from fake_source.world import World

from qubic_lab.oracle.config import read_config
from qubic_lab.oracle.model.timestamps import Clock

NOW_S = 1_790_000_000
DAY_S = 86_400
CG_KEY = {"x-cg-demo-api-key": KEYS["coingecko"]}


def desk(world: World | None = None, plan: FaultPlan | None = None) -> Desk:
    return Desk(world or World(), (plan or FaultPlan()).spoil)


def content(reply: Reply) -> Any:
    return json.loads(reply.body)


def chart(at: Desk) -> Any:
    """Return a day of quotes of bitcoin."""
    query = {"vs_currency": "usd", "from": str(NOW_S - DAY_S), "to": str(NOW_S)}
    return content(coingecko.reply(Ask("coins/bitcoin/market_chart/range", query, CG_KEY, 1, NOW_S), at))


def test_content_faults_change_order_and_number_but_no_value() -> None:
    plan = FaultPlan(ALL, 0.99, seed=3)
    plain = {tuple(row) for row in chart(desk())["prices"]}
    spoiled = chart(desk(World(null_caps=True), plan))
    rows = [tuple(row) for row in spoiled["prices"]]
    assert len(rows) > len(set(rows))
    assert rows != sorted(rows)
    assert set(rows) == plain
    assert any(cap is None for _, cap in spoiled["market_caps"])


# limits, keys and faults


def test_the_gate_counts_arrivals_in_any_second_and_knows_who_does_not_wait() -> None:
    gate = Gate(2)
    assert [gate.arrive(at) for at in (0.0, 0.5)] == [None, None]
    assert (gate.arrive(0.99) or ("",))[0] == "limit"
    assert gate.arrive(2.0) is None
    gate.wait_until_s = 5.0
    assert (gate.arrive(4.0) or ("",))[0] == "retry-after"
    assert gate.arrive(5.0) is None


def test_faults_are_drawn_by_seed_and_number_and_each_occurs() -> None:
    drawn = [FaultPlan(ALL, 0.2, seed=1).draw(number) for number in range(2_000)]
    assert drawn == [FaultPlan(ALL, 0.2, seed=1).draw(number) for number in range(2_000)]
    assert set(drawn) == {"", *TRANSPORT}
    assert 0.15 < sum(map(bool, drawn)) / 2_000 < 0.25
    assert FaultPlan((), 0.2).draw(1) == ""


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("rate-limit", 429),
        ("html", 200),
        ("cut", httpx2.RemoteProtocolError),
        ("slow", 200),
        ("hang", httpx2.ReadTimeout),
        ("error-500", 500),
        ("error-502", 502),
        ("reset", httpx2.NetworkError),
    ],
)
def test_each_fault_reaches_a_client_as_what_it_is(tmp_path: Path, fault: str, outcome: Any) -> None:
    file = tmp_path / "ledger.jsonl"
    config = FakeConfig(faults=(fault,), fault_rate=0.999, slow_s=0.05, clock=Clock(0, 1.0))
    patience = httpx2.Timeout(60.0, read=0.2 if fault == "hang" else 60.0)
    with running_source(config, file) as source, httpx2.Client(timeout=patience) as client:
        url = f"{source.url}/feeds/fake-rss.rss"
        if isinstance(outcome, int):
            response = client.get(url)
            assert response.status_code == outcome
            assert response.text.startswith("<?xml") == (fault == "slow")
            assert ("retry-after" in response.headers) == (fault == "rate-limit")
        else:
            with pytest.raises(outcome):
                client.get(url)
    (entry,), violations = read_ledger(file)
    assert (entry.fault, bool(entry.given), violations) == (fault, fault == "slow", [])
    assert entry == source.ledger.entries[0]


def test_limits_keys_in_urls_and_early_returns_are_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_source.ledger.WINDOW_S", 60.0)  # longer than a busy machine needs for five requests
    with running_source(FakeConfig(per_s=3)) as source, httpx2.Client(timeout=60.0) as client:
        url = f"{source.url}/feeds/fake-rss.rss"
        statuses = [client.get(url, params={"apiKey": KEYS["newsapi"]}).status_code for _ in range(4)]
        statuses.append(client.get(url).status_code)
    assert statuses == [200, 200, 200, 429, 429]
    rules = [each.rule for each in source.ledger.violations]
    assert (rules.count("key"), set(rules)) == (4, {"key", "limit"})


def test_a_client_that_leaves_is_not_given_what_it_did_not_wait_for() -> None:
    with running_source(FakeConfig(faults=("slow",), fault_rate=0.999, slow_s=60.0)) as source:
        host, port = source.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /feeds/fake-rss.rss HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: source.ledger.entries)
    (entry,) = source.ledger.entries
    assert (entry.status, entry.complete, entry.given) == (0, False, ())


@pytest.mark.parametrize("per_s", [2, 3, 6, 50])
def test_a_collector_takes_the_settings_that_are_written_for_it(per_s: int, tmp_path: Path) -> None:
    settings = tmp_path / "collector.yaml"
    settings.write_text(yaml.safe_dump(collector_settings(FakeConfig(per_s=per_s), "http://127.0.0.1:1")))
    assert {read_config(settings).sources[name].rate for name in ("coingecko", "hacker-news", "feeds")} == {per_s}
