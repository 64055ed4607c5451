"""Measures concurrent votes on a cluster of this machine, and where more clients no longer give more votes.

Clients are closed loops: each asks for its next vote when it has its answer, through the HTTP interface. On echo nodes,
real nodes whose engine only waits, the coordinator is the limit: it asks, compares, counts and keeps each vote. On real
nodes the model is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qubic_lab.bench.dispatch import (
    REAL_DTYPE,
    REAL_SLOTS,
    REAL_START_S,
    REAL_THREADS,
    REAL_TOKENS,
    LoadResult,
    TimedRequest,
    ask_all,
    sum_up,
)
from qubic_lab.bench.local_cluster import LocalCluster, local_cluster, run_apart
from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import check_range
from qubic_lab.pipeline.config import PipelineConfig, resolve_config
from qubic_lab.provenance import usable_cores

NEARLY = 0.9
"""Votes are saturated from the fewest clients whose votes/s are at least this share of the most."""
QUESTION, SAID = "What is 5 + 7?", "5 + 7 equals 12."
TIMES = ("p50 ms", "p95 ms (95 % interval)", "p99 ms")
HEADER = ("kind", "nodes", "at once", "votes", "errors", *TIMES, "votes/s", "votes/s a node")
ANSWER_S = 0.2
"""Time of an echo node's answer."""


@dataclass(frozen=True)
class VoteLoadResult(MeasuredResult):
    """The loads of each kind of node, echo and real, by growing numbers of concurrent votes (`concurrency`)."""

    loads: Mapping[str, tuple[LoadResult, ...]]
    model: str
    meaningless: bool

    def rows(self) -> list[tuple[str, ...]]:
        """Return the loads as rows below HEADER."""
        return [
            (kind, *map(str, (load.nodes, load.concurrency, load.requests, load.errors)))
            + (load.total_ms.texts() if load.total_ms else ("-", "-", "-"))
            + (f"{load.requests_per_s:.2f}", f"{load.requests_per_s / load.nodes:.2f}")
            for kind, loads in self.loads.items()
            for load in loads
        ]

    def report(self) -> Iterator[Table | str]:
        yield Table(HEADER, self.rows())
        yield from capacities(self.loads)
        errors = (load.first_error for loads in self.loads.values() for load in loads)
        yield from (f"first error: {each}" for each in errors if each)


def capacities(loads: Mapping[str, Sequence[LoadResult]]) -> Iterator[str]:
    """Say for each kind of node how many votes/s it takes, and with how many concurrent votes that is reached."""
    for kind, found in loads.items():
        at, rising = capacity(found)
        how = "still rising" if rising else "saturated"
        rates = f"{at.requests_per_s:.2f} votes/s, {at.requests_per_s / at.nodes:.2f} a node"
        yield f"{kind} nodes: {rates}, {how} at {at.concurrency} concurrent votes"


def capacity(loads: Sequence[LoadResult]) -> tuple[LoadResult, bool]:
    """Return the load with the fewest concurrent votes of nearly the most votes/s, and whether it is the last one."""
    most = max(load.requests_per_s for load in loads)
    at = min((load for load in loads if load.requests_per_s >= NEARLY * most), key=lambda load: load.concurrency)
    return at, at.concurrency == max(load.concurrency for load in loads)


def bench_vote_load(
    clients: Sequence[int] = (1, 4, 16, 64),
    votes: int = 100,
    real_votes: int = 12,
    model: str = "smollm2",
    progress: Progress = no_progress,
) -> VoteLoadResult:
    """Hold votes of three answers with each number of `clients`, at least two votes for each client.

    `votes` are held on three echo nodes with a slot for every client, and `real_votes` on real nodes, one for each core
    but at most two; 0: none are started.

    Raises:
        InputError: a number is out of range, or the model cannot be loaded.
        QubicLabError: a process does not start.
    """
    for name, value, least in (
        ("votes", votes, 1),
        ("real-votes", real_votes, 0),
        *(("clients", n, 1) for n in clients),
    ):
        check_range(f"--{name}", value, least, 256 if name == "clients" else 10_000)
    config = PipelineConfig(model, 1, dtype=REAL_DTYPE, threads=REAL_THREADS, slots=REAL_SLOTS)
    meaningless = resolve_config(config).meaningless if real_votes else False
    with local_cluster() as cluster:
        names = ["echo-1", "echo-2", "echo-3"]
        cluster.start_echo(*names, token_s=ANSWER_S, slots=max(clients), says=SAID)
        loads = {"echo": _measure(cluster, names, clients, votes, 1, progress)}
    if real_votes:
        names = [f"real-{number}" for number in range(1, min(2, usable_cores()) + 1)]
        with local_cluster() as cluster:
            for name in names:
                cluster.start_node(name, model, REAL_DTYPE, REAL_THREADS, REAL_SLOTS)
            loads["real"] = _measure(cluster, names, clients, real_votes, REAL_TOKENS, progress)
    return VoteLoadResult(loads, model if real_votes else "", meaningless)


def _measure(
    cluster: LocalCluster, names: list[str], clients: Sequence[int], votes: int, tokens: int, progress: Progress
) -> tuple[LoadResult, ...]:
    """Hold the votes of each number of clients after a first one, which loads what is loaded once."""
    cluster.wait_for_nodes(*names, within_s=REAL_START_S)
    [url] = cluster.urls.values()
    body = {"prompt": QUESTION, "mode": "consensus", "max_new_tokens": tokens}
    run_apart(ask_all(url, [TimedRequest(body)], 1))
    loads: list[LoadResult] = []
    for number in clients:
        progress(f"{number} votes at once on {names[0]}", len(loads), len(clients))
        asked = [TimedRequest(body | {"seed": seed}) for seed in range(max(votes, 2 * number))]
        loads.append(sum_up(*run_apart(ask_all(url, asked, number)), number, len(names), REAL_SLOTS, tokens))
    return tuple(loads)
