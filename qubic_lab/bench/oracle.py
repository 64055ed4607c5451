"""How soon the market oracle answers many clients at once: cold, from the cache, and 200 who ask the same at once.

A coordinator of the command line answers from a generated database of a million prices. Clients are closed loops: each
asks its next question as soon as its answer has come, without a pause, so the server is always as busy as it can be.
"""

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qubic_lab.bench.dispatch import Quantiles
from qubic_lab.bench.lean_http import LeanConnection, path_with
from qubic_lab.bench.local_cluster import LocalCluster, run_apart
from qubic_lab.bench.oracle_data import Market, make_market
from qubic_lab.cluster.balance import DEFAULT_BALANCER
from qubic_lab.cluster.redis_server import RedisServer
from qubic_lab.errors import QubicLabError, check_range
from qubic_lab.oracle.model.response import Frame, Window
from qubic_lab.oracle.model.timestamps import DAY_US, iso
from qubic_lab.provenance import machine, source_commit

Route = Literal["sentiment", "price_analysis", "market_overview", "risk"]
ROUTES: tuple[Route, ...] = get_args(Route)
COLD_MS: dict[Route, float] = {"sentiment": 2_000.0, "price_analysis": 1_000.0, "market_overview": 3_000.0}
"""The 95th percentile of answers that have to be computed stays below; the aim is a tenth. Of risk, which fits models
to thousands of bars, it is told without a limit."""
CACHED_MS = 20.0
"""The same for answers that are kept."""
COINS = 10
HISTORY_US = 32 * DAY_US
"""No question is about an instant before so much of the history: each has all that it asks for."""
AT_ONCE = 200
COORDINATORS = 2
"""Those who ask the same at once ask these; everything else is asked of the first one."""
MOST_CLIENTS, MOST_REQUESTS = 500, 100_000
COUNTED_S = 5.0
"""Counts of all processes are written within a second."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RouteTimes:
    """Answers of one route; times in ms of right answers, None where there are none.

    `errors`: requests without a right answer, of which `first_error` tells one. `server_cpu_ms`: processor time of the
    coordinator for each request. `within_limit`: no errors, and the 95th percentile below `limit_ms` if any.
    """

    route: str
    kind: Literal["cold", "cached"]
    requests: int
    errors: int
    first_error: str
    times_ms: Quantiles | None
    requests_per_s: float
    server_cpu_ms: float
    mean_bytes: float
    limit_ms: float | None
    within_limit: bool


@dataclass(frozen=True)
class AtOnce:
    """The same question by many at once, to several processes: `computations` has to be 1."""

    requests: int
    processes: int
    errors: int
    computations: int
    outcomes: dict[str, int]
    last_ms: float


@dataclass(frozen=True)
class OracleResult:
    """What was asked of the oracle, and how soon it answered."""

    cold: tuple[RouteTimes, ...]
    cached: tuple[RouteTimes, ...]
    at_once: AtOnce
    within_limits: bool
    clients: int
    coins: int
    price_rows: int
    texts: int
    scores: int
    database_mib: float
    hit_rates: dict[str, float | None]
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Asked:
    """A path, and what its right answer has in it."""

    path: str
    expected: tuple[bytes, ...]


@dataclass(frozen=True)
class _Seen:
    """An answer as its client saw it; `fault` says why it is not right."""

    ms: float
    size: int
    fault: str


def bench_oracle(
    rows: int = 1_000_000,
    texts: int = 100_000,
    clients: int = 50,
    requests: int = 500,
    cached_requests: int = 5_000,
    progress: Progress | None = None,
) -> OracleResult:
    """Ask a coordinator about a generated market by many clients at once.

    Args:
        rows: prices in the database, which is made once and kept in the cache folder.
        texts: texts in it, each with two scores.
        clients: at once.
        requests: cold ones of each route, each of which nobody has asked before; of risk a fifth, as they take long.
        cached_requests: of each route, among a few that have been asked before.
        progress: called as it goes on.

    Raises:
        InputError: a number is out of range.
        QubicLabError: a process does not come up.
    """
    check_range("--clients", clients, 1, MOST_CLIENTS)
    check_range("--requests", requests, clients, MOST_REQUESTS)
    check_range("--cached-requests", cached_requests, clients, MOST_REQUESTS)
    check_range("--rows", rows, COINS * (HISTORY_US + DAY_US) // (300 * 1_000_000), 20_000_000)
    progress = progress or (lambda text, done, total: None)
    market = make_market(rows, texts, COINS, progress)
    with _coordinators(market.url) as cluster:
        name, url = next(iter(cluster.urls.items()))
        run_apart(_ask_all(url, _cold("sentiment", market, 1, seed=1), 1))  # opens the database
        cold, cached = [], []
        for route in ROUTES:
            asked = _cold(route, market, requests if route in COLD_MS else max(clients, requests // 5), seed=0)
            cold.append(_measure(cluster, name, route, "cold", asked, clients, progress))
        for route in ROUTES:
            kept = _kept(route, market)
            run_apart(_ask_all(url, [_Asked(each.path, ()) for each in kept], 1))
            asked = random.Random(0).choices(kept, k=cached_requests)
            cached.append(_measure(cluster, name, route, "cached", asked, clients, progress))
        [once] = _cold("sentiment", market, 1, seed=2)
        served = 1 + requests + len(_kept("sentiment", market)) + cached_requests
        at_once = run_apart(_ask_at_once(list(cluster.urls.values()), once.path, served))
        hit_rates = {kind: each["hit_rate"] for kind, each in run_apart(_counts(url)).items()}
    within = all(each.within_limit for each in (*cold, *cached))
    return OracleResult(
        cold=tuple(cold),
        cached=tuple(cached),
        at_once=at_once,
        within_limits=within and at_once.computations == 1 and not at_once.errors,
        clients=clients,
        coins=COINS,
        price_rows=market.price_rows,
        texts=market.texts,
        scores=market.scores,
        database_mib=market.bytes / 2**20,
        hit_rates=hit_rates,
        machine=str(machine()),
        commit=str(source_commit()),
    )


@contextmanager
def _coordinators(database_url: str) -> Iterator[LocalCluster]:
    """Yield coordinators that use this database, which they are told by the .env of the folder that they run in.

    Raises:
        QubicLabError: one does not come up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qubic-lab-", ignore_cleanup_errors=True)))
        (folder / ".env").write_text(f"QUBIC_LAB_DATABASE_URL='{database_url}'\n")
        redis = stack.enter_context(RedisServer(folder / "redis"))
        cluster = LocalCluster(folder, redis, COORDINATORS)
        stack.callback(cluster.end)
        cluster.start_coordinators(DEFAULT_BALANCER)
        yield cluster


