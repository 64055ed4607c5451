"""Records what each client sees, token by token, while a node and optionally a coordinator are killed.

The processes are real ones on this machine; the nodes are echo nodes, so the tokens of each answer are known in
advance. Requests start at even intervals. A node is killed in the middle of its answers (SIGKILL) and restarted later.
A client whose coordinator dies asks another one, with the same Idempotency-Key and the number of its last event.

Times are seconds since the first request, on the clock that all processes of a host share (`time.monotonic`).
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, pairwise
from typing import Any

import httpx2

from qubic_lab.bench.echo_node import Begun, echo_tokens, read_begun
from qubic_lab.bench.local_cluster import LocalCluster, local_cluster, run_apart
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import MeasuredResult, Table, counted
from qubic_lab.cluster.redis_server import connect
from qubic_lab.cluster.tasks import LogEntry, TaskQueue, count_lost_and_duplicated
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_range

MOST_REQUESTS, MOST_NODES, MOST_NEW_TOKENS = 1_000, 12, 1_000
LOOK_S = 0.1
"""Interval at which the coordinators are asked for the state of the nodes."""
ASK_AGAIN_S = 0.2
GIVE_UP_S = 60.0
"""A request is given up this long after the time that its answer should take."""
_PROMPT = "request "

Clock = Callable[[], float]


@dataclass(frozen=True)
class FailoverPlan:
    """What is asked: `requests` at even intervals of nodes with a slot for each, answers of `new_tokens` in `seconds`.

    With `kill_coordinator` two coordinators are started, and the first one is killed too.

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

    def at_share(self, share: float) -> float:
        """Return the time at which a share of the requests have started."""
        return self.requests * self.every_s * share


@dataclass(frozen=True)
class NodeStay:
    """A node started working on a request at `from_s`, when the answer had `known` tokens, as the node reports."""

    node: str
    from_s: float
    known: int


@dataclass(frozen=True)
class ClientStream:
    """One request as its client saw it.

    `number` determines its tokens; `task` is empty, and `ended_s` None, if no end came: then `fault` says why.
    `attempts` is as the answer reports it, `stays` are those of the nodes that worked on it.
    """

    number: int
    task: str
    coordinators: tuple[str, ...]
    begun_s: float
    ended_s: float | None
    token_ids: tuple[int, ...]
    token_s: tuple[float, ...]
    attempts: int
    stays: tuple[NodeStay, ...]
    fault: str

    @property
    def longest_gap_s(self) -> float:
        """Longest time without a token, counted from the request."""
        return max((later - before for before, later in pairwise((self.begun_s, *self.token_s))), default=0.0)

    def left(self, at_s: float) -> str | None:
        """Return the node that it was on at a time if it moved to another node later; else None."""
        before = [stay.node for stay in self.stays if stay.from_s <= at_s]
        return before[-1] if 0 < len(before) < len(self.stays) else None

    def gap_s(self, at_s: float) -> float:
        """Return the time between the last token before a moment and the first one after it."""
        news_s = (self.begun_s, *self.token_s)
        return min(each for each in news_s if each > at_s) - max(each for each in news_s if each <= at_s)


@dataclass(frozen=True)
class GateChange:
    """A coordinator changed its view of a node; `gate` says why the node may not be chosen, None if it may."""

    at_s: float
    coordinator: str
    node: str
    gate: str | None


@dataclass(frozen=True)
class KilledProcesses:
    """The processes that were killed and when; the node was restarted, the coordinator was not."""

    node: str
    killed_s: float
    started_s: float
    coordinator: str | None
    coordinator_killed_s: float | None


