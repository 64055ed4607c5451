"""Risk alerts: each rise is emitted once and in order, even if processes die; faults of a webhook lose no alert."""

import hashlib
import hmac
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import StandingClock
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, delete

from qubic_lab.errors import InputError
from qubic_lab.oracle.alerts.delivery import Deliverer, Delivery, Webhook, payload, webhook_from_settings
from qubic_lab.oracle.alerts.store import AlertStore, EmittedAlert, NewAlert, PriceOutage, RiskAlert
from qubic_lab.oracle.alerts.watch import AlertWatch, DueAlert, decide
from qubic_lab.oracle.config import OracleConfig, read_config
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, read_iso
from qubic_lab.oracle.risk.measures import LEVELS
from qubic_lab.oracle.risk.rules import RiskConfig, RiskRule
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.tables import RISK_ALERTS

NOON = read_iso("2026-11-24T12:00:00Z")
LEAST, COOL_DOWN = LEVELS.index("warning"), 2
Row = tuple[str, int, int, int]
"""Kind, level, first bar of the episode, bar."""


# --- What is due


def closes(count: int) -> np.ndarray:
    return NOON + HOUR_US * np.arange(count, dtype=np.int64)


def bar_of(closed_us: int) -> int:
    return (closed_us - NOON) // HOUR_US


def emitted_of(dues: list[DueAlert]) -> EmittedAlert | None:
    """The last alerts, as the store would read them."""
    if not dues:
        return None
    last = dues[-1]
    highest = max(each.level for each in dues if each.episode_us == last.episode_us and each.kind != "all-clear")
    return EmittedAlert(last.episode_us, last.at_us, highest, last.kind == "all-clear")


def rows_of(dues: list[DueAlert]) -> list[Row]:
    return [(each.kind, each.level, bar_of(each.episode_us), bar_of(each.at_us)) for each in dues]


def step_by_step(levels: list[int], least: int, cool_down: int) -> list[Row]:
    """What is due if each bar is checked, computed with a memory of one episode."""
    found: list[Row] = []
    episode, highest, below = -1, 0, 0
    for bar, level in enumerate(levels):
        if level >= least:
            if episode < 0:
                episode, highest = bar, 0
            below = 0
            if level > highest:
                found.append(("escalated" if highest else "raised", level, episode, bar))
                highest = level
        elif episode >= 0:
            below += 1
            if below == cool_down:
                found.append(("all-clear", level, episode, bar))
                episode = -1
    return found


_levels = st.lists(st.sampled_from([0, 0, 1, 2, 2, 3]), min_size=1, max_size=40)


@given(levels=_levels, least=st.integers(1, 3), cool_down=st.integers(1, 4))
def test_each_episode_is_emitted_once_per_level_and_in_order(levels: list[int], least: int, cool_down: int) -> None:
    numbers, closed = np.array(levels, np.int8), closes(len(levels))
    dues: list[DueAlert] = []
    for bars in range(1, len(levels) + 1):
        for _ in range(2):  # a second check, or a new process, finds nothing more
            dues += decide(emitted_of(dues), closed[:bars], numbers[:bars], least, cool_down)
    assert rows_of(dues) == step_by_step(levels, least, cool_down)


@given(levels=_levels, least=st.integers(1, 3), cool_down=st.integers(1, 4), data=st.data())
def test_rare_checks_emit_what_stands_and_nothing_that_is_past(
    levels: list[int], least: int, cool_down: int, data: st.DataObject
) -> None:
    numbers, closed = np.array(levels, np.int8), closes(len(levels))
    looks = sorted(data.draw(st.sets(st.integers(1, len(levels)), min_size=1)))
    dues: list[DueAlert] = []
    for bars in looks:
        new = decide(emitted_of(dues), closed[:bars], numbers[:bars], least, cool_down)
        for each in new:
            assert each.kind == "all-clear" or bar_of(each.at_us) == bars - 1, "a rise is that of the last bar"
            assert each.level == levels[bar_of(each.at_us)]
        dues += new
        last = emitted_of(dues)
        stands = levels[bars - 1] >= least
        assert not stands or (last is not None and not last.over and last.highest >= levels[bars - 1])
    keys = [(each.episode_us, each.kind, each.level) for each in dues]
    assert len(set(keys)) == len(keys)
    assert [each.at_us for each in dues] == sorted(each.at_us for each in dues)
    for before, after in zip([None, *dues], dues, strict=False):
        begins = before is None or before.kind == "all-clear"
        assert (after.kind == "raised") == begins
        assert begins or after.episode_us == before.episode_us


