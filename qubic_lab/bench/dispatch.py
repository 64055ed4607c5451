"""Measures the latency that a coordinator adds to the nodes' own time, with many concurrent clients.

Clients are closed loops: each sends its next request when it has its answer. The added time is the client's latency
minus `node_ms`, which the node measures itself: HTTP, queue, node choice, calls between processes and waiting. Clients
start staggered over the time of one answer, because with equal waits they would stay in lockstep. Bursts, where all
clients ask at the same moment, are measured separately. Echo nodes are real nodes whose engine only waits.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import httpx2

from qubic_lab.bench.echo_node import MODEL, echo_text, echo_tokens
from qubic_lab.bench.local_cluster import closed_loops, local_cluster, run_apart
from qubic_lab.bench.noise import MachineNoise, NoiseWatch
from qubic_lab.bench.result import MeasuredResult, Percentiles, Table
from qubic_lab.cluster.balance import DEFAULT_BALANCER, make_balancer
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_range
from qubic_lab.pipeline.config import PipelineConfig, resolve_config
from qubic_lab.provenance import usable_cores

MOST_REQUESTS, MOST_CONCURRENCY, MOST_NODES, MOST_NEW_TOKENS = 100_000, 500, 12, 256
MOST_SECONDS = 60.0
LIMIT_MS = 100.0
"""Limit of the added time at the 95th percentile, with 50 concurrent requests."""
BURSTS = 5
REAL_SLOTS = 4
"""Requests that decode together on a real node. There are as many clients as slots, so no request waits for one."""
REAL_DTYPE, REAL_THREADS = "bf16", 1
REAL_TOKENS = 24
REAL_START_S = 300.0
DEADLINE_S = 600.0
QUESTIONS = (
    "Why is the sky blue?",
    "Name three rivers of Europe.",
    "What is a prime number?",
    "How does a bicycle stay upright?",
    "Write one sentence about the sea.",
)


@dataclass(frozen=True)
class TimedRequest:
    """The body of a request and the text of its right answer; None: not known."""

    body: dict[str, Any]
    expected: str | None = None


@dataclass(frozen=True)
class Exchange:
    """One request as its client saw it; `fault` says what was wrong with the answer, and is empty if nothing was."""

    task: str = ""
    text: str = ""
    total_ms: float = 0.0
    node_ms: float = 0.0
    fault: str = ""

    @property
    def added_ms(self) -> float:
        """The latency without the node's own time."""
        return self.total_ms - self.node_ms


@dataclass(frozen=True)
class LoadResult:
    """What clients measured on nodes of one kind.

    `errors` counts the requests without their right answer; times are of the others, None if there are none. `slots`
    are those of each node, `new_tokens` those of an answer.
    """

    requests: int
    concurrency: int
    nodes: int
    slots: int
    new_tokens: int
    errors: int
    first_error: str
    added_ms: Percentiles | None
    total_ms: Percentiles | None
    node_ms: Percentiles | None
    requests_per_s: float
    tokens_per_s: float

    def cells(self) -> tuple[str, ...]:
        times: tuple[str, ...] = ("-", "-", "-", "-")
        if self.added_ms is not None and self.node_ms is not None:
            times = (*self.added_ms.texts(), f"{self.node_ms.p50:.1f}")
        counts = (self.nodes, self.concurrency, self.requests, self.errors)
        return (*map(str, counts), *times, f"{self.requests_per_s:.1f}", f"{self.tokens_per_s:.0f}")


@dataclass(frozen=True)
class DispatchResult(MeasuredResult, LoadResult):
    """Echo nodes, which wait for `seconds`, under steady load and in bursts, and real nodes if they were measured.

    `model`, `dtype` and `threads` are those of a real node.
    """

    seconds: float
    limit_ms: float
    within_limit: bool
    burst: LoadResult
    real: LoadResult | None
    model: str
    meaningless: bool
    dtype: str
    threads: int
    balancer: str

    def report(self) -> Iterator[Table | str]:
        loads = {"echo": self, "echo, bursts": self.burst} | ({"real": self.real} if self.real else {})
        counts, added = ("nodes", "clients", "requests", "errors"), ("added p50 ms", "p95 (95 % interval)", "p99")
        header = ("kind", *counts, *added, "node p50 ms", "requests/s", "tokens/s")
        yield Table(header, [(name, *load.cells()) for name, load in loads.items()])
        for name, load in loads.items():
            if load.first_error:
                yield f"first error of {name}: {load.first_error}"
        verdict = "met" if self.within_limit else "NOT met"
        yield f"limit for echo nodes, p95 below {self.limit_ms:g} ms and no errors: {verdict}"


