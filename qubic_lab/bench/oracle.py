"""Measures the market oracle's latency with many clients: cold, cached, and with 200 identical requests at once.

A real coordinator answers from a generated database of a million prices. Clients are closed loops without pauses: each
sends its next request when it has its answer, so the server is always fully loaded.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args
from urllib.parse import urlencode

from qubic_lab.bench.lean_http import LeanConnection
from qubic_lab.bench.local_cluster import LocalCluster, closed_loops, local_cluster, run_apart
from qubic_lab.bench.oracle_data import GeneratedMarket, make_market
from qubic_lab.bench.result import MeasuredResult, Percentiles, Table
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import QubicLabError, check_range
from qubic_lab.oracle.model.response import Frame, Window
from qubic_lab.oracle.model.timestamps import DAY_US, iso

Route = Literal["sentiment", "price_analysis", "market_overview", "risk"]
Kind = Literal["cold", "cached"]
ROUTES: tuple[Route, ...] = get_args(Route)
COLD_MS: dict[Route, float] = {"sentiment": 2_000.0, "price_analysis": 1_000.0, "market_overview": 3_000.0}
"""Limits of the 95th percentile for computed answers. Risk has no limit, as it fits models to thousands of bars."""
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sentiment": ("window", get_args(Window)),
    "price_analysis": ("frame", get_args(Frame)),
    "risk": ("frame", get_args(Frame)),
}
"""The parameter of each route about one coin, and its values."""
CACHED_MS = 20.0
"""Limit of the 95th percentile for cached answers."""
COINS = 10
HISTORY_US = 32 * DAY_US
"""Every request asks about a time with at least this much history, so that its answer is complete."""
AT_ONCE = 200
COORDINATORS = 2
"""Identical requests are spread over all coordinators; everything else goes to the first one."""
MOST_CLIENTS, MOST_REQUESTS = 500, 100_000
COUNTED_S = 5.0
"""Time limit for the counts of all processes to be written; they are written each second."""


@dataclass(frozen=True)
class RouteTimes:
    """Latencies of one route.

    `times_ms` are of right answers, None if there are none; `errors` counts the other requests. `server_cpu_ms` is the
    coordinator's CPU time per request. `within_limit` means no errors, and a 95th percentile below `limit_ms` if any.
    """

    route: str
    kind: Kind
    requests: int
    errors: int
    first_error: str
    times_ms: Percentiles | None
    requests_per_s: float
    server_cpu_ms: float
    mean_bytes: float
    limit_ms: float | None
    within_limit: bool

    def cells(self) -> tuple[str, ...]:
        times = ("-", "-", "-") if self.times_ms is None else self.times_ms.texts()
        limit = "none" if self.limit_ms is None else f"{self.limit_ms:g}: {'met' if self.within_limit else 'MISSED'}"
        counts = (self.route, self.kind, f"{self.requests:,}", str(self.errors))
        return (*counts, *times, limit, f"{self.requests_per_s:.0f}", f"{self.server_cpu_ms:.2f}")


@dataclass(frozen=True)
class AtOnce:
    """Identical requests at once to several processes; `computations` must be 1."""

    requests: int
    processes: int
    errors: int
    computations: int
    outcomes: dict[str, int]
    last_ms: float


@dataclass(frozen=True)
class OracleResult(MeasuredResult):
    """Latencies of the oracle, and the size of the generated market."""

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

    def report(self) -> Iterator[Table | str]:
        routes = (*self.cold, *self.cached)
        header = ("route", "kind", "requests", "errors", "p50 ms", "p95 (95 % interval)", "p99", "limit")
        yield Table((*header, "requests/s", "server CPU ms"), [each.cells() for each in routes])
        for each in routes:
            if each.first_error:
                yield f"first error of {each.route}, {each.kind}: {each.first_error}"
        once = self.at_once
        yield (
            f"{once.requests} identical first requests at once to {once.processes} processes: {once.computations} "
            f"computation{'' if once.computations == 1 else 's, NOT one'}, the last answer after "
            f"{once.last_ms:.0f} ms, {once.errors} errors"
        )
        yield f"{'All' if self.within_limits else 'NOT all'} within their limits."


@dataclass(frozen=True)
class OracleRequest:
    """A path with its query, and the parts that its right answer contains."""

    path: str
    expected: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, route: str, *expected: bytes, **parameters: str) -> "OracleRequest":
        return cls(f"/api/oracle/{route}?{urlencode(parameters)}", expected)


@dataclass(frozen=True)
class OracleExchange:
    """An answer as its client saw it; `fault` says what is wrong with it, and is empty if nothing is."""

    ms: float
    size: int
    fault: str


def bench_oracle(
    rows: int = 1_000_000,
    texts: int = 100_000,
    clients: int = 50,
    requests: int = 500,
    cached_requests: int = 5_000,
    progress: Progress = no_progress,
) -> OracleResult:
    """Measure a coordinator that answers many clients about a generated market.

    The database, with `rows` prices and two scores for each text, is generated once and kept in the cache folder. There
    are `requests` cold ones of each route, all different; risk, which takes long, gets a fifth.

    Raises:
        InputError: a number is out of range.
        QubicLabError: a process does not start.
    """
    check_range("--clients", clients, 1, MOST_CLIENTS)
    check_range("--requests", requests, clients, MOST_REQUESTS)
    check_range("--cached-requests", cached_requests, clients, MOST_REQUESTS)
    check_range("--rows", rows, COINS * (HISTORY_US + DAY_US) // (300 * 1_000_000), 20_000_000)
    market = make_market(rows, texts, COINS, progress)
    with local_cluster(COORDINATORS, settings={"QUBIC_LAB_DATABASE_URL": market.url}) as cluster:
        name, url = next(iter(cluster.urls.items()))
        run_apart(_ask_all(url, _cold("sentiment", market, 1, seed=1), 1))  # makes it open the database
        cold, cached = [], []
        for route in ROUTES:
            asked = _cold(route, market, requests if route in COLD_MS else max(clients, requests // 5), seed=0)
            cold.append(_measure(cluster, name, route, "cold", asked, clients, progress))
        for route in ROUTES:
            kept = kept_requests(route, market)
            run_apart(_ask_all(url, [OracleRequest(each.path) for each in kept], 1))
            asked = random.Random(0).choices(kept, k=cached_requests)
            cached.append(_measure(cluster, name, route, "cached", asked, clients, progress))
        [once] = _cold("sentiment", market, 1, seed=2)
        served = 1 + requests + len(kept_requests("sentiment", market)) + cached_requests
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
    )


def sum_up(route: Route, kind: Kind, seen: Sequence[OracleExchange], took_s: float, cpu_s: float) -> RouteTimes:
    """Summarize the answers of `took_s` seconds, for which the server used `cpu_s` seconds of CPU time."""
    right = [each for each in seen if not each.fault]
    faults = [each.fault for each in seen if each.fault]
    times = Percentiles.of([each.ms for each in right]) if right else None
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
    kind: Kind,
    asked: Sequence[OracleRequest],
    clients: int,
    progress: Progress,
) -> RouteTimes:
    used_s = cluster.cpu_s(name)

    def note(done: int) -> None:
        if done % 10 == 0:
            progress(f"{route}, {kind}", done, len(asked))

    seen, took_s = run_apart(_ask_all(cluster.urls[name], asked, clients, note))
    return sum_up(route, kind, seen, took_s, cluster.cpu_s(name) - used_s)


def _cold(route: Route, market: GeneratedMarket, count: int, seed: int) -> list[OracleRequest]:
    """Return requests about random times; equal seeds give equal requests."""
    draw = random.Random(f"{route} {seed}")
    asked = []
    for _ in range(count):
        as_of_us = draw.randrange(market.start_us + HISTORY_US, market.end_us)
        coin, as_of = draw.choice(market.coins), iso(as_of_us)
        expected = (b'"cache":"miss"', f'"as_of":"{as_of}"'.encode())
        if route == "market_overview":
            asked.append(OracleRequest.of(route, *expected, coins=",".join(market.coins), as_of=as_of))
        else:
            name, choices = VARIANTS[route]
            variant = {name: draw.choice(choices)}
            asked.append(OracleRequest.of(route, *expected, _about(coin), coin=coin, as_of=as_of, **variant))
    return asked


def kept_requests(route: Route, market: GeneratedMarket) -> list[OracleRequest]:
    """Return the requests about the present that a page of all coins would send."""
    hit = b'"cache":"hit"'
    if route == "market_overview":
        lists = [market.coins[:count] for count in range(1, len(market.coins) + 1)]
        return [OracleRequest.of(route, hit, coins=",".join(coins)) for coins in lists]
    name, choices = VARIANTS[route]
    return [
        OracleRequest.of(route, hit, _about(c), coin=c, **{name: choice}) for c in market.coins for choice in choices
    ]


def _about(coin: str) -> bytes:
    return f'"coin":"{coin}"'.encode()


@asynccontextmanager
async def _connections(urls: Sequence[str], count: int) -> AsyncIterator[list[LeanConnection]]:
    """Yield connections to all servers in turn, and close them when the block ends."""
    connections = [await LeanConnection.open(urls[number % len(urls)]) for number in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


async def _ask_all(
    url: str, asked: Sequence[OracleRequest], clients: int, note: Callable[[int], None] = lambda done: None
) -> tuple[list[OracleExchange], float]:
    """Send requests from several clients; return the answers, and the seconds from the first request to the last."""

    async def ask(connection: LeanConnection, request: OracleRequest) -> OracleExchange:
        started = time.perf_counter()
        status, body, _ = await connection.get(request.path)
        ms = 1_000 * (time.perf_counter() - started)
        missing = [part for part in request.expected if part not in body]
        right = status == 200 and not missing
        fault = "" if right else f"status {status} to {request.path}: {body[:200]!r}, without {missing}"
        return OracleExchange(ms, len(body), fault)

    async with _connections([url], clients) as connections:
        return await closed_loops([partial(ask, each) for each in connections], asked, note=note)


async def _ask_at_once(urls: Sequence[str], path: str, served: int) -> AtOnce:
    """Send identical requests at the same moment to all coordinators in turn, which have `served` sentiment so far."""
    before = await _settled_counts(urls[0], served)
    async with _connections(urls, AT_ONCE) as connections:
        started = time.perf_counter()
        replies = await asyncio.gather(*(connection.get(path) for connection in connections))
        last_ms = 1_000 * (time.perf_counter() - started)
    after = await _settled_counts(urls[0], served + AT_ONCE)
    outcomes = Counter(str(json.loads(body)["cache"]) for status, body, _ in replies if status == 200)
    return AtOnce(
        requests=AT_ONCE,
        processes=len(urls),
        errors=sum(status != 200 for status, *_ in replies),
        computations=after["computed"] - before["computed"],
        outcomes=dict(sorted(outcomes.items())),
        last_ms=last_ms,
    )


async def _settled_counts(url: str, served: int) -> dict[str, Any]:
    """Return the cache's counts of sentiment over all processes, once they include `served` requests."""
    deadline = time.monotonic() + COUNTED_S
    while True:
        counts: dict[str, Any] = (await _counts(url))["sentiment"]
        counted = sum(int(counts[name]) for name in ("hits", "stale", "misses", "waits", "direct"))
        if counted >= served or time.monotonic() > deadline:
            return counts
        await asyncio.sleep(0.1)


async def _counts(url: str) -> dict[str, dict[str, Any]]:
    """Return the cache's counts by kind; a QubicLabError if the coordinator does not report them."""
    async with _connections([url], 1) as [connection]:
        status, body, _ = await connection.get("/api/oracle/status")
    cache = json.loads(body)["cache"] if status == 200 else None
    if cache is None:
        raise QubicLabError(f"the coordinator does not report its cache's counts (status {status})")
    return {each["kind"]: each for each in cache}
