"""Measures how the cost of coordinator, registry and queue grows with the number of nodes, and which limit comes first.

There are two measurements for each number of nodes:

- **Calls.** The calls that a coordinator makes to a registry with that many records are timed one by one.
- **Processes.** That many nodes are registered at a coordinator and send heartbeats at the real rate. The CPU use of
  coordinator and Redis is measured first while idle, then while clients ask as fast as they get answers, which also
  gives the highest request rate. Most nodes are only names: a few echo nodes take their requests and answer their
  probes.

As a check, the second measurement is repeated with a few real nodes, each with its own service and connections.
"""

import asyncio
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, pairwise, product
from pathlib import Path
from typing import Any

import grpc.aio
import redis

from qubic_lab.bench.dispatch import Exchange, ask_all, echo_requests
from qubic_lab.bench.local_cluster import LocalCluster, cpu_s, local_cluster, run_apart
from qubic_lab.bench.result import MeasuredResult, Spread, Table, counted, seconds_of
from qubic_lab.cluster.balance import BALANCERS, make_balancer
from qubic_lab.cluster.dispatcher import LOOK_S
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.registry import HEARTBEAT_S, Registry
from qubic_lab.cluster.tasks import TaskQueue
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, QubicLabError, check_range
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.services import REGISTRY_SERVICE, stub_of

LEVELS = (10, 100, 300, 1_000)
REAL = (3, 6, 12)
MOST_NODES, MOST_REAL = 5_000, 50
REPEAT = 20
TASKS = 200
SERVICES = 4
"""Real services behind all names."""
CONNECTIONS = 16
"""Connections that carry the heartbeats of the names."""
SETTLE_S = HEARTBEAT_S + 1.0
"""Time after which every node has sent a heartbeat, and idle ones are probed."""
WINDOWS = 3
REQUESTS, CLIENTS, TOKEN_S = 150, 32, 0.02
"""Load of a busy window, with one token per request: enough to keep a coordinator fully busy."""
FARTHEST = 10
"""A number of nodes more than so many times beyond the measured ones is not known: measurements say nothing of it."""
REQUESTS_PER_NODE_S = 0.1
"""Assumed load: each node gets a request every ten seconds."""
STATE = pb.NodeState(cpu_share=0.5, memory_share=0.5, ready=True, finished=1_000, tokens=100_000)


@dataclass(frozen=True)
class CallCosts:
    """Times of calls while `nodes` nodes are registered, in ms.

    Attributes:
        nodes_ms: reading from the registry what half a second of heartbeats (LOOK_S) has changed.
        update_ms: updating the coordinator's view with that.
        beat_ms: writing one heartbeat.
        choose_ms: choosing a node, by balancer.
        tasks_per_s: tasks that one thread submits, takes and completes one after the other.
        redis_bytes: memory of Redis per node.
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
    """CPU use of coordinator and Redis in shares of a core, and the highest request rate, with `nodes` nodes.

    `names` of them are only names, which registered in `join_s` one after the other. `beats_per_s` are their heartbeats
    that were answered while idle; below one per name in 5 s the coordinator did not keep up. Busy is while clients ask
    as fast as they can; then each process uses about one core at most, as Python runs one thread and Redis one script
    at a time.
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

    def cells(self) -> tuple[str, ...]:
        return (
            *(f"{self.nodes}", f"{self.names}", f"{self.beats_per_s:.1f}"),
            *(self.coordinator_idle.text(".1%"), self.redis_idle.text(".1%"), self.requests_per_s.text(".1f")),
            *(self.coordinator_busy.text(".0%"), self.redis_busy.text(".0%")),
        )


