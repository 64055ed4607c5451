"""The collector: what is due when, one at a time; against the fake source nothing lost or twice, and no rule broken.

`pytest -m slow` on this file is the whole acceptance: 2,000 answers with every fault, a SIGKILL and a SIGTERM.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from clocks import StandingClock
from fake_source import coingecko
from fake_source.app import FakeConfig
from fake_source.comparison import longest_gap_s, lost, made_up, stored_versions, twice
from fake_source.faults import TRANSPORT
from fake_source.ledger import read_ledger
from fake_source.reply import KEYS
from fake_source.server import FakeServer, collector_settings, running_source
from forked_python import PYTHON
from sqlalchemy import Engine, event, text

from qubic_lab.database import open_database
from qubic_lab.errors import BusyError, FencedError, InputError
from qubic_lab.oracle.config import read_config
from qubic_lab.oracle.ingest import collector_state
from qubic_lab.oracle.ingest.collector import Collector, CollectorProgress
from qubic_lab.oracle.ingest.collector_config import (
    CollectorConfig,
    SourceConfig,
    choose_sources,
    plan_jobs,
    usable_sources,
)
from qubic_lab.oracle.ingest.collector_state import (
    COLLECTOR,
    FIRST_RETRY_S,
    OVERLAP_US,
    SLICE_US,
    TEXTS_SLICE_US,
    CollectorStatus,
    Lease,
    has_ended,
    next_due_us,
    next_slice,
    process_name,
    read_jobs,
    read_status,
    retry_due_us,
    runs_out_us,
    save_job,
    search_range,
    slices_left,
)
from qubic_lab.oracle.ingest.http_rules import QuotaState
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, REAL, SECOND_US, Clock, now_us
from qubic_lab.oracle.store.fetch_log import Fetch, FetchLog
from qubic_lab.oracle.store.price_store import PriceStore

NOW = 1_790_000_000 * SECOND_US
PERIOD = 300 * SECOND_US


@pytest.fixture
def lab(engine: Engine, tmp_path: Path, set_settings: Callable[..., None]) -> Engine:
    """A database with empty tables on which a collector works, with the keys of the fake source."""
    set_settings(data=tmp_path, **{f"{name}_key": key for name, key in KEYS.items()})
    return engine


on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


# decisions


def clients(config: CollectorConfig) -> dict[str, SourceConfig]:
    """All sources, as if there were keys."""
    every = {name: replace(source, key_needed=False) for name, source in config.sources.items()}
    return usable_sources(replace(config, sources=every))[0]


def test_jobs_follow_the_order_of_sources_and_each_has_its_own_period() -> None:
    config = CollectorConfig()
    jobs = {job.name: job for job in plan_jobs(config, clients(config))}
    assert list(jobs)[:3] == ["prices", "history", "bars"]
    assert (jobs["prices"].period_s, jobs["newsapi"].period_s, jobs["history"].period_s) == (300.0, 3600.0, 0.0)
    assert {"hacker-news", "coindesk"} <= set(jobs)
    without = replace(config, order={**config.order, "news": ("feeds",)}, backfill_days=0)
    assert {"newsapi", "history"}.isdisjoint(job.name for job in plan_jobs(without, clients(without)))
    with pytest.raises(InputError, match="no source can be asked"):
        plan_jobs(config, {})


def test_sources_are_chosen_by_name_and_feeds_all_together() -> None:
    config = CollectorConfig()
    every = clients(config)
    assert choose_sources(every, config, ()) == every
    feeds = {feed.name for feed in config.feeds}
    assert set(choose_sources(every, config, ("coingecko", "feeds"))) == {"coingecko", *feeds}
    assert choose_sources({"coingecko": every["coingecko"]}, config, ("feeds",)) == {}
    with pytest.raises(InputError, match=r"'coingeko'.*did you mean 'coingecko'"):
        choose_sources(every, config, ("coingeko",))


def test_a_late_job_keeps_its_rhythm_and_retries_wait_longer_each_time_but_no_longer_than_the_period() -> None:
    for late_us, next_us in ((0, PERIOD), (PERIOD // 2, PERIOD), (PERIOD, 2 * PERIOD), (100 * PERIOD, 101 * PERIOD)):
        assert next_due_us(NOW, NOW + late_us, 300.0) == NOW + next_us, "it does not catch up"
    waits = [(retry_due_us(NOW, failures, 300.0, None) - NOW) / SECOND_US for failures in (1, 2, 3, 9, 5_000)]
    assert waits == [FIRST_RETRY_S, 30.0, 60.0, 300.0, 300.0]
    assert retry_due_us(NOW, 1, 300.0, 7_200.0) == NOW + 2 * HOUR_US
    assert retry_due_us(NOW, 1, 0.0, None) == NOW + int(FIRST_RETRY_S * SECOND_US)


def test_history_goes_forward_in_slices_without_holes_the_coin_furthest_behind_first() -> None:
    position: dict[str, Any] = {"until_us": {"bitcoin": NOW - 100 * DAY_US}, "left": ["bitcoin", "solana"]}
    slices = []
    while (slice := next_slice(position, NOW, 365)) is not None:
        slices.append(slice)
        coin, _, end_us = slice
        assert slices_left(position, NOW, 365) > 0
        position["until_us"][coin] = end_us
        position["left"] = [each for each in position["left"] if each != coin or end_us < NOW]
    for coin, first_us in (("bitcoin", NOW - 100 * DAY_US), ("solana", NOW - 365 * DAY_US + HOUR_US)):
        own = [(start_us, end_us) for of, start_us, end_us in slices if of == coin]
        assert (own[0][0], own[-1][1]) == (first_us, NOW)
        assert [start_us for start_us, _ in own[1:]] == [end_us for _, end_us in own[:-1]]
        assert all(end_us - start_us <= SLICE_US for start_us, end_us in own)
    assert slices[0][0] == "solana"
    assert slices_left(position, NOW, 365) == 0
    old = next_slice({"until_us": {"bitcoin": NOW - 900 * DAY_US}, "left": ["bitcoin"]}, NOW, 30)
    assert old is not None and old[1] == NOW - 30 * DAY_US + HOUR_US, "older than the backfill"


def test_searches_overlap_the_last_one_and_a_long_one_has_parts() -> None:
    assert search_range(None, NOW, DAY_US) == (NOW - DAY_US, NOW)
    assert search_range(NOW - DAY_US, NOW, DAY_US) == (NOW - DAY_US - OVERLAP_US, NOW)
    assert search_range(NOW, NOW - DAY_US, DAY_US)[1] == NOW - DAY_US, "a clock that was set back"
    year = NOW - 365 * DAY_US
    assert search_range(None, NOW, 365 * DAY_US) == (year, year + TEXTS_SLICE_US)


def test_a_quota_runs_out_as_its_use_so_far_says() -> None:
    use = QuotaState("newsapi", "day", 0, DAY_US, 50, 100)
    assert runs_out_us(use, DAY_US // 4) == DAY_US // 2
    assert runs_out_us(use, DAY_US // 2) is None
    assert runs_out_us(replace(use, used=100), DAY_US // 2) == DAY_US // 2
    assert runs_out_us(replace(use, used=0), DAY_US // 2) is None
    assert runs_out_us(replace(use, limit=None), DAY_US // 2) is None


def test_a_trials_clock_is_the_same_in_every_process_and_only_faster() -> None:
    clock = Clock(NOW, 1_000.0)
    assert clock.at(NOW) == NOW
    assert clock.at(NOW + SECOND_US) == NOW + 1_000 * SECOND_US
    assert clock.real_s(300.0) == 0.3
    assert Clock().at(NOW + 1) == NOW + 1
    with pytest.raises(InputError, match=r"speed is 0\.5"):
        Clock(NOW, 0.5)


# leases and jobs


def test_one_holds_the_lease_until_it_is_given_up_or_taken_from_one_that_was_too_slow(engine: Engine) -> None:
    clock = StandingClock(NOW)
    first, second = (Lease(engine, "x", holder, 30.0, clock) for holder in ("first", "second"))
    assert first.acquire() is None
    held = second.acquire()
    assert held is not None
    assert (held.holder, held.until_us) == ("first", NOW + 30 * SECOND_US)
    assert Lease(engine, "y", "second", 30.0, clock).acquire() is None
    clock.us += 20 * SECOND_US
    first.renew()
    clock.us += 20 * SECOND_US
    assert second.acquire() is not None
    assert first.lasts()
    first.release()
    assert not first.lasts()
    assert second.acquire() is None
    clock.us += 31 * SECOND_US
    assert not second.lasts()
    second.renew()  # late, but nobody else has taken it
    clock.us += 31 * SECOND_US
    assert first.acquire() is None
    with pytest.raises(FencedError, match="lost to first"):
        second.renew()
    second.release()  # is not its to give up
    assert first.lasts()
    first.renew()


def test_of_many_that_take_a_free_lease_at_once_one_gets_it(engine: Engine) -> None:
    async def race() -> list[object]:
        leases = [Lease(engine, "x", f"holder {number}") for number in range(8)]
        return await asyncio.gather(*(asyncio.to_thread(lease.acquire) for lease in leases))

    assert sum(held is None for held in asyncio.run(race())) == 1


def test_the_lease_of_a_process_that_was_killed_is_free_at_once(engine: Engine) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        dead = process_name(process.pid)
        assert not has_ended(dead)
        process.kill()
    assert has_ended(dead)
    assert not has_ended(process_name())
    assert not has_ended("another-host:1:2:3.00")
    assert Lease(engine, "x", dead).acquire() is None
    assert Lease(engine, "x").acquire() is None


# in this process, against the fake source


@contextmanager
def trial(clock: Clock = REAL, **changes: Any) -> Iterator[tuple[FakeServer, CollectorConfig]]:
    """A fake source, and settings that point a collector at it, with changes to its sources."""
    with running_source(FakeConfig(clock=clock)) as source:
        content = collector_settings(FakeConfig(clock=clock), source.url)
        for each in content["sources"].values():
            each |= {"timeout_s": 60.0, "attempts": 6, **changes}
        file = Path(os.environ["QUBIC_LAB_DATA"]) / "collector.yaml"
        file.write_text(yaml.safe_dump(content | {"coins": ["bitcoin", "qubic-network"], "backfill_days": 2}))
        yield source, read_config(file)


def collect(engine: Engine, config: CollectorConfig, *sources: str, **run: Any) -> CollectorProgress:
    return asyncio.run(Collector(config, engine, sources=sources).run(**run))


def collect_until(engine: Engine, config: CollectorConfig, holds: Callable[[], bool]) -> CollectorProgress:
    """Let a collector run until something is true."""

    async def run() -> CollectorProgress:
        collector = Collector(config, engine)
        running = asyncio.create_task(collector.run())
        while not holds() and not running.done():
            await asyncio.sleep(0.02)
        collector.stop()
        return await running

    return asyncio.run(run())


def test_one_run_stores_all_that_it_is_given_and_the_next_asks_for_nothing_before_it_is_due(
    lab: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_state, "TEXTS_SLICE_US", DAY_US)  # posts of two days are searched in parts
    with trial() as (source, config):
        first = collect(lab, config, once=True)
        asked = len(source.ledger.entries)
        second = collect(lab, config, once=True)
        assert len(source.ledger.entries) == asked
    entries, violations = source.ledger.entries, source.ledger.violations
    versions = stored_versions(lab)
    assert (lost(entries, versions), twice(versions), made_up(entries, versions), violations) == ([], [], [], [])
    assert first.failed == 0 and first.added == sum(map(len, versions.values())) > 300
    assert (second.requests, second.added) == (0, 0)
    assert sum(entry.source == "hacker-news" for entry in entries) > len(config.coins)
    status = read_status(lab, config, now_us(), now_us())
    assert status.collector is None and {job.job for job in status.jobs if job.done} == {"history"}
    assert all(fetch.outcome == "ok" for fetch in FetchLog(lab).recent(limit=200))
    with lab.begin() as connection:  # the comparison itself finds what is missing
        connection.execute(text("DELETE FROM market_data WHERE closed_us = (SELECT min(closed_us) FROM market_data)"))
    assert {given.kind for _, given in lost(entries, stored_versions(lab))} == {"price"}


@on_sqlite
def test_of_a_long_answer_the_first_items_are_stored_and_it_is_told(lab: Engine) -> None:
    with trial(most_items=3) as (_, config):
        assert collect(lab, config, "fake-rss", once=True).added == 3
    [fetch] = FetchLog(lab).recent(limit=5)
    assert fetch.outcome == "ok" and "more than most_items, 3: the others are left out" in str(fetch.error)


@on_sqlite
def test_a_collector_waits_while_the_disk_is_full_and_then_goes_on(
    lab: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qubic_lab.oracle.ingest.collector.FULL_RETRY_S", 0.05)
    pages = [int(lab.connect().exec_driver_sql("PRAGMA page_count").scalar_one())]
    event.listen(lab, "checkout", lambda sqlite, *_: sqlite.execute(f"PRAGMA max_page_count = {pages[0]}"))

    async def run() -> CollectorProgress:
        collector = Collector(config, lab, sources=("fake-rss",))
        running = asyncio.create_task(collector.run())
        while "disk of the database is full: free space" not in collector.progress.troubles.get("fake-rss", ""):
            assert not running.done()
            await asyncio.sleep(0.02)
        pages[0] = 2**30
        while not (collector.progress.added or running.done()):
            await asyncio.sleep(0.02)
        collector.stop()
        return await running

    with trial() as (_, config):
        assert asyncio.run(run()).added > 3


@on_sqlite
@pytest.mark.parametrize("job", ["prices", "history", "bars", "newsapi", "hacker-news", "fake-rss"])
def test_an_answer_that_was_not_stored_is_asked_for_again(
    lab: Engine, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_name = "coingecko" if job in ("prices", "history", "bars") else job
    record = FetchLog.record

    def record_or_die(self: FetchLog, fetch: Fetch) -> int:
        if fetch.job == job:
            raise RuntimeError("the process was killed")
        return record(self, fetch)

    with trial() as (source, config):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(FetchLog, "record", record_or_die)
            collect(lab, config, source_name, once=True)
        asked = len(source.ledger.entries)
        collect(lab, config, source_name, once=True)
    entries, versions = source.ledger.entries, stored_versions(lab)
    assert len(entries) > asked > 0
    assert (lost(entries, versions), twice(versions)) == ([], [])


@on_sqlite
def test_what_was_missed_is_filled_from_the_history(lab: Engine) -> None:
    with trial() as (_, config):
        collect(lab, config, once=True)
        before = stored_versions(lab)
    with trial(Clock(now_us() - 100 * SECOND_US, 100.0)) as (source, config):  # 2.75 hours later
        collect(lab, config, once=True)
    assert sum("market_chart/range" in entry.path for entry in source.ledger.entries) == 2
    after = stored_versions(lab)
    for coin in ("bitcoin", "qubic-network"):
        assert sum(key[2] == coin for key in after) > sum(key[2] == coin for key in before) + 20
        assert longest_gap_s(after, coin) <= 3_600 + 300  # the two days before have one quote an hour


@on_sqlite
def test_a_source_that_refuses_is_left_for_later_and_the_next_in_order_is_asked_at_once(
    lab: Engine, set_settings: Callable[..., None]
) -> None:
    with trial() as (source, config):
        collect(lab, config, once=True)
        save_job(lab, replace(read_jobs(lab)["newsapi"], due_us=0))
        set_settings(newsapi_key="wrong-key")
        asked = len(source.ledger.entries)

        def after() -> list[str]:
            return [entry.source for entry in source.ledger.entries[asked:]]

        progress = collect_until(lab, config, lambda: {"fake-rss", "fake-atom"} <= set(after()))
    assert after()[0] == "newsapi" and "hacker-news" not in after()
    assert set(progress.troubles) == {"newsapi"}
    state = read_jobs(lab)["newsapi"]
    assert (state.failures, state.due_us > now_us()) == (1, True)
    failed = FetchLog(lab).recent("newsapi", 1)[0]
    assert (failed.outcome, failed.status) == ("failed", 401)
    assert "wrong-key" not in f"{failed} {progress}"


@on_sqlite
def test_only_one_collector_works_at_a_time(lab: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.oracle.ingest.collector.LOOK_S", 0.05)
    lease = Lease(lab, COLLECTOR, "another:1:77:0")
    assert lease.acquire() is None

    async def wait(config: CollectorConfig) -> None:
        waiting = asyncio.create_task(Collector(config, lab).run(wait=True, once=True))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        lease.release()
        await waiting

    with trial() as (source, config):
        with pytest.raises(BusyError, match=r"process 77 on another, .*--wait"):
            collect(lab, config)
        assert source.ledger.entries == []
        asyncio.run(wait(config))
        assert source.ledger.entries != []
    held = lease.held()
    assert held is not None and (held.holder, held.until_us) == (process_name(), 0)


@on_sqlite
def test_a_coin_that_the_source_does_not_know_keeps_no_other_one_waiting(
    lab: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coingecko, "COINS", {"bitcoin": COINS["bitcoin"]})
    with trial() as (_, config):
        progress = collect(lab, replace(config, coins=("qubic-network", "bitcoin")), once=True)
    jobs = read_jobs(lab)
    assert jobs["history"].done and jobs["bars"].due_us > now_us()
    assert longest_gap_s(stored_versions(lab), "bitcoin") > 0
    assert progress.failed == 2
    refused = [fetch for fetch in FetchLog(lab).recent("coingecko", 50) if fetch.outcome == "failed"]
    assert all("coins/qubic-network/" in fetch.request and fetch.status == 404 for fetch in refused)
    assert {fetch.job for fetch in refused} == {"history", "bars"}


@on_sqlite
def test_packaged_prices_replace_a_history_that_cannot_be_had_once(
    lab: Engine, set_settings: Callable[..., None]
) -> None:
    def sources() -> set[str]:
        return {series.source for series in PriceStore(lab).series()}

    with trial() as (_, config):
        set_settings(coingecko_key="wrong-key")
        collect(lab, config, once=True)
        assert sources() == {"packaged"}
        state = read_jobs(lab)["history"]
        assert (state.failures, state.done, state.position["packaged"]) == (1, False, True)
        set_settings(coingecko_key=KEYS["coingecko"])
        save_job(lab, replace(state, due_us=0))
        progress = collect(lab, config, once=True)
    assert progress.slices_done == 2
    assert sources() == {"coingecko", "packaged"}


@on_sqlite
def test_a_running_collector_reports_its_process_and_the_circuits_of_its_sources(lab: Engine) -> None:
    async def look(config: CollectorConfig) -> CollectorStatus:
        collector = Collector(config, lab, sources=("feeds",), lease_s=6.0)
        task = asyncio.create_task(collector.run())
        while not (status := read_status(lab, config, now_us(), now_us())).circuits:
            assert not task.done()
            await asyncio.sleep(0.05)
        collector.stop()
        await task
        return status

    with trial() as (_, config):
        status = asyncio.run(asyncio.wait_for(look(config), 60))
    assert status.collector is not None and status.collector.holder == process_name()
    assert status.circuits == {"fake-rss": "closed", "fake-atom": "closed"}


@on_sqlite
def test_backfill_leaves_the_quota_to_polling(lab: Engine) -> None:
    with trial(monthly_quota=12) as (source, config):
        progress = collect(lab, config, once=True)
    paths = [entry.path for entry in source.ledger.entries if entry.source == "coingecko"]
    assert any("simple/price" in path for path in paths)
    assert not any("market_chart" in path for path in paths)
    assert progress.slices_done == 0 and not read_jobs(lab)["history"].done


# processes: what a user starts, with every fault on


@contextmanager
def source_process(folder: Path, *options: str, backfill_days: int) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield what a fake source with every fault prints, and its ledger; it ends afterwards by SIGTERM."""
    ledger, config = folder / "ledger.jsonl", folder / "collector.yaml"
    process = subprocess.Popen(
        [PYTHON, "-m", "fake_source", "--faults", "all", "--folder", folder, *options],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        content = yaml.safe_load(config.read_text())
        for source in content["sources"].values():
            source |= {"timeout_s": 1.0, "attempts": 6, "monthly_quota": None}
        config.write_text(yaml.safe_dump(content | {"backfill_days": backfill_days}))
        yield printed, ledger
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finally:
        process.kill()
        process.wait()


IN_FLIGHT_S = 2.0
"""The source may still answer a request of a killed collector; the next one is started after this time."""


class Collecting:
    """Collector processes, one after the other, on one database; all that they write is kept."""

    def __init__(self, folder: Path, printed: Mapping[str, Any], ledger: Path) -> None:
        self.url = f"sqlite:///{folder / 'lab.db'}"
        self.killed_s: list[float] = []
        self._folder, self._ledger = folder, ledger
        self._environment = os.environ | printed["environment"] | {"QUBIC_LAB_DATABASE_URL": self.url}
        self._command = [PYTHON, "-m", "qubic_lab.cli.main", "--verbose", "oracle", "collect", "--json"]
        self._command += ["--config", printed["config"]]

    def until(self, answers: int, how: signal.Signals) -> None:
        """Run a collector until the fake source has given this many answers in all, and end it."""
        output = self._folder / f"output-{answers}.txt"
        with output.open("w") as written:
            process = subprocess.Popen(self._command, env=self._environment, stdout=written, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and self._ledger.read_bytes().count(b"\n") < answers:
                time.sleep(0.02)
            assert process.poll() is None, output.read_text()[-2_000:]
            process.send_signal(how)
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        if how == signal.SIGKILL:
            time.sleep(IN_FLIGHT_S)
            self.killed_s.append(time.time())
        else:
            assert process.returncode == 0, output.read_text()[-2_000:]
            assert json.loads(output.read_text().splitlines()[-1])["requests"] > 0


@pytest.mark.parametrize(
    ("options", "backfill_days", "ends"),
    [
        # This seed has each fault in the first 70 answers.
        ("--speed 3000 --seed 278 --limit 12", 5, {30: signal.SIGKILL, 75: signal.SIGTERM}),
        pytest.param(
            "--speed 6000 --seed 11 --limit 50",
            30,
            {600: signal.SIGKILL, 1_200: signal.SIGTERM, 1_300: signal.SIGKILL, 2_000: signal.SIGTERM},
            marks=[pytest.mark.slow, pytest.mark.timeout(600)],
        ),
    ],
)
def test_a_killed_collector_goes_on_and_the_database_has_what_the_ledger_says(
    tmp_path: Path, options: str, backfill_days: int, ends: dict[int, signal.Signals]
) -> None:
    with source_process(tmp_path, *options.split(), backfill_days=backfill_days) as (printed, ledger):
        collecting = Collecting(tmp_path, printed, ledger)
        for answers, how in ends.items():
            collecting.until(answers, how)
    entries, violations = read_ledger(ledger)
    engine = open_database(collecting.url)
    versions = stored_versions(engine)
    engine.dispose()
    missing = [(entry.number, entry.path, given) for entry, given in lost(entries, versions, collecting.killed_s)]
    assert (missing[:5], twice(versions)[:5], made_up(entries, versions)[:5], violations) == ([], [], [], [])
    assert len(versions) > 500 and len(entries) >= max(ends)
    assert {entry.fault for entry in entries if entry.fault} == set(TRANSPORT)
    written = [file for file in tmp_path.iterdir() if file.is_file()]
    assert {"lab.db", f"output-{max(ends)}.txt"} <= {file.name for file in written}
    keys = [value.encode() for name, value in printed["environment"].items() if name.endswith("_KEY")]
    assert not any(key in file.read_bytes() for file in written for key in keys)
