"""The oracle's cache: one computation for all processes, stale values meanwhile, and what happens without Redis."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from clocks import StandingClock

from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.errors import NotFoundError, QubicLabError
from qubic_lab.oracle.model import timestamps
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.serving import cache as cache_module
from qubic_lab.oracle.serving.cache import Cache, CacheConfig, Cached, Outcome, code_version

ANEW = CacheConfig(near_s=1e-9, lock_s=60.0, wait_s=60.0, away_s=0.2)
"""Asks Redis each time."""
SHORT = replace(ANEW, lock_s=3.0)
"""Finds soon that a holder has died."""
PROCESSES, REQUESTS = 4, 50
Caches = Callable[..., list[Cache]]
pytestmark = pytest.mark.anyio
_spawn = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with connect(server.url) as connection:
        connection.flushall()
        connection.config_resetstat()
        yield connection


@dataclass
class Work:
    """A computation that counts its runs; `opens` lets it end, `error` is what it ends with."""

    error: Exception | None = None
    runs: int = 0
    began: threading.Event = field(default_factory=threading.Event)
    opens: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> bytes:
        self.runs += 1
        self.began.set()
        assert self.opens.wait(60.0)
        if self.error is not None:
            raise self.error
        return b'{"run": %d}' % self.runs

    @classmethod
    def at_once(cls, error: Exception | None = None) -> "Work":
        work = cls(error)
        work.opens.set()
        return work


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not holds():
            await asyncio.sleep(0.005)


def calls_of_scripts(client: redis.Redis) -> int:
    found: dict[str, Any] = client.info("commandstats")
    return int(found.get("cmdstat_evalsha", {"calls": 0})["calls"])


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(1_000 * SECOND_US)


@pytest.fixture
async def caches(client: redis.Redis, clock: StandingClock) -> AsyncIterator[Caches]:
    """Return a builder of caches that share Redis and a clock, as those of several processes do."""
    made: list[Cache] = []

    def make(count: int, config: CacheConfig = ANEW, code: str = "v1") -> list[Cache]:
        new = [Cache(client, code, config, clock) for _ in range(count)]
        made.extend(new)
        return new

    yield make
    for each in made:
        await each.close()


async def fresh(cache: Cache, work: Work, version: int = 0) -> Cached:
    """Ask until the answer is no longer stale."""
    async with asyncio.timeout(60.0):
        while (found := await cache.get("price", ("x",), work, version=version)).outcome == "stale":
            await asyncio.sleep(0.005)
    return found


async def test_a_value_is_computed_once_and_then_served_as_it_is(caches: Caches, clock: StandingClock) -> None:
    here, there = caches(2)
    work = Work.at_once()
    first = await here.get("price", ("bitcoin", "1h"), work)
    assert (first.body, first.age_s, first.fresh_for_s, first.outcome) == (b'{"run": 1}', 0.0, 300.0, "miss")
    clock.us += 299 * SECOND_US
    again = await there.get("price", ("bitcoin", "1h"), work)
    assert (again.body, again.age_s, again.fresh_for_s, again.outcome) == (b'{"run": 1}', 299.0, 1.0, "hit")
    assert (await there.get("news", ("bitcoin", "1h"), work)).outcome == "miss"


@pytest.mark.parametrize(("kind", "fresh_s"), [("sentiment", 600), ("price", 300), ("news", 1_800)])
async def test_each_kind_is_fresh_then_stale_then_too_old(
    caches: Caches, clock: StandingClock, kind: Any, fresh_s: int
) -> None:
    [one] = caches(1)
    for _ in range(2):
        found = await one.get(kind, ("x",), Work.at_once())
        assert (found.outcome, found.age_s) == ("miss", 0.0)
        clock.us += (fresh_s + 3_600) * SECOND_US  # too old to be served while it is computed again
    await one.get(kind, ("x",), Work.at_once())
    clock.us += fresh_s * SECOND_US - 1
    assert (await one.get(kind, ("x",), Work.at_once())).outcome == "hit"
    clock.us += 1
    assert (await one.get(kind, ("x",), Work.at_once())).outcome == "stale"


async def test_a_stale_value_is_served_while_one_process_computes(caches: Caches, clock: StandingClock) -> None:
    here, there = caches(2)
    work = Work()
    await here.get("price", ("x",), Work.at_once())
    clock.us += 400 * SECOND_US
    served = [await each.get("price", ("x",), work) for each in (here, there, here, there)]
    assert [(each.outcome, each.age_s, each.fresh_for_s) for each in served] == [("stale", 400.0, 0.0)] * 4
    await until(work.began.is_set)
    work.opens.set()
    for each in (here, there):
        found = await fresh(each, work)
        assert (found.outcome, found.age_s) == ("hit", 0.0)
    assert work.runs == 1


async def test_later_data_make_a_value_stale_and_earlier_ones_do_not(caches: Caches) -> None:
    here, there = caches(2)
    work = Work.at_once()

    async def outcome(cache: Cache, version: int) -> Outcome:
        return (await cache.get("price", ("x",), work, version=version)).outcome

    assert await outcome(here, 7) == "miss"
    assert await outcome(there, 7) == "hit"
    assert await outcome(there, 8) == "stale"
    await until(lambda: work.runs == 2)
    await fresh(here, work, 8)
    assert await outcome(there, 7) == "hit"  # a process that has not heard of version 8
    assert work.runs == 2


async def test_what_other_code_has_computed_is_not_served(caches: Caches) -> None:
    [old], [new] = caches(1), caches(1, code="v2")
    for each in (old, new):  # nor what stands under a key that only looks the same
        for parts in (("a", "b"), ("a:b",), ("a%3Ab",), ("ab",), ("a#lock",)):
            assert (await each.get("price", parts, Work.at_once())).outcome == "miss"
    here, there = Path(timestamps.__file__), Path(cache_module.__file__)
    assert code_version(here) == code_version(here) != code_version(here, there)
    assert code_version(here.parent) == code_version(here.parent) != code_version(here)


async def test_a_process_serves_what_it_has_just_read_without_redis(caches: Caches, client: redis.Redis) -> None:
    [one] = caches(1, CacheConfig(near_s=60.0))
    await one.get("price", ("x",), Work.at_once(), version=3)
    client.flushall()
    assert (await one.get("price", ("x",), Work.at_once(), version=3)).outcome == "hit"
    assert (await one.get("price", ("x",), Work.at_once(), version=4)).outcome == "miss"


async def test_redis_holds_no_more_than_it_may(caches: Caches, client: redis.Redis, clock: StandingClock) -> None:
    [one] = caches(1, CacheConfig(near_s=1e-9, items=3, item_bytes=20))

    async def ask(name: str, work: Callable[[], bytes]) -> Outcome:
        clock.us += 1
        return (await one.get("price", (name,), work)).outcome

    for name in "abcd":
        assert await ask(name, Work.at_once()) == "miss"
    assert [await ask(name, Work.at_once()) for name in "bcd"] == ["hit"] * 3
    assert await ask("a", Work.at_once()) == "miss"  # the oldest has given way
    assert await ask("b", Work.at_once()) == "miss"
    for _ in range(2):
        assert await ask("long", lambda: b'"%s"' % (20 * b"x")) == "miss"
    assert len(list(client.scan_iter("*:price:*"))) == 3


async def test_an_error_reaches_all_who_wait_and_is_not_kept(caches: Caches, client: redis.Redis) -> None:
    [one] = caches(1)
    work = Work(NotFoundError("no coin 'x' is known"))
    waiting = [asyncio.ensure_future(one.get("price", ("x",), work)) for _ in range(3)]
    await until(work.began.is_set)
    work.opens.set()
    assert await asyncio.gather(*waiting, return_exceptions=True) == [work.error] * 3
    assert list(client.scan_iter("*#lock")) == []
    assert (await one.get("price", ("x",), Work.at_once())).outcome == "miss"
    price = (await one.counts())["price"]
    assert (price.errors, price.computed, price.misses, price.waits) == (1, 2, 2, 2)


async def test_who_waits_for_a_process_that_fails_computes_next(caches: Caches, client: redis.Redis) -> None:
    here, there = caches(2)
    failing = Work(ZeroDivisionError())
    first = asyncio.ensure_future(here.get("price", ("x",), failing))
    await until(failing.began.is_set)
    second = asyncio.ensure_future(there.get("price", ("x",), Work.at_once()))
    await until(lambda: calls_of_scripts(client) >= 3)  # the other one has seen that somebody computes
    failing.opens.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert (await second).outcome == "miss"


async def test_a_stale_value_outlives_a_failed_refresh_without_being_tried_again_at_once(
    caches: Caches, clock: StandingClock
) -> None:
    [one] = caches(1)
    failing = Work.at_once(QubicLabError("the database is locked"))
    await one.get("price", ("x",), Work.at_once())
    clock.us += 400 * SECOND_US
    for _ in range(5):
        assert (await one.get("price", ("x",), failing)).outcome == "stale"
        await until(lambda: failing.runs == 1)
        await asyncio.sleep(0.02)  # the refresh that failed has ended
    assert failing.runs == 1


async def test_counts_are_those_of_all_processes(caches: Caches, client: redis.Redis, clock: StandingClock) -> None:
    [here], there = caches(1), Cache(client, "v1", ANEW, clock)
    work = Work()
    waiting = [asyncio.ensure_future(here.get("news", ("x",), work)) for _ in range(3)]
    await until(work.began.is_set)
    work.opens.set()
    await asyncio.gather(*waiting)
    for _ in range(4):
        await there.get("news", ("x",), work)
    clock.us += 1_800 * SECOND_US
    await there.get("news", ("x",), work)
    await there.close()
    counts = await here.counts()
    news, price = counts["news"], counts["price"]
    assert (news.hits, news.stale, news.misses, news.waits, news.direct) == (4, 1, 1, 2, 0)
    assert (news.computed, news.errors, news.hit_rate) == (2, 0, 5 / 8)
    assert (price.hits, price.computed, price.hit_rate) == (0, 0, None)


def _ask_at_once(url: str, ready: Any, folder: str, results: Any) -> None:
    """Ask many times in this process, at the same moment as the others."""

    def compute() -> bytes:
        Path(folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(0.2)
        return b'{"answer": 42}'

    async def main() -> None:
        cache = Cache(connect(url), "v1")
        ready.wait(60.0)
        found = await asyncio.gather(*(cache.get("price", ("x",), compute) for _ in range(REQUESTS)))
        await cache.close()
        results.put([(each.body, each.outcome) for each in found])

    asyncio.run(main())


def test_first_requests_of_several_processes_cause_one_computation(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    ready, results = _spawn.Barrier(PROCESSES), _spawn.Queue()
    processes = [
        _spawn.Process(target=_ask_at_once, args=(server.url, ready, str(tmp_path), results)) for _ in range(PROCESSES)
    ]
    for each in processes:
        each.start()
    found = [answer for _ in processes for answer in results.get(timeout=60.0)]
    for each in processes:
        each.join(60.0)
    assert len(found) == PROCESSES * REQUESTS
    assert {body for body, _ in found} == {b'{"answer": 42}'}
    assert len(list(tmp_path.iterdir())) == 1
    found_in_redis: dict[Any, Any] = client.hgetall("{qubic-lab:oracle}:counts")
    counted = {name.decode(): int(value) for name, value in found_in_redis.items()}
    assert counted["price:computed"] == counted["price:miss"] == 1
    assert sum(counted[f"price:{each}"] for each in ("miss", "wait")) + counted.get("price:hit", 0) == len(found)


def _compute_for_ever(url: str, began: Any) -> None:
    def compute() -> bytes:
        began.set()
        time.sleep(600.0)
        return b""

    asyncio.run(Cache(connect(url), "v1", SHORT).get("price", ("x",), compute))


async def test_a_holder_that_is_killed_is_replaced_by_one_other(server: RedisServer, caches: Caches) -> None:
    began = _spawn.Event()
    holder = _spawn.Process(target=_compute_for_ever, args=(server.url, began))
    holder.start()
    here, there = caches(2, SHORT)
    work = Work.at_once()
    assert await asyncio.to_thread(began.wait, 60.0)
    waiting = [asyncio.ensure_future(each.get("price", ("x",), work)) for each in (here, there) for _ in range(20)]
    await asyncio.sleep(1.5 * SHORT.lock_s)
    assert work.runs == 0  # it lives, and so holds its lock for longer than one lease
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    async with asyncio.timeout(60.0):
        found = await asyncio.gather(*waiting)
    assert {each.body for each in found} == {b'{"run": 1}'}
    assert work.runs == 1
    holder.join(60.0)


async def test_a_holder_that_lost_its_lock_does_not_overwrite_or_unlock(caches: Caches, client: redis.Redis) -> None:
    slow, quick = caches(2, CacheConfig(near_s=1e-9, lock_s=60.0))
    late, early = Work(), Work.at_once()
    early.runs = 10
    first = asyncio.ensure_future(slow.get("price", ("x",), late))
    await until(late.began.is_set)
    client.delete("{qubic-lab:oracle}:price:v1:x#lock")  # as if its lease had ended
    assert (await quick.get("price", ("x",), early)).body == b'{"run": 11}'
    late.opens.set()
    assert (await first).body == b'{"run": 1}'
    assert (await quick.get("price", ("x",), early)).body == b'{"run": 11}'


async def test_without_redis_it_is_computed_once_in_each_process(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "r") as server, connect(server.url) as client:
        one = Cache(client, "v1", ANEW)
        assert (await one.get("price", ("x",), Work.at_once())).outcome == "miss"
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)  # slow, which is worse than dead
        await one.counts()
        work = Work()
        waiting = [asyncio.ensure_future(one.get("price", ("x",), work)) for _ in range(10)]
        await until(work.began.is_set)
        work.opens.set()
        found = await asyncio.gather(*waiting)
        assert sorted(each.outcome for each in found) == ["direct", *["wait"] * 9]
        assert work.runs == 1
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(60.0):  # it is started again, and what it held is there
            while (again := await one.get("price", ("x",), Work.at_once())).outcome != "hit":
                await asyncio.sleep(0.05)
        assert again.body == b'{"run": 1}'
        async with asyncio.timeout(60.0):
            while (counts := await one.counts()) is None:
                await asyncio.sleep(0.05)
        assert counts["price"].misses == 1
        assert (counts["price"].direct, counts["price"].waits) >= (1, 9)
        await one.close()