@dataclass(frozen=True)
class NodeLimit:
    """The number of nodes at which the load equals the highest request rate.

    `nodes` is from the medians of the windows, `low` and `high` are the fewest and the most that any combination of
    lowest and highest rates gives. One that is more than FARTHEST times the most nodes measured is None: it is not
    known. `beyond`: `nodes` is more than were measured, and therefore extrapolated. `process` has the higher CPU use at
    the nearest measured number of nodes.
    """

    nodes: float | None
    low: float | None
    high: float | None
    beyond: bool
    process: str

    def text(self, write: Callable[[float], str] = "{:.0f}".format) -> str:
        """Return the number of nodes with both ends; what is not known is said so."""
        nodes = "an unknown number of" if self.nodes is None else write(self.nodes)
        ends = "no end is known" if self.low is None else f"{write(self.low)} at least, the most is unknown"
        if self.low is not None and self.high is not None:
            ends = f"{write(self.low)} to {write(self.high)}"
        return f"{nodes} nodes ({ends}{', extrapolated' if self.beyond else ''})"


@dataclass(frozen=True)
class ScaleResult(MeasuredResult):
    """All levels, the check with real nodes, and the limit under the assumed load."""

    calls: tuple[CallCosts, ...]
    processes: tuple[ProcessCosts, ...]
    check: tuple[ProcessCosts, ...]
    limit: NodeLimit
    requests_per_node_s: float
    beat_every_s: float

    def report(self) -> Iterator[Table | str]:
        balancers = tuple(self.calls[0].choose_ms)
        calls = [
            (
                *(f"{c.nodes}", c.nodes_ms.text(), c.update_ms.text(), c.beat_ms.text()),
                *(f"{c.choose_ms[name].median:.2f}" for name in balancers),
                *(f"{c.tasks_per_s:.0f}", f"{c.redis_bytes:.0f}"),
            )
            for c in self.calls
        ]
        times = ("read changes ms", "update ms", "heartbeat ms")
        yield Table(("nodes", *times, *balancers, "tasks/s", "bytes a node"), calls)
        idle, busy = ("coordinator idle", "Redis idle"), ("coordinator busy", "Redis busy")
        header = ("nodes", "of them names", "heartbeats/s", *idle, "requests/s", *busy)
        yield Table(header, [each.cells() for each in (*self.processes, *self.check)])
        limit = self.limit
        yield (
            f"with {self.requests_per_node_s:g} requests/s a node one coordinator can serve {limit.text()}; "
            f"the busier process is {limit.process}"
        )


def bench_scale(
    levels: Sequence[int] = LEVELS,
    real: Sequence[int] = REAL,
    requests_per_node_s: float = REQUESTS_PER_NODE_S,
    window_s: float = HEARTBEAT_S,
    progress: Progress = no_progress,
) -> ScaleResult:
    """Measure a coordinator and its Redis with each number of nodes.

    There are at least two `levels`, in increasing order. `real` are numbers of real nodes for the check, and may be
    empty; `requests_per_node_s` is the load for which the limit is computed. A number of nodes has three idle windows.

    Raises:
        InputError: a number is out of range.
        QubicLabError: a process does not start.
    """
    _check(levels, real, requests_per_node_s, window_s)
    note = counted(progress, 2 * len(levels) + len(real))
    calls, processes, check = [], [], []
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server, connect(server.url) as client:
        for nodes in levels:
            calls.append(measure_calls(client, nodes))
            note(f"calls, {nodes} nodes")
    for nodes in levels:
        processes.append(measure_processes(nodes, min(SERVICES, nodes), window_s))
        note(f"processes, {nodes} nodes")
    for nodes in real:
        check.append(measure_processes(nodes, nodes, window_s))
        note(f"processes, {nodes} real nodes")
    return ScaleResult(
        calls=tuple(calls),
        processes=tuple(processes),
        check=tuple(check),
        limit=find_limit(processes, requests_per_node_s),
        requests_per_node_s=requests_per_node_s,
        beat_every_s=HEARTBEAT_S,
    )