def sum_up(
    route: Route, kind: Literal["cold", "cached"], seen: Sequence[_Seen], took_s: float, cpu_s: float
) -> RouteTimes:
    """Sum up what came in `took_s` seconds, and the processor time in seconds that it took the server."""
    right = [each for each in seen if not each.fault]
    faults = [each.fault for each in seen if each.fault]
    times = Quantiles.of([each.ms for each in right]) if right else None
    limit_ms = COLD_MS.get(route) if kind == "cold" else CACHED_MS
    return RouteTimes(
        route=route,
        kind=kind,
        requests=len(seen),
        errors=len(faults),
        first_error=faults[0] if faults else "",
        times_ms=times,
        requests_per_s=len(right) / took_s,
        server_cpu_ms=1_000 * cpu_s / len(seen),
        mean_bytes=sum(each.size for each in right) / max(1, len(right)),
        limit_ms=limit_ms,
        within_limit=not faults and times is not None and (limit_ms is None or times.p95 < limit_ms),
    )


def _measure(
    cluster: LocalCluster,
    name: str,
    route: Route,
    kind: Literal["cold", "cached"],
    asked: Sequence[_Asked],
    clients: int,
    progress: Progress,
) -> RouteTimes:
    used_s = cluster.cpu_s(name)

    def note(done: int) -> None:
        progress(f"{route}, {kind}", done, len(asked))

    seen, took_s = run_apart(_ask_all(cluster.urls[name], asked, clients, note))
    return sum_up(route, kind, seen, took_s, cluster.cpu_s(name) - used_s)