@dataclass(frozen=True)
class FailoverResult(MeasuredResult):
    """All streams, and how the system handled the failures.

    Attributes:
        shut_s: when every coordinator had noticed that the node was gone; None: one did not before it was back.
        open_s: when the first coordinator allowed the node again; None: not within the run.
        chosen_s: when the node started a request again; None: not within the run.
        left_node: requests that were on the node when it was killed, and continued on another node.
        left_coordinator: requests of the coordinator that was killed, which the other one continued.
        node_gaps_s, coordinator_gaps_s: time without a token of each of these.
        asked_again: requests whose clients had to ask the other coordinator.
        lost, duplicated: requests without an end in the queue's log, further ends of a task in it.
        wrong: requests whose client did not get every token once and in order, and an end.
    """

    plan: FailoverPlan
    failures: KilledProcesses
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
    streams: tuple[ClientStream, ...]
    gates: tuple[GateChange, ...]

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(f"{s.number}", f"{s.begun_s:.2f}", "never" if s.ended_s is None else f"{s.ended_s:.2f}"),
                *(f"{len(s.token_ids)}", f"{s.attempts}", f"{s.longest_gap_s:.2f}"),
                " → ".join(f"{stay.node} from token {stay.known}" for stay in s.stays),
                " → ".join(s.coordinators),
            )
            for s in self.streams
        ]
        counts = ("tokens", "tries", "longest gap s")
        yield Table(("request", "begun s", "ended s", *counts, "nodes", "coordinators asked"), rows)
        killed = self.failures
        yield (
            f"{killed.node} killed at {killed.killed_s:.2f} s, noticed by all coordinators at {_time(self.shut_s)}, "
            f"restarted at {killed.started_s:.2f} s, allowed again at {_time(self.open_s)}, chosen at "
            f"{_time(self.chosen_s)}; {len(self.left_node)} streams moved, gaps {_gaps(self.node_gaps_s)}"
        )
        if killed.coordinator is not None:
            yield (
                f"{killed.coordinator} killed at {_time(killed.coordinator_killed_s)}; the other one continued "
                f"{len(self.left_coordinator)} streams, gaps {_gaps(self.coordinator_gaps_s)}; "
                f"{len(self.asked_again)} clients asked it"
            )
        yield f"{self.lost} lost, {self.duplicated} answered twice, {len(self.wrong)} streams not right"


def _time(at_s: float | None) -> str:
    return "no time" if at_s is None else f"{at_s:.2f} s"


def _gaps(gaps_s: Sequence[float]) -> str:
    return f"{min(gaps_s):.2f} to {max(gaps_s):.2f} s" if gaps_s else "none"


@dataclass
class _Reading:
    """What one client has received so far: events with their times, names and data."""

    number: int
    begun_s: float
    coordinators: list[str] = field(default_factory=list)
    events: list[tuple[float, str, Mapping[str, Any]]] = field(default_factory=list)
    fault: str = ""

    def named(self, name: str) -> list[tuple[float, Mapping[str, Any]]]:
        """Return times and data of the events of a name."""
        return [(at_s, data) for at_s, event, data in self.events if event == name]

    def close(self, stays: Sequence[NodeStay]) -> ClientStream:
        """Return the finished stream."""
        tokens, ends = self.named("token"), self.named("end")
        end: Mapping[str, Any] = ends[0][1] if ends else {"task_id": "", "attempts": 0}
        return ClientStream(
            number=self.number,
            task=end["task_id"],
            coordinators=tuple(self.coordinators),
            begun_s=self.begun_s,
            ended_s=ends[0][0] if ends else None,
            token_ids=tuple(data["id"] for _, data in tokens),
            token_s=tuple(at_s for at_s, _ in tokens),
            attempts=end["attempts"],
            stays=tuple(stays),
            fault=self.fault,
        )


def bench_failover(plan: FailoverPlan | None = None, progress: Progress = no_progress) -> FailoverResult:
    """Let clients read their streams while processes are killed; a QubicLabError if a process does not start."""
    plan = plan or FailoverPlan()
    names = [f"node-{number}" for number in range(1, plan.nodes + 1)]
    with local_cluster(2 if plan.kill_coordinator else 1) as cluster:
        for name in names:
            cluster.start_echo(name, token_s=plan.seconds / plan.new_tokens, slots=plan.requests)
        cluster.wait_for_nodes(*names)
        watch = NoiseWatch()
        first_s = time.monotonic()
        # The restarted node ends with the thread that started it, when all is measured.
        readings, failures, gates = run_apart(_run(plan, cluster, lambda: time.monotonic() - first_s, progress))
        noise = watch.noise()
        begun = [each for name in names for each in read_begun(cluster.log(name).read_text().splitlines())]
        with connect(cluster.redis.url) as client:
            log = list(TaskQueue(client).log())
    stays = read_stays(begun, first_s)
    streams = [reading.close(stays.get(reading.number, [])) for reading in readings]
    return replace(summarize(plan, streams, failures, gates, log), noise=noise)


def read_stays(begun: Iterable[Begun], first_s: float) -> dict[int, list[NodeStay]]:
    """Return the nodes that worked on each request, in order; probes are ignored."""
    stays: dict[int, list[NodeStay]] = {}
    for each in sorted(begun, key=lambda each: each.at_s):
        if each.prompt.startswith(_PROMPT):
            number = int(each.prompt.removeprefix(_PROMPT))
            stays.setdefault(number, []).append(NodeStay(each.node, each.at_s - first_s, each.known))
    return stays