def measure_calls(client: redis.Redis, nodes: int) -> CallCosts:
    """Time the calls with a number of nodes; all data in this Redis are deleted."""
    client.flushall()
    registry = Registry(client)
    for name, session in _register(registry, 1):
        registry.leave(name, session)
    registry.nodes()  # loads the scripts into the server
    empty_bytes = client.info("memory")["used_memory"]
    sessions = _register(registry, nodes)
    full_bytes = client.info("memory")["used_memory"]
    records = registry.nodes()
    fleets = {name: Fleet("coordinator", make_balancer(name), random.Random(0)) for name in BALANCERS}
    for fleet in fleets.values():
        fleet.update(records, now_s=0.0)
    beats, changes = cycle(sessions), [registry.changes()]

    def read() -> None:
        changes.append(registry.changes(changes[-1].at_ms))

    def beat_some() -> None:
        for name, session in islice(beats, max(1, round(nodes * LOOK_S / HEARTBEAT_S))):
            registry.beat(name, session, STATE)

    return CallCosts(
        nodes=nodes,
        nodes_ms=_times_ms(read, beat_some),
        update_ms=_times_ms(lambda: fleet.update(changes[-1].records, 0.0, changes[-1].gone)),
        beat_ms=_times_ms(lambda: registry.beat(*next(beats), STATE)),
        choose_ms={name: _times_ms(partial(fleet.choose, 0.0)) for name, fleet in fleets.items()},
        tasks_per_s=_tasks_per_s(TaskQueue(client)),
        redis_bytes=(full_bytes - empty_bytes) / nodes,
    )


def registration_of(number: int, address: str) -> pb.NodeRegistration:
    """Return the registration of a node with two GPUs."""
    own = pb.Capabilities(
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
        node=f"name-{number}", address=address, type="whole", capabilities=own, weight=1, identity="one"
    )


def measure_processes(nodes: int, services: int, window_s: float) -> ProcessCosts:
    """Measure a coordinator and its Redis with `nodes` registered nodes, of which `services` are real."""
    real = [f"real-{number}" for number in range(services)]
    with local_cluster() as cluster:
        cluster.start_echo(*real, token_s=TOKEN_S, slots=CLIENTS)
        addresses = cluster.wait_for_nodes(*real)
        return run_apart(_watch(cluster, _Names(cluster.registries[0], nodes - services, addresses), nodes, window_s))


def find_limit(processes: Sequence[ProcessCosts], requests_per_node_s: float) -> NodeLimit:
    """Return how many nodes can be served, from measurements at two or more numbers of nodes in increasing order."""

    def where(of_each: Sequence[str]) -> float:
        rates = [getattr(each.requests_per_s, which) for each, which in zip(processes, of_each, strict=True)]
        nodes = [each.nodes for each in processes]
        return where_whole([(n, n * requests_per_node_s / rate) for n, rate in zip(nodes, rates, strict=True)])

    nodes = where(["median"] * len(processes))
    ends = [nodes, *map(where, product(("low", "high"), repeat=len(processes)))]
    nearest = min(processes, key=lambda each: abs(math.log(each.nodes) - math.log(nodes)))
    busier = "redis" if nearest.redis_busy.median > nearest.coordinator_busy.median else "coordinator"
    most = processes[-1].nodes
    middle, low, high = (each if each <= FARTHEST * most else None for each in (nodes, min(ends), max(ends)))
    return NodeLimit(middle, low, high, nodes > most, busier)


def where_whole(shares: Sequence[tuple[int, float]]) -> float:
    """Return the number of nodes at which a share reaches 1, with a power law between and beyond the measured points.

    There are at least two points, by increasing nodes. Infinity: the share does not increase at the end.
    """
    for (nodes, share), (more, larger) in pairwise(shares):
        if larger >= 1.0 or (more, larger) == shares[-1]:
            if larger <= share:
                continue
            exponent = math.log(larger / share) / math.log(more / nodes)
            return float(nodes * (1.0 / share) ** (1.0 / exponent))
    return math.inf


