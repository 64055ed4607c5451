"""What a coordinator, its registry and its queue cost as nodes become many, and what is at its end first.

Two measurements at each number of nodes:

- **Calls.** A registry holds so many records, and the calls that a coordinator makes of it are timed one by one.
- **Processes.** A coordinator has so many nodes registered that send their heartbeats at the real rate. How much of a
  core it and Redis use is read from the system: first while nobody asks, then while clients ask as fast as they get
  answers, which also tells how many requests a second it can take. Most nodes are names: the services of a few echo
  nodes stand behind all of them, take their requests and answer their probes.

Beside it, as a check, a few nodes that are real ones, each with its own service, heartbeats and connections.
"""

import asyncio
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice, pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio
import redis

from qubic_lab.bench.dispatch import Exchange, ask_all, echo_questions
from qubic_lab.bench.local_cluster import LocalCluster, cpu_s, local_cluster, run_apart
from qubic_lab.cluster.balance import BALANCERS, make_balancer
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.registry import HEARTBEAT_S, Registry
from qubic_lab.cluster.tasks import TaskQueue
from qubic_lab.errors import InputError, QubicLabError, check_range
from qubic_lab.provenance import machine, source_commit
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc

LEVELS = (10, 100, 300, 1_000)
REAL = (3, 6, 12)
MOST_NODES, MOST_REAL = 5_000, 50
REPEAT = 20
TASKS = 200
SERVICES = 4
"""Real services behind all names."""
CONNECTIONS = 16
"""Over which the names' heartbeats come."""
SETTLE_S = HEARTBEAT_S + 1.0
"""Every node has sent a heartbeat by then, and idle ones are probed."""
WINDOWS = 3
REQUESTS, CLIENTS, TOKEN_S = 150, 32, 0.02
"""Of a window in which clients ask, for one token: enough to leave a coordinator no rest."""
REQUESTS_PER_NODE_S = 0.1
"""What is assumed of the load: each node gets a request in ten seconds."""
STATE = pb.NodeState(cpu_share=0.5, memory_share=0.5, ready=True, finished=1_000, tokens=100_000)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up one value or more."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class CallCosts:
    """Calls while `nodes` are registered, in ms.

    Attributes:
        nodes: how many.
        nodes_ms: to read all of them from the registry.
        update_ms: to take them over.
        beat_ms: to write one heartbeat.
        choose_ms: to choose one, by balancer.
        tasks_per_s: put in, taken and completed one after the other, by one thread.
        redis_bytes: of Redis's memory for each.
    """

    nodes: int
    nodes_ms: Spread
    update_ms: Spread
    beat_ms: Spread
    choose_ms: dict[str, Spread]
    tasks_per_s: float
    redis_bytes: float


@dataclass(frozen=True)
class ProcessCosts:
    """What coordinator and Redis use, in shares of a core, and can take while `nodes` are registered.

    Attributes:
        nodes: how many.
        names: how many of them are names.
        join_s: until these had registered, one after the other, each with a first heartbeat.
        beats_per_s: heartbeats of names that were answered while nobody asked; one in 5 s for each, or it did not keep
            up.
        coordinator_idle: while nobody asked.
        redis_idle: the same.
        requests_per_s: what clients got who asked as fast as they could.
        coordinator_busy: meanwhile. More than one core it can hardly use: Python runs one thread at a time.
        redis_busy: the same. Redis runs scripts one at a time, too.
    """

    nodes: int
    names: int
    join_s: float
    beats_per_s: float
    coordinator_idle: Spread
    redis_idle: Spread
    requests_per_s: Spread
    coordinator_busy: Spread
    redis_busy: Spread


@dataclass(frozen=True)
class Limit:
    """The number of nodes whose requests are as many as can be taken, and a range of it.

    Attributes:
        nodes: by the medians of the windows.
        low: by whichever of their lowest and highest values give the fewest nodes.
        high: the same for the most.
        beyond: it is more than were measured, and so extrapolated.
        process: which of the two uses more of its core, where that was measured next to it.
    """

    nodes: float
    low: float
    high: float
    beyond: bool
    process: str