def summarize(
    plan: FailoverPlan,
    streams: Sequence[ClientStream],
    failures: KilledProcesses,
    gates: Sequence[GateChange],
    log: Sequence[LogEntry],
) -> FailoverResult:
    """Check what the clients saw, and compute how long each failure interrupted them."""
    tasks = [stream.task for stream in streams]
    known = [task for task in tasks if task]
    lost, duplicated = count_lost_and_duplicated(known, log)
    right = [stream for stream in streams if is_right(stream, plan) and tasks.count(stream.task) == 1]
    left_node = [stream for stream in right if stream.left(failures.killed_s) == failures.node]
    killed_s = failures.coordinator_killed_s
    left_coordinator = [stream for stream in right if killed_s is not None and stream.left(killed_s) is not None]
    of_node = [change for change in gates if change.node == failures.node]
    away = [each for each in of_node if failures.killed_s < each.at_s < failures.started_s and each.gate is not None]
    noticed = {each.coordinator: each.at_s for each in reversed(away)}  # the first change of each coordinator
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
    )


def is_right(stream: ClientStream, plan: FailoverPlan) -> bool:
    """Return whether a client got every token of its request once and in order, and an end."""
    expected = echo_tokens(stream.number * plan.new_tokens, plan.new_tokens)
    return stream.ended_s is not None and not stream.fault and stream.token_ids == tuple(expected)


async def _run(
    plan: FailoverPlan, cluster: LocalCluster, clock: Clock, progress: Progress
) -> tuple[list[_Reading], KilledProcesses, list[GateChange]]:
    gates: list[GateChange] = []
    note = counted(progress, plan.requests)

    async def read(number: int) -> _Reading:
        reading = await _read(plan, client, cluster.urls, number, clock)
        note("streams")
        return reading

    limits = httpx2.Limits(max_connections=None)
    async with (
        httpx2.AsyncClient(limits=limits, timeout=GIVE_UP_S, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        watching = [group.create_task(_watch(client, *each, clock, gates)) for each in cluster.urls.items()]
        failing = group.create_task(_fail(plan, client, cluster, clock))
        reading = [group.create_task(read(number)) for number in range(plan.requests)]
        readings, failures = [await each for each in reading], await failing
        for each in watching:
            each.cancel()
    return readings, failures, gates


async def _fail(plan: FailoverPlan, client: httpx2.AsyncClient, cluster: LocalCluster, clock: Clock) -> KilledProcesses:
    """Kill the busiest node, restart it, and kill the first coordinator if the plan says so."""
    await asyncio.sleep(plan.at_share(1 / 4) - clock())
    coordinator, url = next(iter(cluster.urls.items()))
    nodes = (await client.get(f"{url}/api/cluster/nodes")).json()
    node: str = max(nodes, key=lambda node: node["outstanding"]["requests"])["name"]
    killed_s = clock()
    cluster.kill(node)
    await asyncio.sleep(plan.at_share(3 / 8) - clock())
    started_s = clock()
    cluster.start_again(node)
    if not plan.kill_coordinator:
        return KilledProcesses(node, killed_s, started_s, None, None)
    await asyncio.sleep(plan.at_share(3 / 4) - clock())
    coordinator_killed_s = clock()
    cluster.kill(coordinator)
    return KilledProcesses(node, killed_s, started_s, coordinator, coordinator_killed_s)


async def _watch(client: httpx2.AsyncClient, coordinator: str, url: str, clock: Clock, gates: list[GateChange]) -> None:
    """Record how a coordinator sees the nodes whenever that changes."""
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
    """Run one client: ask one coordinator after the other until the end has come."""
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
            # Clients start with different coordinators.
            for coordinator, url in islice(cycle(urls.items()), number % len(urls), None):
                if coordinator not in reading.coordinators[-1:]:
                    reading.coordinators.append(coordinator)
                with suppress(httpx2.TransportError):  # the coordinator is gone
                    await _read_on(client, f"{url}/api/ai/query", body, reading, clock)
                if reading.named("end") or reading.fault:
                    break
                await asyncio.sleep(ASK_AGAIN_S)
    except TimeoutError:
        reading.fault = f"no end came within {plan.seconds + GIVE_UP_S:g} s"
    return reading


async def _read_on(
    client: httpx2.AsyncClient, url: str, body: Mapping[str, Any], reading: _Reading, clock: Clock
) -> None:
    """Read the stream from where it broke off until it ends or breaks off again."""
    headers = {"Idempotency-Key": str(body["prompt"]), "Last-Event-ID": str(len(reading.named("token")))}
    async with client.stream("POST", url, json=body, headers=headers) as response:
        if response.is_error:
            content = json.loads(await response.aread())
            if response.status_code not in (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE):
                reading.fault = str(content["detail"])
            return
        event = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data" and event == "error":
                reading.fault = str(json.loads(value)["detail"])
            elif name == "data":
                reading.events.append((clock(), event, json.loads(value)))