def test_an_emitted_episode_goes_on_when_its_first_bars_are_corrected() -> None:
    last = EmittedAlert(NOON + 3 * HOUR_US, NOON + 3 * HOUR_US, 2, False)
    levels = np.array([0, 2, 2, 2, 2, 3], np.int8)  # it would begin earlier now
    assert rows_of(decide(last, closes(6), levels, LEAST, COOL_DOWN)) == [("escalated", 3, 3, 5)]
    assert decide(last, closes(3), levels[:3], LEAST, COOL_DOWN) == [], "no later bar: nothing is due"


# --- What is kept


def new_alert(bar: int = 0, kind: str = "raised", level: str = "warning", episode: int = 0) -> NewAlert:
    content = {"text": f"{kind} {level} at {bar}", "evidence": ["a rule"], "price": 1.5}
    return NewAlert(kind, level, NOON + episode * HOUR_US, NOON + bar * HOUR_US, content)


def fill(store: AlertStore, count: int) -> list[RiskAlert]:
    return store.emit("bitcoin", "1h", lambda emitted, outage: [new_alert(bar, episode=bar) for bar in range(count)])


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """Return what `work` gives in each of several threads that begin together."""
    with ThreadPoolExecutor(count, initializer=threading.Barrier(count).wait) as threads:
        return [each.result() for each in [threads.submit(work) for _ in range(count)]]


def test_processes_that_decide_at_once_store_an_alert_once(engine: Engine) -> None:
    stored = at_once(4, lambda: [fill(AlertStore(engine), count) for count in (1, 2, 3)])
    assert sum(len(each) for by_thread in stored for each in by_thread) == 3
    found = AlertStore(engine).last()
    assert [(each.episode_us, each.state) for each in found] == [(NOON + bar * HOUR_US, "pending") for bar in (2, 1, 0)]


def test_the_last_alerts_are_read_back_for_each_coin_and_frame(engine: Engine) -> None:
    clock, seen = StandingClock(NOON), []
    store = AlertStore(engine, clock)

    def emit(coin: str, frame: Any, *alerts: NewAlert) -> tuple[EmittedAlert | None, PriceOutage | None]:
        store.emit(coin, frame, lambda *before: (seen.append(before), alerts)[1])
        return seen[-1]

    assert emit("bitcoin", "1h", new_alert(2, episode=1)) == (None, None)
    assert emit("bitcoin", "4h", new_alert(0, "no-prices", "unknown")) == (None, None)
    raised = EmittedAlert(NOON + HOUR_US, NOON + 2 * HOUR_US, 2, False)
    assert emit("bitcoin", "1h", new_alert(5, "escalated", "alarm", 1)) == (raised, None)
    escalated = replace(raised, at_us=NOON + 5 * HOUR_US, highest=3)
    assert emit("bitcoin", "1h", new_alert(9, "all-clear", "watch", 1)) == (escalated, None)
    over = replace(escalated, at_us=NOON + 9 * HOUR_US, over=True)
    assert emit("bitcoin", "1h", new_alert(20, "no-prices", "unknown", 20)) == (over, None)
    assert emit("bitcoin", "1h")[1] == PriceOutage(NOON + 20 * HOUR_US, store.last(1)[0].made_us)
    assert emit("bitcoin", "4h") == (None, PriceOutage(NOON, NOON))
    assert emit("ethereum", "1h") == (None, None)
    assert [each.level for each in store.last(2, "bitcoin")] == [None, "watch"]


