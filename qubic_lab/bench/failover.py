"""Streams while a node, and perhaps a coordinator, is killed: what each client saw, token by token.

The processes are real ones of this machine; the nodes are echo nodes, so that an answer's tokens are known before.
Requests begin at even intervals. A node is killed in the middle of its answers (SIGKILL) and started again later. A
client whose coordinator dies asks another one, with the same Idempotency-Key and the number of the last event it saw.

Times are seconds since the first request, by the clock that all processes of a host share (`time.monotonic`).
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, pairwise
from typing import Any

import httpx2

from qubic_lab.bench.echo_node import Begun, echo_tokens, read_begun
from qubic_lab.bench.local_cluster import LocalCluster, local_cluster, run_apart
from qubic_lab.cluster.redis_server import connect
from qubic_lab.cluster.tasks import LogEntry, TaskQueue, count_lost_and_duplicated
from qubic_lab.errors import InputError, check_range
from qubic_lab.provenance import machine, source_commit

MOST_REQUESTS, MOST_NODES, MOST_NEW_TOKENS = 1_000, 12, 1_000
LOOK_S = 0.1
"""So often are coordinators asked how they see the nodes."""
ASK_AGAIN_S = 0.2
GIVE_UP_S = 60.0
"""A request that has no end so long after it could have had one is given up."""
_PROMPT = "request "

Progress = Callable[[str, int, int], None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class FailoverPlan:
    """What is asked, and what fails when.

    Attributes:
        requests: one every `every_s` seconds.
        nodes: each with a slot for every request.
        new_tokens: of an answer, evenly over `seconds`.
        kill_coordinator: start two, and kill the first one, too.

    Raises:
        InputError: a number is out of range.
    """

    requests: int = 24
    every_s: float = 0.75
    nodes: int = 3
    new_tokens: int = 40
    seconds: float = 4.0
    kill_coordinator: bool = False

    def __post_init__(self) -> None:
        check_range("--requests", self.requests, 4, MOST_REQUESTS)
        check_range("--nodes", self.nodes, 2, MOST_NODES)
        check_range("--new-tokens", self.new_tokens, 1, MOST_NEW_TOKENS)
        for option, value in (("--every", self.every_s), ("--seconds", self.seconds)):
            if not 0 < value <= GIVE_UP_S:
                raise InputError(f"{option} is {value}: it must be above 0 and at most {GIVE_UP_S:g}")

    @property
    def kill_s(self) -> float:
        """When the node is killed: a quarter of the requests has begun."""
        return self.requests * self.every_s / 4

    @property
    def start_s(self) -> float:
        """When it is started again: three eighths of the requests have begun."""
        return self.requests * self.every_s * 3 / 8

    @property
    def kill_coordinator_s(self) -> float | None:
        """When the coordinator is killed: three quarters of the requests have begun; None: it is not."""
        return self.requests * self.every_s * 3 / 4 if self.kill_coordinator else None


@dataclass(frozen=True)
class Stay:
    """That a node began a request, by what the node itself says; `known`: how many tokens the answer had by then."""

    node: str
    from_s: float
    known: int


@dataclass(frozen=True)
class Stream:
    """One request as its client saw it.

    Attributes:
        number: of the request, by which its tokens are known.
        task: its id; empty where no end came.
        coordinators: those that were asked, in turn.
        begun_s: when it was asked first.
        ended_s: when its end came; None: none came.
        token_ids: in the order in which they came.
        token_s: when each came.
        attempts: how many tries it took, by the answer.
        stays: on which nodes it was.
        fault: why there is no end.
    """

    number: int
    task: str
    coordinators: tuple[str, ...]
    begun_s: float
    ended_s: float | None
    token_ids: tuple[int, ...]
    token_s: tuple[float, ...]
    attempts: int
    stays: tuple[Stay, ...]
    fault: str

    @property
    def longest_gap_s(self) -> float:
        """For how long it had no news at most: from asking to the first token, or from one to the next."""
        return max((later - before for before, later in pairwise((self.begun_s, *self.token_s))), default=0.0)

    def left(self, at_s: float) -> str | None:
        """Return the node that it was on at a moment, where it had to go on from there; else None."""
        before = [stay.node for stay in self.stays if stay.from_s <= at_s]
        return before[-1] if 0 < len(before) < len(self.stays) else None

    def gap_s(self, at_s: float) -> float:
        """Return for how long it had no news at a moment when it was under way: from what came before to what after."""
        news_s = (self.begun_s, *self.token_s)
        return min(each for each in news_s if each > at_s) - max(each for each in news_s if each <= at_s)


@dataclass(frozen=True)
class GateChange:
    """That a coordinator began to see a node in another way; `gate` is None while it may be chosen."""

    at_s: float
    coordinator: str
    node: str
    gate: str | None


@dataclass(frozen=True)
class Failures:
    """Which processes were killed and when; the node was started again, the coordinator was not."""

    node: str
    killed_s: float
    started_s: float
    coordinator: str | None
    coordinator_killed_s: float | None


@dataclass(frozen=True)
class FailoverResult:
    """All streams, and how the failures went.

    Attributes:
        shut_s: when every coordinator had noticed that the node was gone; None: one did not before it was back.
        open_s: when the first coordinator might choose it again; None: none within the run.
        chosen_s: when it began a request again; None: none within the run.
        left_node: requests that were on the node when it was killed, and went on at another one.
        node_gaps_s: for how long each of these had no news.
        left_coordinator: requests that the coordinator worked on when it was killed, and the other one went on with.
        coordinator_gaps_s: for how long each of these had no news.
        asked_again: requests whose clients had to ask the other coordinator.
        lost: requests without an end in the queue's log.
        duplicated: ends in that log beyond a task's first.
        wrong: requests whose client did not get every token once and in order, and an end.
    """

    plan: FailoverPlan
    failures: Failures
    shut_s: float | None
    open_s: float | None
    chosen_s: float | None
    left_node: tuple[int, ...]
    node_gaps_s: tuple[float, ...]
    left_coordinator: tuple[int, ...]
    coordinator_gaps_s: tuple[float, ...]
    asked_again: tuple[int, ...]
    lost: int
    duplicated: int
    wrong: tuple[int, ...]
    streams: tuple[Stream, ...]
    gates: tuple[GateChange, ...]
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass
class _Reading:
    """What one client has so far."""

    number: int
    begun_s: float
    coordinators: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    ended_s: float | None = None
    fault: str = ""

    def hear(self, event: str, data: Mapping[str, Any], at_s: float) -> None:
        """Take over an event of the stream."""
        match event:
            case "token":
                self.token_ids.append(data["id"])
                self.token_s.append(at_s)
            case "end":
                self.end, self.ended_s = data, at_s
            case _:
                self.fault = str(data["detail"])

    def close(self, stays: Sequence[Stay]) -> Stream:
        """Return what became of it."""
        end = self.end or {"task_id": "", "attempts": 0}
        return Stream(
            number=self.number,
            task=end["task_id"],
            coordinators=tuple(self.coordinators),
            begun_s=self.begun_s,
            ended_s=self.ended_s,
            token_ids=tuple(self.token_ids),
            token_s=tuple(self.token_s),
            attempts=end["attempts"],
            stays=tuple(stays),
            fault=self.fault,
        )


def bench_failover(plan: FailoverPlan | None = None, progress: Progress | None = None) -> FailoverResult:
    """Let clients read their streams while processes are killed.

    Raises:
        QubicLabError: a process does not come up.
    """
    plan = plan or FailoverPlan()
    names = [f"node-{number}" for number in range(1, plan.nodes + 1)]
    with local_cluster(2 if plan.kill_coordinator else 1) as cluster:
        for name in names:
            cluster.start_echo(name, token_s=plan.seconds / plan.new_tokens, slots=plan.requests)
        cluster.wait_for_nodes(*names)
        first_s = time.monotonic()
        # The node that is started again in there ends with its thread, when all that is measured is over.
        readings, failures, gates = run_apart(_run(plan, cluster, lambda: time.monotonic() - first_s, progress))
        begun = [each for name in names for each in read_begun(cluster.log(name).read_text().splitlines())]
        with connect(cluster.redis.url) as client:
            log = list(TaskQueue(client).log())
    stays = read_stays(begun, first_s)
    streams = [reading.close(stays.get(reading.number, [])) for reading in readings]
    return summarize(plan, streams, failures, gates, log)


def read_stays(begun: Iterable[Begun], first_s: float) -> dict[int, list[Stay]]:
    """Return the nodes that each request was on, in turn; probes are no requests."""
    stays: dict[int, list[Stay]] = {}
    for each in sorted(begun, key=lambda each: each.at_s):
        if each.prompt.startswith(_PROMPT):
            number = int(each.prompt.removeprefix(_PROMPT))
            stays.setdefault(number, []).append(Stay(each.node, each.at_s - first_s, each.known))
    return stays


def summarize(
    plan: FailoverPlan,
    streams: Sequence[Stream],
    failures: Failures,
    gates: Sequence[GateChange],
    log: Sequence[LogEntry],
) -> FailoverResult:
    """Judge what the clients saw, and say how long the failures were felt."""
    tasks = [stream.task for stream in streams]
    known = [task for task in tasks if task]
    lost, duplicated = count_lost_and_duplicated(known, log)
    right = [stream for stream in streams if is_right(stream, plan) and tasks.count(stream.task) == 1]
    left_node = [stream for stream in right if stream.left(failures.killed_s) == failures.node]
    killed_s = failures.coordinator_killed_s
    left_coordinator = [stream for stream in right if killed_s is not None and stream.left(killed_s) is not None]
    of_node = [change for change in gates if change.node == failures.node]
    away = [each for each in of_node if failures.killed_s < each.at_s < failures.started_s and each.gate is not None]
    noticed = {each.coordinator: each.at_s for each in reversed(away)}  # the first of each
    returned = [change.at_s for change in of_node if change.gate is None and change.at_s > failures.started_s]
    stays = [stay for stream in streams for stay in stream.stays if stay.node == failures.node]
    chosen = [stay.from_s for stay in stays if stay.from_s > failures.started_s]
    return FailoverResult(
        plan=plan,
        failures=failures,
        shut_s=max(noticed.values()) if noticed.keys() == {each.coordinator for each in gates} else None,
        open_s=min(returned, default=None),
        chosen_s=min(chosen, default=None),
        left_node=tuple(stream.number for stream in left_node),
        node_gaps_s=tuple(stream.gap_s(failures.killed_s) for stream in left_node),
        left_coordinator=tuple(stream.number for stream in left_coordinator),
        coordinator_gaps_s=tuple(stream.gap_s(killed_s) for stream in left_coordinator if killed_s is not None),
        asked_again=tuple(stream.number for stream in streams if len(stream.coordinators) > 1),
        lost=lost + len(tasks) - len(known),
        duplicated=duplicated,
        wrong=tuple(stream.number for stream in streams if stream not in right),
        streams=tuple(streams),
        gates=tuple(gates),
        machine=str(machine()),
        commit=str(source_commit()),
    )


def is_right(stream: Stream, plan: FailoverPlan) -> bool:
    """Tell whether a client got every token of its request once and in order, and an end."""
    expected = echo_tokens(stream.number * plan.new_tokens, plan.new_tokens)
    return stream.ended_s is not None and not stream.fault and stream.token_ids == tuple(expected)


async def _run(
    plan: FailoverPlan, cluster: LocalCluster, clock: Clock, progress: Progress | None
) -> tuple[list[_Reading], Failures, list[GateChange]]:
    """Read all streams while the failures happen."""
    gates: list[GateChange] = []
    ended = 0

    async def read(number: int) -> _Reading:
        nonlocal ended
        reading = await _read(plan, client, cluster.urls, number, clock)
        ended += 1
        if progress is not None:
            progress("streams", ended, plan.requests)
        return reading

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(limits=limits, timeout=GIVE_UP_S, trust_env=False) as client:
        watching = [asyncio.ensure_future(_watch(client, *each, clock, gates)) for each in cluster.urls.items()]
        async with asyncio.TaskGroup() as group:
            failing = group.create_task(_fail(plan, client, cluster, clock))
            reading = [group.create_task(read(number)) for number in range(plan.requests)]
        for each in watching:
            each.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    return [each.result() for each in reading], failing.result(), gates


async def _fail(plan: FailoverPlan, client: httpx2.AsyncClient, cluster: LocalCluster, clock: Clock) -> Failures:
    """Kill the node that has most to do, start it again, and kill the first coordinator, if that is planned."""
    await asyncio.sleep(plan.kill_s - clock())
    coordinator, url = next(iter(cluster.urls.items()))
    nodes = (await client.get(f"{url}/api/cluster/nodes")).json()
    node: str = max(nodes, key=lambda node: node["outstanding"]["requests"])["name"]
    killed_s = clock()
    cluster.kill(node)
    await asyncio.sleep(plan.start_s - clock())
    started_s = clock()
    cluster.start_again(node)
    if plan.kill_coordinator_s is None:
        return Failures(node, killed_s, started_s, None, None)
    await asyncio.sleep(plan.kill_coordinator_s - clock())
    coordinator_killed_s = clock()
    cluster.kill(coordinator)
    return Failures(node, killed_s, started_s, coordinator, coordinator_killed_s)


async def _watch(client: httpx2.AsyncClient, coordinator: str, url: str, clock: Clock, gates: list[GateChange]) -> None:
    """Note how a coordinator sees the nodes, whenever that changes."""
    seen: dict[str, str | None] = {}
    while True:
        with suppress(httpx2.TransportError):
            for node in (await client.get(f"{url}/api/cluster/nodes")).json():
                name, gate = node["name"], node["gate"]
                if name not in seen or seen[name] != gate:
                    gates.append(GateChange(clock(), coordinator, name, gate))
                seen[name] = gate
        await asyncio.sleep(LOOK_S)


async def _read(
    plan: FailoverPlan, client: httpx2.AsyncClient, urls: Mapping[str, str], number: int, clock: Clock
) -> _Reading:
    """Be one client: ask one coordinator after the other, until the end has come."""
    await asyncio.sleep(number * plan.every_s - clock())
    reading = _Reading(number, clock())
    body = {
        "prompt": f"{_PROMPT}{number}",
        "max_new_tokens": plan.new_tokens,
        "seed": number * plan.new_tokens,
        "stream": True,
    }
    try:
        async with asyncio.timeout(plan.seconds + GIVE_UP_S):
            for coordinator, url in _from(number, urls):
                if coordinator not in reading.coordinators[-1:]:
                    reading.coordinators.append(coordinator)
                with suppress(httpx2.TransportError):  # it is gone
                    await _read_on(client, f"{url}/api/ai/query", body, reading, clock)
                if reading.end or reading.fault:
                    break
                await asyncio.sleep(ASK_AGAIN_S)
    except TimeoutError:
        reading.fault = f"no end came within {plan.seconds + GIVE_UP_S:g} s"
    return reading


def _from(number: int, urls: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Return coordinators for ever, another one first for each number."""
    return islice(cycle(urls.items()), number % len(urls), None)


async def _read_on(
    client: httpx2.AsyncClient, url: str, body: Mapping[str, Any], reading: _Reading, clock: Clock
) -> None:
    """Read the stream from where it broke off, until it ends or breaks off again."""
    headers = {"Idempotency-Key": str(body["prompt"]), "Last-Event-ID": str(len(reading.token_ids))}
    async with client.stream("POST", url, json=body, headers=headers) as response:
        if response.is_error:
            content = json.loads(await response.aread())
            if response.status_code not in (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE):
                reading.hear("error", content, clock())
            return
        event = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                reading.hear(event, json.loads(value), clock())