def bench_dispatch(
    requests: int = 1_000,
    concurrency: int = 50,
    nodes: int = 3,
    seconds: float = 1.0,
    new_tokens: int = 16,
    real_requests: int = 100,
    model: str = "smollm2",
    balancer: str = DEFAULT_BALANCER,
    progress: Progress = no_progress,
) -> DispatchResult:
    """Measure a coordinator and its nodes, which are processes of this machine, with many concurrent clients.

    Each echo node has a slot for every client, and takes `seconds` for an answer, whose tokens are spread evenly over
    that time. `real_requests` go to real nodes, one for each core but at most two; 0: none are started. `requests` are
    at least as many as clients.

    Raises:
        InputError: a number is out of range, the balancer is unknown, or the model cannot be loaded.
        QubicLabError: a process does not start.
    """
    check_range("--requests", requests, 1, MOST_REQUESTS)
    check_range("--concurrency", concurrency, 1, min(requests, MOST_CONCURRENCY))
    check_range("--nodes", nodes, 1, MOST_NODES)
    check_range("--new-tokens", new_tokens, 1, MOST_NEW_TOKENS)
    check_range("--real-requests", real_requests, 0, MOST_REQUESTS)
    if not 0 < seconds <= MOST_SECONDS:
        raise InputError(f"--seconds is {seconds}: it must be above 0 and at most {MOST_SECONDS:g}")
    make_balancer(balancer)
    config = PipelineConfig(model, 1, dtype=REAL_DTYPE, threads=REAL_THREADS, slots=REAL_SLOTS)
    meaningless = resolve_config(config).meaningless if real_requests else False
    echo, burst, noise = _measure_echo(requests, concurrency, nodes, seconds, new_tokens, balancer, progress)
    return DispatchResult(
        **vars(echo),
        seconds=seconds,
        limit_ms=LIMIT_MS,
        within_limit=echo.errors == 0 and echo.added_ms is not None and echo.added_ms.p95 < LIMIT_MS,
        burst=burst,
        real=_measure_real(config, real_requests, balancer, progress) if real_requests else None,
        model=model if real_requests else MODEL,
        meaningless=meaningless,
        dtype=REAL_DTYPE,
        threads=REAL_THREADS,
        balancer=balancer,
        noise=noise,
    )


def echo_requests(count: int, new_tokens: int) -> list[TimedRequest]:
    """Return requests to echo nodes; no two have the same answer."""
    return [
        TimedRequest(
            {"prompt": f"request {number}", "max_new_tokens": new_tokens, "seed": number * new_tokens},
            echo_text(echo_tokens(number * new_tokens, new_tokens)),
        )
        for number in range(count)
    ]


def sum_up(
    answered: Sequence[Exchange], took_s: float, concurrency: int, nodes: int, slots: int, new_tokens: int
) -> LoadResult:
    """Summarize the answers of `took_s` seconds; if two requests got the same task, the second one is an error."""
    right: dict[str, Exchange] = {}
    faults = []
    for each in answered:
        if fault := each.fault or ("two requests got the same task" if each.task in right else ""):
            faults.append(fault)
        else:
            right[each.task] = each

    def percentiles(name: str) -> Percentiles | None:
        return Percentiles.of([getattr(each, name) for each in right.values()]) if right else None

    return LoadResult(
        requests=len(answered),
        concurrency=concurrency,
        nodes=nodes,
        slots=slots,
        new_tokens=new_tokens,
        errors=len(faults),
        first_error=faults[0] if faults else "",
        added_ms=percentiles("added_ms"),
        total_ms=percentiles("total_ms"),
        node_ms=percentiles("node_ms"),
        requests_per_s=len(right) / took_s,
        tokens_per_s=len(right) * new_tokens / took_s,
    )