def test_the_oldest_alert_is_claimed_by_one_and_the_others_wait_behind_it(engine: Engine) -> None:
    clock = StandingClock(NOON)
    store = AlertStore(engine, clock, clock)
    first, second, _ = fill(store, 3)
    (claimed,) = [each for each in at_once(5, lambda: AlertStore(engine, clock, clock).claim(30.0)) if each]
    assert (claimed.id, claimed.attempts) == (first.id, 1)
    clock.us += 31 * SECOND_US  # the process that claimed it has died
    assert store.claim(30.0) == replace(claimed, attempts=2)
    store.postpone(first.id, "it hangs", 60.0)
    assert store.claim(30.0) is None
    clock.us += 61 * SECOND_US
    assert store.claim(30.0) is not None
    store.settle(first.id, "sent")
    store.settle(first.id, "failed", "too late")  # changes nothing
    following = store.claim(30.0)
    assert following is not None and following.id == second.id
    store.settle(second.id, "failed", "gone")
    expected = [("pending", None), ("failed", "gone"), ("sent", None)]
    assert [(each.state, each.last_error) for each in store.last()] == expected
    assert store.last(until_us=NOON - 1) == []
    clock.us += 365 * DAY_US  # a clock that was ahead has this alert claimed, and its process dies
    assert store.claim(60.0) is not None
    clock.us -= 365 * DAY_US
    assert store.claim(60.0) is not None and store.claim(60.0) is None


# --- What is sent


@dataclass
class Receiving:
    """A webhook server: its requests and its answers; the last answer repeats, and 0 means that it hangs."""

    answers: list[int]
    url: str = ""
    retry_after: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def webhook(self, **options: Any) -> Webhook:
        return Webhook(SecretStr(self.url), **{"timeout_s": 60.0, **options})


