"""What a coordinator adds to a node's own time: many clients at once ask nodes whose engine is a wait, and real ones.

Clients are closed loops: each asks its next question when its answer has come. What is added is the client's time from
asking to the whole answer, less `node_ms`, which the node measures itself: HTTP, queue, choice, the calls between the
processes, and what all of them wait for each other. Clients begin one after the other over the time of one answer: with
equal waits they would else be in step for ever. Bursts, where all ask at the same moment, are measured apart.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any

import httpx2

from qubic_lab.bench.concurrency import quantile, quantile_interval
from qubic_lab.bench.echo_node import MODEL, echo_text, echo_tokens
from qubic_lab.bench.local_cluster import local_cluster, run_apart
from qubic_lab.cluster.balance import DEFAULT_BALANCER, make_balancer
from qubic_lab.errors import InputError, check_range
from qubic_lab.pipeline import PipelineConfig
from qubic_lab.pipeline.config import resolve_config
from qubic_lab.provenance import machine, source_commit, usable_cores

MOST_REQUESTS, MOST_CONCURRENCY, MOST_NODES, MOST_NEW_TOKENS = 100_000, 500, 12, 256
MOST_SECONDS = 60.0
LIMIT_MS = 100.0
"""What a coordinator may add while 50 requests run, at the 95th percentile: the acceptance of row 10.6."""
BURSTS = 5
REAL_SLOTS = 4
"""Requests that decode together on a real node; as many clients as all nodes have slots, so that none waits for one."""
REAL_DTYPE, REAL_THREADS = "bf16", 1
REAL_NEW_TOKENS = 24
REAL_START_S = 300.0
DEADLINE_S = 600.0
QUESTIONS = (
    "Why is the sky blue?",
    "Name three rivers of Europe.",
    "What is a prime number?",
    "How does a bicycle stay upright?",
    "Write one sentence about the sea.",
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """A request and the text that answers it; None: not known yet."""

    body: dict[str, Any]
    expected: str | None = None


@dataclass(frozen=True)
class Exchange:
    """A question as its client saw it: times in ms; `fault` says why it was not answered as it should be."""

    task: str = ""
    text: str = ""
    total_ms: float = 0.0
    node_ms: float = 0.0
    fault: str = ""

    @property
    def added_ms(self) -> float:
        """All but the node's own time."""
        return self.total_ms - self.node_ms


@dataclass(frozen=True)
class Quantiles:
    """Order statistics, each with a 95 % interval; an end that so few values cannot give is None."""

    p50: float
    p50_low: float | None
    p50_high: float | None
    p95: float
    p95_low: float | None
    p95_high: float | None
    p99: float
    p99_low: float | None
    p99_high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        """Sum up values, of which there is one at least."""
        p50, p95, p99 = (quantile(values, share) for share in (0.5, 0.95, 0.99))
        (low50, high50), (low95, high95), (low99, high99) = (quantile_interval(values, q) for q in (0.5, 0.95, 0.99))
        return cls(p50, low50, high50, p95, low95, high95, p99, low99, high99)


@dataclass(frozen=True)
class Load:
    """What clients got from nodes of one kind.

    `errors`: requests without their own right answer, of which `first_error` tells one; times are of the others, and
    None where there are none. `slots` of each node, `new_tokens` of an answer.
    """

    requests: int
    concurrency: int
    nodes: int
    slots: int
    new_tokens: int
    errors: int
    first_error: str
    added_ms: Quantiles | None
    total_ms: Quantiles | None
    node_ms: Quantiles | None
    requests_per_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class DispatchResult:
    """Echo nodes, which wait for `seconds`, as they are judged and in bursts; real ones, if they were measured.

    `model`, `dtype` and `threads` are those of a real node.
    """

    echo: Load
    seconds: float
    limit_ms: float
    within_limit: bool
    burst: Load
    real: Load | None
    model: str
    meaningless: bool
    dtype: str
    threads: int
    balancer: str
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is judged stands at the top."""
        content = asdict(self)
        return {**content.pop("echo"), **content}


def bench_dispatch(
    requests: int = 1_000,
    concurrency: int = 50,
    nodes: int = 3,
    seconds: float = 1.0,
    new_tokens: int = 16,
    real_requests: int = 100,
    model: str = "smollm2",
    balancer: str = DEFAULT_BALANCER,
    progress: Progress | None = None,
) -> DispatchResult:
    """Ask a coordinator and its nodes, all of them processes of this machine, by many clients at once.

    Args:
        requests: to echo nodes, at least as many as clients.
        concurrency: clients of the echo nodes, of which each has a slot for every client.
        nodes: echo nodes.
        seconds: an echo node's wait.
        new_tokens: of an echo node's answer, evenly over the wait.
        real_requests: to real nodes, one of one thread for each core but no more than two; 0: start none.
        model: what these run.
        balancer: how the coordinator chooses.
        progress: called after each answer.

    Raises:
        InputError: a number is out of range, an unknown balancer, or the model cannot be had.
        QubicLabError: a process does not come up.
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
    progress = progress or (lambda text, done, total: None)
    echo, burst = _measure_echo(requests, concurrency, nodes, seconds, new_tokens, balancer, progress)
    return DispatchResult(
        echo=echo,
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
        machine=str(machine()),
        commit=str(source_commit()),
    )


def echo_questions(count: int, new_tokens: int) -> list[Question]:
    """Return requests to echo nodes, each with an answer of its own."""
    return [
        Question(
            {"prompt": f"request {number}", "max_new_tokens": new_tokens, "seed": number * new_tokens},
            echo_text(echo_tokens(number * new_tokens, new_tokens)),
        )
        for number in range(count)
    ]


