"""Responses that several processes share in Redis: one process computes, and stale ones are served meanwhile.

A value is fresh for a while. After that it is still served, with its age, while one process recomputes it; once it is
too old for that, requests wait. The process that computes holds a lock and renews it: if the process dies, the lock
expires and another one takes over. Values are JSON bytes and go to clients as they are. Without Redis each process
computes for itself.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import redis
from pydantic import Field
from redis.backoff import NoBackoff
from redis.retry import Retry

from qubic_lab.oracle.model.response import Part
from qubic_lab.oracle.model.timestamps import SECOND_US, now_us

CacheKind = Literal["sentiment", "price", "news"]
FRESH_S: dict[CacheKind, float] = {"sentiment": 600.0, "price": 300.0, "news": 1_800.0}
"""How long values about texts, values about prices, and lists of news are fresh."""
STALE_S = 3_600.0
"""How long a value may be served after that, while it is recomputed."""
RETRY_S = 5.0
"""After a failed recomputation the stale value is served this long without another try."""
THREADS = 2
"""Values that a process computes at once; more would only take turns at its interpreter lock."""
Outcome = Literal["hit", "stale", "miss", "wait", "direct"]
"""Served fresh; served stale; computed for this request; computed for an earlier one; computed without Redis."""
_COUNTED: dict[str, str] = {"hits": "hit", "misses": "miss", "waits": "wait"} | {
    name: name for name in ("stale", "direct", "computed", "errors")
}
"""What is counted in Redis, by the name of the field that holds it."""
PREFIX = "{qubic-lab:oracle}"
_ANSWER_S = 0.5
"""Time limit for Redis."""
_NEAR_ITEMS = 1_000
"""Most values that a process serves without asking Redis."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1

# KEYS: value, lock. ARGV: now, token, lock's ms, least version. Gives "fresh", "ours" (we hold the lock now) or "held",
# and the value.
_LOOK = """
local found = redis.call('HMGET', KEYS[1], 'body', 'computed_us', 'fresh_until_us', 'version')
local state = 'held'
if found[1] and tonumber(found[3]) > tonumber(ARGV[1]) and tonumber(found[4]) >= tonumber(ARGV[4]) then
  state = 'fresh'
elseif redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
  state = 'ours'
end
return {state, found[1] or '', found[2] or '0', found[3] or '0', found[4] or '0'}
"""
# KEYS: lock, value, the values in order of time. ARGV: token, body, computed, fresh until, version, ms to keep it, most
# values, most bytes of a value.
_PUT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if #ARGV[2] > tonumber(ARGV[8]) then return 1 end
redis.call('HSET', KEYS[2], 'body', ARGV[2], 'computed_us', ARGV[3], 'fresh_until_us', ARGV[4], 'version', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[2])
local over = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[7])
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[3], over)
  for place = 1, #oldest, 2 do redis.call('DEL', oldest[place]) end