class _Names:
    """Nodes that are only names: they register and send heartbeats, but other nodes' services stand behind them."""

    def __init__(self, registry: str, count: int, addresses: Sequence[str]) -> None:
        self.count = count
        self._registry = registry
        self._registrations = [registration_of(n, address) for n, address in enumerate(islice(cycle(addresses), count))]
        self.beats = 0

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Register all names, and send their heartbeats at even intervals while the block runs."""
        async with AsyncExitStack() as stack:
            options = (("grpc.use_local_subchannel_pool", 1),)  # otherwise all channels share one connection
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(self._registry, options=options))
                for _ in range(CONNECTIONS)
            ]
            beating = []
            for number, registration in enumerate(self._registrations):
                stub = stub_of(channels[number % CONNECTIONS], REGISTRY_SERVICE)
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
    """An idle or a busy window: its seconds, CPU use in shares of a core, heartbeats, and answered requests."""

    seconds: float
    coordinator: float
    redis: float
    beats: float
    answered: Sequence[Exchange]


async def _watch(cluster: LocalCluster, names: _Names, nodes: int, window_s: float) -> ProcessCosts:
    [(coordinator, url)] = cluster.urls.items()
    assert cluster.redis.pid is not None  # Redis has just answered
    redis_pid = cluster.redis.pid

    def read() -> tuple[float, ...]:
        return time.monotonic(), cluster.cpu_s(coordinator), cpu_s(redis_pid), names.beats

    async def window(asking: bool) -> _Window:
        before, answered = read(), list[Exchange]()
        if asking:
            answered, _ = await ask_all(url, echo_requests(REQUESTS, 1), CLIENTS)
        else:
            await asyncio.sleep(window_s)
        seconds, coordinator_s, redis_s, beats = (late - early for early, late in zip(before, read(), strict=True))
        return _Window(seconds, coordinator_s / seconds, redis_s / seconds, beats, answered)

    started = time.perf_counter()
    async with names.living():
        join_s = time.perf_counter() - started
        await asyncio.sleep(min(SETTLE_S, 2 * window_s))
        idle = [await window(asking=False) for _ in range(WINDOWS)]
        busy = [await window(asking=True) for _ in range(WINDOWS)]
    answered = [each for one in busy for each in one.answered]
    if faults := [each.fault for each in answered if each.fault]:
        raise QubicLabError(f"{len(faults)} of {len(answered)} requests failed at {nodes} nodes: {faults[0]}")
    return ProcessCosts(
        nodes=nodes,
        names=names.count,
        join_s=join_s if names.count else 0.0,
        beats_per_s=sum(each.beats for each in idle) / sum(each.seconds for each in idle),
        coordinator_idle=Spread.of([each.coordinator for each in idle]),
        redis_idle=Spread.of([each.redis for each in idle]),
        requests_per_s=Spread.of([len(each.answered) / each.seconds for each in busy]),
        coordinator_busy=Spread.of([each.coordinator for each in busy]),
        redis_busy=Spread.of([each.redis for each in busy]),
    )


def _register(registry: Registry, nodes: int) -> list[tuple[str, str]]:
    """Register nodes with one heartbeat each; return their names and sessions."""
    sessions = []
    for number in range(nodes):
        registration = registration_of(number, "127.0.0.1:1")
        sessions.append((registration.node, registry.register(registration)))
        registry.beat(*sessions[-1], STATE)
    return sessions


def _times_ms(call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> Spread:
    """Return the times of repeated calls, each after an untimed call of `before`."""
    return Spread.of([1_000 * seconds_of(call) for _ in range(REPEAT) if before() is None])


def _tasks_per_s(queue: TaskQueue) -> float:
    started = time.perf_counter()
    for number in range(TASKS):
        queue.submit({"number": number})
        lease = queue.take("consumer")
        assert lease is not None  # the task was just submitted
        queue.complete(lease, {"number": number})
    return TASKS / (time.perf_counter() - started)


def _check(levels: Sequence[int], real: Sequence[int], requests_per_node_s: float, window_s: float) -> None:
    for nodes in levels:
        check_range("--nodes", nodes, 2, MOST_NODES)
    for nodes in real:
        check_range("--real", nodes, 1, MOST_REAL)
    if len(levels) < 2 or any(more <= nodes for nodes, more in pairwise(levels)):
        raise InputError(f"--nodes is {', '.join(map(str, levels))}: give at least two numbers in increasing order")
    for option, value in (("--requests-per-node", requests_per_node_s), ("--window", window_s)):
        if not 0 < value <= 60:
            raise InputError(f"{option} is {value}: it must be above 0 and at most 60")