@dataclass(frozen=True)
class ScaleResult:
    """All levels, the check, and the limit at the load that is assumed."""

    calls: tuple[CallCosts, ...]
    processes: tuple[ProcessCosts, ...]
    check: tuple[ProcessCosts, ...]
    limit: Limit
    requests_per_node_s: float
    beat_every_s: float
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench_scale(
    levels: Sequence[int] = LEVELS,
    real: Sequence[int] = REAL,
    requests_per_node_s: float = REQUESTS_PER_NODE_S,
    window_s: float = HEARTBEAT_S,
    progress: Progress | None = None,
) -> ScaleResult:
    """Measure a coordinator and its Redis at each number of nodes.

    Args:
        levels: numbers of nodes, two at least, rising.
        real: numbers of real nodes for the check; may be empty.
        requests_per_node_s: the load that the limit is for.
        window_s: so long is looked at the processes at a time, three times at each number.
        progress: called before each measurement.

    Raises:
        InputError: a number is out of range.
        QubicLabError: a process does not come up.
    """
    _check(levels, real, requests_per_node_s, window_s)
    steps = 2 * len(levels) + len(real)
    told = progress or (lambda text, done, total: None)
    calls, processes, check = [], [], []
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server, connect(server.url) as client:
        for done, nodes in enumerate(levels):
            told(f"calls, {nodes} nodes", done, steps)
            calls.append(measure_calls(client, nodes))
    for done, nodes in enumerate(levels, start=len(levels)):
        told(f"processes, {nodes} nodes", done, steps)
        processes.append(measure_processes(nodes, min(SERVICES, nodes), window_s))
    for done, nodes in enumerate(real, start=2 * len(levels)):
        told(f"processes, {nodes} real nodes", done, steps)
        check.append(measure_processes(nodes, nodes, window_s))
    return ScaleResult(
        calls=tuple(calls),
        processes=tuple(processes),
        check=tuple(check),
        limit=find_limit(processes, requests_per_node_s),
        requests_per_node_s=requests_per_node_s,
        beat_every_s=HEARTBEAT_S,
        machine=str(machine()),
        commit=str(source_commit()),
    )


def measure_calls(client: redis.Redis, nodes: int) -> CallCosts:
    """Time calls on a Redis that holds nothing that is needed."""
    client.flushall()
    registry = Registry(client)
    for name, session in _register(registry, 1):
        registry.leave(name, session)
    registry.nodes()  # the server has all scripts now
    empty_bytes = client.info("memory")["used_memory"]
    sessions = _register(registry, nodes)
    full_bytes = client.info("memory")["used_memory"]
    records = registry.nodes()
    fleets = {name: Fleet("coordinator", make_balancer(name), random.Random(0)) for name in BALANCERS}
    for fleet in fleets.values():
        fleet.update(records, now_s=0.0)
    beats = cycle(sessions)
    return CallCosts(
        nodes=nodes,
        nodes_ms=_times_ms(registry.nodes),
        update_ms=_times_ms(lambda: fleet.update(records, now_s=0.0)),
        beat_ms=_times_ms(lambda: registry.beat(*next(beats), STATE)),
        choose_ms={name: _times_ms(partial(fleet.choose, 0.0)) for name, fleet in fleets.items()},
        tasks_per_s=_tasks_per_s(TaskQueue(client)),
        redis_bytes=(full_bytes - empty_bytes) / nodes,
    )


def registration_of(number: int, address: str) -> pb.NodeRegistration:
    """Return what a node with two GPUs tells of itself."""
    capabilities = pb.Capabilities(
        model="deepseek",
        model_hash="0" * 64,
        layers=[16, 12],
        dtype="fp16",
        devices=["Tesla T4", "Tesla T4"],
        memory_bytes=2**35,
        slots=8,
        tokens_per_s=30.0,
    )
    return pb.NodeRegistration(
        node=f"name-{number}", address=address, type="whole", capabilities=capabilities, weight=1
    )