end
return 1
"""
# KEYS: lock. ARGV: token, ms; 0 releases it.
_HOLD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class CacheConfig:
    """Time limits in seconds, and sizes.

    Attributes:
        near_s: how long a process serves what it has just read or written without asking Redis.
        items: most values in Redis, of all processes; the oldest are dropped. The task queue is in the same Redis.
        item_bytes: a longer value is not kept.
        lock_s: how long a process that dies while it computes can hold up others.
        wait_s: a process that has waited this long for another one computes for itself.
        away_s: how long Redis is left alone after it did not answer.
    """

    near_s: float = 1.0
    items: int = 2_000
    item_bytes: int = 256 * 1_024
    lock_s: float = 3.0
    wait_s: float = 30.0
    away_s: float = 5.0


@dataclass(frozen=True)
class Entry:
    """A stored value: JSON in UTF-8, when it was computed, until when it is fresh, and the version of its data."""

    body: bytes
    computed_us: int
    fresh_until_us: int
    version: int


@dataclass(frozen=True)
class Cached:
    """A value as it is served: JSON in UTF-8, its age, and where it came from."""

    body: bytes
    age_s: float
    fresh_for_s: float
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class CacheCounts(Part):
    """How requests of one kind were served, over all processes: see `cache` of a response for the words.

    `hit_rate`: the share that was served at once, fresh or stale; null before the first request.
    """

    kind: Annotated[str, Field(description="the kind of answer")]
    fresh_s: Annotated[float, Field(description="seconds for which an answer is fresh")]
    hit_rate: float | None
    hits: Annotated[int, Field(description="served fresh from the cache")]
    stale: Annotated[int, Field(description="served while a newer one was computed")]
    misses: Annotated[int, Field(description="computed for the request")]
    waits: Annotated[int, Field(description="computed for an earlier request")]
    direct: Annotated[int, Field(description="computed without Redis")]
    computed: Annotated[int, Field(description="computations, of which `errors` failed")]
    errors: Annotated[int, Field(description="computations that failed")]


def code_version(*places: Path) -> str:
    """Return a version that changes with the source in these files and folders."""
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class _Away(Exception):
    """Redis does not answer, or did not a moment ago."""


@dataclass(frozen=True)
class _Job:
    """A requested value: its key, how it is computed, how long it is fresh, and the least version of its data."""

    kind: CacheKind
    key: str
    compute: Callable[[], bytes]
    fresh_s: float
    version: int

    @property
    def lock(self) -> str:
        return f"{self.key}#lock"


class Cache:
    """The cache of one process; belongs to one event loop.

    `client` is of the Redis that all processes share; the cache makes connections of its own with shorter time limits.
    `code` is the version of what computes; see `code_version`.
    """

    def __init__(
        self, client: "redis.Redis", code: str, config: CacheConfig | None = None, clock: Callable[[], int] = now_us
    ) -> None:
        self.config = config or CacheConfig()
        self._code, self._clock = code, clock
        self._redis = _impatient(client)
        self._run_look, self._run_put, self._run_hold = map(self._redis.register_script, (_LOOK, _PUT, _HOLD))
        self._lock_ms = int(1_000 * self.config.lock_s)
        self._calls = ThreadPoolExecutor(8, "oracle-redis")
        self._computing = ThreadPoolExecutor(THREADS, "oracle")
        self._flights: dict[str, asyncio.Task[tuple[Entry, Outcome]]] = {}
        self._behind: set[asyncio.Task[None]] = set()
        self._near: OrderedDict[str, tuple[Entry, float, int]] = OrderedDict()
        self._away_until = 0.0
        self._counted: Counter[str] = Counter()
        self._writing: asyncio.TimerHandle | None = None

    async def get(
        self,
        kind: CacheKind,
        key_parts: Sequence[str | int],
        compute: Callable[[], bytes],
        *,
        ttl_s: float | None = None,
        version: int = 0,
    ) -> Cached:
        """Return a value, computed by one process for all requests.

        Args:
            kind: sets how long the value is fresh, and where it is counted.
            key_parts: what the value depends on; the version of the code is added.
            compute: returns the value as JSON in UTF-8; runs in a thread.
            ttl_s: how long the value is fresh, in place of the kind's time.
            version: of the data, rising; a value of an earlier version is stale.

        Raises:
            Exception: what `compute` raised; it is not kept.
        """
        key = ":".join((PREFIX, kind, self._code, *(quote(str(part), safe="") for part in key_parts)))
        job = _Job(kind, key, compute, FRESH_S[kind] if ttl_s is None else ttl_s, version)
        near, until, asked = self._near.get(key, (None, 0.0, 0))
        if near is not None and time.monotonic() < until and version <= asked:
            return self._serve(job, near, "hit")
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(self._fetch(job))
            flight.add_done_callback(partial(self._landed, key))
        try:
            entry, outcome = await asyncio.shield(flight)
        except Exception:
            self._count(kind, "wait" if joined else "miss")
            raise
        return self._serve(job, entry, "wait" if joined and outcome in ("miss", "direct") else outcome)

    async def counts(self) -> dict[CacheKind, CacheCounts] | None:
        """Return how all processes served requests, other ones up to a second ago; None without Redis."""
        await self._write_counts()
        with suppress(_Away):
            found: dict[Any, Any] = await self._call(partial(self._redis.hgetall, f"{PREFIX}:counts"))
            return {kind: _counts_of(kind, found) for kind in FRESH_S}
        return None

    async def close(self) -> None:
        """Wait for what is under way, write the counts, and close the connections."""
        await asyncio.gather(*self._flights.values(), *self._behind, return_exceptions=True)
        await self._write_counts()
        if self._writing is not None:
            self._writing.cancel()
        self._calls.shutdown(wait=False)
        self._computing.shutdown(wait=False)
        self._redis.close()

    def _serve(self, job: _Job, entry: Entry, outcome: Outcome) -> Cached:
        now = self._clock()
        fresh_for_s = (entry.fresh_until_us - now) / SECOND_US
        if outcome == "hit" and (fresh_for_s <= 0 or entry.version < job.version):
            outcome = "stale"
        self._count(job.kind, outcome)
        return Cached(entry.body, max(0.0, (now - entry.computed_us) / SECOND_US), max(0.0, fresh_for_s), outcome)

    def _landed(self, key: str, flight: "asyncio.Task[tuple[Entry, Outcome]]") -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # retrieved, even if nobody waits for it any more

    async def _fetch(self, job: _Job) -> tuple[Entry, Outcome]:
        """Find a value, compute it, or wait for the process that does."""
        token, deadline, pause_s = uuid.uuid4().hex, time.monotonic() + self.config.wait_s, _FIRST_PAUSE_S
        outcome: Outcome = "hit"
        while True:
            try:
                state, entry = await self._call(partial(self._look, job, token))
            except _Away:
                return await self._compute(job), "direct"
            if entry is not None:
                if state == "fresh":
                    return self._keep_near(job, entry), outcome
                if entry.fresh_until_us + STALE_S * SECOND_US > self._clock():
                    if state == "ours":
                        self._start(self._refresh(job, token))
                    return self._keep_near(job, entry), "stale"
            if state == "ours":
                return await self._compute_alone(job, token, retry_s=0.0), "miss"
            if time.monotonic() > deadline:
                return await self._compute(job), "direct"
            outcome = "wait"
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)

    async def _refresh(self, job: _Job, token: str) -> None:
        try:
            await self._compute_alone(job, token, RETRY_S)
        except Exception as error:
            logger.warning("%s cannot be recomputed, a stale value is served: %s", job.key, error)

    async def _compute_alone(self, job: _Job, token: str, retry_s: float) -> Entry:
        """Compute while the lock is held, share the value, and release the lock; after a failure in `retry_s`."""
        renewing = asyncio.ensure_future(self._renew(job, token))
        try:
            entry = await self._compute(job)
        except Exception:
            await self._hold(job, token, int(1_000 * retry_s))
            raise
        finally:
            renewing.cancel()
        with suppress(_Away):
            if not await self._call(partial(self._put, job, token, entry)):
                logger.warning("%s took so long that another process has begun to compute it, too", job.key)
        return entry

    async def _compute(self, job: _Job) -> Entry:
        self._count(job.kind, "computed")
        begun = self._clock()
        try:
            body = await asyncio.get_running_loop().run_in_executor(self._computing, job.compute)
        except Exception:
            self._count(job.kind, "errors")
            raise
        return self._keep_near(job, Entry(body, begun, begun + int(job.fresh_s * SECOND_US), job.version))

    async def _renew(self, job: _Job, token: str) -> None:
        while True:
            await asyncio.sleep(self.config.lock_s / 3)
            await self._hold(job, token, self._lock_ms)

    async def _hold(self, job: _Job, token: str, ms: int) -> None:
        with suppress(_Away):
            await self._call(partial(self._run_hold, [job.lock], [token, ms]))

    def _look(self, job: _Job, token: str) -> tuple[str, Entry | None]:
        """Return what Redis says, see `_LOOK`, and the value, which may be stale."""
        found = self._run_look([job.key, job.lock], [self._clock(), token, self._lock_ms, job.version])
        state, body, *numbers = found
        return state.decode(), Entry(body, *map(int, numbers)) if body else None

    def _put(self, job: _Job, token: str, entry: Entry) -> bool:
        values = (entry.body, entry.computed_us, entry.fresh_until_us, entry.version)
        limits = (int(1_000 * (job.fresh_s + STALE_S)), self.config.items, self.config.item_bytes)
        return bool(self._run_put([job.lock, job.key, f"{PREFIX}:values"], [token, *values, *limits]))

    async def _call(self, call: Callable[[], T]) -> T:
        """Call Redis in a thread, unless it did not answer a moment ago."""
        if time.monotonic() < self._away_until:
            raise _Away
        try:
            return await asyncio.get_running_loop().run_in_executor(self._calls, call)
        except (redis.RedisError, OSError) as error:
            if time.monotonic() >= self._away_until:
                logger.warning("Redis does not answer (%s): the oracle goes on without it", error)
            self._away_until = time.monotonic() + self.config.away_s
            raise _Away from error

    def _keep_near(self, job: _Job, entry: Entry) -> Entry:
        """Keep what was just read or written, for requests that know of no later data."""
        if len(entry.body) <= self.config.item_bytes:
            until = time.monotonic() + self.config.near_s
            self._near[job.key] = entry, until, max(job.version, entry.version)
            self._near.move_to_end(job.key)
            if len(self._near) > _NEAR_ITEMS:
                self._near.popitem(last=False)
        return entry

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _count(self, kind: CacheKind, what: str) -> None:
        """Count, and write the counts to Redis within a second."""
        self._counted[f"{kind}:{what}"] += 1
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(1.0, self._write_behind)

    def _write_behind(self) -> None:
        self._writing = None
        self._start(self._write_counts())

    async def _write_counts(self) -> None:
        """Add the counts of this process to those of all; without Redis they are kept for the next time."""
        counted, self._counted = self._counted, Counter()

        def add() -> None:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name, number in counted.items():
                    pipeline.hincrby(f"{PREFIX}:counts", name, number)
                pipeline.execute()

        if counted:
            try:
                await self._call(add)
            except _Away:
                self._counted.update(counted)


def _counts_of(kind: CacheKind, found: Mapping[bytes, bytes]) -> CacheCounts:
    count = {name: int(found.get(f"{kind}:{what}".encode(), 0)) for name, what in _COUNTED.items()}
    served = count["hits"] + count["stale"]
    requests = served + count["misses"] + count["waits"] + count["direct"]
    return CacheCounts(kind=kind, fresh_s=FRESH_S[kind], hit_rate=served / requests if requests else None, **count)


def _impatient(client: "redis.Redis") -> "redis.Redis":
    """Return a client of the same server with a short time limit and without retries."""
    pool = client.connection_pool
    changed = {
        "socket_timeout": _ANSWER_S,
        "socket_connect_timeout": _ANSWER_S,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
    }
    known = {name: value for name, value in pool.connection_kwargs.items() if name != "retry_on_error"}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **known | changed))
