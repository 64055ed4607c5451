"""Measures what being watched costs a server: traces for OpenTelemetry, and scrapes of its metrics.

One server runs, which makes spans of those requests alone whose client asks for them; this process takes and drops
them. It is asked in turn with and without; each way is compared with the plain one of the same round, by tokens/s and
by the processor's time for a token. Two servers would not do: two of the same model can differ by a fifth.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any

import httpx2

from qubic_lab.bench.local_cluster import cpu_s
from qubic_lab.bench.local_server import LocalServer, served
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import FEWEST_PAIRS, MeasuredResult, Table, counted, interval_text, median_interval
from qubic_lab.bench.serving import model_at, read_http
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import check_at_least

PLAIN, TRACED, SCRAPED = "plain", "with traces", "with scrapes"
SCRAPE_S = 1.0
"""Between two scrapes: 15 times as often as launch/monitoring/prometheus.yml asks."""
USUAL_SCRAPE_S = 15.0
"""Between two scrapes by launch/monitoring/prometheus.yml."""
BATCHES, SCRAPES = 9, 40
"""How often the processor's time of so many scrapes of an idle server is measured: its clock counts in 10 ms."""


@dataclass(frozen=True)
class WatchingCost:
    """A way's share of tokens/s that is lost, and of the processor's time for a token that is added; medians."""

    way: str
    speed: float
    speed_low: float
    speed_high: float
    processor: float
    processor_low: float
    processor_high: float


@dataclass(frozen=True)
class WatchingResult(MeasuredResult):
    """What each way of watching costs, over rounds of `streams` streams of `new_tokens` tokens.

    `scrape_s` is the processor's time that one scrape takes from a server that does nothing else: lowest, median and
    highest batch.
    """

    costs: tuple[WatchingCost, ...]
    scrape_s: tuple[float, float, float]
    model: str
    ranks: int
    streams: int
    new_tokens: int
    rounds: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                each.way,
                interval_text(each.speed, each.speed_low, each.speed_high, ".2%"),
                interval_text(each.processor, each.processor_low, each.processor_high, ".2%"),
            )
            for each in self.costs
        ]
        yield Table(("", "tokens/s lost", "processor's time added for a token"), rows)
        yield f"medians and their 95 % intervals over {self.rounds} rounds; one scrape in {SCRAPE_S:g} s"
        low, middle, high = (seconds / USUAL_SCRAPE_S for seconds in self.scrape_s)
        yield (
            f"A scrape takes {self.scrape_s[1] * 1e3:.1f} ms of a core: one in {USUAL_SCRAPE_S:g} s, as our Prometheus "
            f"asks, {interval_text(middle, low, high, '.3%')} of it ({BATCHES} batches, lowest and highest)"
        )


def bench_watching(
    model: str, ranks: int, streams: int = 8, rounds: int = 12, new_tokens: int = 64, progress: Progress = no_progress
) -> WatchingResult:
    """Ask a server in turn in each way.

    Raises:
        InputError: too few rounds.
        RankError: a server does not start.
    """
    check_at_least("rounds", rounds, FEWEST_PAIRS)
    shape: dict[str, Any] = {"model": model, "ranks": ranks, "slots": -(-streams // ranks), "threads": 1}
    with sink() as endpoint:
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
        with served(traces, **shape) as server:
            watch, say, ways = NoiseWatch(), counted(progress, 3 * rounds), (PLAIN, TRACED, SCRAPED)
            for traced in (False, True):  # warm-up
                _measure(server, streams, new_tokens, traced)
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for number in range(rounds):
                for way in ways if number % 2 == 0 else reversed(ways):
                    say(way)
                    with scraped(server.url) if way == SCRAPED else nullcontext():
                        found[way].append(_measure(server, streams, new_tokens, way == TRACED))
            costs = tuple(_cost(way, found[way], found[PLAIN]) for way in (TRACED, SCRAPED))
            return WatchingResult(
                costs=costs,
                scrape_s=_scrape_s(server),
                model=model,
                ranks=ranks,
                streams=streams,
                new_tokens=new_tokens,
                rounds=rounds,
                noise=watch.noise(),
            )


def _measure(server: LocalServer, streams: int, new_tokens: int, traced: bool) -> tuple[float, float]:
    """Return the tokens/s of all streams together, and the processor's seconds for a token of the server."""
    model = model_at(server.url)

    async def read() -> int:
        prompts = (f"In the {number}th chapter of the history of bridges we read that" for number in range(streams))
        parents = (f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01" if traced else "" for _ in range(streams))
        asked = zip(prompts, parents, strict=True)
        reads = await asyncio.gather(
            *(read_http(server.url, model, prompt, new_tokens, parent) for prompt, parent in asked)
        )
        return sum(each.tokens for each in reads)

    before_s, started_s = cpu_s(server.pid), time.perf_counter()
    tokens = asyncio.run(read())
    return tokens / (time.perf_counter() - started_s), (cpu_s(server.pid) - before_s) / tokens


def _scrape_s(server: LocalServer) -> tuple[float, float, float]:
    """Return the lowest, median and highest processor's time of one scrape."""
    found = []
    with httpx2.Client(trust_env=False) as client:
        for _ in range(BATCHES):
            before_s = cpu_s(server.pid)
            for _ in range(SCRAPES):
                client.get(f"{server.url}/metrics").raise_for_status()
            found.append((cpu_s(server.pid) - before_s) / SCRAPES)
    return min(found), median(found), max(found)


def _cost(way: str, watched: list[tuple[float, float]], plain: list[tuple[float, float]]) -> WatchingCost:
    speeds = [1 - with_s / without_s for (with_s, _), (without_s, _) in zip(watched, plain, strict=True)]
    times = [with_s / without_s - 1 for (_, with_s), (_, without_s) in zip(watched, plain, strict=True)]
    return WatchingCost(way, *median_interval(speeds), *median_interval(times))


@contextmanager
def scraped(url: str) -> Iterator[None]:
    """Scrape a server's metrics again and again while the block runs."""
    ending = threading.Event()

    def scrape() -> None:
        with httpx2.Client(trust_env=False) as client:
            while not ending.is_set():
                client.get(f"{url}/metrics").raise_for_status()
                ending.wait(SCRAPE_S)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@contextmanager
def sink() -> Iterator[str]:
    """Take whatever is posted while the block runs, and drop it; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Drop it."""
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