def measure_processes(nodes: int, services: int, window_s: float) -> ProcessCosts:
    """Look at a coordinator and its Redis while so many nodes are registered, of which `services` are real ones."""
    real = [f"real-{number}" for number in range(services)]
    with local_cluster() as cluster:
        cluster.start_echo(*real, token_s=TOKEN_S, slots=CLIENTS)
        addresses = cluster.wait_for_nodes(*real)
        return run_apart(_look_at(cluster, _Names(cluster.registries[0], nodes - services, addresses), nodes, window_s))


def find_limit(processes: Sequence[ProcessCosts], requests_per_node_s: float) -> Limit:
    """Return how many nodes can be served that get so many requests a second each.

    Args:
        processes: at two numbers of nodes or more, rising.
        requests_per_node_s: of each node.
    """

    def where(of_each: Sequence[str]) -> float:
        return where_whole(
            [
                (each.nodes, each.nodes * requests_per_node_s / getattr(each.requests_per_s, which))
                for each, which in zip(processes, of_each, strict=True)
            ]
        )

    nodes = where(["median"] * len(processes))
    ends = [nodes, *map(where, product(("low", "high"), repeat=len(processes)))]
    nearest = min(processes, key=lambda each: abs(math.log(each.nodes) - math.log(nodes)))
    redis_first = nearest.redis_busy.median > nearest.coordinator_busy.median
    return Limit(nodes, min(ends), max(ends), nodes > processes[-1].nodes, "redis" if redis_first else "coordinator")


def where_whole(shares: Sequence[tuple[int, float]]) -> float:
    """Return the number of nodes at which a share is 1: a power law between two neighbours, and beyond the last two.

    Args:
        shares: numbers of nodes, rising, each with the share at it; two at least.

    Returns:
        Infinity where the share does not rise at the end.
    """
    for (nodes, share), (more, larger) in pairwise(shares):
        if larger >= 1.0 or (more, larger) == shares[-1]:
            if larger <= share:
                continue
            exponent = math.log(larger / share) / math.log(more / nodes)
            return float(nodes * (1.0 / share) ** (1.0 / exponent))
    return math.inf