@contextmanager
def receiving(*answers: int) -> Iterator[Receiving]:
    """A real server on a socket of this host."""
    found = Receiving(list(answers))
    ends = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            status = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            if not status:
                ends.wait(20.0)
                return
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Location", found.url)
                if found.retry_after:
                    self.send_header("Retry-After", found.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/hooks/T0pSecret?key=5eCr3t"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield found
        finally:
            ends.set()
            server.shutdown()


class Outbox:
    """A store of two alerts, a clock, and their delivery."""

    def __init__(self, engine: Engine) -> None:
        self.clock = StandingClock(NOON)
        self.store = AlertStore(engine, self.clock, self.clock)
        fill(self.store, 2)

    def deliver(self, webhook: Webhook | None) -> Delivery:
        return Deliverer(self.store, webhook, self.clock).deliver()

    def error(self) -> str | None:
        """Why the first alert was not sent."""
        return self.store.last()[1].last_error


@pytest.fixture
def outbox(sqlite: Engine) -> Outbox:
    return Outbox(sqlite)


def test_an_alert_is_posted_signed_and_again_after_a_fault(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with receiving(500, 200) as server:
        deliverer = Deliverer(outbox.store, server.webhook(secret=SecretStr("shared")), outbox.clock)
        assert deliverer.deliver() == Delivery(waiting=2) == deliverer.deliver()
        outbox.clock.us += 16 * SECOND_US
        assert deliverer.deliver() == Delivery(sent=2)
        assert deliverer.deliver() == Delivery()
    assert [(each.state, each.attempts) for each in outbox.store.last()] == [("sent", 1), ("sent", 2)]
    first, again, second = server.bodies
    assert first == again != second
    sent = json.loads(first)
    assert (sent["coin"], sent["kind"], sent["level"], sent["price"]) == ("bitcoin", "raised", "warning", 1.5)
    assert sent["key"] == server.headers[0]["idempotency-key"] == server.headers[1]["idempotency-key"]
    for body, headers in zip(server.bodies, server.headers, strict=True):
        message = headers["x-qubic-lab-timestamp"].encode() + b"." + body
        right = hmac.new(b"shared", message, hashlib.sha256).hexdigest()
        assert headers["x-qubic-lab-signature"] == f"sha256={right}"
    logged = [message for message in caplog.messages if "risk: " in message]
    assert logged == ["risk: raised warning at 0", "risk: raised warning at 1"]
    assert "T0pSecret" not in caplog.text and "5eCr3t" not in caplog.text
    logging.getLogger("httpx2").debug("others' requests")
    assert "others' requests" in caplog.text


@pytest.mark.parametrize(
    ("answers", "late_us", "done", "posts", "error"),
    [
        ((0,), 0, Delivery(waiting=2), None, "gave no answer in 0.2 s"),
        ((503,), 0, Delivery(waiting=2), 1, "failed (HTTP 503)"),
        ((429,), 0, Delivery(waiting=2), 1, "failed (HTTP 429)"),
        ((), 0, Delivery(waiting=2), 0, "could not be reached, or broke off (ConnectError)"),
        ((410, 204), 0, Delivery(sent=1, failed=1), 2, "refused it (HTTP 410)"),
        ((302, 204), 0, Delivery(sent=1, failed=1), 2, "refused it (HTTP 302)"),
        ((500,), DAY_US + SECOND_US, Delivery(failed=2), 2, "failed (HTTP 500); given up after a day"),
    ],
)
def test_what_cannot_be_sent_waits_for_a_day_and_keeps_its_place_and_what_is_refused_is_given_up(
    outbox: Outbox,
    answers: tuple[int, ...],
    late_us: int,
    done: Delivery,
    posts: int | None,
    error: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox.clock.us += late_us
    with receiving(*answers) as server:
        if not answers:
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                server.url = f"http://127.0.0.1:{closed.getsockname()[1]}/T0pSecret"
        assert outbox.deliver(server.webhook() if all(answers) else server.webhook(timeout_s=0.2)) == done
    assert outbox.error() == error
    assert posts in (None, len(server.bodies)), "None: the time may be up before the post is sent"
    assert outbox.store.claim(1.0) is None, "the second one waits behind the first, or both are done"
    assert "T0pSecret" not in caplog.text + error


def test_a_receiver_that_asks_for_a_long_wait_gets_it(outbox: Outbox) -> None:
    with receiving(429) as server:
        server.retry_after = "3600"
        outbox.deliver(server.webhook())
    outbox.clock.us += 3_599 * SECOND_US
    assert outbox.store.claim(1.0) is None
    outbox.clock.us += 2 * SECOND_US
    assert outbox.store.claim(1.0) is not None


@pytest.mark.parametrize("address", [None, "http://{}/hooks/../T0p Secret|x?key=5eCr3t", "http://5eCr3t:T0pSecret@{}"])
def test_all_alerts_are_logged_and_no_log_has_the_address_in_the_way_that_libraries_write_it(
    outbox: Outbox, address: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with receiving(200) as server:
        server.url = (address or "").format(server.url.split("/")[2])
        assert outbox.deliver(server.webhook() if address else None) == Delivery(sent=2)
    assert [each.levelname for each in caplog.records if "risk: " in each.message] == ["WARNING"] * 2
    assert "T0p" not in caplog.text and "5eCr3t" not in caplog.text


def test_a_proxy_that_cannot_be_used_lets_alerts_wait(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "foo://user:5eCr3t@proxy.invalid")
    assert outbox.deliver(Webhook(SecretStr("https://hooks.invalid/T0pSecret"))).waiting == 2
    assert outbox.error() == "cannot be asked by way of the environment's proxy or certificates (ValueError)"


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Flaky:
    """A receiver whose sender sometimes dies before or after a delivery."""

    dies: Callable[[], str]
    got: list[str] = field(default_factory=list)
    timeout_s: float = 5.0

    def post(self, key: str, body: bytes) -> None:
        when = self.dies()
        if when != "before":
            self.got.append(key)
        if when != "no":
            raise Killed


@settings(max_examples=15)
@given(levels=st.lists(st.sampled_from([0, 2, 3]), min_size=1, max_size=12), data=st.data())
def test_with_deaths_at_any_point_each_is_stored_once_and_arrives_in_order(
    sqlite: Engine, levels: list[int], data: st.DataObject
) -> None:
    with sqlite.begin() as connection:
        connection.execute(delete(RISK_ALERTS))
    clock = StandingClock(NOON)
    store = AlertStore(sqlite, clock, clock)
    receiver = Flaky(lambda: data.draw(st.sampled_from(["no", "no", "before", "after"])))
    numbers, closed = np.array(levels, np.int8), closes(len(levels))

    def due(emitted: EmittedAlert | None, bars: int) -> list[NewAlert]:
        content = {"text": "", "evidence": []}
        return [
            NewAlert(each.kind, LEVELS[each.level], each.episode_us, each.at_us, content)
            for each in decide(emitted, closed[:bars], numbers[:bars], LEAST, COOL_DOWN)
        ]

    for bars in range(1, len(levels) + 1):
        clock.us = int(closed[bars - 1])
        store.emit("bitcoin", "1h", lambda emitted, outage, bars=bars: due(emitted, bars))
        if data.draw(st.booleans()):
            continue  # dies between storing and sending
        with suppress(Killed):
            Deliverer(store, receiver, clock).deliver()
    while any(each.state == "pending" for each in store.last()):
        clock.us += 11 * SECOND_US
        with suppress(Killed):
            Deliverer(store, receiver, clock).deliver()
    stored = store.last()[::-1]
    found = [(each.kind, LEVELS.index(each.level), bar_of(each.episode_us), bar_of(each.at_us)) for each in stored]
    assert found == step_by_step(levels, LEAST, COOL_DOWN)
    assert list(dict.fromkeys(receiver.got)) == [each.key for each in stored], "all arrive, first times in order"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://hooks.example.org/T0pSecret", "in clear text: give https"),
        ("hooks.example.org/T0pSecret", "is no address"),
        ("ftp://hooks.example.org/T0pSecret", "is no address"),
        ("https://:1/T0pSecret", "is no address"),
    ],
)
def test_a_webhook_is_optional_and_its_address_is_checked_and_not_shown(
    url: str, message: str, set_settings: Callable[..., None]
) -> None:
    set_settings(alert_webhook=url)
    with pytest.raises(InputError, match=message) as raised:
        webhook_from_settings()
    set_settings(alert_webhook="https://hooks.example.org/T0pSecret")
    assert "T0pSecret" not in str(raised.value) + repr(webhook_from_settings())
    set_settings(alert_webhook=None)
    assert webhook_from_settings() is None


# --- What is watched

SERIES = Series("bitcoin", "exchange", 3_600)
FALL = RiskRule("fall", "drawdown_in_deviations", 1.0, 1.5, 2.8, {"bars": 4, "usual_bars": 24}, 0.8, 1)
WATCHED = OracleConfig(coins=("bitcoin", "ethereum"), risk=RiskConfig(rules=(FALL,), cool_down=2))
CALM = [100.0 + 0.2 * (bar % 2) for bar in range(40)]


class WatchedMarket:
    """A database of hourly closes, which end at `NOON` plus their index in hours, and a clock."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.clock = engine, StandingClock(NOON)
        self.prices = PriceStore(engine, self.clock)

    def add(self, closes_of: list[float], first: int = 0, now: int | None = None) -> None:
        """Add bars, and move the clock to a minute after the close of bar `now`."""
        if now is not None:
            self.move_to(now)
        ends = [NOON + (first + bar) * HOUR_US for bar in range(len(closes_of))]
        bars = [Price(end - HOUR_US, end, *[close] * 4) for end, close in zip(ends, closes_of, strict=True)]
        self.prices.add(SERIES, bars)

    def move_to(self, bar: int) -> None:
        self.clock.us = NOON + bar * HOUR_US + 60 * SECOND_US

    def watch(self, webhook: Webhook | None = None, **risk: Any) -> AlertWatch:
        return AlertWatch(self.engine, replace(WATCHED, risk=replace(WATCHED.risk, **risk)), webhook, self.clock)


@pytest.fixture
def market(sqlite: Engine) -> WatchedMarket:
    return WatchedMarket(sqlite)


def test_a_fall_and_its_end_are_emitted_once_whoever_looks(market: WatchedMarket) -> None:
    course = [*CALM, 99.0, 97.0, *[97.0] * 7]
    emitted: list[RiskAlert] = []
    for first, last in ((0, 40), *((bar, bar + 1) for bar in range(40, len(course)))):
        market.add(course[first:last], first, now=last - 1)
        for _ in range(2):  # each time a new process
            found = market.watch().check()
            emitted += found.emitted
            assert set(found.levels) == {"bitcoin"} and "no price of ethereum" in found.unknown["ethereum"]
    expected = [("raised", "warning"), ("escalated", "alarm"), ("all-clear", "calm")]
    assert [(each.kind, each.level) for each in emitted] == expected
    raised = emitted[0]
    assert {raised.at_us, *(each.episode_us for each in emitted)} == {NOON + 40 * HOUR_US}
    assert raised.price == 99.0 and raised.evidence[0].startswith("fall: 1.91 deviations (warning from ")
    assert raised.text.startswith("Bitcoin: risk rose to warning, by bars of 1h up to ")


def test_old_bars_are_no_news_but_missing_fresh_ones_are_at_most_once_a_day(market: WatchedMarket) -> None:
    market.add([*CALM, 95.0], now=60)
    watch = market.watch()
    (outage,) = watch.check().emitted
    assert (outage.kind, outage.level, outage.at_us) == ("no-prices", None, NOON + 40 * HOUR_US)
    assert "no fresh prices, so its risk is not known" in outage.text
    assert watch.check().emitted == [] == market.watch().check().emitted
    market.add([95.0] * 21, 41, now=61)
    assert watch.check().levels == {"bitcoin": "calm"}
    market.move_to(80)
    assert watch.check().emitted == [], "less than a day has passed"
    market.move_to(85)
    assert market.watch(no_prices=False).check().emitted == []
    (again,) = watch.check().emitted
    assert (again.kind, again.at_us) == ("no-prices", NOON + 61 * HOUR_US)
    assert watch.check().emitted == [] == market.watch().check().emitted
    market.move_to(61)  # a clock that goes back finds the same bar fresh
    assert watch.check().levels == {"bitcoin": "calm"}


def test_an_episode_that_is_seen_late_in_a_corrected_bar_does_not_date_its_level_back(market: WatchedMarket) -> None:
    watch = market.watch()
    market.add([*CALM, 100.0, 100.0], now=41)
    assert watch.check().levels == {"bitcoin": "calm"}
    market.add([99.0, 97.0], 40)
    (alert,) = watch.check().emitted
    assert watch.check().emitted == []
    assert (alert.level, alert.episode_us, alert.at_us) == ("alarm", NOON + 40 * HOUR_US, NOON + 41 * HOUR_US)
    since = f"in an episode of warning or more since {iso(alert.episode_us)}"
    assert f"Bitcoin: risk is at alarm, {since}, by bars of 1h up to {iso(alert.at_us)}, at 97 usd" in alert.text


def test_a_measure_that_fails_is_logged(
    market: WatchedMarket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InputError("bars is 10: it must be at least 100")

    market.add(CALM, now=39)
    monkeypatch.setattr("qubic_lab.oracle.alerts.watch.assess", fail)
    found = market.watch().check()
    assert found.unknown["bitcoin"] == "bars is 10: it must be at least 100" and "ethereum" in found.unknown
    assert caplog.messages == ["risk of bitcoin is not watched now: bars is 10: it must be at least 100"]


def test_a_watch_beside_other_work_checks_once_more_at_its_end(market: WatchedMarket) -> None:
    with receiving(200) as server, market.watch(server.webhook()).running() as watch:
        market.add([*CALM, 95.0], now=40)
    assert watch.emitted == 1
    assert [json.loads(body)["level"] for body in server.bodies] == ["warning"]
    (stored,) = AlertStore(market.engine).last()
    assert stored.state == "sent" and payload(stored) == server.bodies[0]


RULES = "rules: [{name: fall, measure: drawdown_in_deviations, watch: 1, warning: 2, alarm: 3}]"


def read_risk(folder: Path, text: str) -> RiskConfig:
    """Read settings of risk beside which two files of rules lie, one of them wrong."""
    for name, content in (("own", RULES), ("wrong", RULES.replace("watch: 1", "watch: 4")), ("collect", text)):
        (folder / f"{name}.yaml").write_text(content)
    return read_config(folder / "collect.yaml").risk


def test_settings_of_risk_are_read(tmp_path: Path) -> None:
    text = "risk: {rules: own.yaml, coins: [BTC, btc], frame: 4h, level: watch, cool_down: 3, no_prices: false}"
    found = read_risk(tmp_path, text)
    assert found.rules is not None and [each.name for each in found.rules] == ["fall"]
    expected = RiskConfig(coins=("bitcoin",), frame="4h", level="watch", cool_down=3, no_prices=False)
    assert replace(found, rules=None) == expected
    assert read_risk(tmp_path, "risk: {}") == RiskConfig() == read_risk(tmp_path, "coins: [BTC]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("risk: {rule: own.yaml}", "risk: unknown name 'rule': did you mean 'rules'"),
        ("risk: {rules: wrong.yaml}", r"wrong\.yaml: rules: 'fall': watch 4, warning 2"),
        ("risk: {level: calm}", "risk: unknown level 'calm'"),
        ("risk: {cool_down: 0}", "risk: cool_down is 0"),
        ("risk: {coins: [bitcoyn]}", "bitcoyn"),
    ],
)
def test_wrong_settings_of_risk_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_risk(tmp_path, text)
    assert "\n" not in str(raised.value)