def sum_up(
    answered: Sequence[Exchange], took_s: float, concurrency: int, nodes: int, slots: int, new_tokens: int
) -> Load:
    """Sum up what came in `took_s` seconds; a task whose answer another request got before is an error, too."""
    right: dict[str, Exchange] = {}
    faults = []
    for each in answered:
        if fault := each.fault or ("two requests got the same task" if each.task in right else ""):
            faults.append(fault)
        else:
            right[each.task] = each

    def quantiles(name: str) -> Quantiles | None:
        return Quantiles.of([getattr(each, name) for each in right.values()]) if right else None

    return Load(
        requests=len(answered),
        concurrency=concurrency,
        nodes=nodes,
        slots=slots,
        new_tokens=new_tokens,
        errors=len(faults),
        first_error=faults[0] if faults else "",
        added_ms=quantiles("added_ms"),
        total_ms=quantiles("total_ms"),
        node_ms=quantiles("node_ms"),
        requests_per_s=len(right) / took_s,
        tokens_per_s=len(right) * new_tokens / took_s,
    )


async def ask(client: httpx2.AsyncClient, question: Question) -> Exchange:
    """Ask one question and check its answer."""
    started = time.perf_counter()
    try:
        response = await client.post("/api/ai/query", json=question.body | {"deadline_s": DEADLINE_S})
        total_ms = (time.perf_counter() - started) * 1_000
        content = response.json()
    except (httpx2.TransportError, ValueError) as error:
        return Exchange(fault=f"{type(error).__name__}: {error}")
    if response.status_code != httpx2.codes.OK:
        return Exchange(fault=f"status {response.status_code}: {content.get('detail')}")
    wrong = question.expected is not None and content["text"] != question.expected
    fault = f"{question.body['prompt']!r} was answered {content['text']!r}" if wrong else ""
    return Exchange(content["task_id"], content["text"], total_ms, content["node_ms"], fault)


async def ask_all(
    url: str,
    questions: Iterable[Question],
    concurrency: int,
    begin_over_s: float = 0.0,
    note: Callable[[int], None] = lambda answered: None,
) -> tuple[list[Exchange], float]:
    """Ask by so many clients at once, each with a connection that is open before.

    Args:
        url: of the coordinator.
        questions: each is asked once, in this order.
        concurrency: clients.
        begin_over_s: so long after the first client the last one begins, nearly.
        note: called with the number of answers.

    Returns:
        What came, in the order in which it came, and the seconds from the first question to the last answer.
    """
    waiting = iter(questions)
    answered: list[Exchange] = []
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

    async def ask_on(client: httpx2.AsyncClient, begin_s: float) -> None:
        await asyncio.sleep(begin_s)
        for question in waiting:
            answered.append(await ask(client, question))
            note(len(answered))

    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=DEADLINE_S, trust_env=False) as client:
        await asyncio.gather(*(client.get("/health") for _ in range(concurrency)), return_exceptions=True)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for number in range(concurrency):
                clients.create_task(ask_on(client, begin_over_s * number / concurrency))
        return answered, time.perf_counter() - started


def _measure_echo(
    requests: int, concurrency: int, nodes: int, seconds: float, new_tokens: int, balancer: str, progress: Progress
) -> tuple[Load, Load]:
    """Return what was got by clients that begin one after the other, and in bursts."""
    names = [f"echo-{number}" for number in range(1, nodes + 1)]
    burst = echo_questions(concurrency, new_tokens)
    with local_cluster(balancer=balancer) as cluster:
        for name in names:
            cluster.start_echo(name, token_s=seconds / new_tokens, slots=concurrency)
        cluster.wait_for_nodes(*names)
        [url] = cluster.urls.values()
        run_apart(ask_all(url, burst, concurrency))  # what first requests pay for is not counted
        steady, steady_s = run_apart(
            ask_all(
                url,
                echo_questions(requests, new_tokens),
                concurrency,
                seconds,
                lambda answered: progress("echo nodes", answered, requests),
            )
        )
        bursts = [run_apart(ask_all(url, burst, concurrency)) for _ in range(BURSTS)]
    setting = (concurrency, nodes, concurrency, new_tokens)
    at_once = [each for answered, _ in bursts for each in answered]
    return sum_up(steady, steady_s, *setting), sum_up(at_once, sum(took_s for _, took_s in bursts), *setting)


def _measure_real(config: PipelineConfig, requests: int, balancer: str, progress: Progress) -> Load:
    """Ask real nodes; each question was asked alone before, and its answer must be the same."""
    names = [f"real-{number}" for number in range(1, min(2, usable_cores()) + 1)]
    asked = [Question({"prompt": each, "max_new_tokens": REAL_NEW_TOKENS, "ignore_eos": True}) for each in QUESTIONS]
    with local_cluster(balancer=balancer) as cluster:
        for name in names:
            cluster.start_node(name, config.model, config.dtype, REAL_THREADS, config.slots)
        cluster.wait_for_nodes(*names, within_s=REAL_START_S)
        [url] = cluster.urls.values()
        alone, _ = run_apart(ask_all(url, asked, concurrency=1))
        known = [Question(each.body, answer.text) for each, answer in zip(asked, alone, strict=True)]
        concurrency = min(requests, len(names) * config.slots)
        answered, took_s = run_apart(
            ask_all(
                url,
                islice(cycle(known), requests),
                concurrency,
                note=lambda answered: progress("real nodes", answered, requests),
            )
        )
    return sum_up(answered, took_s, concurrency, len(names), config.slots, REAL_NEW_TOKENS)