class _Names:
    """Nodes that are names alone: registered at a coordinator, with heartbeats, and others' services behind them."""

    def __init__(self, registry: str, count: int, addresses: Sequence[str]) -> None:
        self.count = count
        self._registry = registry
        self._registrations = [
            registration_of(number, address) for number, address in enumerate(islice(cycle(addresses), count))
        ]
        self.beats = 0

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Register all, and send their heartbeats while the block runs, evenly over the time between two of one."""
        async with AsyncExitStack() as stack:
            options = (("grpc.use_local_subchannel_pool", 1),)  # else all are one connection
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(self._registry, options=options))
                for _ in range(CONNECTIONS)
            ]
            beating = []
            for number, registration in enumerate(self._registrations):
                stub: Any = cluster_pb2_grpc.RegistryStub(channels[number % CONNECTIONS])
                registered = await stub.Register(registration)
                heartbeat = pb.Heartbeat(node=registration.node, session=registered.session, state=STATE)
                await stub.Beat(heartbeat)
                phase_s = HEARTBEAT_S * number / len(self._registrations)
                beating.append(asyncio.ensure_future(self._beat_on(stub, heartbeat, phase_s)))
            try:
                yield
            finally:
                for each in beating:
                    each.cancel()
                await asyncio.gather(*beating, return_exceptions=True)

    async def _beat_on(self, stub: Any, heartbeat: pb.Heartbeat, phase_s: float) -> None:
        due_s = time.monotonic() + phase_s
        while True:
            await asyncio.sleep(due_s - time.monotonic())
            await stub.Beat(heartbeat)
            self.beats += 1
            due_s += HEARTBEAT_S


@dataclass(frozen=True)
class _Window:
    """What was seen while nobody asked, or while clients did: seconds, processor time in seconds, and counts."""

    seconds: float
    coordinator_s: float
    redis_s: float
    beats: float
    answered: Sequence[Exchange]


async def _look_at(cluster: LocalCluster, names: _Names, nodes: int, window_s: float) -> ProcessCosts:
    [(coordinator, url)] = cluster.urls.items()
    redis_pid = cluster.redis.pid
    assert redis_pid is not None  # it answered a moment ago

    def read() -> tuple[float, ...]:
        return time.monotonic(), cluster.cpu_s(coordinator), cpu_s(redis_pid), names.beats

    async def look(asking: bool) -> _Window:
        before, answered = read(), list[Exchange]()
        if asking:
            answered, _ = await ask_all(url, echo_questions(REQUESTS, 1), CLIENTS)
        else:
            await asyncio.sleep(window_s)
        seconds, coordinator_s, redis_s, beats = (late - early for early, late in zip(before, read(), strict=True))
        return _Window(seconds, coordinator_s, redis_s, beats, answered)

    started = time.perf_counter()
    async with names.living():
        join_s = time.perf_counter() - started
        await asyncio.sleep(min(SETTLE_S, 2 * window_s))
        idle = [await look(asking=False) for _ in range(WINDOWS)]
        busy = [await look(asking=True) for _ in range(WINDOWS)]
    answered = [each for window in busy for each in window.answered]
    if faults := [each.fault for each in answered if each.fault]:
        raise QubicLabError(f"{len(faults)} of {len(answered)} requests failed at {nodes} nodes: {faults[0]}")
    return ProcessCosts(
        nodes=nodes,
        names=names.count,
        join_s=join_s if names.count else 0.0,
        beats_per_s=sum(each.beats for each in idle) / sum(each.seconds for each in idle),
        coordinator_idle=Spread.of([each.coordinator_s / each.seconds for each in idle]),
        redis_idle=Spread.of([each.redis_s / each.seconds for each in idle]),
        requests_per_s=Spread.of([len(each.answered) / each.seconds for each in busy]),
        coordinator_busy=Spread.of([each.coordinator_s / each.seconds for each in busy]),
        redis_busy=Spread.of([each.redis_s / each.seconds for each in busy]),
    )


def _register(registry: Registry, nodes: int) -> list[tuple[str, str]]:
    """Register nodes with a heartbeat each; return their names and sessions."""
    sessions = []
    for number in range(nodes):
        registration = registration_of(number, "127.0.0.1:1")
        sessions.append((registration.node, registry.register(registration)))
        registry.beat(*sessions[-1], STATE)
    return sessions


def _times_ms(call: Callable[[], Any]) -> Spread:
    times_ms = []
    for _ in range(REPEAT):
        started = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - started) * 1_000)
    return Spread.of(times_ms)


def _tasks_per_s(queue: TaskQueue) -> float:
    started = time.perf_counter()
    for number in range(TASKS):
        queue.submit({"number": number})
        lease = queue.take("consumer")
        assert lease is not None  # what was just put in
        queue.complete(lease, {"number": number})
    return TASKS / (time.perf_counter() - started)


def _check(levels: Sequence[int], real: Sequence[int], requests_per_node_s: float, window_s: float) -> None:
    for nodes in levels:
        check_range("--nodes", nodes, 2, MOST_NODES)
    for nodes in real:
        check_range("--real", nodes, 1, MOST_REAL)
    if len(levels) < 2 or any(more <= nodes for nodes, more in pairwise(levels)):
        raise InputError(f"--nodes is {', '.join(map(str, levels))}: give two numbers at least, rising")
    for option, value in (("--requests-per-node", requests_per_node_s), ("--window", window_s)):
        if not 0 < value <= 60:
            raise InputError(f"{option} is {value}: it must be above 0 and at most 60")