async def ask(client: httpx2.AsyncClient, request: TimedRequest) -> Exchange:
    """Send one request and check its answer."""
    started = time.perf_counter()
    try:
        response = await client.post("/api/ai/query", json=request.body | {"deadline_s": DEADLINE_S})
        total_ms = (time.perf_counter() - started) * 1_000
        content = response.json()
    except (httpx2.TransportError, ValueError) as error:
        return Exchange(fault=f"{type(error).__name__}: {error}")
    if response.status_code != httpx2.codes.OK:
        return Exchange(fault=f"status {response.status_code}: {content.get('detail')}")
    wrong = request.expected is not None and content["text"] != request.expected
    fault = f"{request.body['prompt']!r} was answered {content['text']!r}" if wrong else ""
    task = content.get("task_id") or content["vote_id"]
    return Exchange(task, content["text"], total_ms, content.get("node_ms", 0.0), fault)


async def ask_all(
    url: str,
    requests: Iterable[TimedRequest],
    concurrency: int,
    begin_over_s: float = 0.0,
    note: Callable[[int], None] = lambda answered: None,
) -> tuple[list[Exchange], float]:
    """Send requests to a coordinator from concurrent clients, over connections opened before; as `closed_loops`."""
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=DEADLINE_S, trust_env=False) as client:
        await asyncio.gather(*(client.get("/health") for _ in range(concurrency)), return_exceptions=True)
        return await closed_loops([partial(ask, client)] * concurrency, requests, begin_over_s, note)


def _measure_echo(
    requests: int, concurrency: int, nodes: int, seconds: float, new_tokens: int, balancer: str, progress: Progress
) -> tuple[LoadResult, LoadResult, MachineNoise]:
    names = [f"echo-{number}" for number in range(1, nodes + 1)]
    asked, burst = echo_requests(requests, new_tokens), echo_requests(concurrency, new_tokens)
    with local_cluster(balancer=balancer) as cluster:
        for name in names:
            cluster.start_echo(name, token_s=seconds / new_tokens, slots=concurrency)
        cluster.wait_for_nodes(*names)
        [url] = cluster.urls.values()
        run_apart(ask_all(url, burst, concurrency))  # warm-up
        watch = NoiseWatch()
        asking = ask_all(url, asked, concurrency, seconds, lambda done: progress("echo nodes", done, requests))
        steady, steady_s = run_apart(asking)
        bursts = [run_apart(ask_all(url, burst, concurrency)) for _ in range(BURSTS)]
        noise = watch.noise()
    setting = (concurrency, nodes, concurrency, new_tokens)
    at_once = [each for answered, _ in bursts for each in answered]
    burst_s = sum(took_s for _, took_s in bursts)
    return sum_up(steady, steady_s, *setting), sum_up(at_once, burst_s, *setting), noise


def _measure_real(config: PipelineConfig, requests: int, balancer: str, progress: Progress) -> LoadResult:
    """Measure real nodes; each question is first asked alone, and every later answer must equal that one."""
    names = [f"real-{number}" for number in range(1, min(2, usable_cores()) + 1)]
    asked = [TimedRequest({"prompt": each, "max_new_tokens": REAL_TOKENS, "ignore_eos": True}) for each in QUESTIONS]
    with local_cluster(balancer=balancer) as cluster:
        for name in names:
            cluster.start_node(name, config.model, config.dtype, REAL_THREADS, config.slots)
        cluster.wait_for_nodes(*names, within_s=REAL_START_S)
        [url] = cluster.urls.values()
        alone, _ = run_apart(ask_all(url, asked, concurrency=1))
        known = [TimedRequest(each.body, answer.text) for each, answer in zip(asked, alone, strict=True)]
        concurrency = min(requests, len(names) * config.slots)
        repeated, note = islice(cycle(known), requests), lambda done: progress("real nodes", done, requests)
        answered, took_s = run_apart(ask_all(url, repeated, concurrency, note=note))
    return sum_up(answered, took_s, concurrency, len(names), config.slots, REAL_TOKENS)