def _cold(route: Route, market: Market, count: int, seed: int) -> list[_Asked]:
    """Return questions of which each is about an instant of its own; equal seeds give equal ones."""
    draw = random.Random(f"{route} {seed}")
    asked = []
    for _ in range(count):
        as_of_us = draw.randrange(market.start_us + HISTORY_US, market.end_us)
        coin, as_of = draw.choice(market.coins), iso(as_of_us)
        expected = (b'"cache":"miss"', f'"as_of":"{as_of}"'.encode())
        if route == "market_overview":
            asked.append(_Asked(path_with(f"/api/oracle/{route}", coins=",".join(market.coins), as_of=as_of), expected))
            continue
        name, choices = ("window", get_args(Window)) if route == "sentiment" else ("frame", get_args(Frame))
        path = path_with(f"/api/oracle/{route}", coin=coin, as_of=as_of, **{name: draw.choice(choices)})
        asked.append(_Asked(path, (*expected, f'"coin":"{coin}"'.encode())))
    return asked


def _kept(route: Route, market: Market) -> list[_Asked]:
    """Return the questions about now that a page of all coins would ask."""
    path, hit = f"/api/oracle/{route}", b'"cache":"hit"'
    if route == "market_overview":
        lists = [market.coins[:count] for count in range(1, len(market.coins) + 1)]
        return [_Asked(path_with(path, coins=",".join(coins)), (hit,)) for coins in lists]
    name, choices = ("window", get_args(Window)) if route == "sentiment" else ("frame", get_args(Frame))
    return [
        _Asked(path_with(path, coin=coin, **{name: choice}), (hit, f'"coin":"{coin}"'.encode()))
        for coin in market.coins
        for choice in choices
    ]


async def _ask_all(
    url: str, asked: Sequence[_Asked], clients: int, note: Callable[[int], None] = lambda done: None
) -> tuple[list[_Seen], float]:
    """Ask by so many clients at once; return what came, and the seconds from the first question to the last answer."""
    waiting, seen = iter(asked), []

    async def ask_on(connection: LeanConnection) -> None:
        for each in waiting:
            started = time.perf_counter()
            reply = await connection.get(each.path)
            ms = 1_000 * (time.perf_counter() - started)
            missing = [part for part in each.expected if part not in reply.body]
            right = reply.status == 200 and not missing
            fault = "" if right else f"status {reply.status} to {each.path}: {reply.body[:200]!r}, without {missing}"
            seen.append(_Seen(ms, len(reply.body), fault))
            if len(seen) % 10 == 0:
                note(len(seen))

    connections = [await LeanConnection.open(url) for _ in range(clients)]
    try:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(ask_on(connection))
        return seen, time.perf_counter() - started
    finally:
        for connection in connections:
            connection.close()


async def _ask_at_once(urls: Sequence[str], path: str, served: int) -> AtOnce:
    """Ask the same by many at the same moment, of all coordinators in turn; so many have asked about texts before."""
    before = await _settled_counts(urls[0], served)
    connections = [await LeanConnection.open(urls[n % len(urls)]) for n in range(AT_ONCE)]
    try:
        started = time.perf_counter()
        replies = await asyncio.gather(*(connection.get(path) for connection in connections))
        last_ms = 1_000 * (time.perf_counter() - started)
    finally:
        for connection in connections:
            connection.close()
    after = await _settled_counts(urls[0], served + AT_ONCE)
    outcomes = Counter(str(json.loads(each.body)["cache"]) for each in replies if each.status == 200)
    return AtOnce(
        requests=AT_ONCE,
        processes=len(urls),
        errors=sum(each.status != 200 for each in replies),
        computations=after["computed"] - before["computed"],
        outcomes=dict(sorted(outcomes.items())),
        last_ms=last_ms,
    )


def _served(counts: dict[str, Any]) -> int:
    return sum(int(counts[name]) for name in ("hits", "stale", "misses", "waits", "direct"))


async def _settled_counts(url: str, served: int) -> dict[str, Any]:
    """Return the counts of sentiment over all processes once so many requests are in them, or after some seconds."""
    deadline = time.monotonic() + COUNTED_S
    while True:
        counts: dict[str, Any] = (await _counts(url))["sentiment"]
        if _served(counts) >= served or time.monotonic() > deadline:
            return counts
        await asyncio.sleep(0.1)


async def _counts(url: str) -> dict[str, dict[str, Any]]:
    """Return what the cache has counted, by kind.

    Raises:
        QubicLabError: it does not tell.
    """
    connection = await LeanConnection.open(url)
    reply = await connection.get("/api/oracle/status")
    connection.close()
    cache = json.loads(reply.body)["cache"] if reply.status == 200 else None
    if cache is None:
        raise QubicLabError(f"the coordinator does not tell what its cache has counted (status {reply.status})")
    return {each["kind"]: each for each in cache}
